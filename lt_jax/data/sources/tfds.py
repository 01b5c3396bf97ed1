"""Sets as TFDS prepares them, read without TensorFlow or network.

TFDS reads array_record files at random positions with no TensorFlow installed. The
folder is opened with ``tfds.builder_from_directory``, which only reads: given a name
instead, TFDS starts to download whatever it does not find.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.data.sources import records
from lt_jax.errors import InputError

CHUNK = 1000  # records held in memory at a time
# From this size of a split on, its labels and ids are kept in an index once they were
# read, so that the next run need not pass over all images.
KEEP_FROM = 2**28  # bytes


class Encoded:
    """Encoded images of a split by row, from any thread; can be pickled."""

    def __init__(self, source: Any, order: np.ndarray):
        self._source = source
        self._order = order

    def __call__(self, rows: np.ndarray) -> list[bytes]:
        """The bytes of these rows' images, in this order."""
        found: list[bytes] = []
        for start in range(0, len(rows), CHUNK):
            positions = self._order[rows[start : start + CHUNK]].tolist()
            for record in self._source.__getitems__(positions):
                found.append(records.example(record)["image"].bytes_list.value[0])
        return found


class Part(NamedTuple):
    """A split in the order of its ids."""

    classes: tuple[str, ...]  # K names
    labels: np.ndarray  # int32[N]; -1: not told
    ids: np.ndarray  # str[N], ascending
    encoded: Encoded
    shape: tuple[int | None, ...]  # of an image; None where they differ


def root(dir: str) -> Path:
    """The folder that prepared sets lie in; "" is where TFDS looks."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(dir or default).expanduser()


def versions(name: str, dir: str) -> dict[tuple[int, ...], Path]:
    """The prepared versions of a set and their folders."""
    return {
        tuple(int(part) for part in path.name.split(".")): path
        for path in (root(dir) / name).glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    }


def find(name: str, dir: str) -> Path:
    """The folder of the highest version.

    Raises:
      InputError: there is none.
    """
    found = versions(name, dir)
    if not found:
        raise InputError(
            f"{name} is not prepared: looked for {root(dir) / name}/<version>. Point "
            "the data folder (config.data.dir, or TFDS_DATA_DIR) to where it is, or "
            f"prepare it once from its archives:\n{_prepare(name, root(dir))}"
        )
    return found[max(found)]


def load(name: str, folder: Path, split: str, id: str = "id") -> Part:
    """One split of a prepared set. No image is decoded.

    Labels and ids of all examples are read now: from the index beside the shards
    (under a second for 437,513 examples), or else from the records, with all their
    images (0.06 ms each for CIFAR; the speed of the disk for photographs).

    Args:
      name: as TFDS names it.
      folder: of the version.
      split: as TFDS names it.
      id: the feature that names an example.

    Raises:
      InputError: prepared as TFRecord files, or incomplete.
    """
    if not (folder / "dataset_info.json").exists():
        raise _incomplete(name, folder, "dataset_info.json is missing")
    # Imported here for the time it takes, 0.8 s that a run on other data need not wait.
    import tensorflow_datasets as tfds

    # Any: TFDS's decorators and feature trees are beyond the type checker.
    builder: Any = tfds.builder_from_directory(folder)
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise InputError(
            f"{name} in {folder} holds {' and '.join(formats)} files, which cannot be "
            "read at random positions. Convert them in place, without TensorFlow:\n"
            f"  lt-jax data convert {folder}"
        )
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits) or "none"
        raise _incomplete(name, folder, f"no split {split!r} (found: {found})")
    info = builder.info.splits[split]
    template = info.filename_template.replace(filetype_suffix="array_record")
    shards = [
        Path(path) for path in template.sharded_filepaths(len(info.shard_lengths))
    ]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        raise _incomplete(
            name, folder, f"{len(missing)} of its files missing, as {missing[0]}"
        )
    try:
        source = builder.as_data_source(
            split=split,
            file_format="array_record",
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        if len(source) != info.num_examples:
            raise _incomplete(
                name, folder, f"{split} holds {len(source)} of {info.num_examples}"
            )
        index = records.load_index(folder, split, shards)
        if index is None:
            index = _labels_ids(source, id)
            if info.num_bytes >= KEEP_FROM:
                records.save_index(folder, split, shards, *index)
    except RuntimeError as error:  # array_record's: a missing, cut or damaged file
        raise _incomplete(name, folder, error) from error
    labels, ids = index
    order = np.argsort(ids)
    features = builder.info.features
    return Part(
        classes=tuple(features["label"].names),
        labels=labels[order],
        ids=ids[order],
        encoded=Encoded(source, order),
        shape=tuple(features["image"].shape),
    )


def _labels_ids(source: Any, id: str) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] and str[N] of every record of a TFDS data source, as the files go."""
    labels, ids = [], []
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        for record in source.__getitems__(range(start, stop)):
            features = records.example(record)
            labels.append(features["label"].int64_list.value[0])
            ids.append(features[id].bytes_list.value[0].decode())
    return np.array(labels, np.int32), np.array(ids, np.str_)


def _prepare(name: str, root: Path) -> str:
    """What to type to get the set."""
    own = f"  lt-jax data prepare {name} --from=FOLDER_OF_ARCHIVES --dir={root}"
    if not name.startswith("cifar"):
        return own
    return (
        f"{own}\nor let TFDS download it, which needs TensorFlow:\n"
        "  pip install 'lt_jax[prepare]'\n"
        f"  tfds build {name} --file_format=array_record --data_dir={root}"
    )


def _incomplete(name: str, folder: Path, why: object) -> InputError:
    return InputError(
        f"{name} in {folder} is incomplete: {why}. Remove that folder and prepare the "
        f"set again:\n{_prepare(name, folder.parent.parent)}"
    )
