"""The backbone for precomputed features: none."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn


class Identity(nn.Module):
    """Return the examples flattened, without parameters or statistics."""

    size: int  # D
    side_multiple: ClassVar[int] = 1  # see `ResNet`

    @property
    def num_features(self) -> int:
        return self.size

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """[B, H, W, C] -> float32[B, D], D = H W C; ignores ``mask`` and ``moving``."""
        return x.reshape(len(x), self.size).astype(jnp.float32)
