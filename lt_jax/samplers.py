"""A sampler is an array of indices, computed for each epoch by a pure function.

Online and cached training follow the same plan. A run resumes at ``plan(...)[step:]``.
Methods that share a seed see the same examples in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lt_jax import seeds
from lt_jax.errors import one_of

# Classes are drawn in proportion to their counts to this power; None: not by class.
POWERS = {"instance": None, "class": 0.0, "sqrt": 0.5}


def plan(
    labels: np.ndarray, kind: str, batch: int, run: Sequence[int], epoch: int
) -> np.ndarray:
    """Compute the order of examples in one epoch.

    Args:
      labels: int[N].
      kind: ``instance`` draws each example once in uniform random order. ``class`` and
        ``sqrt`` draw N examples: classes equally often (class-aware sampling: Shen et
        al., ECCV 2016, as in Decoupling, ICLR 2020), or in proportion to the square
        root of their counts. No example is drawn twice before all of its class are.
        Official class-aware samplers draw 4 examples of a class in a row; here the
        order of classes is uniformly random.
      batch: B, the global batch size.
      run: integers that identify the run, see ``seeds``.
      epoch: epoch number.

    Returns:
      int32[steps, B], indices into ``labels``. -1 pads the last row, so that all steps
      have the same shape.

    >>> plan(np.zeros(5, np.int32), "instance", 2, run=(1, 0), epoch=0).shape
    (3, 2)
    """
    power = POWERS[one_of("sampler", kind, POWERS)]
    rng = seeds.generator(run, epoch)
    if power is None:
        return batch_indices(rng.permutation(len(labels)), batch)
    return batch_indices(_by_class(labels, rng, power), batch)


def batch_indices(order: np.ndarray, batch: int) -> np.ndarray:
    """Split int[N] into int32[steps, batch]; pad the last row with -1."""
    steps = -(-len(order) // batch)
    rows = np.full(steps * batch, -1, np.int32)
    rows[: len(order)] = order
    return rows.reshape(steps, batch)


def examples_per_epoch(size: int, batch: int, drop_last: bool) -> int:
    """Count the examples that one epoch uses; ``drop_last`` skips a smaller last batch.

    >>> examples_per_epoch(130, 64, True), examples_per_epoch(130, 64, False)
    (128, 130)
    """
    return size - size % batch if drop_last else size


def _by_class(labels: np.ndarray, rng: np.random.Generator, power: float) -> np.ndarray:
    """Return int[N], with classes drawn in proportion to ``counts ** power``."""
    counts = np.bincount(labels)
    shares = np.where(counts > 0, counts.astype(float) ** power, 0.0)
    # Systematic sampling: a class is drawn its expected number of times, plus or minus
    # one, instead of with binomial noise.
    edges = np.cumsum(shares) / shares.sum() * len(labels)
    ends = np.floor(edges + rng.random()).astype(int)
    ends[-1] = len(labels)
    draws = np.diff(np.concatenate([[0], np.minimum(ends, len(labels))]))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    pieces = []
    for label in np.flatnonzero(draws):
        members = by_class[label]
        rounds = -(-draws[label] // len(members))
        shuffled = [rng.permutation(members) for _ in range(rounds)]
        pieces.append(np.concatenate(shuffled)[: draws[label]])
    # Shuffle the classes only: the examples of a class keep the order drawn above, so
    # that none is drawn twice before all are drawn once.
    classes = rng.permutation(np.repeat(np.arange(len(draws)), draws))
    order = np.empty(len(labels), int)
    order[np.argsort(classes, kind="stable")] = np.concatenate(pieces)
    return order
