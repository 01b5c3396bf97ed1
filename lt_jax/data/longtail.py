"""Long-tailed subsets of a balanced dataset, and held-out validation examples.

Two builds of CIFAR100-LT are in use: ``first``, from the code of LOS and weight
balancing, and ``cao``, from LDAM and its descendants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_jax.errors import InputError


def class_sizes(n_max: float, num_classes: int, imbalance: float) -> np.ndarray:
    """Compute class sizes int64[K] that fall from n_max to n_max / imbalance.

    ``n_c = int(n_max * (1 / imbalance) ** (c / (K - 1)))`` in the order of the labels,
    rounded down in floating point as in the code of LDAM and LOS.
    """
    last = num_classes - 1
    sizes = [int(n_max * (1 / imbalance) ** (c / last)) for c in range(num_classes)]
    if empty := sizes.count(0):
        # Searched with the formula itself: 49 * (1 / 49) is below 1 in floating point.
        fits = (r for r in range(int(n_max), 0, -1) if n_max * (1 / r) >= 1)
        raise InputError(
            f"imbalance {imbalance:g} with {n_max:g} examples in the largest class "
            f"leaves {empty} of {num_classes} classes empty; the largest integer "
            f"imbalance without an empty class is {next(fits, 'none')}"
        )
    return np.array(sizes)


def by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """List the positions of each class, ascending, with one sort for all classes.

    >>> [rows.tolist() for rows in by_class(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def _cao(members: list[np.ndarray]) -> list[np.ndarray]:
    # LDAM's own generator, which continues from class to class.
    random = np.random.RandomState(0)
    return [random.permutation(rows) for rows in members]


# How to order the examples of each class before taking its first n_c: as they are
# (github.com/bilibili/LOS), or shuffled by NumPy's legacy generator with seed 0
# (github.com/kaidic/LDAM-DRW, Cao et al. 2019).
SPLITS: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {
    "first": lambda members: members,
    "cao": _cao,
}
WHOLE = "whole"  # keeps every example of a dataset that is long-tailed already


def choose(
    labels: np.ndarray,
    ids_order: np.ndarray,
    num_classes: int,
    imbalance: float,
    split: str,
) -> np.ndarray:
    """Choose the examples of a long-tailed subset, class by class.

    The sizes are ``class_sizes(n, K, imbalance)``, where n is the size of the largest
    class; for a balanced dataset, this is the authors' N / K. A dataset that is already
    cut to this imbalance does not change.

    Args:
      labels: int[N], 0 .. K-1.
      ids_order: int[N], positions of the examples in the order of their ids, which is
        that of the original archive; it decides which images are first.
      split: a key of ``SPLITS``, or ``WHOLE``, whose result is in the order of ids.
    """
    have = np.bincount(labels, minlength=num_classes)
    if split == WHOLE:
        if imbalance != 1:
            raise InputError(
                "imbalance must be 1 with split 'whole', which keeps every example, "
                f"got {imbalance:g}: use split 'first' or 'cao' to cut the dataset"
            )
        if (empty := np.flatnonzero(have == 0)).size:
            raise InputError(
                f"{empty.size} of {num_classes} classes have no training example (such "
                f"as class {empty[0]}): was the dataset prepared from incomplete "
                "archives?"
            )
        return ids_order
    sizes = class_sizes(int(have.max()), num_classes, imbalance)
    if (short := np.flatnonzero(have < sizes)).size:
        c = short[0]
        raise InputError(
            f"imbalance {imbalance:g} needs {sizes[c]} examples of class {c}, but the "
            f"dataset has {have[c]} ({short.size} such classes): start from a balanced "
            "dataset, or use a larger imbalance"
        )
    members = [ids_order[rows] for rows in by_class(labels[ids_order], num_classes)]
    chosen = map(lambda rows, size: rows[:size], SPLITS[split](members), sizes)
    return np.concatenate([*chosen])


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return kept and held-out positions of int[N] labels, both ascending.

    Holds out round(fraction * n_c) of the n_c examples of each class: at least one if
    n_c > 1, and never all. The same seed with a larger fraction, in [0, 1), holds out a
    superset; 0 holds out nothing.
    """
    random = np.random.default_rng(seed)
    held = []
    for rows in by_class(labels, num_classes):
        wanted = max(round(fraction * len(rows)), 1) if fraction > 0 else 0
        held.append(random.permutation(rows)[: min(wanted, max(len(rows) - 1, 0))])
    valid = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), valid), valid


def cross_validation(
    labels: np.ndarray, number: int, seed: int, num_classes: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal the examples of each class to folds; list what to train on and hold out.

    The folds differ by at most one example, and so do the parts of each class. All
    training sets have one size, so that a program that is compiled for one suits all.
    Larger ones drop an example of their largest class.

    >>> pairs = cross_validation(np.array([0, 0, 1]), 2, 0, 2)
    >>> [(kept.tolist(), held.tolist()) for kept, held in pairs]
    [([1, 2], [0]), ([0, 2], [1])]

    Args:
      labels: int[N], 0 .. K-1.
      number: of folds, at least 2; there are fewer if that many would be empty.
      seed: at least 0.
      num_classes: K.

    Returns:
      Two ascending int[] of positions per fold. The only example of a class is always
      trained on.
    """
    random, pairs = np.random.default_rng(seed), []
    members = [rows for rows in by_class(labels, num_classes) if len(rows) > 1]
    dealt = np.concatenate([random.permutation(rows) for rows in members] or [[]])
    held = [dealt[each::number].astype(int) for each in range(min(number, len(dealt)))]
    size = len(labels) - max(map(len, held), default=0)
    for rows in map(np.sort, held):
        kept = np.setdiff1d(np.arange(len(labels)), rows)
        largest = np.flatnonzero(labels[kept] == np.bincount(labels[kept]).argmax())
        pairs.append((np.delete(kept, largest[: len(kept) - size]), rows))
    return pairs
