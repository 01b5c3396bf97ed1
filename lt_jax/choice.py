"""The choice of a method and its values by cross-validation, then a fit on all.

For features that come from a backbone that has not seen the examples. Features of a
network that was trained on them are too good on every fold; a sweep holds out images
before it trains one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_jax import recipes
from lt_jax.api import FittedHead, Recipe, fit_heads, published, stage1
from lt_jax.data import longtail
from lt_jax.data.sources.features import checked
from lt_jax.errors import InputError, in_range
from lt_jax.files import jsonable
from lt_jax.retraining import selection
from lt_jax.retraining.features import standardise
from lt_jax.retraining.selection import Recommendation

# One compiled program and closed forms: a fold takes seconds.
METHODS = (
    *("ce", "balanced_softmax", "crt", "tau_norm", "ncm", "logit_adjust_posthoc"),
    *("logistic", "logistic_balanced"),
)


class Choice(NamedTuple):
    """A recommended method and its head."""

    found: Recommendation  # accuracies are those on the held-out folds
    head: FittedHead  # fitted on all examples


def choose_head(
    features: Any,
    labels: Any,
    names: Sequence[str] = METHODS,
    *,
    folds: int = 5,
    margin: float = 1.0,
    bound: float = 0.03,
    batch: int = 64,
    seed: int = 0,
    memory: float = 1.0,
) -> Choice:
    """Choose a method and its values by balanced accuracy, and fit it on all examples.

    Every setting of every grid is fitted without each fold and measured on it. The
    published values of a method are kept unless others are better by ``margin``
    standard errors.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], [60, 20, 6])
    >>> features = np.eye(3)[labels] + 0.3 * rng.normal(size=(86, 3))
    >>> found, head = choose_head(features, labels, ["ncm", "logistic"], folds=3)
    >>> found.method in ("ncm", "logistic"), found.score > 0.9
    (True, True)

    Args:
      features: float[N, D].
      labels: int[N] in 0 .. K-1. A class with one example is not validated.
      names: keys of ``methods.METHODS``.
      folds: at least 2.
      margin: in standard errors; 0: the best values are chosen.
      bound: loss of overall accuracy, as a fraction, that sets ``found.warning``.
      batch, seed, memory: see ``fit_heads``.
    """
    features, labels = checked("input", np.asarray(features), np.asarray(labels))
    in_range("folds", folds, f"[2, {len(labels)}]", integer=True)
    counts = np.bincount(labels)
    case = recipes.Case(recipes.smoothing(len(counts)))
    own = {name: recipes.own(recipes.RECIPES[name](case)) for name in names}
    rows = [
        {"method": name, "hyper": row, "seeds": [0, seed], "diverged": None}
        for name in names
        for row in recipes.expand(recipes.RECIPES[name](case))
    ]
    how = {"batch": batch, "seed": seed, "memory": memory}
    features, centre, scale = standardise(features)
    pairs = longtail.cross_validation(labels, folds, seed, len(counts))
    if not pairs:
        raise InputError("no class has two examples, so none can be held out")
    right, seen = np.zeros((len(rows) + 1, len(counts))), np.zeros(len(counts))
    for kept, held in pairs:
        heads = _fit(rows, features[kept], labels[kept], how)
        seen += np.bincount(labels[held], minlength=len(counts))
        for i, head in enumerate(heads):
            hit = head.logits(features[held]).argmax(axis=1) == labels[held]
            right[i] += np.bincount(labels[held], hit, minlength=len(counts))
            if head.diverged and i < len(rows):
                rows[i]["diverged"] = head.diverged
    measured = seen > 0
    balanced = (right[:, measured] / seen[measured]).mean(axis=1)
    overall = right.sum(axis=1) / seen.sum()
    for i, row in enumerate(rows):
        row["metrics"] = {"valid": {"balanced": balanced[i], "all": overall[i]}}
    chosen = selection.choose(jsonable(rows), "balanced", own, seen, margin)
    found = selection.recommend(
        jsonable(rows),
        seen,
        chosen=chosen,
        untouched=overall[-1],
        bound=bound,
        margin=margin,
    )
    final = {"method": found.method, "hyper": found.hyper}
    head = _fit([final], features, labels, how)[0]
    return Choice(found, head._replace(centre=centre, scale=scale))


def _fit(
    rows: Sequence[dict[str, Any]], features: np.ndarray, labels: np.ndarray, how: Any
) -> list[FittedHead]:
    """Fit rows on the same examples; the head of stage 1 comes last."""
    counts = np.bincount(labels)
    start = fit_heads(features, labels, {"": stage1(counts)}, **how)[""]
    made: dict[str, Recipe] = {
        f"{i}": published(row["method"], counts, **row["hyper"])
        for i, row in enumerate(rows)
    }
    return [*fit_heads(features, labels, made, start=start, **how).values(), start]
