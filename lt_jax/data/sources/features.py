"""Features computed by another program, such as CLIP, DINOv2, a ViT or PCA.

A folder with a training set and optionally a test and a validation set (``val``), each
in one of three formats:

    train.npz       arrays ``features`` [N, D] and ``labels`` [N]
    train.npy       features, with ``train_labels.npy``
    train.parquet   columns ``features`` (lists of D numbers) and ``labels``

Labels are the names of classes, or integers from 0; ``features.json`` of `lt-jax
features` names the classes of the latter.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.data import arrays, longtail
from lt_jax.data.dataset import Dataset, sorted_classes
from lt_jax.errors import InputError, first_few
from lt_jax.files import read_json

Arrays = tuple[np.ndarray, ...]  # features, labels
TEST = 0.2  # share of each class that is the test set, if there is none


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
    given = {"train": _read(folder, "train")}
    for split in ("test", "val"):
        if any((folder / f"{split}{suffix}").exists() for suffix in FORMATS):
            given[split] = _read(folder, split)
    names = _names(folder, {split: labels for split, (_, labels) in given.items()})
    parts = {
        split: checked(f"{folder}: {split}", features, _numbered(labels, names))
        for split, (features, labels) in given.items()
    }
    train = parts["train"]
    (_, width), labels = train[0].shape, train[1]
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
    classes = tuple(names or map(str, range(num_classes)))
    if not names and (file := folder / "features.json").is_file():
        remedy = "Without this file, classes are numbers"
        named = read_json(file, {"classes": [str, num_classes]}, remedy)
        classes = tuple(named["classes"][:num_classes])
    if "test" not in parts:
        print(
            f"lt-jax: {folder} has no test set (test.npz): {TEST:.0%} of each training "
            "class are used for testing",
            file=sys.stderr,
        )
        rows = longtail.hold_out(train[1], TEST, 0, num_classes)
        for split, kept in zip(("train", "test"), rows, strict=True):
            parts[split] = np.ascontiguousarray(train[0][kept]), labels[kept]
    made = {name: _dataset(name, x, y, classes) for name, (x, y) in parts.items()}
    return made["train"], made.get("val"), made["test"]


def _names(folder: Path, labels: dict[str, np.ndarray]) -> list[str]:
    """Return the sorted names of the classes; none if labels are numbers."""
    text = [split for split, values in labels.items() if values.dtype.kind == "U"]
    if not text:
        return []
    if len(text) < len(labels):
        raise InputError(
            f"{folder}: labels are text in {', '.join(text)}, but numbers in "
            f"{', '.join(labels.keys() - text)}: use one kind"
        )
    names = set(labels["train"].ravel().tolist())
    for split, values in labels.items():
        if unknown := sorted(set(values.ravel().tolist()) - names):
            raise InputError(
                f"{folder}: {len(unknown)} classes of {split!r} have no training "
                f"example: {first_few(unknown)}"
            )
    return sorted_classes(names)


def _numbered(labels: np.ndarray, names: list[str]) -> np.ndarray:
    """Replace the names of classes by their numbers."""
    if not names:
        return labels
    numbers = {name: k for k, name in enumerate(names)}
    return np.array([numbers[name] for name in labels.ravel().tolist()], np.int32)


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


def read_features(file: Path) -> np.ndarray:
    """Read float32[N, D] from a file without labels, or with labels to ignore."""
    read, expected = FORMATS[file.suffix]
    with arrays.reading(file, expected):
        (features,) = read(file, ("features",))
    labels = np.zeros(len(features), np.int32)
    return checked(file, features, labels)[0]


def _read(folder: Path, split: str) -> Arrays:
    """Read arrays as they are, but text as Unicode."""
    for suffix, (read, expected) in FORMATS.items():
        if (file := folder / f"{split}{suffix}").exists():
            with arrays.reading(file, expected):
                features, labels = read(file, ("features", "labels"))
                if labels.dtype.kind == "S":
                    labels = np.char.decode(labels, "utf-8")
            return features, labels
    names = " or ".join(f"{split}{suffix}" for suffix in FORMATS)
    raise InputError(
        f"no features in {folder}: expected {names}, with the features [N, D] and the "
        "labels [N] of the examples"
    )


def _parquet(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    table = arrays.parquet(file, names)
    from pyarrow import compute, string, types

    functions: Any = compute
    lists = table["features"]
    if not hasattr(lists.type, "value_type") or not types.is_primitive(
        lists.type.value_type
    ):
        raise ValueError(f"the column features holds {lists.type}")
    nulls = {name: table[name].null_count for name in names}
    if not len(table) or any(nulls.values()):
        lack = " and ".join(f"{count} {name}" for name, count in nulls.items())
        raise ValueError(f"{len(table)} rows, which lack {lack}")
    lengths = functions.min_max(functions.list_value_length(lists)).as_py()
    if lengths["min"] != lengths["max"]:
        raise ValueError(f"lists of {lengths['min']} to {lengths['max']} numbers")
    parts = [part.flatten().to_numpy(zero_copy_only=False) for part in lists.chunks]
    found = [np.concatenate(parts).reshape(len(table), -1)]
    for name in names[1:]:
        labels, kind = table[name], table[name].type
        if types.is_dictionary(kind) and types.is_string(kind.value_type):
            found.append(np.array(labels.cast(string()).to_pylist()))
        elif types.is_integer(kind):
            found.append(labels.to_numpy())
        else:
            raise ValueError(f"the column {name} holds {kind}, not text or integers")
    return found


def _npy(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    files = [file, file.with_name(f"{file.stem}_labels.npy")]
    return [arrays.npy(each) for each in files[: len(names)]]


# How to read each format, given the names of its arrays, and what a message expects.
FORMATS: dict[str, tuple[Callable[[Path, Sequence[str]], list[np.ndarray]], str]] = {
    ".npz": (
        arrays.npz,
        "arrays of numbers, written by np.savez(file, features=..., labels=...)",
    ),
    ".npy": (_npy, "arrays of numbers, written by np.save, here and in *_labels.npy"),
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
        raise InputError(
            f"{source}: labels must be integers or names of classes, got "
            f"{labels.dtype}: convert them, for example labels.astype(int)"
        )
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
