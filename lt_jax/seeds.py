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


def uniform(
    run: Sequence[int], epoch: int, positions: np.ndarray, each: int
) -> np.ndarray:
    """float64[n, each], uniform in [0, 1), for places in the order of an epoch.

    Those of a place depend on nothing but run, epoch and place: a counter and no state
    decides, so an epoch may be entered anywhere.

    Args:
      run, epoch: as for ``generator``, whose stream is another one.
      positions: int[n], at least 0, close to each other: all between the first and the
        last are drawn.
      each: numbers of a place, a multiple of 4, as the counter moves by four numbers.
    """
    first, last = int(positions.min()), int(positions.max())
    sequence = np.random.SeedSequence([*run, epoch], spawn_key=(1,))
    counted = np.random.Philox(
        counter=first * each // 4, key=sequence.generate_state(2, np.uint64)
    )
    drawn = np.random.Generator(counted).random((last - first + 1, each))
    return drawn[positions - first]
