"""iNaturalist2018 and ImageNet-LT in TFDS format; both are long-tailed already."""

from __future__ import annotations

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.data.sources import tfds


def i_naturalist2018(dir: str, photos: PhotoOptions) -> tuple[Dataset, None, Dataset]:
    """Load iNaturalist 2018: 437,513 training and 24,426 test photographs.

    As in the literature, the test set is the split ``validation``: the labels of the
    split ``test`` were never published.
    """
    train, test = _splits("i_naturalist2018", "id", dir, photos, "train", "validation")
    return train, None, test


def imagenet_lt(dir: str, photos: PhotoOptions) -> tuple[Dataset, Dataset, Dataset]:
    """Load ImageNet-LT: 115,846 training, 20,000 validation, 50,000 test images."""
    names = "train", "validation", "test"
    train, valid, test = _splits("imagenet_lt", "file_name", dir, photos, *names)
    return train, valid, test


def _splits(
    name: str, id: str, dir: str, photos: PhotoOptions, *splits: str
) -> list[Dataset]:
    parts = (tfds.load(name, dir, split, id) for split in splits)
    return [photographs(name, *part, photos) for part in parts]
