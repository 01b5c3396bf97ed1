"""Features computed by another program, such as CLIP, DINOv2, a ViT or PCA.

A folder with a training, a test and optionally a validation set (``val``), each in one
of three formats:

    train.npz       arrays ``features`` [N, D] and ``labels`` [N]
    train.npy       features, with ``train_labels.npy``
    train.parquet   columns ``features`` (lists of D numbers) and ``labels``

``features.json`` of `lt-jax features` names the classes; without it they are numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.data import arrays
from lt_jax.data.dataset import Dataset
from lt_jax.errors import InputError
from lt_jax.files import read_json

Arrays = tuple[np.ndarray, np.ndarray]  # features, labels


def load(dir: str) -> tuple[Dataset, Dataset | None, Dataset]:
    """Load the training, validation (or None) and test set, of shape (1, 1, D).

    K is the largest training label plus one. The ids start with a digest of features
    and labels, so the hash of a split identifies the content of the files.
    """
    if not dir:
        raise InputError(
            "data.dir must be the folder of the features, got '': set "
            "--config.data.dir=FOLDER or --config configs/features.py:path=FOLDER"
        )
    folder = Path(dir).expanduser()
    has_valid = any((folder / f"val{suffix}").is_file() for suffix in FORMATS)
    splits = ("train", "test", "val") if has_valid else ("train", "test")
    parts = {split: _read(folder, split) for split in splits}
    (_, width), labels = parts["train"][0].shape, parts["train"][1]
    num_classes = int(labels.max()) + 1
    if num_classes > len(labels):
        raise InputError(
            f"{folder}: train has label {num_classes - 1}, but only {len(labels)} "
            "examples: expected labels 0 to K - 1, each with an example"
        )
    for split, (features, _) in parts.items():
        if features.shape[1] != width:
            raise InputError(
                f"{folder}: all features must have the same width, got {width} numbers "
                f"each in train, {features.shape[1]} in {split}"
            )
    classes = tuple(str(k) for k in range(num_classes))
    if (file := folder / "features.json").is_file():
        remedy = "Without this file, classes are numbers"
        named = read_json(file, {"classes": [str, num_classes]}, remedy)
        classes = tuple(named["classes"][:num_classes])
    made = {name: _dataset(name, *part, classes) for name, part in parts.items()}
    return made["train"], made.get("val"), made["test"]


def _dataset(
    split: str, features: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> Dataset:
    content = hashlib.sha256(features.data)
    content.update(labels.data)
    start = f"{split}_{content.hexdigest()[:12]}"
    stacked = features[:, None, None, :]
    return Dataset(
        name="features",
        classes=classes,
        labels=labels,
        ids=np.array([f"{start}_{i:08d}" for i in range(len(labels))]),
        shape=stacked.shape[1:],
        read=lambda rows: stacked[rows],
    )


def _read(folder: Path, split: str) -> Arrays:
    for suffix, (read, expected) in FORMATS.items():
        if (file := folder / f"{split}{suffix}").exists():
            with arrays.reading(file, expected):
                features, labels = read(file)
            return checked(file, features, labels)
    names = " or ".join(f"{split}{suffix}" for suffix in FORMATS)
    raise InputError(
        f"no features in {folder}: expected {names}, with the features [N, D] and the "
        "labels [N] of the examples"
    )


def _parquet(file: Path) -> Arrays:
    table = arrays.parquet(file, ("features", "labels"))
    from pyarrow import compute, types

    functions: Any = compute
    lists, labels = table["features"], table["labels"]
    if not hasattr(lists.type, "value_type") or not types.is_primitive(
        lists.type.value_type
    ):
        raise ValueError(f"the column features holds {lists.type}")
    if not types.is_integer(labels.type):
        raise ValueError(f"the column labels holds {labels.type}, not integers")
    if not len(table) or lists.null_count or labels.null_count:
        raise ValueError(
            f"{len(table)} rows, of which {lists.null_count} lack features and "
            f"{labels.null_count} labels"
        )
    lengths = functions.min_max(functions.list_value_length(lists)).as_py()
    if lengths["min"] != lengths["max"]:
        raise ValueError(f"lists of {lengths['min']} to {lengths['max']} numbers")
    parts = [part.flatten().to_numpy(zero_copy_only=False) for part in lists.chunks]
    return np.concatenate(parts).reshape(len(table), -1), labels.to_numpy()


# How to read each format, and what it should contain.
FORMATS: dict[str, tuple[Callable[[Path], Sequence[np.ndarray]], str]] = {
    ".npz": (
        lambda file: arrays.npz(file, ("features", "labels")),
        "arrays of numbers, written by np.savez(file, features=..., labels=...)",
    ),
    ".npy": (
        lambda file: (
            arrays.npy(file),
            arrays.npy(file.with_name(f"{file.stem}_labels.npy")),
        ),
        "arrays of numbers, written by np.save, here and in *_labels.npy",
    ),
    ".parquet": (
        _parquet,
        "the columns features (lists of D numbers, the same D for all) and labels",
    ),
}


def checked(source: Any, features: np.ndarray, labels: np.ndarray) -> Arrays:
    """Check features and labels, and convert them to float32[N, D] and int32[N].

    Raises InputError, starting with ``source``, if features are not finite numbers
    [N, D], or labels are not integers from 0, one per feature.
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
