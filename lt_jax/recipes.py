"""Published hyper-parameters and sweep grids of every method: the only copy.

A recipe maps a ``Case`` to the method's entry in a config: ``lr``, ``epochs``,
``decay``, the method's own hyper-parameters and ``grid``, the values that a sweep
tries. Configs and the library take their entries from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lt_jax.errors import InputError, suggest

GRID = "grid"  # the key of an entry that holds its grid; all others are its own values

# What the keys of an entry mean; the docstrings in methods.py have the details.
KEYS = {
    "lr": "highest learning rate, for a batch of method.lr_batch",
    "epochs": "passes over the training images; 0: trains nothing",
    "decay": "weight decay, coupled",
    "start": 'initial head: "stage1" or "fresh"',
    "sampler": '"instance", "class" or "sqrt"',
    "delta": "smoothing mass, spread over all classes",
    "power": "class weights are counts ** -power",
    "beta": "of the effective number of samples",
    "gamma": "focal: power of 1 - p; vs: power of the counts that scale logits",
    "tau": "factor of the log prior; tau_norm: power of the class norm",
    "alpha": "weight of LADE's regulariser",
    "square": "LADE's lambda, the weight of its squared terms",
    "scale": "factor of the cosines",
    "max_margin": "margin of the rarest class, in cosines",
    "defer": "share of the epochs before classes are weighted",
    "head": "smoothing of the largest class",
    "tail": "smoothing of the smallest class",
    "quantile": "position of the radius between the smallest and largest class norm",
    "every": 'the projection runs after every "step" or "epoch"',
    "kind": 'nearest mean: "raw", "l2" or "cl2", see lt_jax/heads.py',
    "grid": "sweep: every combination of these values; see recipes.expand",
}


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

    The amount is K times the odds of the true class. The same delta smooths more at a
    smaller K; the same amount does not.

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


class Case(NamedTuple):
    """What a recipe depends on."""

    smoothing: Smoothing
    batch: int = 64  # learning rates of official code are scaled to this batch
    # The data set whose official numbers are taken where they differ.
    official: str = "cifar100_lt"  # or "imagenet_lt", "inat2018"

    def lr(self, lr: float, batch: int) -> float:
        """Scale an official learning rate from its batch to this one, in proportion."""
        return lr * self.batch / batch


Entry = dict[str, Any]
Recipe = Callable[[Case], Entry]

# Spreads of learning rates are ours; lr is in the grid of every method that trains.
LR = (5e-4, 5e-3, 5e-2, 0.5)
HALF_DECADES = (5e-4, 1.6e-3, 5e-3, 1.6e-2, 5e-2, 0.16, 0.5)
LOS_LR = (5e-4, 1.6e-3, 5e-3, 5e-2, 0.5)
BETAS = (0.9, 0.99, 0.999, 0.9999)
STARTS = ("stage1", "fresh")


def _usual(lr: float, own: Entry, grid: Entry) -> Recipe:
    """Return the LOS authors' recipe, a continuation of stage 1, with these values."""
    shared = {"epochs": 20, "decay": 0.0, "start": "stage1", "sampler": "instance"}
    return lambda _: shared | {"lr": lr} | own | {"grid": {"lr": LR} | grid}


def _untrained(own: Entry, grid: Entry) -> Recipe:
    return lambda _: {"lr": 0.0, "epochs": 0, "decay": 0.0} | own | {"grid": grid}


def _los(case: Case, lr: float, own: Entry, grid: Entry) -> Entry:
    """Return LOS with the authors' recipe of CIFAR100-LT; other sets' is unknown."""
    grid = {"delta": case.smoothing.coarse} | grid
    return _usual(lr, {"delta": case.smoothing.delta} | own, grid)(case)


def _los_max_norm(case: Case) -> Entry:
    own = {"quantile": 0.1, "every": "epoch"}  # as weight balancing
    entry = _los(case, 5e-4, own, {"quantile": (0.1, 0.5)})
    del entry["start"]  # the radius is that of stage 1
    return entry


def _decoupling(case: Case, epochs: int) -> Entry:
    """Decoupling's code: lr 0.2 at batch 512, decay as in stage 1; no grid."""
    decay = 1e-4 if case.official == "inat2018" else 5e-4
    own = {"lr": case.lr(0.2, 512), "epochs": epochs, "decay": decay}
    return own | {"grid": {"lr": HALF_DECADES}}


def _disalign(case: Case, powers: tuple[float, ...]) -> Entry:
    """DisAlign's code for ImageNet-LT: lr 0.1 at batch 256, 10 epochs, power 1.2."""
    own = {"lr": case.lr(0.1, 256), "epochs": 10, "decay": 5e-4, "power": 1.2}
    return own | {"sampler": "instance", "grid": {"lr": LR, "power": powers}}


def _mislas(case: Case) -> Entry:
    """MiSLAS's code, whose head has a lower lr than its scale; here they share one.

    CIFAR: head and tail are those of IR 100; at IR 10 they are 0.2 and 0.
    """
    lr, batch, decay, head, tail = {
        "cifar100_lt": (0.02, 128, 2e-4, 0.4, 0.1),
        "imagenet_lt": (0.1, 256, 5e-4, 0.3, 0.0),
        "inat2018": (0.1, 256, 1e-4, 0.3, 0.0),
    }[case.official]
    own = {"lr": case.lr(lr, batch), "epochs": 10, "decay": decay, "sampler": "class"}
    grid = {"lr": LR, "head": (0.2, 0.3, 0.4), "tail": (0.0, 0.1)}
    return own | {"head": head, "tail": tail, "grid": grid}


def _lade(case: Case) -> Entry:
    """Not published: lr. The rest: CIFAR100-LT and ImageNet-LT, or iNaturalist."""
    alpha, square = (0.05, 0.5) if case.official == "inat2018" else (0.1, 0.1)
    grid = {"alpha": (0.05, 0.1), "square": (0.1, 0.5)}
    return _usual(0.05, {"alpha": alpha, "square": square}, grid)(case)


def _weight_balancing(case: Case) -> Entry:
    """CIFAR100-LT at batch 64, for a loss about K times smaller.

    The same steps are near lr 1e-4 and decay 10 at K = 100: the grid extends that far.
    """
    own = {"lr": case.lr(0.01, 64), "epochs": 10, "decay": 0.1, "beta": 0.9999}
    own |= {"quantile": 0.1, "every": "epoch", "sampler": "instance"}
    lr, decay = (1e-4, 5e-4, 5e-3, 5e-2), (1e-3, 1e-2, 0.1, 1.0, 10.0)
    return own | {"grid": {"lr": lr, "decay": decay, "every": ("step", "epoch")}}


# "Not published": nobody has published a value for re-training a head, and the number
# is a first choice.
RECIPES: dict[str, Recipe] = {
    # LOS at delta 0; the baseline gets the finest grid
    "ce": _usual(5e-4, {}, {"lr": HALF_DECADES, "start": STARTS}),
    "los": lambda c: _los(c, 5e-4, {}, {"lr": LOS_LR, "delta": c.smoothing.curve}),
    # not published; 0.1 is the usual value
    "label_smoothing": _usual(5e-4, {"delta": 0.1}, {"delta": (0.05, 0.1, 0.2, 0.4)}),
    # not published; 1.0: inverse frequency, 0.5: its square root
    "reweight": _usual(5e-4, {"power": 1.0}, {"power": (0.5, 1.0, 1.5)}),
    # not published; beta 0.9999: CIFAR-LT in the official code
    "class_balanced": _usual(5e-4, {"beta": 0.9999}, {"beta": BETAS}),
    # not published; gamma 2: the paper's, 1: LDAM-DRW's and class-balanced's code
    "focal": _usual(5e-4, {"gamma": 2.0}, {"gamma": (0.5, 1.0, 2.0)}),
    # not published
    "balanced_softmax": _usual(0.05, {}, {"start": STARTS}),
    # not published; tau 1: theory and official code
    "logit_adjust": _usual(0.05, {"tau": 1.0}, {"tau": (0.5, 1.0, 1.5, 2.0)}),
    # not published; gamma, tau: example of the code
    "vs": _usual(
        0.05,
        {"gamma": 0.2, "tau": 1.2},
        {"lr": LR[1:], "gamma": (0.05, 0.1, 0.2), "tau": (0.5, 0.8, 1.2)},
    ),
    "lade": _lade,
    # not published
    "cosine": _usual(0.05, {"scale": 30.0}, {"scale": (10.0, 20.0, 30.0)}),
    # lr not published; the rest: CIFAR100-LT, for complete networks; defer 1: LDAM
    "ldam": _usual(
        0.05,
        {"max_margin": 0.5, "scale": 30.0, "beta": 0.9999, "defer": 0.8},
        {"max_margin": (0.1, 0.3, 0.5), "defer": (0.8, 1.0)},
    ),
    # ImageNet-LT: 10 epochs, iNaturalist: 30
    "crt": lambda c: _decoupling(c, 30 if c.official == "inat2018" else 10),
    "lws": lambda c: _decoupling(c, 5),  # on both
    "disalign": lambda c: _disalign(c, (0.5, 1.0, 1.2, 1.5)),
    # not known; as DisAlign; power 0: without weights
    "marc": lambda c: _disalign(c, (0.0, 0.5, 1.0, 1.2)),
    "label_aware_smoothing": _mislas,
    "weight_balancing": _weight_balancing,
    # tau 1: unit vectors; the grid is Decoupling's. Weight balancing tuned 1.9 for
    # CIFAR100-LT, in code that keeps the bias.
    "tau_norm": _untrained({"tau": 1.0}, {"tau": tuple(i / 10 for i in range(21))}),
    # all kinds of Decoupling
    "ncm": _untrained({"kind": "cl2"}, {"kind": ("raw", "l2", "cl2")}),
    # tau 1: theory; no grid published
    "logit_adjust_posthoc": _untrained(
        {"tau": 1.0}, {"tau": tuple(i / 5 for i in range(16))}
    ),
    # The rest is not published: LOS with other starts, samplers and corrections.
    "los_fresh": lambda c: _los(
        c, 5e-2, {"start": "fresh"}, {"delta": c.smoothing.fresh}
    ),
    "los_resampled": lambda c: _los(
        c, 5e-4, {"sampler": "class"}, {"sampler": ("class", "sqrt")}
    ),
    "los_balanced_softmax": lambda c: _los(
        c, 5e-4, {}, {"delta": (c.smoothing.curve[0], *c.smoothing.coarse)}
    ),
    "los_max_norm": _los_max_norm,
    "los_tau_norm": lambda c: _los(
        c, 5e-4, {"tau": 1.0}, {"lr": LR[:3], "tau": (0.5, 1.0, 1.5)}
    ),
}


def entries(case: Case) -> dict[str, Entry]:
    """Return the config entries of all methods."""
    return {name: recipe(case) for name, recipe in RECIPES.items()}


def own(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an entry without its grid.

    >>> own({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.1, 0.2)}})
    {'lr': 0.1, 'epochs': 20}
    """
    return {key: _plain(value) for key, value in entry.items() if key != GRID}


def expand(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an entry: its grid's combinations over its other values.

    The last key of the grid varies fastest. The entry's own values come first unless
    the grid contains them; duplicates are dropped.

    >>> expand({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.2, 0.4)}})
    [{'lr': 0.1, 'epochs': 20}, {'lr': 0.2, 'epochs': 20}, {'lr': 0.4, 'epochs': 20}]

    Raises:
      InputError: there is no grid, it has an unknown key, or a value is not a tuple of
        at least one value.
    """
    if GRID not in entry:
        raise InputError("a sweep needs a 'grid': the values to try for each key")
    base, grid = own(entry), entry[GRID]
    if not hasattr(grid, "items"):
        raise InputError(f"grid must map keys to tuples, got {grid!r}")
    tried: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        if key not in base:
            raise InputError(f"grid has an unknown key {key!r}{suggest(key, base)}")
        if not isinstance(values, tuple) or not values:
            raise InputError(
                f"grid.{key} must be a tuple of at least one value, for example "
                f"({base[key]!r},), got {values!r}"
            )
        tried[key] = tuple(_plain(value) for value in values)
    rows = [
        {**base, **dict(zip(tried, values, strict=True))}
        for values in itertools.product(*tried.values())
    ]
    if base not in rows:
        rows.insert(0, base)
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar to a Python one."""
    return value.item() if hasattr(value, "item") else value
