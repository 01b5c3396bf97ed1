"""iNaturalist2018 and ImageNet-LT as TFDS prepares them, see ``tfds`` and ``prepare``.

Both are long-tailed by themselves. TFDS's own copies and those of ``prepare`` read
alike: examples stand in the order of their ids, whatever that of the files is.
"""

from __future__ import annotations

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.data.sources import tfds


def i_naturalist2018(dir: str, view: PhotoOptions) -> tuple[Dataset, None, Dataset]:
    """Training set (437,513), no validation set, and the 24,426 that are tested on.

    These are the split ``validation``, as in all of the literature: the labels of
    TFDS's split ``test`` were never published and read -1 there. It is not opened.
    """
    return (
        _split("i_naturalist2018", dir, "train", "id", view),
        None,
        _split("i_naturalist2018", dir, "validation", "id", view),
    )


def imagenet_lt(dir: str, view: PhotoOptions) -> tuple[Dataset, Dataset, Dataset]:
    """Training (115,846), validation (20,000) and test set (50,000)."""
    train, valid, test = (
        _split("imagenet_lt", dir, split, "file_name", view)
        for split in ("train", "validation", "test")
    )
    return train, valid, test


def _split(name: str, dir: str, split: str, id: str, view: PhotoOptions) -> Dataset:
    part = tfds.load(name, tfds.find(name, dir), split, id)
    return photographs(name, part.classes, part.labels, part.ids, part.encoded, view)
