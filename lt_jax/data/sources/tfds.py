"""Datasets in TFDS format, read without TensorFlow or network.

Only array_record files can be read at random positions. The folder is opened with
``tfds.builder_from_directory``; ``tfds.builder`` would download a missing dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.data.sources import records
from lt_jax.errors import InputError

CHUNK = 1000  # records in memory at a time
INDEX_FROM = 2**28  # bytes; for smaller splits, an index saves little time


class Part(NamedTuple):
    """A split in the order of its ids."""

    classes: tuple[str, ...]  # K names
    labels: np.ndarray  # int32[N]; -1 if unknown
    ids: np.ndarray  # str[N], ascending
    encoded: Callable[[np.ndarray], list[bytes]]  # rows int[n] -> encoded images


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
            "data folder (config.data.dir or TFDS_DATA_DIR), or prepare the dataset:\n"
            f"{_how_to_prepare(name, root)}"
        )
    return found[max(found)]


def load(name: str, dir: str, split: str, id: str = "id") -> Part:
    """Load one split of a prepared dataset without decoding images.

    Labels and ids come from the index, or else from the records with all images.

    Args:
      name, split: TFDS's names of the dataset and the split.
      dir: see ``data_dir``.
      id: feature that identifies an example.

    Raises:
      InputError: the dataset is missing, incomplete or in another file format.
    """
    folder = find(name, dir)
    import tensorflow_datasets as tfds  # imported here because it takes 0.8 s

    try:
        # Any: the type checker cannot follow TFDS's decorators and feature trees.
        builder: Any = tfds.builder_from_directory(folder)
        formats = sorted(f.value for f in builder.info.available_file_formats())
        if "array_record" not in formats:
            raise InputError(
                f"{name} in {folder} holds {' and '.join(formats)} files, which cannot "
                "be read at random positions: convert them (docs/howto/prepare_data.md)"
                f" with\n  tfds convert_format --dataset_version_dir={folder} "
                "--out_file_format=array_record"
            )
        if split not in builder.info.splits:
            found = ", ".join(builder.info.splits) or "none"
            raise _incomplete(name, folder, f"no split {split!r} (found: {found})")
        info = builder.info.splits[split]
        template = info.filename_template.replace(filetype_suffix="array_record")
        shards = template.sharded_filepaths(len(info.shard_lengths))
        stamp = records.stamp(map(Path, shards))
        source = builder.as_data_source(
            split=split,
            file_format="array_record",
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        if len(source) != info.num_examples:
            reason = f"{split} holds {len(source)} of {info.num_examples} examples"
            raise _incomplete(name, folder, reason)
        index = records.load_index(folder, split, stamp, len(source))
        if index is None:
            index = _read_labels_and_ids(source, id)
            if info.num_bytes >= INDEX_FROM:
                records.save_index(folder, split, stamp, *index)
    except (OSError, RuntimeError) as error:  # a missing, cut or damaged file
        raise _incomplete(name, folder, error) from error
    labels, ids = index
    order = np.argsort(ids)

    def encoded(rows: np.ndarray) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(rows), CHUNK):
            positions = order[rows[start : start + CHUNK]].tolist()
            for record in source.__getitems__(positions):
                found.append(records.example(record)["image"].bytes_list.value[0])
        return found

    return Part(
        classes=tuple(builder.info.features["label"].names),
        labels=labels[order],
        ids=ids[order],
        encoded=encoded,
    )


def _read_labels_and_ids(source: Any, id: str) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] and str[N] in the order of the files."""
    labels, ids = [], []
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        for record in source.__getitems__(range(start, stop)):
            features = records.example(record)
            labels.append(features["label"].int64_list.value[0])
            ids.append(features[id].bytes_list.value[0].decode())
    return np.array(labels, np.int32), np.array(ids, np.str_)


def _how_to_prepare(name: str, root: Path) -> str:
    own = f"  lt-jax data prepare {name} --from=FOLDER_OF_ARCHIVES --dir={root}"
    if not name.startswith("cifar"):
        return own
    # Not the command `tfds build`: it also needs apache-beam and mlcroissant.
    return f"""{own}
or let TFDS download it, which needs pip install 'lt_jax[prepare]':
  python -c "import tensorflow_datasets as tfds; tfds.builder('{name}', \
data_dir='{root}', file_format='array_record').download_and_prepare()\""""


def _incomplete(name: str, folder: Path, reason: object) -> InputError:
    return InputError(
        f"{name} in {folder} is incomplete: {reason}. Remove that folder and prepare "
        f"the dataset again:\n{_how_to_prepare(name, folder.parent.parent)}"
    )
