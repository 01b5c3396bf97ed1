"""A head is two functions: one makes its parameters, one turns features into logits.

Class vectors are the *columns* of ``kernel``. What constrains or corrects a head maps
its parameters to parameters of the same head, so evaluation knows nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import initializers
from lt_jax.errors import InputError, one_of
from lt_jax.types import Params

# Features of many examples, float[n, D] after float[n, D]; each call begins anew. They
# may be more than the memory holds.
Blocks = Callable[[], Iterator[Any]]


class Init(Protocol):
    """How a head's parameters are made."""

    def __call__(
        self,
        key: jax.Array,
        start: Params | None,
        num_features: int,
        num_classes: int,
        init: str,
        /,
    ) -> Params:
        """Parameters that go on from ``start``, the stage-1 head, or fresh ones.

        ``init`` names the initial values of a fresh head, see ``inits.NAMES``.
        """
        ...


class Head(NamedTuple):
    """How a classifier starts and what it computes. Hashable: a cache key."""

    init: Init
    # (params, features float[B, D]) -> logits float[B, K]
    apply: Callable[[Params, jax.Array], jax.Array]
    trains: str  # regular expression over the names of the leaves that are trained


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
    """A linear head, and beside it neutral leaves [K] and [D] of these names."""
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
    """Vectors of length 1 along an axis; a vector of zeros stays one."""
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
    """``scale cos(w_k, f)``, without a bias; the scale is held fixed.

    It is a leaf, so heads of different scales compute the same program, and the logits
    that are measured are the ones that the loss sees.
    """
    if not 0 < scale < float("inf"):
        raise InputError(f"scale must be a positive number, got {scale}; usual is 30")
    init = functools.partial(_cosine_init, scale=scale)
    return Head(init=init, apply=_cosine_apply, trains="kernel")


def _scaled_apply(params: Params, features: jax.Array) -> jax.Array:
    return params["scale"][None, :] * _linear_apply(params, features)


# s_k (w_k f + b_k), learnable weight scaling; s alone is trained, or all of it.
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


# W u + b of the features moved by a centre and scaled to length 1.
centred = Head(
    init=functools.partial(_linear_init, directions=("centre",)),
    apply=_centred_apply,
    trains="kernel|bias",
)

# What nearest_mean measures distances between, and the head that computes them.
NEAREST = {"raw": linear, "l2": centred, "cl2": centred}


def class_norms(params: Params) -> jax.Array:
    """float[K], the Euclidean norm of each class vector (the bias left out)."""
    return jnp.linalg.norm(params["kernel"], axis=0)


def effective_norms(params: Params) -> jax.Array:
    """float[K], the norms of the class vectors that the logits are made with.

    Of ``s_k w_k`` where a head scales its logits (``scaled``, ``scaled_all``), of
    ``omega_k w_k`` for ``marc``. For ``aligned``, whose scale depends on the example,
    of ``(1 + s_k) / 2 w_k``: a confidence of 1/2, as v = 0 gives it. ``cosine`` makes
    all vectors as long as its scale. Other heads use ``w_k`` as it is.
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
    """Class vectors divided by their norm to the power tau; the bias dropped.

    Decoupling, ICLR 2020. tau 0 keeps the vectors, 1 makes them unit vectors.
    """
    norms = jnp.maximum(class_norms(params), 1e-12)  # a vector of zeros stays one
    return {
        **params,
        "kernel": params["kernel"] / norms[None, :] ** tau,
        "bias": jnp.zeros_like(params["bias"]),
    }


def shift_bias(params: Params, shift: jax.Array) -> Params:
    """Logits moved by ``shift``, float[K]."""
    return {**params, "bias": params["bias"] + shift}


def max_norm(params: Params, radius: jax.Array) -> Params:
    """Class vectors longer than ``radius`` are shortened to it; the bias stays.

    "Long-Tailed Recognition via Weight Balancing", CVPR 2022.
    """
    norms = class_norms(params)
    factor = jnp.where(norms > radius, radius / jnp.maximum(norms, 1e-12), 1.0)
    return {**params, "kernel": params["kernel"] * factor[None, :]}


def max_norm_radius(start: Params, quantile: float) -> jax.Array:
    """``min + quantile (max - min)`` of the class norms of the head at the start.

    As the authors' code has it, with 0.1: a point of the range, not a rank.
    """
    norms = class_norms(start)
    return norms.min() + quantile * (norms.max() - norms.min())


def nearest_mean(
    blocks: Blocks, labels: np.ndarray, shape: tuple[int, int], kind: str
) -> Params:
    """The head of ``NEAREST[kind]`` whose largest logit is the nearest class mean.

    ``2 mu_k f - |mu_k|^2`` is ``-|f - mu_k|^2`` but for ``|f|^2``, which all classes
    share. The means are those of the features as they are (``raw``), scaled to length
    1 (``l2``), or moved by their overall mean first (``cl2``), and are not scaled
    themselves: nearest class mean of Decoupling, ICLR 2020, and of its official code.
    Goes through the features once, for ``cl2`` twice.

    Args:
      blocks: the features.
      labels: int32[N], an example of every class.
      shape: D, K.
    """
    one_of("kind of nearest mean", kind, NEAREST)
    num_features, num_classes = shape
    centre = jnp.zeros(num_features)
    if kind == "cl2":
        for values in blocks():
            centre = _add_up(centre, values)
        centre = centre / len(labels)
    sums, at = jnp.zeros((num_classes, num_features)), 0
    for values in blocks():
        own = labels[at : at + len(values)]
        at += len(values)
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
