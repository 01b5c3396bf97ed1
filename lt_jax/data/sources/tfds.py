"""Datasets in TFDS format, read without TFDS's builders, TensorFlow or network.

Only array_record files can be read at random positions. TFDS would import the modules
that ``features.json`` names, and download a missing dataset.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax import files
from lt_jax.data.images.photos import Encoded
from lt_jax.data.sources import records
from lt_jax.errors import InputError, brief

CHUNK = 1000  # records in memory at a time
INDEX_FROM = 2**28  # bytes; for smaller splits, an index saves little time

INFO = {  # what is read of dataset_info.json
    "fileFormat?": str,
    "alternativeFileFormats?": [str],
    "splits?": [{"name": str, "shardLengths": [str]}],
}


class Part(NamedTuple):
    """A split in the order of its ids."""

    classes: tuple[str, ...]  # K names
    labels: np.ndarray  # int32[N]; -1 if unknown
    ids: np.ndarray  # str[N], ascending
    encoded: Encoded


def data_dir(dir: str) -> Path:
    """The folder of prepared datasets; "" is TFDS's default."""
    if "\0" in dir:
        raise InputError(f"a folder cannot have a NUL in its name, got {dir!r:.100}")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(dir or default).expanduser()


def find(name: str, dir: str) -> Path:
    """Find the folder of the highest prepared version."""
    root = data_dir(dir)
    found = {
        tuple(int(part) for part in path.name.split(".")): path
        for path in (root / name).glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    }
    if not found:
        raise InputError(
            f"{name} is not prepared: {root / name}/<version> does not exist. Set the "
            "data folder (config.data.dir or TFDS_DATA_DIR), or prepare the dataset: "
            f"{_how_to_prepare(name, root)}"
        )
    return found[max(found)]


def load(name: str, dir: str, split: str, id: str = "id") -> Part:
    """Load one split of a prepared dataset without decoding images.

    Labels and ids come from the index, or else from the records with all images.
    ``id`` is the feature that identifies an example.
    """
    folder = find(name, dir)
    try:
        shards, count = _shards(name, folder, split)
        from array_record.python import array_record_data_source

        source: Any = array_record_data_source.ArrayRecordDataSource(shards)
        if len(source) != count:
            raise ValueError(f"{split} holds {len(source)} of {count} examples")
        stamp = records.stamp(shards)
        index = records.load_index(folder, split, stamp, count)
        if index is None:
            index = _read_labels_and_ids(source, id)
            if sum(path.stat().st_size for path in shards) >= INDEX_FROM:
                records.save_index(folder, split, stamp, *index)
        labels, ids = index
        order = np.argsort(ids)
        labels, ids = labels[order], ids[order]
        if (twice := np.flatnonzero(ids[1:] == ids[:-1])).size:
            raise ValueError(f"two examples of {split} are {ids[twice[0]]}")
        text = files.read(folder / "label.labels.txt", limit=2**22).decode("utf-8")
        # As TFDS reads them: without blanks at their ends and empty lines.
        classes = tuple(filter(None, map(str.strip, text.split("\n"))))
        if len(set(classes)) < len(classes):
            raise ValueError("label.labels.txt holds a class name twice")
    except (InputError, MemoryError):
        raise
    except Exception as error:  # array_record and protocol buffers raise anything
        raise _incomplete(name, folder, error) from error

    def encoded(rows: np.ndarray) -> list[Any]:
        found = []
        for start in range(0, len(rows), CHUNK):
            positions = order[rows[start : start + CHUNK]].tolist()
            try:
                found += map(records.image, source.__getitems__(positions))
            except (OSError, RuntimeError) as error:
                raise _incomplete(name, folder, error) from error
        return found

    return Part(classes, labels, ids, encoded)


def _shards(name: str, folder: Path, split: str) -> tuple[list[Path], int]:
    """Return the files of a split, and its number of examples."""
    remedy = f"Remove {folder} and prepare the dataset again"
    info = files.read_json(folder / "dataset_info.json", INFO, remedy)
    formats = [info.get("fileFormat", "tfrecord")]
    formats += info.get("alternativeFileFormats", [])
    if "array_record" not in formats:
        raise InputError(
            f"{name} in {folder} holds {' and '.join(formats)} files, which cannot be "
            "read at random positions: convert them (docs/howto/prepare_data.md): "
            f"tfds convert_format --dataset_version_dir={folder} "
            "--out_file_format=array_record"
        )
    splits = {found["name"]: found["shardLengths"] for found in info.get("splits", [])}
    if split not in splits:
        raise ValueError(f"no split {split!r} (found: {', '.join(splits) or 'none'})")
    lengths, stem = [*map(int, splits[split])], f"{name}-{split}.array_record"
    total = len(lengths)
    shards = [folder / f"{stem}-{i:05d}-of-{total:05d}" for i in range(total)]
    for path in shards:
        if not path.is_file():
            raise ValueError(f"{path.name} is missing or not a regular file")
    return shards, sum(lengths)


def _read_labels_and_ids(source: Any, id: str) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] and str[N] in the order of the files."""
    found: list[tuple[int, str]] = []
    for start in range(0, len(source), CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        found += (records.label_and_id(r, id) for r in source.__getitems__(rows))
    labels, ids = zip(*found, strict=True)
    return np.clip(np.array(labels), -1, 2**31 - 1).astype(np.int32), np.array(ids)


def _how_to_prepare(name: str, root: Path) -> str:
    return (
        f"lt-jax data prepare {name} --from=FOLDER_OF_ARCHIVES --dir={root} "
        "(docs/howto/prepare_data.md)"
    )


def _incomplete(name: str, folder: Path, error: BaseException) -> InputError:
    return InputError(
        f"{name} in {folder} is incomplete or damaged: {brief(error)}. Remove that "
        f"folder and prepare the dataset again: "
        f"{_how_to_prepare(name, folder.parent.parent)}"
    )
