"""Sets that TFDS reads: array_record shards, and an index of labels and ids beside.

The shards hold ``tf.train.Example`` records, one a group, as TFDS's own writer makes
them; TFDS's protocol classes are used, so TensorFlow is not needed. A record of a
photograph holds its image too, so telling all labels takes a pass over all images: the
index saves it.
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

SHARD = 2**29  # bytes of records in a file; TFDS's own come to this for large sets
# A photograph gains nothing from a second compression, which costs minutes an hour.
OPTIONS = "group_size:1,uncompressed"
INDEX = "lt_jax_index-{split}.npz"


def index_file(folder: Path, split: str) -> Path:
    """Where the index of a split lies, beside its shards."""
    return folder / INDEX.format(split=split)


def stamp(shards: Iterable[Path]) -> str:
    """Names and sizes of the shards that an index is of."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in shards)


def load_index(
    folder: Path, split: str, shards: list[Path]
) -> tuple[np.ndarray, np.ndarray] | None:
    """int32[N] labels and str[N] ids in the order of the files; None if not to be had.

    An index of other shards than these is not used.
    """
    for file in (index_file(folder, split), _elsewhere(folder, split)):
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
    """Keeps labels and ids in the order of the files, for ``load_index``.

    Beside the shards; where that folder cannot be written, in the user's cache, and
    where that cannot be either, nowhere.
    """
    for file in (index_file(folder, split), _elsewhere(folder, split)):
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


def _elsewhere(folder: Path, split: str) -> Path:
    """The place of an index whose folder cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache / "lt_jax" / f"{name}-{INDEX.format(split=split)}"


def example(record: bytes) -> Mapping[str, Any]:
    """The features of a record by name, each a protocol message."""
    from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2
    return messages.Example.FromString(record).features.feature


def decode_error() -> type[Exception]:
    """What ``example`` raises for bytes that are no record."""
    from google.protobuf import message

    return message.DecodeError


class Split:
    """A split that is being written: shards of ``SHARD`` bytes, labels and ids."""

    def __init__(self, folder: Path, dataset: str, split: str):
        self.folder, self.dataset, self.name = folder, dataset, split
        self.lengths: list[int] = []  # records of each finished or open shard
        self.bytes = 0  # of all records
        self.labels: list[int] = []
        self.ids: list[str] = []
        self._writer: Any = None
        self._open_bytes = 0

    def add(self, record: bytes, label: int, name: str) -> None:
        """Writes a record behind the others."""
        if self._writer is None:
            from array_record.python import array_record_module  # pyright: ignore

            path = self._draft(len(self.lengths))
            self._writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
            self.lengths.append(0)
            self._open_bytes = 0
        self._writer.write(record)
        self.lengths[-1] += 1
        self._open_bytes += len(record)
        self.bytes += len(record)
        self.labels.append(label)
        self.ids.append(name)
        if self._open_bytes >= SHARD:
            self.next_shard()

    def finish(self) -> None:
        """Closes the last shard, gives them TFDS's names, and writes the index."""
        self.next_shard()
        for i, path in enumerate(self.shards):
            self._draft(i).rename(path)
        labels, ids = np.array(self.labels, np.int32), np.array(self.ids, np.str_)
        save_index(self.folder, self.name, self.shards, labels, ids)

    def abandon(self) -> None:
        """Lets go of the open file."""
        try:
            self.next_shard()
        except (OSError, RuntimeError):
            self._writer = None

    def next_shard(self) -> None:
        """Closes the open file; the next record goes to another one."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _draft(self, shard: int) -> Path:
        return self.folder / f"{self.dataset}-{self.name}.array_record-{shard:05d}"

    @property
    def shards(self) -> list[Path]:
        """The finished files."""
        number = len(self.lengths)
        drafts = [self._draft(i) for i in range(number)]
        return [path.with_name(f"{path.name}-of-{number:05d}") for path in drafts]
