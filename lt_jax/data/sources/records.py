"""Files of a dataset in TFDS format: array_record shards, and an index.

The shards hold ``tf.train.Example`` records, one per group, as TFDS writes them. They
are parsed with TFDS's protocol classes, so TensorFlow is not needed. A record holds the
image too, so reading all labels means reading all images; the index avoids that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 2**29  # bytes of records per file; TFDS chooses similar sizes
# Compressing photographs again gains nothing and costs minutes per hour.
OPTIONS = "group_size:1,uncompressed"
INDEX = "lt_jax_index-{split}.npz"


def index_file(folder: Path, split: str) -> Path:
    """Path of the index in the folder of the shards."""
    return folder / INDEX.format(split=split)


def stamp(shards: Iterable[Path]) -> str:
    """Names and sizes of the shards, which an index must match."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in shards)


def load_index(
    folder: Path, split: str, shards: list[Path]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Load int32[N] labels and str[N] ids in the order of the files.

    Returns None if there is no valid index for these shards.
    """
    for file in (index_file(folder, split), _cache_file(folder, split)):
        try:
            with np.load(file, allow_pickle=False) as held:
                if str(held["stamp"]) == stamp(shards):
                    return held["labels"], np.char.decode(held["ids"], "utf-8")
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            continue
    return None


def save_index(
    folder: Path, split: str, shards: list[Path], labels: np.ndarray, ids: np.ndarray
) -> None:
    """Save labels and ids for ``load_index``.

    Writes to the folder of the shards, or else to the user's cache. If neither is
    writable, no index is saved.
    """
    for file in (index_file(folder, split), _cache_file(folder, split)):
        draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as out:
                np.savez(
                    out,
                    labels=labels.astype(np.int32),
                    ids=np.char.encode(ids, "utf-8"),
                    stamp=np.array(stamp(shards)),
                )
            os.replace(draft, file)
            return
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()


def _cache_file(folder: Path, split: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache / "lt_jax" / f"{name}-{INDEX.format(split=split)}"


def example(record: bytes) -> Mapping[str, Any]:
    """Parse a record into its features by name, each a protocol message."""
    from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2
    return messages.Example.FromString(record).features.feature


class SplitWriter:
    """Writes a split: shards of about ``SHARD`` bytes, and the index."""

    def __init__(self, folder: Path, dataset: str, split: str):
        self.folder, self.dataset, self.split = folder, dataset, split
        self.lengths: list[int] = []  # records per shard
        self.bytes = 0  # of all records
        self._labels: list[int] = []
        self._ids: list[str] = []
        self._writer: Any = None
        self._shard_bytes = 0

    def add(self, record: bytes, label: int, id: str) -> None:
        """Append a record."""
        if self._writer is None:
            from array_record.python import array_record_module  # pyright: ignore

            path = self._draft(len(self.lengths))
            self._writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
            self.lengths.append(0)
            self._shard_bytes = 0
        self._writer.write(record)
        self.lengths[-1] += 1
        self._shard_bytes += len(record)
        self.bytes += len(record)
        self._labels.append(label)
        self._ids.append(id)
        if self._shard_bytes >= SHARD:
            self._close()

    def finish(self) -> None:
        """Close the last shard, rename all to TFDS's names, and write the index."""
        self._close()
        for i, path in enumerate(self.shards):
            self._draft(i).rename(path)
        labels, ids = np.array(self._labels, np.int32), np.array(self._ids, np.str_)
        save_index(self.folder, self.split, self.shards, labels, ids)

    def abandon(self) -> None:
        """Close the open file, ignoring errors."""
        with contextlib.suppress(OSError, RuntimeError):
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _draft(self, shard: int) -> Path:
        return self.folder / f"{self.dataset}-{self.split}.array_record-{shard:05d}"

    @property
    def shards(self) -> list[Path]:
        """Paths of the finished files."""
        number = len(self.lengths)
        drafts = [self._draft(i) for i in range(number)]
        return [path.with_name(f"{path.name}-of-{number:05d}") for path in drafts]
