"""The data of a config, and the groups of its classes.

Importing this file does not import what trains and saves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lt_jax import metrics
from lt_jax.data import catalogue
from lt_jax.data.dataset import Splits
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.experiment.checks import from_data
from lt_jax.experiment.records import Config


def load_splits(config: Config) -> tuple[Splits, dict[str, np.ndarray]]:
    """Load the data of a config and the groups of its classes.

    With ``eval.folds`` the training set has all examples, and the validation set none.
    """
    c: Any = config.data  # photographs have the keys that may be None
    source = catalogue.PHOTOS.get(c.name)
    photos, extra = None, None
    if source:
        photos = PhotoOptions(*(getattr(c, key) for key in PhotoOptions._fields))
        extra = {key: getattr(c, key) for key in source.extra}
    splits = catalogue.load(
        c.name,
        dir=c.dir,
        imbalance=c.imbalance,
        split=c.split,
        valid=c.valid,
        seed=c.valid_seed,
        photos=photos,
        extra=extra,
    )
    if config.eval.folds:
        splits = splits.joined()
        every = {"full_class_counts": splits.train.class_counts}
        splits = dataclasses.replace(splits, hash=splits.train.hash, **every)
    c = from_data(config, splits.full_class_counts).data
    return splits, metrics.groups(splits.full_class_counts, c.many, c.few)


def describe(
    name: str, splits: Splits, groups: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Make the ``dataset`` object of ``result.json``."""
    counts = splits.full_class_counts
    return {
        "name": name,
        "split_hash": splits.hash,
        "num_train": int(counts.sum()),
        "num_valid": len(splits.valid),
        "num_test": len(splits.test),
        "num_classes": len(counts),
        "counts_max": int(counts.max()),
        "counts_min": int(counts.min()),
        "groups": {group: int(where.sum()) for group, where in groups.items()},
    }
