"""A head is two functions: one makes its parameters, one turns features into logits.

Class vectors are the *columns* of ``kernel``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lt_jax import inits
from lt_jax.types import Params


class Head(NamedTuple):
    """How a classifier starts and what it computes."""

    # (key, start, D, K) -> params. ``start`` holds the parameters of the stage-1 head
    # to go on from, or None for a fresh head.
    init: Callable[[jax.Array, Params | None, int, int], Params]
    # (params, features float[B, D]) -> logits float[B, K]
    apply: Callable[[Params, jax.Array], jax.Array]
    trains: str  # regular expression over the names of the leaves that are trained


def _linear_apply(params: Params, features: jax.Array) -> jax.Array:
    return jnp.dot(features, params["kernel"]) + params["bias"][None, :]


@functools.cache  # equal arguments give the same record, so it can be a cache key
def linear(init: str = "torch") -> Head:
    """The plain linear classifier ``W f + b``.

    Args:
      init: initial values of a fresh head, a name in ``inits.NAMES``.
    """
    kernel = inits.kernel(init)

    def make(
        key: jax.Array, start: Params | None, num_features: int, num_classes: int
    ) -> Params:
        if start is not None:
            return {"kernel": start["kernel"], "bias": start["bias"]}
        keys = jax.random.split(key)
        bias = inits.bias(init, num_features)
        return {
            "kernel": kernel(keys[0], (num_features, num_classes)),
            "bias": bias(keys[1], (num_classes,)),
        }

    return Head(init=make, apply=_linear_apply, trains=".*")


def class_norms(params: Params) -> jax.Array:
    """float[K], the Euclidean norm of each class vector (the bias left out)."""
    return jnp.linalg.norm(params["kernel"], axis=0)
