"""A head is two functions: one makes its parameters, one turns features into logits.

Class vectors are the *columns* of ``kernel``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lt_jax import inits
from lt_jax.types import Params


class Init(Protocol):
    """How a head's parameters are made."""

    def __call__(
        self,
        key: jax.Array,
        start: Params | None,
        num_features: int,
        num_classes: int,
        init: str,
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
) -> Params:
    if start is not None:
        return {"kernel": start["kernel"], "bias": start["bias"]}
    keys = jax.random.split(key)
    return {
        "kernel": inits.kernel(init)(keys[0], (num_features, num_classes)),
        "bias": inits.bias(init, num_features)(keys[1], (num_classes,)),
    }


def _linear_apply(params: Params, features: jax.Array) -> jax.Array:
    return jnp.dot(features, params["kernel"]) + params["bias"][None, :]


linear = Head(init=_linear_init, apply=_linear_apply, trains=".*")  # W f + b


def class_norms(params: Params) -> jax.Array:
    """float[K], the Euclidean norm of each class vector (the bias left out)."""
    return jnp.linalg.norm(params["kernel"], axis=0)
