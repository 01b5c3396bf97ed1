"""Vision transformers that return features; heads are in `lt_jax.heads`.

Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, in the variants
of CLIP (arXiv 2103.00020) and DINOv2 (arXiv 2304.07193). Architectures have timm's
names and compute what timm computes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lt_jax import initializers
from lt_jax.errors import InputError

POOLS = ("token", "mean")  # the class token, or the mean over the patches

# ``grid`` is the side, in patches, of the images that the network was trained on.
_CLIP = {"grid": 14, "width": 768, "depth": 12, "heads": 12, "pre_norm": True}
_CLIP |= {"patch": 16, "epsilon": 1e-5}
_DINO = {"patch": 14, "grid": 37, "depth": 12, "layer_scale": True}
ARCHS: dict[str, dict[str, Any]] = {
    "vit_small_patch16_224": {
        "patch": 16, "grid": 14, "width": 384, "depth": 12, "heads": 6,
    },
    "vit_base_patch16_224": {
        "patch": 16, "grid": 14, "width": 768, "depth": 12, "heads": 12,
    },
    "vit_large_patch16_224": {
        "patch": 16, "grid": 14, "width": 1024, "depth": 24, "heads": 16,
    },
    "vit_base_patch16_clip_224": _CLIP,
    "vit_base_patch16_clip_quickgelu_224": {**_CLIP, "activation": "quick_gelu"},
    "vit_small_patch14_dinov2": {**_DINO, "width": 384, "heads": 6},
    "vit_base_patch14_dinov2": {**_DINO, "width": 768, "heads": 12},
}  # fmt: skip

# GELU with the error function, as in PyTorch, and the approximation of OpenAI's CLIP.
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:])
        return x * gamma.astype(x.dtype)[None, None]


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each added to its input."""

    heads: int
    layer_scale: bool
    activation: str
    dense: Any  # (features, name=...) -> nn.Dense
    norm: Any  # (name=...) -> nn.LayerNorm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        batch, tokens, width = x.shape

        def scaled(y: jax.Array, name: str) -> jax.Array:
            return LayerScale(name=name)(y) if self.layer_scale else y

        y = self.dense(3 * width, name="qkv")(self.norm(name="norm1")(x))
        y = y.reshape(batch, tokens, 3, self.heads, width // self.heads)
        # Its softmax is float32 for every dtype.
        y = jax.nn.dot_product_attention(y[:, :, 0], y[:, :, 1], y[:, :, 2])
        y = self.dense(width, name="proj")(y.reshape(batch, tokens, width))
        x = x + scaled(y, "ls1")
        y = self.dense(4 * width, name="fc1")(self.norm(name="norm2")(x))
        y = self.dense(width, name="fc2")(ACTIVATIONS[self.activation](y))
        return x + scaled(y, "ls2")


class ViT(nn.Module):
    """A network from images to features; hashable, so it can key a cache."""

    patch: int  # side of a patch in pixels
    grid: int  # side, in patches, of the images that ``pos_embed`` is for
    width: int  # D
    depth: int  # blocks
    heads: int
    pool: str  # one of POOLS
    init_name: str  # "torch" or "flax"; every Flax module has a method `init`
    dtype: Any  # of the activations; parameters are at least float32
    pre_norm: bool = False  # CLIP: a norm before the blocks, and patches without bias
    layer_scale: bool = False  # DINOv2
    activation: str = "gelu"  # a key of ACTIVATIONS
    epsilon: float = 1e-6  # of the norms

    @property
    def num_features(self) -> int:
        return self.width

    @property
    def side_multiple(self) -> int:
        """What divides the sides of every image."""
        return self.patch

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """Map normalized images, float[B, H, W, C], to features, float[B, D].

        Ignores ``mask`` and ``moving``: rows are independent.

        Raises:
          InputError: H and W are not multiples of ``patch``.
        """
        batch, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise InputError(
                f"the network needs images whose sides are multiples of {self.patch} "
                f"pixels, at least {self.patch}, got {height} x {width}"
            )
        stored = jnp.promote_types(jnp.float32, self.dtype)
        common = {"dtype": self.dtype, "param_dtype": stored}
        kernel = {"kernel_init": initializers.kernel(self.init_name)}
        dense = functools.partial(nn.Dense, **kernel, **common)
        # The default variance, E[x^2] - E[x]^2, loses digits at ViTs' large means.
        norm = functools.partial(
            nn.LayerNorm, self.epsilon, use_fast_variance=False, **common
        )
        square, bias = (self.patch, self.patch), not self.pre_norm
        x = nn.Conv(
            self.width, square, square, "VALID", use_bias=bias, name="stem_conv",
            **kernel, **common,
        )(x)  # fmt: skip
        rows, columns = x.shape[1:3]
        x = x.reshape(batch, rows * columns, self.width)

        token = self.param(
            "cls_token", nn.initializers.zeros, (1, 1, self.width), stored
        )
        shape = 1, 1 + self.grid**2, self.width
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape, stored)
        positions = self._resize(positions, rows, columns).astype(x.dtype)
        token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + jnp.broadcast_to(positions, x.shape)
        if self.pre_norm:
            x = norm(name="norm_pre")(x)
        for number in range(1, self.depth + 1):
            fields = self.heads, self.layer_scale, self.activation, dense, norm
            x = Block(*fields, name=f"block{number}")(x)
        x = norm(name="norm")(x).astype(stored)
        return x[:, 0] if self.pool == "token" else jnp.mean(x[:, 1:], axis=1)

    def _resize(self, positions: jax.Array, rows: int, columns: int) -> jax.Array:
        """Resize position embeddings to another grid; the class token keeps its own."""
        if (rows, columns) == (self.grid, self.grid):
            return positions
        grid = positions[:, 1:].reshape(1, self.grid, self.grid, self.width)
        # Anti-aliased, as in timm.
        shape = (1, rows, columns, self.width)
        grid = jax.image.resize(grid, shape, "cubic", antialias=True)
        rest = grid.reshape(1, rows * columns, self.width)
        return jnp.concatenate([positions[:, :1], rest], axis=1)
