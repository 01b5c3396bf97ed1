"""A loss is five vectors of length K.

With e the one-hot label y::

    z' = scale * (z - margin[y] * e) + offset
    t  = (1 - smooth[y]) * e + smooth[y] / K
    loss = -weight[y] * sum_k t_k log softmax(z')_k

Most losses of long-tailed recognition are a choice of these vectors. They are arrays,
so they can be traced, stacked and mapped over: another loss is not another program.
Focal loss and LADE multiply or add to this. They are functions of the same signature
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
    """The five vectors of a loss, each float32[K], and two extra numbers."""

    scale: jax.Array
    offset: jax.Array
    margin: jax.Array
    weight: jax.Array
    smooth: jax.Array
    extra: jax.Array  # float32[2], read by focal and lade only; else zeros


# Sums an array over all devices: ``lax.psum`` in a step, ``single_device`` on one.
Total = Callable[[jax.Array], jax.Array]

# (logits float[B, K], labels int32[B], mask float32[B], adjust, total) -> float[B], not
# reduced, already multiplied by ``weight[label]``. A mean over a batch divides by the
# sum of those weights, as ``torch.nn.CrossEntropyLoss(weight=...)`` does. Only a loss
# that depends on the whole batch reads the mask and the total.
Loss = Callable[[jax.Array, jax.Array, jax.Array, Adjust, Total], jax.Array]


def single_device(array: jax.Array) -> jax.Array:
    """Return ``array``: its sum over one device."""
    return array


def adjusted_xent(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    adjust: Adjust,
    total: Total = single_device,
) -> jax.Array:
    """Compute the cross-entropy of the adjusted logits, defined by the five vectors.

    >>> logits, mask = jnp.array([[2.0, 0.0]]), jnp.ones(1)
    >>> loss = adjusted_xent(logits, jnp.array([0]), mask, cross_entropy(2))
    >>> print(f"{loss[0]:.4f}")
    0.1269

    Args:
      logits: float[B, K].
      labels: int32[B].
      mask: float32[B], 0 for padding; not read.
      adjust: the vectors.
      total: sum over devices; not read.

    Returns:
      float[B], weighted and not reduced.
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
    """Compute ``(1 - p_y) ** gamma`` times the cross-entropy; gamma is ``extra[0]``.

    log(1 - p_y) is computed as log sum_{k != y} exp z'_k - log sum_k exp z'_k, which
    has a finite gradient where p_y rounds to 1. Arguments as for ``adjusted_xent``.

    Reference: "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4.
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
    """Compute cross-entropy plus ``alpha`` times the LADE regulariser of the batch.

    With the prior p, the softmax of ``offset``, and (alpha, lambda) in ``extra``::

        R   = sum_c p_c (-(1/N_c) sum_{y_i = c} z_ic + T_c + lambda T_c ** 2)
        T_c = log((1/N) sum_i exp(z_ic - log p_c - log K))

    As in the official code, a class without an example in the batch has no first term
    and keeps the others. R is one number for the global batch. Every example gets it,
    so that the mean over the batch contains it once. Arguments as for
    ``adjusted_xent``; the mask and the total are read.

    Reference: "Disentangling Label Distribution for Long-tailed Visual Recognition",
    CVPR 2021.
    """
    alpha, square = adjust.extra[0], adjust.extra[1]
    log_prior = jax.nn.log_softmax(adjust.offset)
    own = mask[:, None] * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    seen = total(jnp.sum(mask))
    first = total(jnp.sum(own * logits, axis=0)) / jnp.maximum(total(own.sum(0)), 1)
    # A sum over devices cannot take a maximum, so exponents are relative to the mean:
    # one of them is then at least 0. Where a logit is more than 80 above, T saturates.
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
    """Make plain cross-entropy: the neutral element of every other constructor."""
    ones, zeros = jnp.ones(num_classes), jnp.zeros(num_classes)
    return Adjust(ones, zeros, zeros, ones, zeros, extra=jnp.zeros(2))


def over_smooth(num_classes: int, delta: float) -> Adjust:
    """Make cross-entropy with (over-)smoothed labels.

    The target is ``1 - delta + delta / K`` for the true class and ``delta / K`` for
    each other one: label smoothing for a small delta, LOS for a delta near 1. The
    smoothed mass is spread over all K classes, the true one included, as in ``torch``
    and ``optax``.

    Raises:
      InputError: delta outside [0, 1).

    Reference: "Label Over-Smooth Can Balance", ICLR 2025.
    """
    if not 0 <= delta < 1:
        raise InputError(
            f"delta must be in [0, 1), got {delta}: at 1 the target is uniform and no "
            "longer depends on the label; the paper's value for CIFAR100-LT is 0.98"
        )
    smooth = jnp.full(num_classes, delta, jnp.float32)
    return cross_entropy(num_classes)._replace(smooth=smooth)


def reweight(counts: np.ndarray, power: float) -> Adjust:
    """Make weights proportional to ``counts ** -power``, rescaled to mean 1.

    Power 1 is inverse frequency, 0.5 its square root, 0 plain cross-entropy.
    """
    power = in_range("power", power, -np.inf, np.inf)
    return _weighted(require_examples(counts) ** -power)


def class_balanced(counts: np.ndarray, beta: float) -> Adjust:
    """Make weights ``(1 - beta) / (1 - beta ** n)``, rescaled to mean 1.

    Reference: "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    eq. 2.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta must be in [0, 1), got {beta}; usual is 0.9999")
    return _weighted((1 - beta) / (1 - beta ** require_examples(counts)))


def logit_adjust(counts: np.ndarray, tau: float) -> Adjust:
    """Make the cross-entropy of ``z + tau log prior``.

    At tau 1 it is Balanced Softmax ("Balanced Meta-Softmax", NeurIPS 2020, eq. 4),
    whose ``log counts`` differs by a constant, which the softmax ignores.

    Reference: "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 10.
    """
    n = require_examples(counts)
    offset = in_range("tau", tau, -np.inf, np.inf) * np.log(n / np.sum(counts))
    return cross_entropy(len(n))._replace(offset=jnp.asarray(offset, jnp.float32))


def vs(counts: np.ndarray, gamma: float, tau: float) -> Adjust:
    """Make logits times ``(counts / max) ** gamma``, plus ``tau log prior``.

    Reference: "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021: its Delta is the scale, its iota the offset.
    """
    share = require_examples(counts) / np.max(counts)
    scale = share ** in_range("gamma", gamma, 0, np.inf)
    return logit_adjust(counts, tau)._replace(scale=jnp.asarray(scale, jnp.float32))


def ldam(counts: np.ndarray, max_margin: float, scale: float) -> Adjust:
    """Make margins proportional to ``counts ** -1/4``, the largest ``max_margin``.

    The paper's margins apply to cosines. Here logits are ``scale`` times cosines, so
    the margins are ``scale`` times the paper's.

    Reference: "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019.
    """
    root = require_examples(counts) ** -0.25
    margin = in_range("max_margin", max_margin, 0, np.inf) * root / root.max()
    margin = in_range("scale", scale, 0, np.inf) * margin
    return cross_entropy(len(root))._replace(margin=jnp.asarray(margin, jnp.float32))


def label_aware_smoothing(counts: np.ndarray, head: float, tail: float) -> Adjust:
    """Make smoothing that rises from ``tail`` to ``head`` along a sine of the count.

    If all counts are equal, every class gets the tail's value (the official code
    divides by zero).

    Reference: "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021,
    the concave form.
    """
    n = require_examples(counts)
    share = (n - n.min()) / max(n.max() - n.min(), 1)
    low, high = in_range("tail", tail, 0, 1), in_range("head", head, 0, 1)
    smooth = low + (high - low) * np.sin(share * np.pi / 2)
    return cross_entropy(len(n))._replace(smooth=jnp.asarray(smooth, jnp.float32))


def require_examples(counts: np.ndarray) -> np.ndarray:
    """Return the counts as float64[K].

    Raises:
      InputError: some classes have no example; the message lists them.
    """
    if np.min(counts) < 1:
        empty = np.flatnonzero(np.asarray(counts) < 1).tolist()
        raise InputError(
            "a method that reads class counts needs an example of every class: "
            f"classes {empty} have none"
        )
    return np.asarray(counts, np.float64)


def in_range(name: str, value: float, low: float, high: float) -> float:
    """Return the value.

    Raises:
      InputError: the value is not a finite number in [low, high].
    """
    if not (low <= value <= high and np.isfinite(value)):
        where = f" in [{low}, {high}]" if np.isfinite([low, high]).any() else ""
        raise InputError(f"{name} must be a number{where}, got {value}")
    return value


def _weighted(weight: np.ndarray) -> Adjust:
    mean_one = jnp.asarray(weight / weight.mean(), jnp.float32)
    return cross_entropy(len(weight))._replace(weight=mean_one)


def smoothing_gap(num_classes: int, delta: Any) -> Any:
    """Compute the logit gap of a softmax that fits the smoothed target exactly.

    ``ln(1 + K (1 - delta) / delta)`` between the true logit and every other one. The
    same delta is a different amount of smoothing at another K; datasets compare on
    this axis.

    >>> print(f"{smoothing_gap(100, 0.98):.3f} {smoothing_gap(8142, 0.98):.3f}")
    1.112 5.119

    Args:
      num_classes: K.
      delta: smoothed mass, a number or an array.

    Returns:
      float64, of the shape of ``delta``; infinite at 0.
    """
    with np.errstate(divide="ignore"):
        return np.log1p(num_classes * (1 - np.asarray(delta, np.float64)) / delta)
