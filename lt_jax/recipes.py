"""Published hyperparameters and sweep grids of every method: the only copy.

To look a value up, find the method in ``RECIPES``. A recipe maps a ``Case`` to the
method's entry in a config: ``lr``, ``epochs``, ``decay``, the method's own
hyperparameters, and ``grid``, the values that a sweep tries. docs/reference/config.md
explains the keys. "Not published" means that no paper re-trains a head with this
method: the value is our first choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError

GRID = "grid"  # the key of an entry that holds its grid; all others are its own values


class Smoothing(NamedTuple):
    """Smoothing masses of LOS and its variants."""

    delta: float  # of a single run
    curve: tuple[float, ...]  # swept by `los`
    coarse: tuple[float, ...]  # swept by its compositions
    fresh: tuple[float, ...]  # swept by `los_fresh`


# The paper publishes delta 0.98 at K = 100 and no grid. delta 0 is `ce`.
CIFAR100 = Smoothing(
    delta=0.98,
    curve=(0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999),
    coarse=(0.5, 0.9, 0.98),
    fresh=(0.5, 0.9, 0.98, 0.99),
)


def delta_of(amount: float, num_classes: int) -> float:
    """Return the delta with ``K (1 - delta) / delta = amount``.

    Equal amounts smooth equally at any K; equal deltas smooth more at a smaller K.

    >>> delta_of(2.04, 10)
    0.8305648
    """
    return round(num_classes / (num_classes + amount), 7)


def smoothing(num_classes: int) -> Smoothing:
    """Return the amounts of ``CIFAR100`` as masses for another number of classes."""

    def deltas(*amounts: float) -> tuple[float, ...]:
        return tuple(delta_of(amount, num_classes) for amount in amounts)

    return Smoothing(
        delta=delta_of(2.04, num_classes),
        curve=deltas(900.0, 233.0, 100.0, 25.0, 11.1, 5.26, 2.04, 1.01, 0.1),
        coarse=deltas(100.0, 11.1, 2.04),
        fresh=deltas(100.0, 11.1, 2.04, 1.01),
    )


# A value that the data decide; see ``experiment/config.py``.
FROM_DATA = -1
BY_CLASSES = Smoothing(-1.0, (-1.0,), (-1.0,), (-1.0,))  # of the data's classes


class Case(NamedTuple):
    """What a recipe depends on."""

    smoothing: Smoothing
    batch: int = 64  # learning rates of official code are scaled to this batch
    # Whose official values to take: "cifar100_lt", "imagenet_lt" or "inat2018".
    official: str = "cifar100_lt"

    def lr(self, lr: float, batch: int) -> float:
        """Scale an official learning rate from its batch to this one, in proportion."""
        return lr * self.batch / batch

    def pick(self, cifar100_lt: Any, imagenet_lt: Any, inat2018: Any) -> Any:
        """Return the official value for the case's dataset."""
        names = "cifar100_lt", "imagenet_lt", "inat2018"
        return (cifar100_lt, imagenet_lt, inat2018)[names.index(self.official)]


Entry = dict[str, Any]
RecipeFunction = Callable[[Case], Entry]

# The LOS authors' way to continue stage 1. Methods without a published recipe use it.
USUAL = {"epochs": 20, "decay": 0.0, "start": "stage1", "sampler": "instance"}
UNTRAINED = {"lr": 0.0, "epochs": 0, "decay": 0.0}
# Grids of learning rates are ours; every method that trains has one.
LR = (5e-4, 5e-3, 5e-2, 0.5)
HALF_DECADES = (5e-4, 1.6e-3, 5e-3, 1.6e-2, 5e-2, 0.16, 0.5)
STARTS = ("stage1", "fresh")
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
BETAS = (0.9, 0.99, 0.999, 0.9999)

# A table: the values of a single run, then the grid.
# fmt: off
RECIPES: dict[str, RecipeFunction] = {
    # LOS at delta 0; the baseline gets the finest grid.
    "ce": lambda c: dict(USUAL, lr=5e-4, grid=dict(lr=HALF_DECADES, start=STARTS)),
    # Published for CIFAR100-LT at K = 100; not published for other datasets.
    "los": lambda c: dict(
        USUAL, lr=5e-4, delta=c.smoothing.delta,
        grid=dict(lr=(5e-5, *LR), delta=c.smoothing.curve)),
    # Not published; 0.1 is the usual value.
    "label_smoothing": lambda c: dict(
        USUAL, lr=5e-4, delta=0.1, grid=dict(lr=LR, delta=(0.05, 0.1, 0.2, 0.4))),
    # Not published; 1.0: inverse frequency, 0.5: its square root.
    "reweight": lambda c: dict(
        USUAL, lr=5e-4, power=1.0,
        grid=dict(decay=(5e-4, 0.0), lr=LR[1:], power=(0.5, 1.0), start=STARTS)),
    # lr not published; beta 0.9999 (CIFAR-LT) and mean: official code.
    "class_balanced": lambda c: dict(
        USUAL, lr=5e-4, beta=0.9999, mean="examples", grid=dict(lr=LR, beta=BETAS)),
    # Not published; gamma 2: the paper's, 1: LDAM-DRW's and class-balanced's code.
    "focal": lambda c: dict(
        USUAL, lr=5e-4, gamma=2.0, grid=dict(lr=LR, gamma=(0.5, 1.0, 2.0))),
    # Not published.
    "balanced_softmax": lambda c: dict(USUAL, lr=0.05, grid=dict(lr=LR, start=STARTS)),
    # Not published; tau 1: theory and official code.
    "logit_adjust": lambda c: dict(
        USUAL, lr=0.05, tau=1.0, grid=dict(lr=LR, tau=(0.5, 1.0, 1.5, 2.0))),
    # Not published; gamma and tau: example of the official code.
    "vs": lambda c: dict(
        USUAL, lr=0.05, gamma=0.2, tau=1.2,
        grid=dict(lr=LR[1:], gamma=(0.05, 0.1, 0.2), tau=(0.5, 0.8, 1.2))),
    # lr not published; alpha and square: commands of the official code.
    "lade": lambda c: dict(
        USUAL, lr=0.05, alpha=c.pick(0.1, 0.05, 0.05), square=c.pick(0.01, 0.5, 0.5),
        grid=dict(lr=LR, alpha=(0.05, 0.1), square=(0.01, 0.1, 0.5))),
    # Not published.
    "cosine": lambda c: dict(
        USUAL, lr=0.05, scale=30.0, grid=dict(lr=LR, scale=(10.0, 20.0, 30.0))),
    # lr not published; the rest: CIFAR100-LT, for complete networks. defer 1: LDAM.
    "ldam": lambda c: dict(
        USUAL, lr=0.05, max_margin=0.5, scale=30.0, beta=0.9999, defer=0.8,
        grid=dict(lr=LR, max_margin=(0.1, 0.3, 0.5), defer=(0.8, 1.0))),
    # Decoupling's code; its decay is that of stage 1, its grid ours.
    "crt": lambda c: dict(
        lr=c.lr(0.2, batch=512), epochs=c.pick(10, 10, 30),
        decay=c.pick(5e-4, 5e-4, 1e-4), grid=dict(lr=HALF_DECADES)),
    "lws": lambda c: dict(RECIPES["crt"](c), epochs=5),
    # DisAlign's code for ImageNet-LT.
    "disalign": lambda c: dict(
        lr=c.lr(0.1, batch=256), epochs=10, decay=5e-4,
        power=1.2, form="classification", sampler="instance",
        grid=dict(lr=LR, power=(0.5, 1.0, 1.2, 1.5))),
    # MARC's code. CIFAR: 2,000 steps of 512 images, 91 epochs at IR 100; its warm-up to
    # lr 0.1 in the first 37 is left out. power 0: without weights.
    "marc": lambda c: dict(
        lr=c.lr(0.05, batch=c.pick(512, 256, 256)), epochs=c.pick(91, 10, 30),
        decay=c.pick(5e-4, 5e-4, 1e-4), power=1.2, sampler="instance",
        grid=dict(lr=LR, power=(0.0, 0.5, 1.0, 1.2))),
    # MiSLAS's code: the lr of W and b, a fraction of the scale's 0.1, which is another
    # one at other IRs (see methods.py). CIFAR100: head and tail are those of IR 100; at
    # IR 50 they are 0.3 and 0, at IR 10 0.2 and 0.
    "label_aware_smoothing": lambda c: dict(
        lr=c.lr(c.pick(0.02, 0.005, 0.005), batch=c.pick(128, 256, 256)), epochs=10,
        decay=c.pick(2e-4, 5e-4, 1e-4), sampler="class",
        head=c.pick(0.4, 0.3, 0.3), tail=c.pick(0.1, 0.0, 0.0),
        grid=dict(lr=LR, head=(0.2, 0.3, 0.4), tail=(0.0, 0.1))),
    # The official code's for CIFAR100-LT: lr 0.01 and decay 0.1, on a loss of about
    # 1/100 of ours.
    "weight_balancing": lambda c: dict(
        lr=c.lr(1e-4, batch=64), epochs=10, decay=10.0, beta=0.9999, mean="examples",
        quantile=0.1, every="epoch", sampler="instance",
        grid=dict(lr=(1e-4, 5e-4, 5e-3, 5e-2), decay=(1e-3, 0.1, 1.0, 10.0),
                  every=("step", "epoch"))),
    # tau 1: unit vectors; the grid is Decoupling's. Weight balancing tuned 1.9 for
    # CIFAR100-LT, in code that keeps the bias.
    "tau_norm": lambda c: dict(
        UNTRAINED, tau=1.0, grid=dict(tau=tuple(i / 10 for i in range(21)))),
    # All kinds of Decoupling.
    "ncm": lambda c: dict(UNTRAINED, kind="cl2", grid=dict(kind=("raw", "l2", "cl2"))),
    # tau 1: theory; no grid published.
    "logit_adjust_posthoc": lambda c: dict(
        UNTRAINED, tau=1.0, grid=dict(tau=tuple(i / 5 for i in range(16)))),
    # Not published; logit adjustment, and scikit-learn's balanced weights.
    "logistic": lambda c: dict(
        UNTRAINED, power=0.0, tau=1.0, penalty=0.1,
        grid=dict(penalty=PENALTIES)),
    "logistic_balanced": lambda c: dict(
        UNTRAINED, power=1.0, tau=0.0, penalty=1.0, grid=dict(penalty=PENALTIES)),
    # The rest is not published: LOS with other starts, samplers and corrections.
    "los_fresh": lambda c: dict(
        RECIPES["los"](c), lr=5e-2, start="fresh",
        grid=dict(lr=LR, delta=c.smoothing.fresh)),
    "los_resampled": lambda c: dict(
        RECIPES["los"](c), sampler="class",
        grid=dict(lr=LR, delta=c.smoothing.coarse, sampler=("class", "sqrt"))),
    "los_balanced_softmax": lambda c: dict(
        RECIPES["los"](c),
        grid=dict(lr=LR, delta=(c.smoothing.curve[0], *c.smoothing.coarse))),
    # quantile and every: as weight balancing; the radius is that of stage 1.
    "los_max_norm": lambda c: dict(
        lr=5e-4, epochs=20, decay=0.0, delta=c.smoothing.delta,
        quantile=0.1, every="epoch", sampler="instance",
        grid=dict(lr=LR[:3], delta=c.smoothing.coarse, quantile=(0.1, 0.5))),
    "los_tau_norm": lambda c: dict(
        RECIPES["los"](c), tau=1.0,
        grid=dict(lr=LR[:3], delta=c.smoothing.coarse, tau=(0.5, 1.0, 1.5))),
}
# fmt: on


def entries(case: Case) -> dict[str, Entry]:
    """Return the config entries of all methods."""
    return {name: recipe(case) for name, recipe in RECIPES.items()}


def own(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an entry without its grid.

    >>> own({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.1, 0.2)}})
    {'lr': 0.1, 'epochs': 20}
    """
    return {key: value for key, value in entry.items() if key != GRID}


def expand(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an entry: its grid's combinations over its other values.

    The last key of the grid varies fastest. The entry's own values come first unless
    the grid contains them; duplicates are dropped.

    >>> expand({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.2, 0.4)}})
    [{'lr': 0.1, 'epochs': 20}, {'lr': 0.2, 'epochs': 20}, {'lr': 0.4, 'epochs': 20}]

    Raises:
      InputError: no grid.
    """
    if GRID not in entry:
        raise InputError("a sweep needs a 'grid': the values to try for each key")
    base, grid = own(entry), entry[GRID]
    points = itertools.product(*grid.values())
    rows = [base | dict(zip(grid, values, strict=True)) for values in points]
    rows = rows if base in rows else [base, *rows]
    unique: dict[Any, dict[str, Any]] = {}
    for row in rows:
        unique.setdefault(tuple(row.items()), row)
    return list(unique.values())


def thinned(entry: Mapping[str, Any], rows: int) -> dict[str, tuple[Any, ...]]:
    """Return the grid of an entry with at most ``rows`` combinations, if it can be.

    Halves axes of more than three values, the longest first, then the shortest axes,
    rates last. An axis keeps its ends if three values remain, else inner ones.

    >>> thinned({"lr": 1, "grid": {"lr": (1, 2, 3, 4, 5), "tau": (0, 1)}}, 6)
    {'lr': (1, 3, 5), 'tau': (0, 1)}
    >>> thinned({"lr": 1, "grid": {"lr": (1, 2, 3), "tau": (0, 1, 2, 3)}}, 3)
    {'lr': (1, 2, 3), 'tau': (1,)}
    """
    grid = dict(entry[GRID])

    def order(key: str) -> tuple[bool, int, bool]:
        size = len(grid[key])
        return size > 3, size if size > 3 else -size, key != "lr"

    while math.prod(map(len, grid.values())) > max(rows, 1):
        axis = max((key for key in grid if len(grid[key]) > 1), key=order)
        values = grid[axis]
        kept, last = (len(values) + 1) // 2, len(values) - 1
        ends = np.linspace(0, last, kept)
        at = ends if kept > 2 else np.linspace(0, last, kept + 2)[1:-1]
        grid[axis] = tuple(values[i] for i in sorted({*at.round().astype(int)}))
    return grid
