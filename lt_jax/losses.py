"""A loss is five vectors of length K.

With e the one-hot label y::

    z' = scale * (z - margin[y] * e) + offset
    t  = (1 - smooth[y]) * e + smooth[y] / K
    loss = -weight[y] * sum_k t_k log softmax(z')_k

Most losses of long-tailed recognition are a choice of these vectors. They are arrays,
so they can be traced, stacked and mapped over: another loss is not another program.
The few that multiply or add to this (focal, LADE) are functions of the same signature
that read two more numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_jax.errors import InputError


class Adjust(NamedTuple):
    """The five vectors of a loss, each float32[K], and what they do not express."""

    scale: jax.Array
    offset: jax.Array
    margin: jax.Array
    weight: jax.Array
    smooth: jax.Array
    extra: jax.Array  # float32[2], numbers that a loss of its own reads; else zeros


# Sums an array over all devices: ``lax.psum`` in a step, ``single_device`` on one.
Total = Callable[[jax.Array], jax.Array]

# (logits float[B, K], labels int32[B], mask float32[B], adjust, total) -> float[B], not
# reduced, already multiplied by ``weight[label]``. A mean over a batch divides by the
# sum of those weights, as ``torch.nn.CrossEntropyLoss(weight=...)`` does. Only a loss
# that looks at the whole batch reads the mask and the total.
Loss = Callable[[jax.Array, jax.Array, jax.Array, Adjust, Total], jax.Array]


def single_device(array: jax.Array) -> jax.Array:
    """The total of one device."""
    return array


def adjusted_xent(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    adjust: Adjust,
    total: Total = single_device,
) -> jax.Array:
    """The cross-entropy of the adjusted logits: what the five vectors say.

    >>> logits, mask = jnp.array([[2.0, 0.0]]), jnp.ones(1)
    >>> loss = adjusted_xent(logits, jnp.array([0]), mask, cross_entropy(2))
    >>> print(f"{loss[0]:.4f}")
    0.1269
    """
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(onehot, adjust.smooth[labels][:, None])
    adjusted = _adjusted(logits, onehot, adjust)
    return adjust.weight[labels] * optax.softmax_cross_entropy(adjusted, targets)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    adjust: Adjust,
    total: Total = single_device,
) -> jax.Array:
    """``(1 - p_y) ** gamma`` times the cross-entropy; gamma is ``extra[0]``.

    "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4. Its logarithm is taken
    apart as log(1 - p_y) = log sum_{k != y} exp z'_k - log sum_k exp z'_k, which has a
    finite gradient where p_y rounds to 1.
    """
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    adjusted = _adjusted(logits, onehot, adjust)
    others = jnp.where(onehot > 0, -jnp.inf, adjusted)
    log_miss = jax.nn.logsumexp(others, axis=1) - jax.nn.logsumexp(adjusted, axis=1)
    xent = adjusted_xent(logits, labels, mask, adjust, total)
    return jnp.exp(adjust.extra[0] * log_miss) * xent


def lade(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    adjust: Adjust,
    total: Total = single_device,
) -> jax.Array:
    """Cross-entropy plus ``alpha`` times the LADE regulariser of the global batch.

    "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021.
    With the prior p, the softmax of ``offset``, and (alpha, lambda) in
    ``extra``::

        R   = sum_c p_c (-(1/N_c) sum_{y_i = c} z_ic + T_c + lambda T_c ** 2)
        T_c = log((1/N) sum_i exp(z_ic - log p_c - log K))

    As in the official code a class without an example in the batch has no first term
    and keeps the others. R is one number of the batch; every example gets it, so that
    the mean over the batch holds it once.
    """
    alpha, square = adjust.extra[0], adjust.extra[1]
    log_prior = jax.nn.log_softmax(adjust.offset)
    own = mask[:, None] * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    seen = total(jnp.sum(mask))
    first = total(jnp.sum(own * logits, axis=0)) / jnp.maximum(total(own.sum(0)), 1)
    # Sums over devices allow no maximum, so the exponents are taken from the mean: one
    # of them is then at least 0. Where a logit is more than 80 above it, T saturates.
    mean = jax.lax.stop_gradient(total(mask @ logits) / seen)
    above = jnp.exp(jnp.minimum(logits - mean[None, :], 80.0))
    second = jnp.log(total(mask @ above) / seen) + mean - log_prior
    second = second - jnp.log(logits.shape[-1])
    terms = jnp.exp(log_prior) * (second + square * second**2 - first)
    xent = adjusted_xent(logits, labels, mask, adjust, total)
    return xent + adjust.weight[labels] * alpha * jnp.sum(terms)


def _adjusted(logits: jax.Array, onehot: jax.Array, adjust: Adjust) -> jax.Array:
    margined = logits - adjust.margin[None, :] * onehot
    return adjust.scale[None, :] * margined + adjust.offset[None, :]


def cross_entropy(num_classes: int) -> Adjust:
    """Plain cross-entropy: the neutral element of every other constructor."""
    ones, zeros = jnp.ones(num_classes), jnp.zeros(num_classes)
    return Adjust(ones, zeros, zeros, ones, zeros, extra=jnp.zeros(2))


def over_smooth(num_classes: int, delta: float) -> Adjust:
    """Cross-entropy with (over-)smoothed labels.

    The target is ``1 - delta + delta / K`` for the true class and ``delta / K`` for
    each other one: label smoothing for a small delta, LOS for a delta near 1 ("Label
    Over-Smooth Can Balance", ICLR 2025). The smoothed mass is spread over all K
    classes, the true one included, as in ``torch`` and ``optax``.

    Raises:
      InputError: delta outside [0, 1); at 1 the target says nothing about the label.
    """
    if not 0 <= delta < 1:
        raise InputError(
            f"delta must lie in [0, 1), got {delta}: at 1 the target is uniform and no "
            "longer depends on the label; the paper's value for CIFAR100-LT is 0.98"
        )
    smooth = jnp.full(num_classes, delta, jnp.float32)
    return cross_entropy(num_classes)._replace(smooth=smooth)


def reweight(counts: np.ndarray, power: float) -> Adjust:
    """Weights in proportion to ``counts ** -power``, rescaled to mean 1.

    Power 1 is inverse frequency, 0.5 its square root, 0 plain cross-entropy.
    """
    weight = np.asarray(require_examples(counts), np.float64) ** -in_range(
        "power", power, -np.inf, np.inf
    )
    return cross_entropy(len(counts))._replace(weight=_mean_one(weight))


def class_balanced(counts: np.ndarray, beta: float) -> Adjust:
    """Weights ``(1 - beta) / (1 - beta ** n)`` rescaled to mean 1.

    "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, eq. 2.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta must lie in [0, 1), got {beta}; usual is 0.9999")
    weight = (1 - beta) / (1 - beta ** np.asarray(require_examples(counts), np.float64))
    return cross_entropy(len(counts))._replace(weight=_mean_one(weight))


def logit_adjust(counts: np.ndarray, tau: float) -> Adjust:
    """Cross-entropy of ``z + tau log prior``.

    "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 10. At tau 1 it is
    Balanced Softmax ("Balanced Meta-Softmax", NeurIPS 2020, eq. 4), whose
    ``log counts`` differs by a constant that no softmax sees.
    """
    prior = np.asarray(require_examples(counts), np.float64) / np.sum(counts)
    offset = jnp.asarray(
        in_range("tau", tau, -np.inf, np.inf) * np.log(prior), jnp.float32
    )
    return cross_entropy(len(counts))._replace(offset=offset)


def vs(counts: np.ndarray, gamma: float, tau: float) -> Adjust:
    """Logits times ``(counts / max) ** gamma``, plus ``tau log prior``.

    "Label-Imbalanced and Group-Sensitive Classification under Overparameterization",
    NeurIPS 2021: its Delta is the scale, its iota the offset.
    """
    share = np.asarray(require_examples(counts), np.float64) / np.max(counts)
    scale = jnp.asarray(share ** in_range("gamma", gamma, 0, np.inf), jnp.float32)
    return logit_adjust(counts, tau)._replace(scale=scale)


def ldam(counts: np.ndarray, max_margin: float, scale: float) -> Adjust:
    """Margins in proportion to ``counts ** -1/4``, the largest ``max_margin``.

    "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS
    2019, whose margins are of cosines; for logits that are ``scale`` times cosines, so
    these margins are ``scale`` times the paper's.
    """
    root = np.asarray(require_examples(counts), np.float64) ** -0.25
    margin = in_range("max_margin", max_margin, 0, np.inf) * root / root.max()
    margin = in_range("scale", scale, 0, np.inf) * margin
    return cross_entropy(len(counts))._replace(margin=jnp.asarray(margin, jnp.float32))


def label_aware_smoothing(counts: np.ndarray, head: float, tail: float) -> Adjust:
    """Smoothing that rises from ``tail`` to ``head`` along a sine of the count.

    "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021, the
    concave form. Where all counts are equal every class has that of the tail (the
    official code divides by zero).
    """
    n = np.asarray(require_examples(counts), np.float64)
    share = (n - n.min()) / max(n.max() - n.min(), 1)
    low, high = in_range("tail", tail, 0, 1), in_range("head", head, 0, 1)
    smooth = low + (high - low) * np.sin(share * np.pi / 2)
    return cross_entropy(len(n))._replace(smooth=jnp.asarray(smooth, jnp.float32))


def require_examples(counts: np.ndarray) -> np.ndarray:
    """The counts, if every class has an example.

    Raises:
      InputError: some have none; names them.
    """
    if np.min(counts) < 1:
        empty = np.flatnonzero(np.asarray(counts) < 1).tolist()
        raise InputError(
            "a method by class counts needs an example of every class: classes "
            f"{empty} have none"
        )
    return counts


def in_range(name: str, value: float, low: float, high: float) -> float:
    """The value, if it is a number of [low, high].

    Raises:
      InputError: it is not.
    """
    if not (low <= value <= high and np.isfinite(value)):
        where = f" in [{low}, {high}]" if np.isfinite([low, high]).any() else ""
        raise InputError(f"{name} must be a number{where}, got {value}")
    return value


def _mean_one(weight: np.ndarray) -> jax.Array:
    return jnp.asarray(weight / weight.mean(), jnp.float32)


def smoothing_gap(num_classes: int, delta: Any) -> Any:
    """The logit gap of a softmax that fits the smoothed target exactly.

    ``ln(1 + K (1 - delta) / delta)`` between the true logit and every other one. The
    same delta is another amount of smoothing at another K; this is the axis on which
    data sets compare. Of an array of deltas the gaps of all; at 0 it is infinite.

    >>> print(f"{smoothing_gap(100, 0.98):.3f} {smoothing_gap(8142, 0.98):.3f}")
    1.112 5.119
    """
    with np.errstate(divide="ignore"):
        return np.log1p(num_classes * (1 - np.asarray(delta, np.float64)) / delta)
