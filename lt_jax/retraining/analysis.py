"""Analysis of a fitted head beyond its metrics: temperature, reliability, confusion.

The result is small and saved with every fit, so that a report needs neither network
nor images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import brentq, minimize_scalar

from lt_jax import metrics
from lt_jax.heads import Head
from lt_jax.metrics import Tally
from lt_jax.retraining.features import Apply, Features, mean_logits
from lt_jax.types import Params

MAX_TEMPERATURE = 1024.0
MISTAKES = 24  # kept per fit

# Heads, each with the features of examples that it has not seen.
Unseen = Sequence[tuple[Params, Features]]
Batch = tuple[jax.Array, jax.Array, jax.Array]  # values, labels, mask


def analyse(
    head: Head,
    params: Params,
    unseen: Unseen,
    test: Features,
    groups: Mapping[str, np.ndarray],
    batch: int,
) -> dict[str, Any]:
    """Build the ``analysis`` object of a fit, which describes the split ``test``.

    ``unseen`` fits the temperature and may have no examples.

    Returns:
      ``temperature``: the divisor of the logits, and with it ``calibrated``: the
      ``nll`` and ``ece``. ``reliability``: before and after that, per bin of the
      calibration error, the examples ``seen``, those ``right`` and the sum of their
      confidences ``conf``. ``confusion``: per group of classes, the test examples
      predicted right, and those predicted wrongly as a class of each group.
      ``taken_for``: per class, its most frequent wrong prediction and the share of its
      examples. ``mistakes``: wrong predictions with the highest confidence, by ``row``
      of the split.
    """
    params = jax.device_put(params)  # once, not with every batch
    group_of = np.argmax(np.stack(list(groups.values())), axis=0)

    def describe(temperature: float) -> tuple[Tally, np.ndarray, list[Any]]:
        counts = np.zeros((len(groups), 1 + len(groups)), np.int32)
        sums: Any = metrics.empty(len(group_of)), counts
        given, guesses = (group_of, 1 / temperature), []
        for part in test.batches(batch):
            sums, guess = _add_batch(head.apply, params, sums, part, *given)
            guesses.append(guess)
        return *jax.device_get(sums), jax.device_get(guesses)

    before, counts, guesses = describe(1.0)
    found: dict[str, Any] = {
        "temperature": None,
        "calibrated": None,
        "reliability": {"before": _bins(before), "after": None},
        "confusion": {"groups": list(groups), "counts": counts.tolist()},
        **_mistakes(test.labels, guesses, before.seen),
    }
    if any(len(features.labels) for _, features in unseen):
        temperature = fit_temperature(head.apply, unseen, batch)
        after, *_ = describe(temperature)
        summary = metrics.summary(after, groups)
        found["temperature"] = temperature
        found["calibrated"] = {name: summary[name] for name in ("nll", "ece")}
        found["reliability"]["after"] = _bins(after)
    return found


def _mistakes(labels: np.ndarray, guesses: list[Any], seen: Any) -> dict[str, Any]:
    """Make ``taken_for`` and ``mistakes``; a class without mistakes has itself.

    ``guesses`` are batches of predicted classes and their confidence.
    """
    predicted, confidence = (
        np.concatenate(each)[: len(labels)] for each in zip(*guesses, strict=True)
    )
    size, wrong = len(seen), np.flatnonzero(predicted != labels)
    pairs = labels[wrong].astype(np.int64) * size + predicted[wrong]
    pairs, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(counts, kind="stable")  # the last one of a class is kept
    other, times = np.arange(size), np.zeros(size)
    true = pairs[order] // size
    other[true], times[true] = pairs[order] % size, counts[order]
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    columns = worst, predicted[worst], confidence[worst]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "taken_for": {
            "class": other.tolist(),
            "share": (times / np.maximum(seen, 1)).tolist(),
        },
        "mistakes": [
            {"row": row, "predicted": guess, "confidence": sure}
            for row, guess, sure in rows
        ],
    }


def fit_temperature(apply: Apply, unseen: Unseen, batch: int) -> float:
    """Find the temperature with the least cross-entropy, in [1/1024, 1024].

    "On Calibration of Modern Neural Networks", ICML 2017. The cross-entropy of logits
    times a is convex in a. Its slope is the sum over examples of the expected logit
    minus the true one; its root is searched in log a.
    """
    on_device = [(jax.device_put(head), features) for head, features in unseen]

    def slope(log_inverse: float) -> float:
        inverse = math.exp(log_inverse)
        return sum(
            float(_slope(apply, params, part, inverse))
            for params, features in on_device
            for part in features.batches(batch)
        )

    bound = math.log(MAX_TEMPERATURE)
    if slope(-bound) >= 0:
        return MAX_TEMPERATURE
    if slope(bound) <= 0:  # for example if all predictions are right
        return 1 / MAX_TEMPERATURE
    root: Any = brentq(slope, -bound, bound, xtol=1e-6)
    return math.exp(-root)


def balanced_nll(apply: Apply, unseen: Unseen, batch: int) -> float:
    """Compute the mean over classes of the cross-entropy at the best temperature."""
    on_device = [(jax.device_put(head), features) for head, features in unseen]
    counts = np.bincount(np.concatenate([features.labels for _, features in unseen]))
    weight = 1 / np.maximum(counts, 1) / np.sum(counts > 0)
    weight = weight.astype(np.float32)

    def loss(log_inverse: float) -> float:
        inverse = math.exp(log_inverse)
        return sum(
            float(_nll(apply, params, (values, own, mask * weight[own]), inverse))
            for params, features in on_device
            for values, own, mask in features.batches(batch)
        )

    bound = math.log(MAX_TEMPERATURE)
    found: Any = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(found.fun)


@functools.partial(jax.jit, static_argnums=0)
def _nll(apply: Apply, params: Params, batch: Batch, inverse: float) -> jax.Array:
    values, labels, mask = batch
    logits = inverse * mean_logits(apply, params, values)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(mask * each)


@functools.partial(jax.jit, static_argnums=0)
def _slope(apply: Apply, params: Params, batch: Batch, inverse: float) -> jax.Array:
    values, labels, mask = batch
    logits = mean_logits(apply, params, values)
    expected = jnp.sum(jax.nn.softmax(inverse * logits) * logits, axis=1)
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.sum(mask * (expected - true))


@functools.partial(jax.jit, static_argnums=0)
def _add_batch(
    apply: Apply, params: Params, sums: Any, batch: Batch, group_of: Any, inverse: float
) -> tuple[tuple[Tally, jax.Array], tuple[jax.Array, jax.Array]]:
    """Add a batch to the tally and the confusion; predict and state the confidence."""
    (tally, counts), (values, labels, mask) = sums, batch
    logits = inverse * mean_logits(apply, params, values)
    tally = metrics.merge(tally, metrics.tally(logits, labels, mask))
    predicted = jnp.argmax(logits, axis=1)
    kind = jnp.where(predicted == labels, 0, 1 + group_of[predicted])
    counts = counts.at[group_of[labels], kind].add((mask > 0).astype(jnp.int32))
    return (tally, counts), (predicted, jnp.max(jax.nn.softmax(logits), axis=1))


def _bins(tally: Tally) -> dict[str, list[float]]:
    sums = {"seen": tally.bin_seen, "right": tally.bin_right, "conf": tally.bin_conf}
    return {name: values.tolist() for name, values in sums.items()}
