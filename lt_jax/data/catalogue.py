"""Data sets by name, cut to a long tail and split three ways.

Importing this package imports neither TensorFlow Datasets nor scikit-learn; a loader
imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lt_jax.data import longtail
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.data.sources import cifar, digits, features, folder, large
from lt_jax.errors import InputError, one_of

# Sets of images of one size. name -> loader(dir) -> the full training and test sets
SOURCES: dict[str, Callable[[str], tuple[Dataset, Dataset]]] = {
    "digits": digits.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "features": features.load,
}
# H, W, C of their images.
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}


class PhotoSource(NamedTuple):
    """A set of photographs."""

    # (dir, view, further values) -> training, validation (None: it has none), test set
    load: Callable[..., tuple[Dataset, Dataset | None, Dataset]]
    extra: tuple[str, ...] = ()  # what it takes beside, by the keys of the config


PHOTOS: dict[str, PhotoSource] = {
    "i_naturalist2018": PhotoSource(large.i_naturalist2018),
    "imagenet_lt": PhotoSource(large.imagenet_lt),
    "folder": PhotoSource(folder.load, ("table", "test", "valid_seed")),
}


def load(
    name: str,
    *,
    dir: str,
    imbalance: float,
    split: str,
    valid: float,
    seed: int,
    photos: PhotoOptions | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Splits:
    """A long-tailed task.

    The training set is cut (``longtail.choose``), then ``valid`` of it is held out,
    unless the set has validation examples of its own. The test set is whole. No image
    is decoded before it is read.
    ``counts`` and ``hash`` are of the training set before holding out, so that the
    groups and the name of the draw do not depend on ``valid``.

    Args:
      name: a key of ``SOURCES`` or ``PHOTOS``.
      dir: where the source looks for its files; "" is the source's own default.
      imbalance: largest class over smallest, at least 1.
      split: which examples of a class stay, ``first``, ``cao`` or ``whole``.
      valid: fraction of the training set to hold out, in [0, 1).
      seed: of the validation split alone.
      photos: how photographs are looked at; for these only.
      extra: what the source of photographs ``reads``.

    Raises:
      InputError: an unknown name, data that are missing or damaged, a label outside
        the classes, or a value that ``longtail`` refuses.
    """
    own: Dataset | None = None
    if one_of("data set", name, [*SOURCES, *PHOTOS]) in PHOTOS:
        assert photos is not None
        full, own, test = PHOTOS[name].load(dir, photos, **(extra or {}))
    else:
        full, test = SOURCES[name](dir)
    for part in filter(None, (full, own, test)):
        _check_labels(part)
    num_classes = len(full.classes)
    chosen = longtail.choose(
        full.labels, np.argsort(full.ids), num_classes, imbalance, split
    )
    whole = full.take(chosen)
    share = valid if own is None else 0.0
    fit, held = longtail.hold_out(whole.labels, share, seed, num_classes)
    return Splits(
        train=whole.take(fit),
        valid=whole.take(held) if own is None else own,
        test=test,
        full_class_counts=whole.class_counts,
        hash=whole.hash,
    )


def _check_labels(part: Dataset) -> None:
    """Raises InputError for a label that names no class."""
    num_classes = len(part.classes)
    wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
    if wrong.size:
        i = wrong[0]
        raise InputError(
            f"{part.name}: example {part.ids[i]} has the label {part.labels[i]}, "
            f"expected 0 to {num_classes - 1} ({wrong.size} such examples)"
        )
