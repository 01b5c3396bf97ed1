"""Features computed by another program, such as CLIP, DINOv2, a ViT or PCA.

A folder with a training and a test set, each in one of three formats:

    train.npz       arrays ``features`` [N, D] and ``labels`` [N]
    train.npy       features, with ``train_labels.npy``
    train.parquet   columns ``features`` (lists of D numbers) and ``labels``
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray]  # features, labels


def load(dir: str) -> tuple[Dataset, Dataset]:
    """Load the training and test set; ``shape`` is (1, 1, D), ``read`` gives float32.

    K is the largest training label plus one. The ids start with a digest of features
    and labels, so the hash of a split identifies the content of the files.

    Raises:
      InputError: a missing folder or file, or arrays that ``checked`` rejects.
    """
    if not dir:
        raise InputError(
            "data.dir must be the folder of the features, got '': set "
            "--config.data.dir=FOLDER or --config configs/features.py:path=FOLDER"
        )
    folder = Path(dir).expanduser()
    train, test = (_read(folder, split) for split in ("train", "test"))
    width, other = train[0].shape[1], test[0].shape[1]
    if width != other:
        raise InputError(
            f"{folder}: training and test features must have the same width, got "
            f"{width} numbers each in train, {other} in test"
        )
    num_classes = int(train[1].max()) + 1
    if (wrong := test[1] >= num_classes).any():
        raise InputError(
            f"{folder}: test has label {test[1].max()}, but the largest in train is "
            f"{num_classes - 1} ({wrong.sum()} such examples)"
        )
    return (
        _dataset("train", *train, num_classes),
        _dataset("test", *test, num_classes),
    )


def _dataset(
    split: str, features: np.ndarray, labels: np.ndarray, num_classes: int
) -> Dataset:
    digest = hashlib.sha256(features.tobytes() + labels.tobytes()).hexdigest()[:12]
    stacked = features[:, None, None, :]
    return Dataset(
        name="features",
        classes=tuple(str(k) for k in range(num_classes)),
        labels=labels,
        ids=np.array([f"{split}_{digest}_{i:08d}" for i in range(len(labels))]),
        shape=stacked.shape[1:],
        read=lambda rows: stacked[rows],
    )


def _read(folder: Path, split: str) -> Arrays:
    for suffix, (read, expected) in FORMATS.items():
        if (file := folder / f"{split}{suffix}").is_file():
            try:
                features, labels = read(file)
            except ERRORS as error:
                raise InputError(
                    f"{file} cannot be read ({error}): expected {expected}"
                ) from error
            return checked(file, features, labels)
    names = " or ".join(f"{split}{suffix}" for suffix in FORMATS)
    raise InputError(
        f"no features in {folder}: expected {names}, with the features [N, D] and the "
        "labels [N] of the examples"
    )


def _npz(file: Path) -> Arrays:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
        return found["features"], found["labels"]


def _npy(file: Path) -> Arrays:
    labels = file.with_name(f"{file.stem}_labels.npy")
    return np.load(file, allow_pickle=False), np.load(labels, allow_pickle=False)


def _parquet(file: Path) -> Arrays:
    from pyarrow import parquet  # imported here because it takes 0.2 s

    table = parquet.read_table(file, columns=["features", "labels"])
    features, labels = (
        table[name].to_numpy(zero_copy_only=False) for name in ("features", "labels")
    )
    return np.stack(features.tolist()), labels


# How to read each format, and what a message expects.
FORMATS: dict[str, tuple[Callable[[Path], Arrays], str]] = {
    ".npz": (
        _npz,
        "arrays of numbers, written by np.savez(file, features=..., labels=...)",
    ),
    ".npy": (_npy, "arrays of numbers, written by np.save, here and in *_labels.npy"),
    ".parquet": (
        _parquet,
        "the columns features (lists of D numbers, the same D for all) and labels",
    ),
}
# What NumPy and pyarrow raise for missing, damaged or other content.
ERRORS = (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile)


def checked(source: Any, features: np.ndarray, labels: np.ndarray) -> Arrays:
    """Check features and labels, and convert them to float32[N, D] and int32[N].

    Args:
      source: their name in messages.

    Raises:
      InputError: features are not finite numbers [N, D], or labels are not integers
        from 0, one per feature; names the first invalid example.
    """
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"{source}: features must be numbers [N, D], got "
            f"{features.dtype}{list(features.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise InputError(
            f"{source}: expected one label per example, got {len(features)} features "
            f"and labels of shape {list(labels.shape)}"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{source}: labels must be integers, got {labels.dtype}")
    if (wrong := (labels < 0) | (labels >= 2**31)).any():
        i = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{source}: labels must be integers from 0, got {labels[i]} for example {i}"
        )
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, np.float32)
    if (wrong := ~np.isfinite(features).all(axis=1)).any():
        i = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{source}: features must be finite; those of example {i} are not "
            f"({wrong.sum()} such examples). Remove or recompute them"
        )
    return features, labels.astype(np.int32)
