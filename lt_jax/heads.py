"""A head turns features into logits; a correction turns its parameters into others.

Class vectors are the *columns* of ``kernel``. Corrections and constraints keep the
names and shapes of the parameters, so evaluation does not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lt_jax import initializers
from lt_jax.errors import in_range
from lt_jax.types import Params

# Iterates over the features of all examples in blocks, float[n, D] each: they may be
# larger than the memory.
Blocks = Callable[[], Iterator[Any]]


class Head(NamedTuple):
    """A classifier. Hashable, so that it can key a cache of compiled programs."""

    apply: Callable[[Params, Array], Array]  # (params, float[B, D]) -> float[B, K]
    trains: str = ".*"  # regular expression for the names of the trained leaves
    # Leaves besides kernel and bias: name, shape ("K", "D", or "" for []), first value.
    more: tuple[tuple[str, str, float], ...] = ()
    bias: bool = True

    def init(
        self, key: Array, start: Params | None, features: int, classes: int, name: str
    ) -> Params:
        """Make the initial parameters for D features and K classes.

        Args:
          key: JAX key; not used if there is a start.
          start: stage-1 head whose kernel and bias to take; None for random ones.
          features: D.
          classes: K.
          name: the initialiser, one of ``initializers.NAMES``.
        """
        keys = jax.random.split(key)
        own = start or {
            "kernel": initializers.kernel(name)(keys[0], (features, classes)),
            "bias": initializers.bias(name, features)(keys[1], (classes,)),
        }
        shapes = {"K": (classes,), "D": (features,), "": ()}
        return {
            **{leaf: own[leaf] for leaf in ("kernel", "bias")[: 1 + self.bias]},
            **{leaf: jnp.full(shapes[of], value) for leaf, of, value in self.more},
        }


def _products(features: Array, kernel: Array) -> Array:
    # Mapped over heads, this order puts classes before examples, as losses read them.
    return jnp.dot(kernel.T, features.T).T


def _linear(params: Params, features: Array) -> Array:
    return _products(features, params["kernel"]) + params["bias"][None, :]


def _unit(vectors: Array, axis: int) -> Array:
    """Scale vectors along an axis to length 1; a zero vector stays zero."""
    square = jnp.sum(vectors**2, axis=axis, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _cosine(params: Params, features: Array) -> Array:
    cosines = _products(_unit(features, 1), _unit(params["kernel"], 0))
    return params["scale"] * cosines


def cosine(scale: float) -> Head:
    """Make the head ``scale cos(w_k, f)``, without a bias and with a fixed scale.

    The scale is a leaf, so that heads with different scales share one program.
    """
    scale = in_range("scale", scale, "(0, inf)")
    return Head(_cosine, "kernel", more=(("scale", "", scale),), bias=False)


def _scaled(params: Params, features: Array) -> Array:
    return params["scale"][None, :] * _linear(params, features)


def _aligned(params: Params, features: Array) -> Array:
    confidence = jnp.dot(features, params["confidence"])
    confidence = confidence + params.get("confidence_bias", 0.0)
    confidence = jax.nn.sigmoid(confidence)[:, None]
    factor = 1 + confidence * params["scale"][None, :]
    return factor * _linear(params, features) + confidence * params["offset"][None, :]


def _blended(params: Params, features: Array) -> Array:
    return _aligned({**params, "scale": params["scale"] - 1}, features)


def _marc(params: Params, features: Array) -> Array:
    shift = params["beta"] * class_norms(params)
    return params["omega"][None, :] * _linear(params, features) + shift[None, :]


def _centred(params: Params, features: Array) -> Array:
    return _linear(params, _unit(features - params["centre"][None, :], 1))


# z = W f + b
linear = Head(_linear)
# s_k z_k, learnable weight scaling: only s is trained, or all leaves
scaled = Head(_scaled, "scale", more=(("scale", "K", 1.0),))
scaled_all = scaled._replace(trains=".*")
# (1 + c s_k) z_k + c o_k with the confidence c = sigma(v f + b)
aligned = Head(
    _aligned,
    "scale|offset|confidence|confidence_bias",
    more=(
        ("scale", "K", 1.0),
        ("offset", "K", 0.0),
        ("confidence", "D", 0.1),
        ("confidence_bias", "", 0.0),
    ),
)
# c (s_k z_k + o_k) + (1 - c) z_k, which is (1 + c (s_k - 1)) z_k + c o_k
blended = Head(
    _blended,
    "scale|offset|confidence",
    more=(("scale", "K", 1.0), ("offset", "K", 0.0), ("confidence", "D", 0.0)),
)
# Form of DisAlign -> the head that computes it.
ALIGNED = {"classification": aligned, "segmentation": blended}
# omega_k z_k + beta_k |w_k|
marc = Head(_marc, "omega|beta", more=(("omega", "K", 1.0), ("beta", "K", 0.0)))
# W u + b, where u is the features minus a centre, scaled to length 1
centred = Head(_centred, "kernel|bias", more=(("centre", "D", 0.0),))

# Kind of nearest class mean -> the head that computes it; see ``nearest_mean``.
NEAREST = {"raw": linear, "l2": centred, "cl2": centred}


def class_norms(params: Params) -> Array:
    """Compute the Euclidean norm of each class vector, float[K], without the bias."""
    return jnp.linalg.norm(params["kernel"], axis=0)


def effective_norms(params: Params) -> Array:
    """Compute the norms of the class vectors as they enter the logits, float[K].

    This includes the factors of each head. Both forms of DisAlign have their factor at
    a confidence of 1/2; every vector of ``cosine`` has the length of its scale.
    """
    norms, scale = class_norms(params), params.get("scale", 1.0)
    if "omega" in params:  # marc
        scale = params["omega"]
    elif "confidence" in params:  # aligned, blended
        scale = 1 + (scale - ("confidence_bias" not in params)) / 2
    elif "bias" not in params:  # cosine
        return jnp.full_like(norms, scale)
    return jnp.abs(scale) * norms


def tau_norm(params: Params, tau: float) -> Params:
    """Divide class vectors by their norm to the power tau; set the bias to zero.

    Reference: "Decoupling Representation and Classifier", ICLR 2020.
    """
    norms = jnp.maximum(class_norms(params), 1e-12)  # a zero vector stays zero
    kernel = params["kernel"] / norms[None, :] ** tau
    return {**params, "kernel": kernel, "bias": jnp.zeros_like(params["bias"])}


def max_norm(params: Params, radius: Array) -> Params:
    """Shorten class vectors that are longer than ``radius`` to it; keep the bias.

    Reference: "Long-Tailed Recognition via Weight Balancing", CVPR 2022.
    """
    norms = class_norms(params)
    factor = jnp.where(norms > radius, radius / jnp.maximum(norms, 1e-12), 1.0)
    return {**params, "kernel": params["kernel"] * factor[None, :]}


def max_norm_radius(start: Params, quantile: float) -> Array:
    """Compute ``min + quantile (max - min)`` of the class norms of the start head.

    The name is the authors', who use 0.1: a point in the range, not a rank.
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
      kind: features are used as they are (``raw``), scaled to length 1 (``l2``), or
        centred and then scaled to length 1 (``cl2``).

    Reference: "Decoupling Representation and Classifier", ICLR 2020.
    """
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
def _add_up(total: Array, values: Array) -> Array:
    return total + jnp.sum(values.astype(jnp.float32), axis=0)


@functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
def _add_by_class(
    sums: Array, values: Array, labels: Array, centre: Array, unit: bool
) -> Array:
    values = values.astype(jnp.float32)
    if unit:
        values = _unit(values - centre[None, :], 1)
    return sums.at[labels].add(values)
