"""What a fitted head does beyond its metrics: temperature, reliability, confusion.

Small enough to stand in the outcome of every fit, so that a report needs no network
and no images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import metrics
from lt_jax.heads import Head
from lt_jax.metrics import Tally
from lt_jax.retraining.features import Apply, Features, mean_logits
from lt_jax.types import Params


def analyse(
    head: Head,
    params: Params,
    valid: Features,
    test: Features,
    groups: Mapping[str, np.ndarray],
    batch: int,
) -> dict[str, Any]:
    """The ``analysis`` object of an outcome.

    Args:
      valid: fits the temperature; without examples there is none.
      test: what is described.
      groups: bool[K] by name, see ``metrics.groups``.
      batch: examples at once.

    Returns:
      ``temperature``, by which logits are divided; ``calibrated`` (``nll`` and ``ece``
      after it); ``reliability`` before and after, in the bins of the calibration error
      (examples ``seen``, of these ``right``, and the sum of their ``conf``);
      ``confusion``: for the test examples of each group of classes how many were
      predicted right, and wrongly as a class of each group.
    """
    params = jax.device_put(params)  # once, not with every batch
    before, counts = _describe(head.apply, params, test, groups, 1.0, batch)
    found: dict[str, Any] = {
        "temperature": None,
        "calibrated": None,
        "reliability": {"before": _bins(before), "after": None},
        "confusion": {"groups": list(groups), "counts": counts.tolist()},
    }
    if len(valid.labels):
        temperature = fit_temperature(head.apply, params, valid, batch)
        after, _ = _describe(head.apply, params, test, groups, temperature, batch)
        summary = metrics.summary(after, groups)
        found["temperature"] = temperature
        found["calibrated"] = {name: summary[name] for name in ("nll", "ece")}
        found["reliability"]["after"] = _bins(after)
    return found


def fit_temperature(
    apply: Apply, params: Params, features: Features, batch: int
) -> float:
    """The temperature of least cross-entropy, between 1/1024 and 1024.

    "On Calibration of Modern Neural Networks", ICML 2017. The cross-entropy of logits
    times a is convex in a, so the sign of its slope, the sum over examples of the
    expected logit less the true one, tells the side: bisection in log a.
    """
    step = _make_slope(apply)

    def slope(inverse: float) -> float:
        total = 0.0
        for values, labels, mask in features.batches(batch):
            total += float(step(params, values, labels, mask, inverse))
        return total

    low, high = -math.log(1024), math.log(1024)
    for _ in range(24):  # to 1e-6 of itself
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


@functools.cache
def _make_slope(apply: Apply) -> Callable[..., jax.Array]:
    def slope(
        params: Params,
        values: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        inverse: float,
    ) -> jax.Array:
        logits = mean_logits(apply, params, values)
        expected = jnp.sum(jax.nn.softmax(inverse * logits) * logits, axis=1)
        true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.sum(mask * (expected - true))

    return jax.jit(slope)


def _describe(
    apply: Apply,
    params: Params,
    features: Features,
    groups: Mapping[str, np.ndarray],
    temperature: float,
    batch: int,
) -> tuple[Tally, np.ndarray]:
    """The tally at a temperature, and int64[G, 1 + G] of ``confusion``."""
    step = _make_describe(apply)
    group_of = np.argmax(np.stack(list(groups.values())), axis=0)
    tally = metrics.empty(len(group_of))
    counts = np.zeros((len(groups), 1 + len(groups)), np.int32)
    for part in features.batches(batch):
        tally, counts = step(params, tally, counts, *part, group_of, 1 / temperature)
    return jax.device_get(tally), np.asarray(counts)


@functools.cache
def _make_describe(apply: Apply) -> Callable[..., tuple[Tally, jax.Array]]:
    def describe(
        params: Params,
        tally: Tally,
        counts: jax.Array,
        values: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        group_of: jax.Array,
        inverse: float,
    ) -> tuple[Tally, jax.Array]:
        logits = inverse * mean_logits(apply, params, values)
        tally = metrics.merge(tally, metrics.tally(logits, labels, mask))
        predicted = jnp.argmax(logits, axis=1)
        kind = jnp.where(predicted == labels, 0, 1 + group_of[predicted])
        counts = counts.at[group_of[labels], kind].add((mask > 0).astype(jnp.int32))
        return tally, counts

    return jax.jit(describe)


def _bins(tally: Tally) -> dict[str, list[float]]:
    return {
        "seen": tally.bin_seen.tolist(),
        "right": tally.bin_right.tolist(),
        "conf": tally.bin_conf.tolist(),
    }
