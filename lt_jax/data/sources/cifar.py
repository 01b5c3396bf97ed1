"""CIFAR-10 and CIFAR-100 in TFDS format."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lt_jax.data.dataset import Dataset
from lt_jax.data.sources import tfds
from lt_jax.errors import InputError

# Known labels in the order of the original archive; none are known for CIFAR-10.
ARCHIVE = {"cifar100": {"train_00000": 19, "train_00001": 29, "train_49999": 73}}


def cifar10(dir: str) -> tuple[Dataset, Dataset]:
    """Load the training and test set of CIFAR-10; see ``tfds`` for ``dir``."""
    return _split("cifar10", dir, "train"), _split("cifar10", dir, "test")


def cifar100(dir: str) -> tuple[Dataset, Dataset]:
    """Load the training and test set of CIFAR-100 with the 100 fine labels."""
    return _split("cifar100", dir, "train"), _split("cifar100", dir, "test")


def original_order(*parts: Dataset) -> bool | None:
    """Check whether the ids number the images as in the original archive.

    If they do, the split ``first`` has the same images as the LOS authors' code.

    Args:
      parts: one dataset, or the parts it was split into.

    Returns:
      True if all labels known for this order agree, False if one differs, None if no
      example with a known label is present.
    """
    agrees = [
        bool((part.labels[part.ids == name] == label).all())
        for part in parts
        for name, label in ARCHIVE.get(part.name, {}).items()
        if name in part.ids
    ]
    return all(agrees) if agrees else None


def _split(name: str, dir: str, split: str) -> Dataset:
    """Load a split in the order of ids, which is that of the original archive."""
    part = tfds.load(name, tfds.find(name, dir), split)
    height, width, channels = (size or 0 for size in part.shape)
    shape = height, width, channels

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *shape), np.uint8)
        for i, png in enumerate(part.encoded(rows)):
            images[i] = _decode(png, str(part.ids[rows[i]]), shape)
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
    try:
        image = np.asarray(Image.open(io.BytesIO(png)))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
        raise InputError(f"image {name} cannot be decoded: {error}") from error
    if image.shape != shape:
        raise InputError(f"image {name} has shape {image.shape}, expected {shape}")
    return image
