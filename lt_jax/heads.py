"""A head is two functions: one makes its parameters, one turns features into logits.

Class vectors are the *columns* of ``kernel``. A constraint or correction maps a head's
parameters to parameters of the same head, so evaluation does not depend on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import initializers
from lt_jax.errors import InputError, one_of
from lt_jax.types import Params

# Features of many examples in blocks, float[n, D] each. Each call starts over. The
# features may be larger than the memory.
Blocks = Callable[[], Iterator[Any]]


class Head(NamedTuple):
    """A classifier: its initial parameters and its logits. Hashable: a cache key."""

    # (key, params of the stage-1 head or None for a fresh one, D, K, one of
    # initializers.NAMES) -> params
    init: Callable[[jax.Array, Params | None, int, int, str], Params]
    # (params, features float[B, D]) -> logits float[B, K]
    apply: Callable[[Params, jax.Array], jax.Array]
    trains: str  # regular expression for the names of the trained leaves


def _linear_init(
    key: jax.Array,
    start: Params | None,
    num_features: int,
    num_classes: int,
    init: str,
    *,
    ones: tuple[str, ...] = (),
    zeros: tuple[str, ...] = (),
    directions: tuple[str, ...] = (),
) -> Params:
    """Make a linear head plus neutral leaves [K] and [D] of these names."""
    keys = jax.random.split(key)
    own = start or {
        "kernel": initializers.kernel(init)(keys[0], (num_features, num_classes)),
        "bias": initializers.bias(init, num_features)(keys[1], (num_classes,)),
    }
    return {
        **{name: own[name] for name in ("kernel", "bias")},
        **{name: jnp.ones(num_classes) for name in ones},
        **{name: jnp.zeros(num_classes) for name in zeros},
        **{name: jnp.zeros(num_features) for name in directions},
    }


def _linear_apply(params: Params, features: jax.Array) -> jax.Array:
    return jnp.dot(features, params["kernel"]) + params["bias"][None, :]


linear = Head(init=_linear_init, apply=_linear_apply, trains=".*")  # W f + b


def _unit(vectors: jax.Array, axis: int) -> jax.Array:
    """Scale vectors along an axis to length 1; a zero vector stays zero."""
    square = jnp.sum(vectors**2, axis=axis, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _cosine_init(*given: Any, scale: float) -> Params:
    kernel = _linear_init(*given)["kernel"]
    return {"kernel": kernel, "scale": jnp.asarray(scale, jnp.float32)}


def _cosine_apply(params: Params, features: jax.Array) -> jax.Array:
    cosines = jnp.dot(_unit(features, 1), _unit(params["kernel"], 0))
    return params["scale"] * cosines


@functools.cache
def cosine(scale: float) -> Head:
    """Make the head ``scale cos(w_k, f)``, without a bias and with a fixed scale.

    The scale is a leaf: heads with different scales share one program, and the loss
    and the metrics get the same logits.

    Raises:
      InputError: the scale is not positive.
    """
    if not 0 < scale < float("inf"):
        raise InputError(f"scale must be a positive number, got {scale}; usual is 30")
    init = functools.partial(_cosine_init, scale=scale)
    return Head(init=init, apply=_cosine_apply, trains="kernel")


def _scaled_apply(params: Params, features: jax.Array) -> jax.Array:
    return params["scale"][None, :] * _linear_apply(params, features)


# s_k (w_k f + b_k), learnable weight scaling; only s is trained, or all leaves.
scaled = Head(
    init=functools.partial(_linear_init, ones=("scale",)),
    apply=_scaled_apply,
    trains="scale",
)
scaled_all = scaled._replace(trains=".*")


def _aligned_apply(params: Params, features: jax.Array) -> jax.Array:
    logits = _linear_apply(params, features)
    aligned = params["scale"][None, :] * logits + params["offset"][None, :]
    confidence = jax.nn.sigmoid(jnp.dot(features, params["confidence"]))[:, None]
    return confidence * aligned + (1 - confidence) * logits


# sigma(v f) (s_k z_k + o_k) + (1 - sigma(v f)) z_k with z = W f + b; s, o, v trained.
aligned = Head(
    init=functools.partial(
        _linear_init, ones=("scale",), zeros=("offset",), directions=("confidence",)
    ),
    apply=_aligned_apply,
    trains="scale|offset|confidence",
)


def _marc_apply(params: Params, features: jax.Array) -> jax.Array:
    shift = params["beta"] * class_norms(params)
    return params["omega"][None, :] * _linear_apply(params, features) + shift[None, :]


# omega_k z_k + beta_k |w_k| with z = W f + b; omega and beta trained.
marc = Head(
    init=functools.partial(_linear_init, ones=("omega",), zeros=("beta",)),
    apply=_marc_apply,
    trains="omega|beta",
)


def _centred_apply(params: Params, features: jax.Array) -> jax.Array:
    return _linear_apply(params, _unit(features - params["centre"][None, :], 1))


# W u + b, with u the features minus a centre, scaled to length 1.
centred = Head(
    init=functools.partial(_linear_init, directions=("centre",)),
    apply=_centred_apply,
    trains="kernel|bias",
)

# Kind of nearest class mean -> the head that computes it; see ``nearest_mean``.
NEAREST = {"raw": linear, "l2": centred, "cl2": centred}


def class_norms(params: Params) -> jax.Array:
    """Compute the Euclidean norm of each class vector, float[K], without the bias."""
    return jnp.linalg.norm(params["kernel"], axis=0)


def effective_norms(params: Params) -> jax.Array:
    """Compute the norms of the class vectors as they enter the logits, float[K].

    The vectors are ``s_k w_k`` for ``scaled`` and ``scaled_all``, ``omega_k w_k`` for
    ``marc`` and ``w_k`` for other heads. The scale of ``aligned`` depends on the
    example; the vectors are ``(1 + s_k) / 2 w_k``, for a confidence of 1/2 as at v = 0.
    Every vector of ``cosine`` has the length of its scale.
    """
    norms = class_norms(params)
    if "omega" in params:
        return jnp.abs(params["omega"]) * norms
    if "confidence" in params:
        return jnp.abs(1 + params["scale"]) / 2 * norms
    if "scale" not in params:
        return norms
    if params["scale"].ndim == 0:  # cosine
        return jnp.full_like(norms, params["scale"])
    return jnp.abs(params["scale"]) * norms


def tau_norm(params: Params, tau: float) -> Params:
    """Divide class vectors by their norm to the power tau; set the bias to zero.

    tau 0 keeps the vectors, 1 makes them unit vectors.

    Reference: "Decoupling Representation and Classifier", ICLR 2020.
    """
    norms = jnp.maximum(class_norms(params), 1e-12)  # a zero vector stays zero
    return {
        **params,
        "kernel": params["kernel"] / norms[None, :] ** tau,
        "bias": jnp.zeros_like(params["bias"]),
    }


def shift_bias(params: Params, shift: jax.Array) -> Params:
    """Add ``shift``, float[K], to the logits."""
    return {**params, "bias": params["bias"] + shift}


def max_norm(params: Params, radius: jax.Array) -> Params:
    """Shorten class vectors that are longer than ``radius`` to it; keep the bias.

    Reference: "Long-Tailed Recognition via Weight Balancing", CVPR 2022.
    """
    norms = class_norms(params)
    factor = jnp.where(norms > radius, radius / jnp.maximum(norms, 1e-12), 1.0)
    return {**params, "kernel": params["kernel"] * factor[None, :]}


def max_norm_radius(start: Params, quantile: float) -> jax.Array:
    """Compute ``min + quantile (max - min)`` of the class norms of the start head.

    As in the authors' code, which uses 0.1: a point in the range, not a rank.
    """
    norms = class_norms(start)
    return norms.min() + quantile * (norms.max() - norms.min())


def nearest_mean(
    blocks: Blocks, labels: np.ndarray, shape: tuple[int, int], kind: str
) -> Params:
    """Make the head ``NEAREST[kind]`` whose largest logit is the nearest class mean.

    ``2 mu_k f - |mu_k|^2`` equals ``-|f - mu_k|^2`` plus ``|f|^2``, which all classes
    share. As in the official code, the means themselves are not scaled.

    Args:
      blocks: the features, float[N, D] in blocks; read once, or twice for ``cl2``.
      labels: int32[N], with an example of every class.
      shape: D, K.
      kind: takes means of the features as they are (``raw``), scaled to length 1
        (``l2``), or first centred and then scaled to length 1 (``cl2``).

    Reference: "Decoupling Representation and Classifier", ICLR 2020.
    """
    one_of("kind of nearest mean", kind, NEAREST)
    num_features, num_classes = shape
    centre = jnp.zeros(num_features)
    if kind == "cl2":
        for values in blocks():
            centre = _add_up(centre, values)
        centre = centre / len(labels)
    sums, first = jnp.zeros((num_classes, num_features)), 0
    for values in blocks():
        own = labels[first : first + len(values)]
        first += len(values)
        sums = _add_by_class(sums, values, own, centre, kind != "raw")
    means = sums / jnp.bincount(jnp.asarray(labels), length=num_classes)[:, None]
    params = {"kernel": 2 * means.T, "bias": -jnp.sum(means**2, axis=1)}
    return params if kind == "raw" else {**params, "centre": centre}


@functools.partial(jax.jit, donate_argnums=0)
def _add_up(total: jax.Array, values: jax.Array) -> jax.Array:
    return total + jnp.sum(values.astype(jnp.float32), axis=0)


@functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
def _add_by_class(
    sums: jax.Array, values: jax.Array, labels: jax.Array, centre: jax.Array, unit: bool
) -> jax.Array:
    values = values.astype(jnp.float32)
    if unit:
        values = _unit(values - centre[None, :], 1)
    return sums.at[labels].add(values)
