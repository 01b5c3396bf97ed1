"""Features that some other program computed: CLIP, DINOv2, a ViT, PCA.

A folder holds a training and a test set, each in one of three forms:

    train.npz       arrays ``features`` [N, D] and ``labels`` [N]
    train.npy       features, and ``train_labels.npy``
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
    """The sets of a folder; ``shape`` is (1, 1, D) and ``read`` gives float32.

    K is the largest label of the training set plus one. The ids begin with a digest of
    the features and labels, so that the hash of a split names what is in the files.

    Raises:
      InputError: no such folder or set; features that are not finite numbers [N, D];
        labels that are not whole numbers in 0 .. K-1, one for each feature.
    """
    if not dir:
        raise InputError(
            "features lie in a folder, but data.dir is '': name it with "
            "--config.data.dir=FOLDER or --config configs/features.py:path=FOLDER"
        )
    folder = Path(dir).expanduser()
    train, test = (_read(folder, split) for split in ("train", "test"))
    num_classes = int(train[1].max()) + 1
    width, other = train[0].shape[1], test[0].shape[1]
    if width != other:
        raise InputError(
            f"the features in {folder} are not of one kind: {width} numbers each in "
            f"train, {other} in test"
        )
    if (wrong := test[1] >= num_classes).any():
        raise InputError(
            f"{folder}: test has the label {test[1].max()}, but the largest in train "
            f"is {num_classes - 1} ({wrong.sum()} such examples): expected labels of "
            "classes that were trained on"
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
    """float32[N, D] and int32[N], checked."""
    for suffix, read in FORMS.items():
        if (file := folder / f"{split}{suffix}").is_file():
            return checked(file, *read(file))
    names = " or ".join(f"{split}{suffix}" for suffix in FORMS)
    raise InputError(
        f"no features in {folder}: expected {names} there, with the features [N, D] "
        "and the labels [N] of the examples"
    )


def _npz(file: Path) -> Arrays:
    found = _numbers(file)
    if not {"features", "labels"} <= set(found):
        raise InputError(
            f"{file} holds {', '.join(found)}: expected arrays named features and "
            "labels, as np.savez(file, features=..., labels=...) writes them"
        )
    return found["features"], found["labels"]


def _npy(file: Path) -> Arrays:
    labels = file.with_name(f"{file.stem}_labels.npy")
    if not labels.is_file():
        raise InputError(f"{file} has no labels beside it: expected {labels}")
    (one,), (other,) = _numbers(file).values(), _numbers(labels).values()
    return one, other


def _numbers(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive by name, or the only one."""
    try:
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"one array without a name": found}
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read as numbers ({error}); expected what np.save or "
            "np.savez writes of arrays of numbers. Pickles are not opened: they may "
            "run code"
        ) from error


def _parquet(file: Path) -> Arrays:
    # Imported here: 0.2 s that nobody else waits for.
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file, columns=["features", "labels"])
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{file} cannot be read ({str(error).splitlines()[0]}); expected Parquet "
            "with the columns features (lists of numbers) and labels"
        ) from error
    lists = table["features"].combine_chunks()
    labels = table["labels"].to_numpy(zero_copy_only=False)
    if not hasattr(lists, "flatten") or lists.null_count:
        raise InputError(
            f"{file}: features are {lists.type} with {lists.null_count} nulls; "
            "expected a list of numbers for each example"
        )
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    sizes = np.diff(lists.offsets.to_numpy()) if hasattr(lists, "offsets") else None
    if len(lists) and sizes is not None and (sizes != sizes[0]).any():
        raise InputError(
            f"{file}: the features have {sizes.min()} to {sizes.max()} numbers; "
            "expected as many for every example"
        )
    return flat.reshape(len(lists), -1 if len(lists) else 0), labels


FORMS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".parquet": _parquet,
}


def checked(file: Any, features: np.ndarray, labels: np.ndarray) -> Arrays:
    """float32[N, D] and int32[N], if they are features and labels.

    Args:
      file: what messages call them by.

    Raises:
      InputError: they are not; names the first example at fault.
    """
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"{file}: features are {features.dtype}{list(features.shape)}; expected "
            "numbers [N, D], a row for each example"
        )
    if labels.shape != features.shape[:1]:
        raise InputError(
            f"{file}: {len(features)} features but labels of shape "
            f"{list(labels.shape)}; expected a label for each"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{file}: labels are {labels.dtype}; expected whole numbers from 0 on"
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        i = int(np.flatnonzero((labels < 0) | (labels >= 2**31))[0])
        raise InputError(
            f"{file}: example {i} has the label {labels[i]}; expected whole numbers "
            "from 0 on"
        )
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(features, np.float32)
    if not (finite := np.isfinite(features).all(axis=1)).all():
        i = int(np.flatnonzero(~finite)[0])
        raise InputError(
            f"{file}: the features of example {i} are not all finite numbers "
            f"({np.sum(~finite)} such examples); leave them out or compute them again"
        )
    return features, labels.astype(np.int32)
