"""CIFAR-10 and CIFAR-100 in TFDS format."""

from __future__ import annotations

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import same_size
from lt_jax.data.sources import tfds

SHAPE = (32, 32, 3)
# Labels of some examples in the original archive; none are known for CIFAR-10.
KNOWN = {"cifar100": {"train_00000": 19, "train_00001": 29, "train_49999": 73}}


def cifar10(dir: str) -> tuple[Dataset, Dataset]:
    """Load CIFAR-10: training and test set; ``dir`` as in ``tfds.load``."""
    return _split("cifar10", dir, "train"), _split("cifar10", dir, "test")


def cifar100(dir: str) -> tuple[Dataset, Dataset]:
    """Load CIFAR-100 with its 100 fine labels: training and test set."""
    return _split("cifar100", dir, "train"), _split("cifar100", dir, "test")


def original_order(*parts: Dataset) -> bool | None:
    """Check whether the ids of a dataset number its images as in the original archive.

    If they do, the splits ``first`` and ``cao`` have the same images as the code of LOS
    and of LDAM. None if no known label is present.
    """
    agrees = [
        bool((part.labels[part.ids == name] == label).all())
        for part in parts
        for name, label in KNOWN.get(part.name, {}).items()
        if name in part.ids
    ]
    return all(agrees) if agrees else None


def _split(name: str, dir: str, split: str) -> Dataset:
    part = tfds.load(name, dir, split)
    read = same_size(name, SHAPE, part.ids, part.encoded)
    return Dataset(name, part.classes, part.labels, part.ids, SHAPE, read)
