"""CIFAR-10 and CIFAR-100 as TFDS prepares them, see ``tfds``."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from lt_jax.data.dataset import Dataset
from lt_jax.data.sources import tfds
from lt_jax.errors import InputError

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
    folder = tfds.find(name, dir)
    return _split(name, folder, "train"), _split(name, folder, "test")


def _split(name: str, folder: Path, split: str) -> Dataset:
    """One split, in id order."""
    part = tfds.load(name, folder, split)
    height, width, channels = part.shape
    assert height
    assert width
    assert channels
    shape = height, width, channels

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *shape), np.uint8)
        for start in range(0, len(rows), tfds.CHUNK):
            chunk = rows[start : start + tfds.CHUNK]
            for i, png in enumerate(part.encoded(chunk)):
                images[start + i] = _decode(png, str(part.ids[chunk[i]]), shape)
        return images

    return Dataset(
        name=name,
        classes=part.classes,
        labels=part.labels,
        ids=part.ids,
        shape=shape,
        read=read,
    )


def _decode(png: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8[H, W, C]; the error of a damaged image names its id."""
    try:
        image = np.asarray(Image.open(io.BytesIO(png)))
    except (OSError, SyntaxError, ValueError) as error:  # all three are Pillow's
        raise InputError(f"image {name} cannot be decoded: {error}") from error
    if image.shape != shape:
        raise InputError(f"image {name} has the shape {image.shape}, expected {shape}")
    return image
