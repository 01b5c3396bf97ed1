"""Batch norm over the mask and all devices, with PyTorch's running statistics.

`flax.linen.BatchNorm` averages per-device means, which is biased on a ragged batch and
NaN on a device without examples, and it stores the biased variance.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """Normalize each channel by the statistics of the unmasked rows of all devices.

    ``params`` are ``scale`` and ``bias``, ``batch_stats`` are ``mean`` and ``var``, all
    [C] in at least float32.
    """

    axis_name: str | None  # the pmap axis whose devices share the batch
    momentum: float = 0.9  # kept of a running statistic; PyTorch calls this 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32  # of the output
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """Normalize ``x``: [B, H, W, C] -> ``dtype`` [B, H, W, C].

        ``mask`` is float32[B], 0 for rows that must not count. ``moving`` uses the
        statistics of the batch and moves the running ones towards them.
        """
        shape = x.shape[-1:]
        stored = jnp.promote_types(jnp.float32, self.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stored)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, stored)
        scale = self.param("scale", self.scale_init, shape, stored)
        bias = self.param("bias", nn.initializers.zeros, shape, stored)

        # bfloat16 has 8 bits of mantissa: too few to sum or to subtract a mean in.
        x = x.astype(jnp.promote_types(stored, x.dtype))
        if moving and not self.is_initializing():  # init runs outside of any pmap
            count, mean, var = self._statistics(x, mask)
            # PyTorch stores the unbiased variance but normalizes with the biased one. A
            # batch without examples leaves the running statistics unchanged.
            unbiased = var * count / jnp.maximum(count - 1, 1)
            keep = jnp.where(count > 0, self.momentum, 1).astype(stored)
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                running.value = keep * running.value + (1 - keep) * new.astype(stored)
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        y = (x - mean[None, None, None, :]) * factor[None, None, None, :]
        return (y + bias[None, None, None, :]).astype(self.dtype)

    def _statistics(
        self, x: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute count [], mean [C] and biased variance [C] over all devices."""
        # Pixels first, then the mask: it multiplies [B, C] instead of complete images.
        keep = mask.astype(x.dtype)
        total = jnp.sum(keep[:, None] * jnp.sum(x, (1, 2)), 0)
        square = jnp.sum(keep[:, None] * jnp.sum(x * x, (1, 2)), 0)
        count = jnp.sum(keep) * (x.shape[1] * x.shape[2])
        if self.axis_name is not None:
            # Devices exchange sums, not means: a device may hold any number of
            # examples, even none.
            count, total, square = jax.lax.psum((count, total, square), self.axis_name)
        n = jnp.maximum(count, 1)
        mean = total / n
        # E[x^2] - E[x]^2 needs one pass over x and one psum where the sum of
        # (x - mean)^2 needs two. It loses digits when the mean is many times the
        # deviation, which the output of a convolution is not; rounding may still leave
        # a constant channel slightly below 0.
        var = jnp.maximum(square / n - mean * mean, 0)
        return count, mean, var
