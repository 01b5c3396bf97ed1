"""How a sweep chooses a setting: pure functions on the rows of ``rows.json``.

Only validation metrics are read here. A row holds ``method``, ``hyper``, ``seeds``,
``diverged`` (a step or None) and ``metrics`` by split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import Diverged
from lt_jax.files import jsonable
from lt_jax.metrics import CHOOSE

DEFAULT = "logistic"  # method that is recommended unless another one is clearly better


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


def choose(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    published: Mapping[str, Mapping[str, Any]] | None = None,
    counts: np.ndarray | None = None,
    margin: float = 1.0,
) -> dict[str, dict[str, Any]]:
    """Choose the hyperparameters of each method by the mean over its seeds.

    Published values are kept unless another setting is better by more than a standard
    error: with one validation image per tail class, the best setting is often luck.

    Args:
      rows: of ``rows.json``.
      metric: a key of ``metrics.CHOOSE``.
      published: hyperparameters by method; None: the best setting is chosen.
      counts: int[K], validation images per class; needed with ``published``.
      margin: in standard errors; 0: the best setting is chosen.

    Raises:
      Diverged: every setting of a method diverged.
    """
    tried = settings(rows)
    chosen = {}
    for method in dict.fromkeys(setting.method for setting in tried):
        own = [s for s in tried if s.method == method]
        found = best(own, metric)
        if found is None:
            raise Diverged(f"every setting of {method} in the sweep diverged")
        if published is not None and counts is not None:
            wanted = jsonable(published.get(method))
            default = next((s for s in own if s.hyper == wanted), found)
            score, _ = default.over("valid", metric)
            error = margin * standard_error(score, metric, counts)
            if found.score(metric) - default.score(metric) <= error and error:
                found = default
        chosen[method] = found.hyper
    return chosen


def at_edge(
    hyper: Mapping[str, Any],
    own: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
) -> list[str]:
    """List the keys whose value is at an end of a grid that could be extended there.

    Not those with a method's own value, with 0, or with a name.

    >>> own, grid = {"lr": 0.1, "tau": 1.0}, {"lr": (0.1, 0.5), "tau": (0.0, 1.0)}
    >>> at_edge({"lr": 0.5, "tau": 0.0}, own, grid)
    ['lr']
    """
    return [
        key
        for key, values in grid.items()
        if hyper[key] not in (0, own.get(key))
        and not isinstance(hyper[key], str)
        and hyper[key] in (min(values), max(values))
        and len(values) > 1
    ]


def standard_error(score: float, metric: str, counts: np.ndarray) -> float:
    """Estimate the standard error of a validation accuracy; 0 for other metrics.

    With one image per tail class, the variance within a class cannot be estimated.
    All classes therefore share ``p (1 - p)``, where p is the score with one more right
    and one more wrong image: few images that are all right prove little.

    >>> round(standard_error(0.5, "balanced", np.array([100, 25, 1])), 4)
    0.1708

    Args:
      score: the accuracy, in [0, 1].
      metric: ``balanced``, ``all`` or another key of ``metrics.CHOOSE``.
      counts: int[K], validation images per class.
    """
    held = np.asarray(counts, np.float64)
    held = held[held > 0]
    if not 0 <= score <= 1:  # also nan
        return 0.0
    share = (score * held.sum() + 1) / (held.sum() + 2)
    variance = share * (1 - share)
    if metric == "balanced":
        return float(np.sqrt(variance * np.sum(1 / held)) / len(held))
    return float(np.sqrt(variance / held.sum())) if metric == "all" else 0.0


class Recommendation(NamedTuple):
    """The head to use, why, and at what price; accuracies on validation."""

    method: str
    hyper: dict[str, Any]
    score: float  # of ``metric``, mean over the seeds
    error: float  # its standard error
    runner_up: str  # the best other method; "" if there is no other
    sure: float  # probability that it is better than that one, 0 .. 1
    all: float  # overall accuracy
    untouched: float | None  # overall accuracy of the stage-1 head
    warning: str  # not "" if the overall accuracy falls by more than the bound


def recommend(
    rows: Sequence[Mapping[str, Any]],
    counts: np.ndarray,
    *,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    untouched: float | None = None,
    metric: str = "balanced",
    bound: float = 0.03,
    default: str = DEFAULT,
    margin: float = 1.0,
) -> Recommendation:
    """Recommend a method and its hyperparameters from the rows of a sweep.

    It is ``default``, unless another method is better by more than a standard error.
    Over many methods, the best on validation is often luck: docs/benchmarks/choice.md.

    Args:
      rows: of ``rows.json``, with metrics on ``valid``.
      counts: int[K], validation images per class.
      chosen: hyperparameters per method, from ``choose``; None: chosen here.
      untouched: overall validation accuracy of the stage-1 head.
      metric: a key of ``metrics.CHOOSE``.
      bound: loss of overall accuracy, as a fraction, above which ``warning`` is set.
      default: method to keep; if it is not in ``rows``, the best one is recommended.
      margin: in standard errors; 0: the best method is recommended.

    Raises:
      Diverged: every setting of a method diverged.
    """
    chosen = choose(rows, metric) if chosen is None else chosen
    tried = [s for s in settings(rows) if s.hyper == chosen.get(s.method)]
    tried.sort(key=lambda s: -s.score(metric))
    first = tried[0]
    kept = next((s for s in tried if s.method == default), first)
    score, _ = kept.over("valid", metric)
    error = margin * standard_error(score, metric, counts)
    if first.score(metric) - kept.score(metric) <= error:
        first = kept
    second = next((s for s in tried if s is not first), None)
    score, overall = (first.over("valid", key)[0] for key in (metric, "all"))
    error, sure = standard_error(score, metric, counts), 1.0
    if second and error:
        lead = first.score(metric) - second.score(metric)
        sure = NormalDist().cdf(lead / (math.sqrt(2) * error))
    warning = ""
    if untouched is not None and overall < untouched - bound:
        warning = (
            f"{first.method} loses {100 * (untouched - overall):.1f} points of overall "
            f"accuracy on validation ({100 * untouched:.1f} to {100 * overall:.1f} per "
            f"cent), more than {100 * bound:g}"
        )
        within = [s for s in tried if s.over("valid", "all")[0] >= untouched - bound]
        if within:
            warning += (
                f"; the best method within that bound is {within[0].method}, with "
                f"{metric} {within[0].over('valid', metric)[0]:.3f} against {score:.3f}"
            )
    return Recommendation(
        method=first.method,
        hyper=first.hyper,
        score=score,
        error=error,
        runner_up=second.method if second else "",
        sure=sure,
        all=overall,
        untouched=untouched,
        warning=warning,
    )


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
