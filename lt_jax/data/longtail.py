"""Long-tailed subsets of a balanced dataset, and held-out validation examples.

Two builds of CIFAR100-LT are in use: ``first``, from the code of LOS and weight
balancing, and ``cao``, from LDAM and its descendants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_jax.errors import InputError, one_of


def class_sizes(n_max: float, num_classes: int, imbalance: float) -> np.ndarray:
    """Compute class sizes that fall exponentially from n_max to n_max / imbalance.

    ``n_c = int(n_max * (1 / imbalance) ** (c / (K - 1)))`` in the order of the labels,
    rounded down in floating point as in the code of LDAM and LOS.

    Returns:
      int64[K].

    Raises:
      InputError: fewer than two classes, ``imbalance`` below 1 or NaN, or so large that
        a class would be empty.
    """
    if num_classes < 2:
        raise InputError(f"a long tail needs at least 2 classes, got {num_classes}")
    if not imbalance >= 1:  # also true for NaN
        raise InputError(
            "imbalance (size of the largest class over the smallest) must be at least "
            f"1, got {imbalance}"
        )
    sizes = np.array(
        [
            int(n_max * (1 / imbalance) ** (c / (num_classes - 1)))
            for c in range(num_classes)
        ]
    )
    if empty := np.count_nonzero(sizes == 0):
        # Searched with the formula itself: 49 * (1 / 49) is below 1 in floating point.
        fits = (r for r in range(int(n_max), 0, -1) if n_max * (1 / r) >= 1)
        raise InputError(
            f"imbalance {imbalance:g} with {n_max:g} examples in the largest class "
            f"leaves {empty} of {num_classes} classes empty; the largest integer "
            f"imbalance without an empty class is {next(fits, 'none')}"
        )
    return sizes


def by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """List the positions of each class, ascending, with one sort for all classes.

    >>> [rows.tolist() for rows in by_class(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def _cao(members: list[np.ndarray]) -> list[np.ndarray]:
    """Shuffle every class with one generator that continues from class to class."""
    # LDAM's own generator; another one would choose other images.
    random = np.random.RandomState(0)
    return [random.permutation(rows) for rows in members]


# How each class is ordered before its first n_c examples are taken.
SPLITS: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {
    "first": lambda members: members,
    "cao": _cao,
}
WHOLE = "whole"  # nothing is cut


def _check_whole(sizes: np.ndarray, imbalance: float) -> None:
    if imbalance != 1:
        raise InputError(
            "imbalance must be 1 with split 'whole', which keeps every training image; "
            f"got {imbalance:g}. Use split 'first' or 'cao' to cut the dataset"
        )
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        raise InputError(
            f"{empty.size} of {len(sizes)} classes have no training example (such as "
            f"class {empty[0]}): the dataset was cut, or prepared from a part of its "
            "archives"
        )


def choose(
    labels: np.ndarray,
    ids_order: np.ndarray,
    num_classes: int,
    imbalance: float,
    split: str,
) -> np.ndarray:
    """Choose the examples of a long-tailed subset.

    The sizes are ``class_sizes(n, K, imbalance)``, where n is the size of the largest
    class. It equals the authors' N / K where all classes have one size, and leaves a
    dataset that was already cut to this imbalance as it is.

    Args:
      labels: int[N], 0 .. K-1.
      ids_order: int[N], positions of the examples in the order of their ids. This is
        the order of the original archive, so that the authors' images are chosen.
      num_classes: K.
      imbalance: size of the largest class over the smallest.
      split: ``first``, the first n_c of each class (github.com/bilibili/LOS);
        ``cao``, n_c of each class after a shuffle by NumPy's legacy generator with
        seed 0 (github.com/kaidic/LDAM-DRW, Cao et al. 2019); or ``whole``, all
        examples of a dataset that is long-tailed already.

    Returns:
      int[sum of the class sizes], class by class; for ``whole`` in the order of ids.

    Raises:
      InputError: an unknown split, a class with too few examples, ``whole`` with an
        imbalance or an empty class, or an argument that ``class_sizes`` rejects.
    """
    one_of("long-tailed split", split, [*SPLITS, WHOLE])
    have = np.bincount(labels, minlength=num_classes)
    if split == WHOLE:
        _check_whole(have, imbalance)
        return ids_order
    sizes = class_sizes(int(have.max()), num_classes, imbalance)
    short = np.flatnonzero(have < sizes)
    if short.size:
        c = short[0]
        raise InputError(
            f"imbalance {imbalance:g} needs {sizes[c]} examples of class {c}, but the "
            f"dataset has {have[c]} ({short.size} such classes): start from a balanced "
            "dataset, or use a larger imbalance"
        )
    members = [ids_order[rows] for rows in by_class(labels[ids_order], num_classes)]
    ordered = SPLITS[split](members)
    return np.concatenate(
        [rows[:size] for rows, size in zip(ordered, sizes, strict=True)]
    )


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a stratified part of the examples.

    Holds out round(fraction * n_c) examples of each class: at least one if the class
    has two, and never all. The same seed with a larger fraction holds out a superset.

    Args:
      labels: int[N], 0 .. K-1.
      fraction: in [0, 1); 0 holds out nothing.
      seed: at least 0.
      num_classes: K.

    Returns:
      The positions that are kept and those that are held out, both int[...] and
      ascending.

    Raises:
      InputError: ``fraction`` or ``seed`` is out of range.
    """
    if not 0 <= fraction < 1:
        raise InputError(
            f"the held-out fraction must be at least 0 and below 1, got {fraction}"
        )
    if seed < 0:
        raise InputError(f"the seed of the held-out split must be >= 0, got {seed}")
    random = np.random.default_rng(seed)
    held = []
    for rows in by_class(labels, num_classes):
        wanted = max(round(fraction * len(rows)), 1) if fraction > 0 else 0
        held.append(random.permutation(rows)[: min(wanted, max(len(rows) - 1, 0))])
    valid = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), valid), valid
