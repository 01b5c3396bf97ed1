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
    name = "i_naturalist2018"
    train = _split(name, dir, "train", "id", photos)
    return train, None, _split(name, dir, "validation", "id", photos)


def imagenet_lt(dir: str, photos: PhotoOptions) -> tuple[Dataset, Dataset, Dataset]:
    """Load ImageNet-LT: 115,846 training, 20,000 validation, 50,000 test images."""
    train, valid, test = (
        _split("imagenet_lt", dir, split, "file_name", photos)
        for split in ("train", "validation", "test")
    )
    return train, valid, test


def _split(name: str, dir: str, split: str, id: str, photos: PhotoOptions) -> Dataset:
    part = tfds.load(name, dir, split, id)
    return photographs(name, part.classes, part.labels, part.ids, part.encoded, photos)
