"""A loss is five vectors of length K.

With e the one-hot label y::

    z' = scale * (z - margin[y] * e) + offset
    t  = (1 - smooth[y]) * e + smooth[y] / K
    loss = -weight[y] * sum_k t_k log softmax(z')_k

Most losses of long-tailed recognition are a choice of these vectors. They are arrays,
so they can be traced, stacked and mapped over: another loss is not another program.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_jax.types import InputError


class Adjust(NamedTuple):
    """The five vectors of a loss, each float32[K]."""

    scale: jax.Array
    offset: jax.Array
    margin: jax.Array
    weight: jax.Array
    smooth: jax.Array


def adjusted_xent(logits: jax.Array, labels: jax.Array, adjust: Adjust) -> jax.Array:
    """The loss of each example, not reduced.

    Args:
      logits: float[B, K].
      labels: int32[B].
      adjust: the five vectors.

    Returns:
      float[B], already multiplied by ``weight[label]``. A mean over a batch divides by
      the sum of those weights, as ``torch.nn.CrossEntropyLoss(weight=...)`` does.

    >>> logits = jnp.array([[2.0, 0.0]])
    >>> loss = adjusted_xent(logits, jnp.array([0]), cross_entropy(2))
    >>> print(f"{loss[0]:.4f}")
    0.1269
    """
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    margined = logits - adjust.margin[None, :] * onehot
    adjusted = adjust.scale[None, :] * margined + adjust.offset[None, :]
    targets = optax.smooth_labels(onehot, adjust.smooth[labels][:, None])
    return adjust.weight[labels] * optax.softmax_cross_entropy(adjusted, targets)


def cross_entropy(num_classes: int) -> Adjust:
    """Plain cross-entropy: the neutral element of every other constructor."""
    ones, zeros = jnp.ones(num_classes), jnp.zeros(num_classes)
    return Adjust(scale=ones, offset=zeros, margin=zeros, weight=ones, smooth=zeros)


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
    weight = np.asarray(_filled(counts), np.float64) ** -_finite("power", power)
    return cross_entropy(len(counts))._replace(weight=_mean_one(weight))


def class_balanced(counts: np.ndarray, beta: float) -> Adjust:
    """Weights ``(1 - beta) / (1 - beta ** n)`` rescaled to mean 1.

    "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, eq. 2.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta must lie in [0, 1), got {beta}; usual is 0.9999")
    weight = (1 - beta) / (1 - beta ** np.asarray(_filled(counts), np.float64))
    return cross_entropy(len(counts))._replace(weight=_mean_one(weight))


def logit_adjust(counts: np.ndarray, tau: float) -> Adjust:
    """Cross-entropy of ``z + tau log prior``.

    "Long-Tail Learning via Logit Adjustment", ICLR 2021, eq. 10. At tau 1 it is
    Balanced Softmax ("Balanced Meta-Softmax", NeurIPS 2020, eq. 4), whose
    ``log counts`` differs by a constant that no softmax sees.
    """
    prior = np.asarray(_filled(counts), np.float64) / np.sum(counts)
    offset = jnp.asarray(_finite("tau", tau) * np.log(prior), jnp.float32)
    return cross_entropy(len(counts))._replace(offset=offset)


def _filled(counts: np.ndarray) -> np.ndarray:
    if np.min(counts) < 1:
        empty = np.flatnonzero(np.asarray(counts) < 1).tolist()
        raise InputError(
            "a loss by class counts needs an example of every class: classes "
            f"{empty} have none"
        )
    return counts


def _finite(name: str, value: float) -> float:
    if not np.isfinite(value):
        raise InputError(f"{name} must be a number, got {value}")
    return value


def _mean_one(weight: np.ndarray) -> jax.Array:
    return jnp.asarray(weight / weight.mean(), jnp.float32)


def smoothing_gap(num_classes: int, delta: float) -> float:
    """The logit gap of a softmax that fits the smoothed target exactly.

    ``ln(1 + K (1 - delta) / delta)`` between the true logit and every other one. The
    same delta is another amount of smoothing at another K; this is the axis on which
    data sets compare.

    >>> print(f"{smoothing_gap(100, 0.98):.3f} {smoothing_gap(8142, 0.98):.3f}")
    1.112 5.119
    """
    if delta == 0:
        return float("inf")
    return float(np.log1p(num_classes * (1 - delta) / delta))
