"""Residual networks that return features; heads are in `lt_jax.heads`.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385. The stride
of a bottleneck is in its 3x3 convolution (torchvision's "v1.5"). ResNeXt: Xie et al.,
arXiv 1611.05431. Padding, initial weights and running variance follow PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lt_jax import initializers
from lt_jax.models.convolution import convolver
from lt_jax.models.norm import BatchNorm

STEMS = {"cifar": (3, 1, False), "imagenet": (7, 2, True)}  # size, stride, max pool

# By convention, the first stage of the CIFAR networks has width 16, the others 64.
ARCHS: dict[str, dict[str, Any]] = {
    "resnet8": {"stages": (1, 1, 1), "shortcut": "pad"},
    "resnet20": {"stages": (3, 3, 3), "shortcut": "pad"},
    "resnet32": {"stages": (5, 5, 5), "shortcut": "pad"},
    "resnet44": {"stages": (7, 7, 7), "shortcut": "pad"},
    "resnet56": {"stages": (9, 9, 9), "shortcut": "pad"},
    "resnet10": {"stages": (1, 1, 1, 1)},
    "resnet18": {"stages": (2, 2, 2, 2)},
    "resnet34": {"stages": (3, 4, 6, 3)},
    "resnet50": {"stages": (3, 4, 6, 3), "bottleneck": True},
    "resnet101": {"stages": (3, 4, 23, 3), "bottleneck": True},
    "resnet152": {"stages": (3, 8, 36, 3), "bottleneck": True},
    "resnext50_32x4d": {
        "stages": (3, 4, 6, 3), "bottleneck": True, "groups": 32, "group_width": 4,
    },
}  # fmt: skip


def convolution(
    features: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    init_name: str,
    dtype: Any,
    engine: str = "xla",
    name: str | None = None,
) -> nn.Module:
    """Build a square convolution without bias: [B, H, W, C] -> [B, H', W', F].

    The padding is explicit. For a stride of 2 and an even side, "SAME" pads the end
    only, while PyTorch pads both ends.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        param_dtype=jnp.promote_types(jnp.float32, dtype),
        kernel_init=initializers.kernel(init_name),
        conv_general_dilated=convolver(engine, dtype, groups),
        name=name,
    )


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Subsample ``x`` and pad its channels with zeros on both sides, half and half.

    [B, H, W, C] -> [B, H', W', features]: option A of He et al.
    """
    x = x[:, ::stride, ::stride, :]
    side = (features - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (side, side)))


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 as a bottleneck."""

    width: int
    stride: int
    bottleneck: bool
    groups: int
    group_width: int
    shortcut: str
    zero_init: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, width or 4 * width]."""
        conv, norm, width = self.conv, self.norm, self.width
        last = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        if self.bottleneck:
            out, inner = 4 * width, width * self.group_width // 64 * self.groups
            y = conv(inner, 1, name="conv1")(x)
            y = nn.relu(norm(name="norm1")(y, mask, moving))
            y = conv(inner, 3, self.stride, self.groups, name="conv2")(y)
            y = nn.relu(norm(name="norm2")(y, mask, moving))
            y = conv(out, 1, name="conv3")(y)
            y = norm(name="norm3", scale_init=last)(y, mask, moving)
        else:
            out = width
            y = conv(out, 3, self.stride, name="conv1")(x)
            y = nn.relu(norm(name="norm1")(y, mask, moving))
            y = conv(out, 3, name="conv2")(y)
            y = norm(name="norm2", scale_init=last)(y, mask, moving)

        if self.stride != 1 or x.shape[-1] != out:
            if self.shortcut == "pad":
                x = pad_shortcut(x, out, self.stride)
            else:
                x = conv(out, 1, self.stride, name="short_conv")(x)
                x = norm(name="short_norm")(x, mask, moving)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A network from images to features; hashable, so it can key a cache."""

    stages: tuple[int, ...]  # number of blocks in each stage
    width: int  # channels of the first stage; each later stage doubles it
    stem: str  # "cifar" or "imagenet"
    zero_init: bool  # initialize the last scale of a block at 0
    init_name: str  # "torch" or "flax"; every Flax module has a method `init`
    dtype: Any  # of the activations; parameters and statistics are at least float32
    axis_name: str | None  # the pmap axis that batch norm reduces over
    bottleneck: bool = False
    groups: int = 1  # of a bottleneck's 3x3 convolution
    group_width: int = 64  # channels per group in a stage of width 64
    shortcut: str = "projection"  # or "pad"
    engine: str = "xla"  # what computes the convolutions: "xla" or "onednn"

    @property
    def num_features(self) -> int:
        """D."""
        last = self.width * 2 ** (len(self.stages) - 1)
        return 4 * last if self.bottleneck else last

    @property
    def side_multiple(self) -> int:
        """What divides the sides of every image of an exported network.

        JAX cannot prove that a strided slice of h pixels, as in the shortcuts of the
        CIFAR networks, is as long as a strided convolution, unless 2 divides h.
        """
        return 2 ** (len(self.stages) - 1) if self.shortcut == "pad" else 1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """Map normalized images, float[B, H, W, C], to features, float[B, D].

        For ``mask`` (float32[B]) and ``moving`` see `BatchNorm`.
        """
        conv = functools.partial(
            convolution, init_name=self.init_name, dtype=self.dtype, engine=self.engine
        )
        norm = functools.partial(BatchNorm, self.axis_name, dtype=self.dtype)
        size, stride, pool = STEMS[self.stem]
        x = conv(self.width, size, stride, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x, mask, moving))
        if pool:
            pad: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), pad)
        for stage, blocks in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                x = Block(
                    width=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 1 else 1,
                    bottleneck=self.bottleneck,
                    groups=self.groups,
                    group_width=self.group_width,
                    shortcut=self.shortcut,
                    zero_init=self.zero_init,
                    conv=conv,
                    norm=norm,
                    name=f"stage{stage}_block{block}",
                )(x, mask, moving)
        return jnp.mean(x, (1, 2), dtype=jnp.promote_types(jnp.float32, self.dtype))
