"""A loss is five vectors of length K.

With e the one-hot label y::

    z' = scale * (z - margin[y] * e) + offset
    t  = (1 - smooth[y]) * e + smooth[y] / K
    loss = -weight[y] * sum_k t_k log softmax(z')_k

The mean over a batch divides by the sum of the weights or by the number of examples.
Most losses of long-tailed recognition are a choice of these vectors. They are arrays
that can be traced, stacked and mapped over, so that another choice compiles nothing.
Focal loss multiplies this loss by a factor and LADE adds a term to it. They read two
more numbers.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lt_jax.errors import InputError, in_range, one_of

MEANS = ("examples", "weights")


class Adjust(NamedTuple):
    """The five vectors of a loss, each float32[K], two extra numbers, and its mean."""

    scale: Array
    offset: Array
    margin: Array
    weight: Array
    smooth: Array
    extra: Array  # float32[2], read by focal and lade only; else zeros
    by_weight: Any = np.float32(1)  # the mean divides by the weights; 0: by examples


class Across(NamedTuple):
    """Reductions of an array over all devices, element by element."""

    sum: Callable[[Array], Array]
    max: Callable[[Array], Array]


one_device = Across(sum=lambda array: array, max=lambda array: array)

# (logits float[B, K], labels int32[B], mask float32[B], adjust, across) -> float[B],
# one loss per example, multiplied by ``weight[label]``. The mean over a batch is their
# sum divided by that of ``divisors``. The mask is 0 for padding; only ``lade`` reads it
# and the reductions.
Loss = Callable[[Array, Array, Array, Adjust, Across], Array]


def divisors(adjust: Adjust, labels: Array) -> Array:
    """Return what each example adds to the divisor of the mean, float32[B].

    Its weight, as in ``torch.nn.CrossEntropyLoss(weight=...)``, or 1.
    """
    return jnp.where(adjust.by_weight > 0, adjust.weight[labels], 1.0)


def adjusted_xent(
    logits: Array, labels: Array, mask: Array, adjust: Adjust, over: Across = one_device
) -> Array:
    """Compute the cross-entropy that the five vectors define; see ``Loss``.

    >>> logits, mask = jnp.array([[2.0, 0.0]]), jnp.ones(1)
    >>> loss = adjusted_xent(logits, jnp.array([0]), mask, cross_entropy(2))
    >>> print(f"{loss[0]:.4f}")
    0.1269
    """
    adjusted, own = _adjusted(logits, labels, adjust)

    def of_label(vector: Array) -> Array:
        # A gather, mapped over heads, would put the examples first.
        return jnp.dot(vector, own.astype(vector.dtype), precision="highest")

    # As sharded as the logits, for a derivative under shard_map.
    smooth = of_label(adjust.smooth) + jnp.zeros_like(adjusted[0])
    xent = _smooth_xent(adjusted, labels, smooth)
    return of_label(adjust.weight) * xent


@jax.custom_vjp
def _smooth_xent(logits: Array, labels: Array, smooth: Array) -> Array:
    """Compute the cross-entropy with smoothed labels of float[K, B] logits, float[B].

    Under differentiation the two functions below replace optax's. They give the same in
    half the time on a CPU: softmax minus target, and no value computed twice. They have
    no forward mode (``jax.jvp``).
    """
    onehot = jax.nn.one_hot(labels, len(logits), dtype=logits.dtype)
    targets = optax.smooth_labels(onehot, smooth[:, None])
    return optax.softmax_cross_entropy(logits.T, targets)


def _smooth_xent_forward(
    logits: Array, labels: Array, smooth: Array
) -> tuple[Array, tuple[Array, ...]]:
    logits = jax.lax.optimization_barrier(logits)  # not once for each result
    top = jnp.max(logits, axis=0)
    powers = jnp.exp(logits - top[None, :])
    total = jnp.sum(powers, axis=0)
    own = jnp.take_along_axis(logits, labels[None, :], axis=0, mode="clip")[0]
    above_mean = own - jnp.sum(logits / len(logits), axis=0)  # a mean may overflow
    loss = jnp.log(total) + (top - own) + smooth * above_mean
    return loss, (powers, total, labels, smooth, above_mean)


def _smooth_xent_backward(
    kept: tuple[Array, ...], grad: Array
) -> tuple[Array, None, Array]:
    powers, total, labels, smooth, above_mean = kept
    factor, other, own = jax.lax.optimization_barrier(
        (grad / total, grad * smooth / len(powers), grad * (1 - smooth))
    )
    found = powers * factor[None, :] - other[None, :]
    found -= jnp.where(_is_label(labels, powers), own[None, :], 0)
    return jax.lax.optimization_barrier(found), None, grad * above_mean


_smooth_xent.defvjp(_smooth_xent_forward, _smooth_xent_backward)


def _is_label(labels: Array, logits: Array) -> Array:
    """Mark the logit of each example's label, bool[K, B]."""
    return labels[None, :] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, 0)


def focal(
    logits: Array, labels: Array, mask: Array, adjust: Adjust, over: Across = one_device
) -> Array:
    """Compute ``(1 - p_y) ** gamma`` times the cross-entropy; gamma is ``extra[0]``.

    log(1 - p_y) is computed as log sum_{k != y} exp z'_k - log sum_k exp z'_k, which
    has a finite gradient where p_y rounds to 1.

    Reference: "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4.
    """
    adjusted, own = _adjusted(logits, labels, adjust)
    others = jnp.where(own, -jnp.inf, adjusted)
    log_miss = jax.nn.logsumexp(others, axis=0) - jax.nn.logsumexp(adjusted, axis=0)
    xent = adjusted_xent(logits, labels, mask, adjust, over)
    return jnp.exp(adjust.extra[0] * log_miss) * xent


def lade(
    logits: Array, labels: Array, mask: Array, adjust: Adjust, over: Across = one_device
) -> Array:
    """Compute cross-entropy plus ``alpha`` times the LADE regulariser of the batch.

    With the prior p, the softmax of ``offset``, and (alpha, lambda) in ``extra``::

        R   = sum_c p_c (-(1/N_c) sum_{y_i = c} z_ic + T_c + lambda T_c ** 2)
        T_c = log((1/N) sum_i exp(z_ic - log p_c - log K))

    As in the official code, a class without an example in the batch has no first term
    and keeps the others. R is one number for the global batch. Every example gets it,
    so that the mean over the batch contains it once.

    Reference: "Disentangling Label Distribution for Long-tailed Visual Recognition",
    CVPR 2021.
    """
    alpha, square = adjust.extra[0], adjust.extra[1]
    log_prior = jax.nn.log_softmax(adjust.offset)
    own = mask[:, None] * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    seen = over.sum(jnp.sum(mask))
    first = over.sum(jnp.sum(own * logits, axis=0))
    first = first / jnp.maximum(over.sum(own.sum(0)), 1)
    # Exponents are relative to the largest logit of the class, so none overflows.
    real = jnp.where(mask[:, None] > 0, logits, -jnp.inf)
    top = over.max(jnp.max(jax.lax.stop_gradient(real), axis=0))
    second = jnp.log(over.sum(jnp.sum(jnp.exp(real - top[None, :]), axis=0)) / seen)
    second = second + top - log_prior - jnp.log(logits.shape[-1])
    terms = jnp.exp(log_prior) * (second + square * second**2 - first)
    regulariser = jnp.where(seen > 0, jnp.sum(terms), 0.0)
    xent = adjusted_xent(logits, labels, mask, adjust, over)
    return xent + divisors(adjust, labels) * alpha * regulariser


def _adjusted(logits: Array, labels: Array, adjust: Adjust) -> tuple[Array, Array]:
    """Compute z', float[K, B], and mark the logits of the labels, bool[K, B].

    Classes come first: mapped over heads, XLA for CPUs then copies no logits.
    """
    own = _is_label(labels, logits.T)
    margined = logits.T - jnp.where(own, adjust.margin[:, None], 0)
    return adjust.scale[:, None] * margined + adjust.offset[:, None], own


def cross_entropy(num_classes: int) -> Adjust:
    """Make plain cross-entropy; the other losses replace some of its vectors."""
    ones, zeros = jnp.ones(num_classes), jnp.zeros(num_classes)
    return Adjust(ones, zeros, zeros, ones, zeros, extra=jnp.zeros(2))


def over_smooth(num_classes: int, delta: float) -> Adjust:
    """Make cross-entropy with (over-)smoothed labels.

    The target is ``1 - delta + delta / K`` for the true class and ``delta / K`` for
    each other one, as in ``torch`` and ``optax``: label smoothing for a small delta,
    LOS for a delta near 1.

    Reference: "Label Over-Smooth Can Balance", ICLR 2025.
    """
    # At 1 every label would have the same target.
    delta = in_range("delta", delta, "[0, 1)")
    smooth = jnp.full(num_classes, delta, jnp.float32)
    return cross_entropy(num_classes)._replace(smooth=smooth)


def reweight(counts: np.ndarray, power: float) -> Adjust:
    """Make weights proportional to ``counts ** -power``, rescaled to mean 1.

    Power 1 is inverse frequency, 0.5 its square root, 0 plain cross-entropy.
    """
    power = in_range("power", power, "(-inf, inf)")
    return _weighted(require_examples(counts) ** -power)


def class_balanced(counts: np.ndarray, beta: float, mean: str = "examples") -> Adjust:
    """Make weights ``(1 - beta) / (1 - beta ** n)``, rescaled to mean 1.

    Args:
      mean: what the mean over a batch divides by: the number of ``examples``, as in the
        official code, or the sum of their ``weights``, as in that of LDAM-DRW.

    Reference: "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    eq. 2.
    """
    by_weight = jnp.float32(one_of("mean of the loss", mean, MEANS) == "weights")
    beta = in_range("beta", beta, "[0, 1)")
    adjust = _weighted((1 - beta) / (1 - beta ** require_examples(counts)))
    return adjust._replace(by_weight=by_weight)


def logit_adjust(counts: np.ndarray, tau: float) -> Adjust:
    """Make the cross-entropy of ``z + tau log prior``.

    tau 1 is Balanced Softmax ("Balanced Meta-Softmax", NeurIPS 2020, eq. 4): its
    ``log counts`` differ by a constant, which the softmax ignores.

    Reference: "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 10.
    """
    n = require_examples(counts)
    offset = in_range("tau", tau, "(-inf, inf)") * np.log(n / np.sum(counts))
    return cross_entropy(len(n))._replace(offset=jnp.asarray(offset, jnp.float32))


def vs(counts: np.ndarray, gamma: float, tau: float) -> Adjust:
    """Make logits times ``(counts / max) ** gamma``, plus ``tau log prior``.

    Reference: "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021: its Delta is the scale, its iota the offset.
    """
    share = require_examples(counts) / np.max(counts)
    scale = share ** in_range("gamma", gamma, "[0, inf)")
    return logit_adjust(counts, tau)._replace(scale=jnp.asarray(scale, jnp.float32))


def ldam(counts: np.ndarray, max_margin: float, scale: float) -> Adjust:
    """Make margins proportional to ``counts ** -1/4``, the largest ``max_margin``.

    ``max_margin`` is in cosines, as in the paper; logits are ``scale`` times those.

    Reference: "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019.
    """
    root = require_examples(counts) ** -0.25
    margin = in_range("max_margin", max_margin, "[0, inf)") * root / root.max()
    margin = in_range("scale", scale, "[0, inf)") * margin
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
    low, high = in_range("tail", tail, "[0, 1]"), in_range("head", head, "[0, 1]")
    smooth = low + (high - low) * np.sin(share * np.pi / 2)
    return cross_entropy(len(n))._replace(smooth=jnp.asarray(smooth, jnp.float32))


def require_examples(counts: np.ndarray) -> np.ndarray:
    """Return the counts as float64[K], or raise InputError if a class has none."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or not counts.size or counts.dtype.kind not in "iuf":
        raise InputError(f"counts must be numbers [K], got {reprlib.repr(counts)}")
    if not (counts >= 1).all():
        raise InputError(
            "a method that reads class counts needs an example of every class: "
            f"classes {np.flatnonzero(~(counts >= 1)).tolist()} have none"
        )
    return counts.astype(np.float64)


def _weighted(weight: np.ndarray) -> Adjust:
    mean_one = jnp.asarray(weight / weight.mean(), jnp.float32)
    return cross_entropy(len(weight))._replace(weight=mean_one)


def least(adjust: Adjust, frequency: np.ndarray) -> float:
    """Compute the least mean loss of any logits: the entropy of the smoothed labels.

    Args:
      frequency: of the classes among the examples, float[K], up to a factor.

    >>> round(least(over_smooth(100, 0.98), np.ones(100)), 3)
    4.592
    """
    from scipy.special import entr  # slow to import

    num_classes, smooth = len(adjust.smooth), np.asarray(adjust.smooth, np.float64)
    other = smooth / num_classes
    entropy = entr(1 - smooth + other) + (num_classes - 1) * entr(other)
    weight = np.asarray(adjust.weight, np.float64)
    divisor = np.where(np.asarray(adjust.by_weight) > 0, weight, 1.0)
    return float(np.sum(frequency * weight * entropy) / np.sum(frequency * divisor))


def smoothing_gap(num_classes: int, delta: Any) -> Any:
    """Compute the logit gap of a softmax that fits the smoothed target exactly.

    The true logit exceeds every other one by ``ln(1 + K (1 - delta) / delta)``. Equal
    gaps compare datasets better than equal deltas, whose effect depends on K.

    >>> print(f"{smoothing_gap(100, 0.98):.3f} {smoothing_gap(8142, 0.98):.3f}")
    1.112 5.119

    Returns:
      float64, of the shape of ``delta``; infinite at 0.
    """
    with np.errstate(divide="ignore"):
        return np.log1p(num_classes * (1 - np.asarray(delta, np.float64)) / delta)
