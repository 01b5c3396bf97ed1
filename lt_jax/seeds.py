"""Independent streams of random numbers, one per purpose.

A few integers identify a run: ``(1, seed)`` for stage 1 and ``(2, stage-1 seed, seed)``
for stage 2. Two stages never share an order, a crop or an initial weight; methods with
the same integers share all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

PURPOSES = ("backbone", "head", "augment")


def key(run: Sequence[int], purpose: str) -> jax.Array:
    """Return the JAX key of a run for one of ``PURPOSES``."""
    numbers = (*run, PURPOSES.index(purpose))
    return functools.reduce(jax.random.fold_in, numbers, jax.random.key(0))


def generator(run: Sequence[int], epoch: int) -> np.random.Generator:
    """Return the NumPy generator for the order of examples in an epoch of a run."""
    return np.random.default_rng([*run, epoch])


def uniform(
    run: Sequence[int], epoch: int, positions: np.ndarray, each: int
) -> np.ndarray:
    """Draw float64[n, each] in [0, 1) for positions, int[n], in the order of an epoch.

    The numbers depend only on the run, the epoch and the position, so that an epoch
    can be resumed anywhere. The stream differs from that of ``generator``. Positions
    should be close together: all from the first to the last are drawn. ``each`` is a
    multiple of 4, because the counter advances by four.
    """
    first, last = int(positions.min()), int(positions.max())
    sequence = np.random.SeedSequence([*run, epoch], spawn_key=(1,))
    bits = np.random.Philox(
        counter=first * each // 4, key=sequence.generate_state(2, np.uint64)
    )
    numbers = np.random.Generator(bits).random((last - first + 1, each))
    return numbers[positions - first]
