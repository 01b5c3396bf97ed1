"""CIFAR-10 and CIFAR-100 as TFDS prepares them, read without TensorFlow or network.

TFDS reads array_record files at random positions with no TensorFlow installed. The
folder is opened with ``tfds.builder_from_directory``, which only reads: given a name
instead, TFDS starts to download whatever it does not find.
"""

from __future__ import annotations

import io
import os
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from lt_jax.types import Dataset, InputError

CHUNK = 1000  # records held in memory at a time, about 2.3 MB of PNG

# Labels of a few examples in the order of the original archive. None is on record here
# for CIFAR-10.
ARCHIVE = {"cifar100": {"train_00000": 19, "train_00001": 29, "train_49999": 73}}


def cifar10(dir: str) -> tuple[Dataset, Dataset]:
    """CIFAR-10's train and test sets in id order; see ``_load``."""
    return _load("cifar10", dir)


def cifar100(dir: str) -> tuple[Dataset, Dataset]:
    """CIFAR-100's train and test sets in id order, the 100 fine labels; see ``_load``.

    The 20 coarse labels are not read.
    """
    return _load("cifar100", dir)


def original_order(*parts: Dataset) -> bool | None:
    """Whether the ids number the images as the original archive does.

    It decides whether the split ``first`` holds the very images of the LOS authors.
    Told from the labels of the few examples on record in ``ARCHIVE``: False if one of
    them differs, True if all that are present agree, None if none is present (nothing
    is on record for this set, or the cut left them all out).

    Args:
      parts: one data set, or the parts it was split into.
    """
    agrees = [
        bool((part.labels[part.ids == name] == label).all())
        for part in parts
        for name, label in ARCHIVE.get(part.name, {}).items()
        if name in part.ids
    ]
    return all(agrees) if agrees else None


def _load(name: str, dir: str) -> tuple[Dataset, Dataset]:
    """The train and test sets of ``<dir>/<name>/<highest version>``.

    Labels and ids of all examples are read now (0.06 ms each), images when asked for.
    Examples stand in the order of their ids, which count the original archive, not in
    the shuffled order of the files.

    Args:
      name: as TFDS names it.
      dir: TFDS's data folder; "" looks where TFDS looks, in ``TFDS_DATA_DIR`` or else
        ``~/tensorflow_datasets``.

    Raises:
      InputError: not prepared, prepared as TFRecord files, or incomplete.
    """
    folder = _find(name, dir)
    return _split(name, folder, "train"), _split(name, folder, "test")


def _find(name: str, dir: str) -> pathlib.Path:
    """The folder of the highest version."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(dir or default).expanduser()
    versions = {
        tuple(int(part) for part in path.name.split(".")): path
        for path in (root / name).glob("*")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    }
    if not versions:
        raise InputError(
            f"{name} is not prepared: looked for {root / name}/<version>. Point the "
            "data folder (config.data.dir, or TFDS_DATA_DIR) to where it is, or "
            f"prepare it once, with a download:\n{_prepare(name, root)}"
        )
    return versions[max(versions)]


def _prepare(name: str, root: pathlib.Path) -> str:
    """What to type to get the set."""
    return (
        "  pip install 'lt_jax[prepare]'\n"
        f"  tfds build {name} --file_format=array_record --data_dir={root}"
    )


def _incomplete(name: str, folder: pathlib.Path, why: object) -> InputError:
    return InputError(
        f"{name} in {folder} is incomplete: {why}. Remove that folder and prepare the "
        f"set again:\n{_prepare(name, folder.parent.parent)}"
    )


def _split(name: str, folder: pathlib.Path, split: str) -> Dataset:
    """One split, in id order."""
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
            "read at random positions without TensorFlow. Convert them in place:\n"
            "  pip install 'lt_jax[prepare]'\n"
            "  python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={folder} --out_file_format=array_record"
        )
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits) or "none"
        raise _incomplete(name, folder, f"no split {split!r} (found: {found})")
    try:
        source = builder.as_data_source(
            split=split,
            file_format="array_record",
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        labels, ids = _labels_ids(source)
    except RuntimeError as error:  # array_record's: a missing, cut or damaged file
        raise _incomplete(name, folder, error) from error
    features = builder.info.features
    shape = tuple(features["image"].shape)
    order = np.argsort(ids)
    ids = ids[order]

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *shape), np.uint8)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            records = source.__getitems__(order[chunk].tolist())
            for i, record in enumerate(records):
                images[start + i] = _decode(record["image"], str(ids[chunk[i]]), shape)
        return images

    return Dataset(
        name=name,
        classes=tuple(features["label"].names),
        labels=labels[order],
        ids=ids,
        shape=shape,
        read=read,
    )


def _labels_ids(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] and str[N] of every record of a TFDS data source, as the files go."""
    labels, ids = [], []
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        for record in source.__getitems__(range(start, stop)):
            labels.append(record["label"])
            ids.append(record["id"].decode())
    return np.array(labels, np.int32), np.array(ids, np.str_)


def _decode(png: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8[H, W, C]; the error of a damaged image names its id."""
    try:
        image = np.asarray(Image.open(io.BytesIO(png)))
    except (OSError, SyntaxError, ValueError) as error:  # all three are Pillow's
        raise InputError(f"image {name} cannot be decoded: {error}") from error
    if image.shape != shape:
        raise InputError(f"image {name} has the shape {image.shape}, expected {shape}")
    return image
