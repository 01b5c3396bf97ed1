"""Initial values of weights: the defaults of PyTorch or of Flax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lt_jax.errors import one_of

NAMES = {
    # U(+-1/sqrt(fan_in)), the default of Conv2d and Linear; U(-b, b) has the variance
    # b ** 2 / 3.
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "flax": nn.initializers.lecun_normal(),
}


def kernel(name: str) -> nn.initializers.Initializer:
    """Return the initialiser of a kernel [..., in, out]."""
    return NAMES[one_of("initialiser", name, NAMES)]


def bias(name: str, fan_in: int) -> nn.initializers.Initializer:
    """Return the initialiser of a bias: U(+-1/sqrt(fan_in)) or zeros."""
    if one_of("initialiser", name, NAMES) == "flax":
        return nn.initializers.zeros
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform
