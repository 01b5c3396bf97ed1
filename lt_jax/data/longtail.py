"""Cutting a balanced set to a long tail, and holding validation examples out of it.

NumPy only. The two builds of CIFAR100-LT in use are offered by name: ``first``, of the
LOS and weight-balancing code, and ``cao``, of LDAM and what descends from it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lt_jax.errors import InputError, one_of


def class_sizes(n_max: float, num_classes: int, imbalance: float) -> np.ndarray:
    """int64[K], class sizes falling exponentially from ``n_max`` to n_max / imbalance.

    ``n_c = int(n_max * (1 / imbalance) ** (c / (K - 1)))`` in the order of the labels,
    rounded down in floating point exactly as LDAM's and the LOS authors' code do.

    Raises:
      InputError: fewer than two classes, ``imbalance`` below 1 or not a number, or so
        large that a class would be left empty.
    """
    if num_classes < 2:
        raise InputError(
            f"a long tail needs at least 2 classes, found num_classes={num_classes}"
        )
    if not imbalance >= 1:  # so written that nan is refused too
        raise InputError(
            "imbalance is the largest class over the smallest, a number of at least 1 "
            f"(1 keeps the classes equal); found {imbalance}"
        )
    sizes = np.array(
        [
            int(n_max * (1 / imbalance) ** (c / (num_classes - 1)))
            for c in range(num_classes)
        ]
    )
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        raise InputError(_left_empty(n_max, imbalance, empty))
    return sizes


def _left_empty(n_max: float, imbalance: float, empty: np.ndarray) -> str:
    """The message for a tail that ends in nothing; sizes never rise with the label."""
    which = f"class {empty[0]}"
    if len(empty) > 1:
        which = f"{len(empty)} classes, {empty[0]} to {empty[-1]},"
    # Searched with the formula itself: 49 * (1 / 49) is below 1 in floating point.
    fits = (r for r in range(int(n_max), 0, -1) if n_max * (1 / r) >= 1)
    largest = next(fits, None)
    found = f"imbalance {imbalance:g} with {n_max:g} examples in the largest class"
    if largest is None:
        return f"{found} leaves {which} empty; no imbalance avoids that"
    return (
        f"{found} leaves {which} empty; the largest whole imbalance that leaves no "
        f"class empty is {largest}"
    )


def by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The places of the examples of each class, ascending; one sort for all classes.

    >>> [rows.tolist() for rows in by_class(np.array([1, 0, 1]), 3)]
    [[1], [0, 2], []]
    """
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def _first(members: list[np.ndarray]) -> list[np.ndarray]:
    """Every class as it stands, in id order."""
    return members


def _cao(members: list[np.ndarray]) -> list[np.ndarray]:
    """Every class shuffled, by one generator that runs on from class to class."""
    # The generator of LDAM's build: another one would choose other images.
    random = np.random.RandomState(0)
    return [random.permutation(rows) for rows in members]


# How the examples of a class are ordered before its first n are taken.
SPLITS: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {
    "first": _first,
    "cao": _cao,
}


# Nothing is cut off.
WHOLE = "whole"


def _check_whole(have: np.ndarray, imbalance: float) -> None:
    if imbalance != 1:
        raise InputError(
            "split 'whole' keeps every training image, so imbalance must be 1; found "
            f"{imbalance:g}. To cut the set, take split 'first' or 'cao'"
        )
    empty = np.flatnonzero(have == 0)
    if empty.size:
        some = ", ".join(map(str, empty[:5]))
        raise InputError(
            f"{empty.size} of {len(have)} classes have no training example, as class "
            f"{some}: the set was cut, or prepared from a part of its archives"
        )


def choose(
    labels: np.ndarray,
    ids_order: np.ndarray,
    num_classes: int,
    imbalance: float,
    split: str,
) -> np.ndarray:
    """int[sum of counts], the examples that make up the long-tailed set.

    They stand class by class, and inside a class in the order they were chosen in.
    The sizes are ``class_sizes(n, K, imbalance)`` with n the size of the largest class:
    N / K, which the authors write, wherever the classes are equal; and a set that was
    cut before to this imbalance is kept whole, not cut a second time.

    Args:
      labels: int[N], 0 .. K-1.
      ids_order: int[N], the positions of the examples in the order of their ids: the
        order of the original archive, so that the authors' images are chosen.
      num_classes: K.
      imbalance: largest class over smallest.
      split: ``first``, the first n_c of each class (github.com/bilibili/LOS), or
        ``cao``, each class shuffled by NumPy's legacy generator from seed 0 and then
        its first n_c (github.com/kaidic/LDAM-DRW, Cao et al. 2019); or ``whole``, every
        example of a set that is long-tailed by itself, in the order of the ids.

    Raises:
      InputError: another split, a class with fewer examples than its size, ``whole``
        with an imbalance or a class without examples, or what ``class_sizes`` refuses.
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
            f"imbalance {imbalance:g} needs {sizes[c]} examples of class {c} where the "
            f"set has {have[c]} ({short.size} such classes): start from a set whose "
            "classes are equal, or take a larger imbalance"
        )
    members = [ids_order[rows] for rows in by_class(labels[ids_order], num_classes)]
    ordered = SPLITS[split](members)
    return np.concatenate(
        [rows[:size] for rows, size in zip(ordered, sizes, strict=True)]
    )


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """A stratified validation split: ``(fit, valid)``, both int[...] and ascending.

    Of each class round(fraction * n_c) examples are held out, but at least one where
    the class has two, and never all of a class. The same seed with a larger fraction
    holds out a superset. Fraction 0 holds out nothing.

    Args:
      labels: int[N], 0 .. K-1.
      fraction: in [0, 1).
      seed: of the draw, 0 or more.
      num_classes: K.

    Raises:
      InputError: a fraction or a seed outside its range.
    """
    if not 0 <= fraction < 1:
        raise InputError(
            "the validation split takes a fraction of at least 0 and below 1 of the "
            f"training set; found {fraction}"
        )
    if seed < 0:
        raise InputError(f"the seed of the validation split is negative: {seed}")
    random = np.random.default_rng(seed)
    held = []
    for rows in by_class(labels, num_classes):
        wanted = max(round(fraction * len(rows)), 1) if fraction > 0 else 0
        held.append(random.permutation(rows)[: min(wanted, max(len(rows) - 1, 0))])
    valid = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), valid), valid
