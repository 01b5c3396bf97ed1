"""Records of a dataset in TFDS format, and an index of their labels and ids.

Records are ``tf.train.Example`` messages, parsed with TFDS's protocol classes, without
TensorFlow. They contain the images, so reading all labels means reading all images; the
index avoids that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.data import arrays
from lt_jax.data.images.decode import Undecodable
from lt_jax.data.sources.table import LONGEST
from lt_jax.errors import InputError
from lt_jax.files import atomic_path


def index_file(folder: Path, split: str) -> Path:
    """Path of the index in the folder of the shards."""
    return folder / f"lt_jax_index-{split}.npz"


def stamp(shards: Iterable[Path]) -> str:
    """Names and sizes of the shards, which an index must match."""
    return "\n".join(f"{path.name} {path.stat().st_size}" for path in shards)


def load_index(
    folder: Path, split: str, stamp: str, count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Load int32[count] labels and str[count] ids; None without a valid index."""
    for file in _index_files(folder, split):
        try:
            with arrays.reading(file, "an index"):
                held, labels, ids = arrays.npz(file, ("stamp", "labels", "ids"))
                ids = np.char.decode(ids, "utf-8")
        except InputError:
            continue
        if str(held) == stamp and labels.shape == ids.shape == (count,):
            if labels.dtype == np.int32:
                return labels, ids
    return None


def save_index(
    folder: Path, split: str, stamp: str, labels: np.ndarray, ids: np.ndarray
) -> None:
    """Save labels and ids for ``load_index``, if a folder is writable."""
    found = {"labels": labels.astype(np.int32), "ids": np.char.encode(ids, "utf-8")}
    for file in _index_files(folder, split):
        with contextlib.suppress(OSError):
            with atomic_path(file) as draft, draft.open("wb") as out:
                np.savez(out, **found, stamp=np.array(stamp))
            return


def _index_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Paths of the index: in the folder of the shards, or else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    file = index_file(folder, split)
    return file, cache / "lt_jax" / f"{digest}-{file.name}"


def label_and_id(record: bytes, id: str) -> tuple[int, str]:
    """Read the label of a record, and the feature that identifies it."""
    found = _example(record)
    names = ", ".join(sorted(found)) or "none"  # before a look-up adds one
    labels, ids = found["label"].int64_list.value, found[id].bytes_list.value
    if len(labels) != 1 or len(ids) != 1 or not 0 < len(ids[0]) <= LONGEST:
        raise ValueError(f"a record has no label or no {id!r} (features: {names})")
    return labels[0], ids[0].decode()


def image(record: bytes) -> bytes | Undecodable:
    """Read the encoded image of a record."""
    from google.protobuf.message import DecodeError

    try:
        return _example(record)["image"].bytes_list.value[0]
    except (DecodeError, IndexError):
        return Undecodable("its record has no image")


def _example(record: bytes) -> Mapping[str, Any]:
    """Parse a record into its features by name, each a protocol message."""
    from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2
    return messages.Example.FromString(record).features.feature
