"""The backbone of features that were computed elsewhere: none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class Identity(nn.Module):
    """Examples as they are, flattened: no parameters and no statistics."""

    size: int  # D

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """[B, H, W, C] -> float32[B, D], D = H W C. ``mask``, ``moving``: not read."""
        return x.reshape(len(x), self.size).astype(jnp.float32)
