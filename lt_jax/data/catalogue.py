"""Datasets by name, cut to a long tail and split into training, validation and test.

Sources import TensorFlow Datasets and scikit-learn lazily, when they load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lt_jax.data import longtail
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.data.sources import cifar, digits, features, folder, large
from lt_jax.errors import InputError

# Datasets whose images have one size: name -> loader(dir) -> training set, perhaps a
# validation set or None, and test set.
SOURCES: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "digits": digits.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "features": features.load,
}
# H, W, C of their images.
SHAPES = {"digits": digits.SHAPE, "cifar10": cifar.SHAPE, "cifar100": cifar.SHAPE}


class PhotoSource(NamedTuple):
    """A dataset of photographs."""

    # (dir, photos, **extra) -> training, validation (None if it has none) and test set
    load: Callable[..., tuple[Dataset, Dataset | None, Dataset]]
    extra: tuple[str, ...] = ()  # further keys of config.data that ``load`` takes


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
    """Load a long-tailed task.

    Cuts the training set with ``longtail.choose``, then holds out ``valid`` of it,
    unless the source has a validation set. The class counts and the hash in the result
    do not depend on ``valid``.

    Args:
      name: a key of ``SOURCES``, or of ``PHOTOS`` with ``photos`` and ``extra``.
      dir: folder of the source's files; "" is the source's default.
      imbalance, split: see ``longtail.choose``.
      valid, seed: see ``longtail.hold_out``.
    """
    if name in PHOTOS:
        full, *others, test = PHOTOS[name].load(dir, photos, **(extra or {}))
    else:
        full, *others, test = SOURCES[name](dir)
    own_valid = others[0] if others else None
    num_classes = len(full.classes)
    if num_classes == 1:
        only = f"only one class, {full.classes[0]!r}"
        raise InputError(f"{full.name} has {only}: expected at least two")
    if not 0 < num_classes <= len(full):
        raise InputError(
            f"{full.name} has {num_classes:,} classes and {len(full):,} training "
            "examples: expected an example of each class. Was the dataset prepared "
            "from incomplete archives?"
        )
    for part in filter(None, (full, own_valid, test)):
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
        if wrong.size:
            i = wrong[0]
            raise InputError(
                f"{part.name}: example {part.ids[i]} has label {part.labels[i]}, "
                f"expected 0 to {num_classes - 1} ({wrong.size} such examples)"
            )
    chosen = longtail.choose(
        full.labels, np.argsort(full.ids), num_classes, imbalance, split
    )
    cut = full.take(chosen)
    fraction = valid if own_valid is None else 0.0
    kept, held = longtail.hold_out(cut.labels, fraction, seed, num_classes)
    return Splits(
        train=cut.take(kept),
        valid=cut.take(held) if own_valid is None else own_valid,
        test=test,
        full_class_counts=cut.class_counts,
        hash=cut.hash,
    )
