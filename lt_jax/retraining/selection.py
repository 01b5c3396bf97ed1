"""How a sweep chooses a setting: pure functions on the rows of ``rows.json``.

Only validation metrics are read here. A row holds ``method``, ``hyper``, ``seeds``,
``diverged`` (a step or None) and ``metrics`` by split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import Diverged
from lt_jax.metrics import CHOOSE


class Setting(NamedTuple):
    """The rows of a sweep that differ only in their seeds."""

    method: str
    hyper: dict[str, Any]
    rows: list[dict[str, Any]]  # ordered by seeds

    def over(self, split: str, metric: str) -> tuple[float, float]:
        """Return mean and deviation over the seeds; nan if one of them diverged."""
        return spread(value(row, split, metric) for row in self.rows)

    def score(self, metric: str) -> float:
        """Return the validation score, higher is better; -inf if a seed diverged."""
        mean, _ = self.over("valid", metric)
        return CHOOSE[metric] * mean if math.isfinite(mean) else -math.inf


def settings(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """Group rows by method and hyperparameters, in order of first appearance."""
    found: dict[tuple[str, str], dict[tuple[int, ...], Any]] = {}
    for row in rows:
        key = row["method"], json.dumps(row["hyper"], sort_keys=True)
        found.setdefault(key, {})[tuple(row["seeds"])] = row
    return [
        Setting(method, json.loads(hyper), [by_seeds[s] for s in sorted(by_seeds)])
        for (method, hyper), by_seeds in found.items()
    ]


def best(among: Iterable[Setting], metric: str) -> Setting | None:
    """Return the best setting on validation, the first of equal ones.

    A setting that diverged under any seed is never chosen: None if all of them did.
    """
    found = max(among, key=lambda s: s.score(metric), default=None)
    return found if found and found.score(metric) > -math.inf else None


def choose(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """Choose the hyperparameters of each method by the mean over its seeds.

    ``metric`` is a key of ``metrics.CHOOSE``.

    Raises:
      Diverged: every setting of a method diverged.
    """
    tried = settings(rows)
    chosen = {}
    for method in dict.fromkeys(setting.method for setting in tried):
        found = best((s for s in tried if s.method == method), metric)
        if found is None:
            raise Diverged(f"every setting of {method} in the sweep diverged")
        chosen[method] = found.hyper
    return chosen


def ties(rows: Sequence[Mapping[str, Any]], method: str, metric: str) -> str:
    """Describe how many settings of a method share the best score; "" if one does."""
    scores = [s.score(metric) for s in settings(rows) if s.method == method]
    tied = scores.count(max(scores))
    if tied == 1:
        return ""
    return f" (the first of {tied} of {len(scores)} settings with the best mean)"


def value(row: Mapping[str, Any], split: str, metric: str) -> float:
    """Return a metric of a row; nan if it diverged or was not measured."""
    if row.get("diverged") is not None:
        return math.nan
    return number(row["metrics"].get(split, {}).get(metric))


def number(value: float | None) -> float:
    """Turn the null that JSON has for nan back into nan."""
    return math.nan if value is None else float(value)


def spread(values: Iterable[float | None]) -> tuple[float, float]:
    """Return mean and sample standard deviation, which is nan for a single value."""
    array = np.array(list(values), np.float64)  # None becomes nan
    return (
        float(array.mean()) if len(array) else math.nan,
        float(array.std(ddof=1)) if len(array) > 1 else math.nan,
    )
