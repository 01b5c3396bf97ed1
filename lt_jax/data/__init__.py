"""Data sets by name, cut to a long tail and split three ways.

Importing this package imports neither TensorFlow Datasets nor scikit-learn; a loader
imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_jax.data import cifar, digits, longtail, vectors
from lt_jax.types import Dataset, InputError, Splits, known

# name -> loader(dir) -> the full training and test sets
SOURCES: dict[str, Callable[[str], tuple[Dataset, Dataset]]] = {
    "digits": digits.load,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "features": vectors.load,
}


def load(
    name: str, *, dir: str, imbalance: float, split: str, valid: float, seed: int
) -> Splits:
    """A long-tailed task.

    The training set is cut (``longtail.choose``), then ``valid`` of it is held out. The
    test set is whole. No image is decoded before it is read.
    ``counts`` and ``hash`` are of the training set before holding out, so that the
    groups and the name of the draw do not depend on ``valid``.

    Args:
      name: a key of ``SOURCES``.
      dir: where the source looks for its files; "" is the source's own default.
      imbalance: largest class over smallest, at least 1.
      split: which examples of a class stay, ``first`` or ``cao``.
      valid: fraction of the training set to hold out, in [0, 1).
      seed: of the validation split alone.

    Raises:
      InputError: an unknown name, data that are missing or damaged, a label outside
        the classes, or a value that ``longtail`` refuses.
    """
    full, test = SOURCES[known("data set", name, SOURCES)](dir)
    for part in (full, test):
        _check_labels(part)
    num_classes = len(full.classes)
    chosen = longtail.choose(
        full.labels, np.argsort(full.ids), num_classes, imbalance, split
    )
    whole = full.take(chosen)
    fit, held = longtail.hold_out(whole.labels, valid, seed, num_classes)
    return Splits(
        train=whole.take(fit),
        valid=whole.take(held),
        test=test,
        counts=whole.counts,
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
