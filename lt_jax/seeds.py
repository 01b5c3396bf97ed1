"""Independent streams of random numbers, one for each purpose.

A run is named by a few whole numbers, ``(1, seed)`` for stage 1 and ``(2, stage-1
seed, seed)`` for stage 2, so that no two stages share an order, a crop or a weight by
accident, while methods that share them are compared on the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

PURPOSES = ("backbone", "head", "augment")


def key(run: Sequence[int], purpose: str) -> jax.Array:
    """The key of JAX for a purpose of a run."""
    numbers = (*run, PURPOSES.index(purpose))
    return functools.reduce(jax.random.fold_in, numbers, jax.random.key(0))


def generator(run: Sequence[int], epoch: int) -> np.random.Generator:
    """NumPy's generator for the order of examples in an epoch of a run."""
    return np.random.default_rng([*run, epoch])
