"""Backbones, images to features: by name, with their sizes and initial weights.

    module = create("resnet34", "cifar", 64)
    params, batch_stats = init(module, jax.random.key(0), (32, 32, 3))
    features = module.apply(
        {"params": params, "batch_stats": batch_stats}, images, mask, moving=False
    )  # [B, module.num_features]

With ``moving=True`` also pass ``mutable=["batch_stats"]``. The result is then
``features, {"batch_stats": ...}``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lt_jax import initializers
from lt_jax.errors import InputError, one_of
from lt_jax.models.convolution import compiler_options, fastest_engine
from lt_jax.models.resnet import ARCHS as RESNETS
from lt_jax.models.resnet import STEMS, ResNet
from lt_jax.models.vit import ARCHS as VITS
from lt_jax.models.vit import POOLS, ViT
from lt_jax.types import Params

__all__ = ["POOLS", "STEMS", "ResNet", "ViT", "compiler_options", "fastest_engine"]

DTYPES = ("float32", "bfloat16", "float64")
ARCHS = {**RESNETS, **VITS}


class Identity(nn.Module):
    """The backbone for precomputed features: returns the examples, flattened.

    With ``scaled`` it returns ``(x - centre) * scale``, by its batch statistics.
    """

    num_features: int  # D
    scaled: bool = False
    side_multiple: ClassVar[int] = 1  # see `ResNet`

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, moving: bool) -> jax.Array:
        """[B, H, W, C] -> float32[B, D], D = H W C; ignores ``mask`` and ``moving``."""
        x = x.reshape(-1, self.num_features).astype(jnp.float32)
        if not self.scaled:
            return x
        centre = self.variable("batch_stats", "centre", jnp.zeros, self.num_features)
        scale = self.variable("batch_stats", "scale", jnp.ones, ())
        return (x - centre.value[None, :]) * scale.value


Backbone = ResNet | ViT | Identity


def create(
    name: str,
    stem: str = "imagenet",
    width: int = 64,
    *,
    pool: str = "token",
    zero_init: bool = False,
    init: str = "torch",
    dtype: str = "float32",
    axis_name: str | None = None,
    engine: str = "xla",
) -> ResNet | ViT:
    """Build the network ``name`` of `ARCHS`.

    A ViT reads ``pool``, ``init`` and ``dtype`` only; a ResNet does not read ``pool``.
    """
    fields = ARCHS[one_of("arch", name, ARCHS)]
    one_of("stem", stem, STEMS)
    one_of("pool", pool, POOLS)
    number = jnp.dtype(one_of("dtype", dtype, DTYPES))
    if jax.dtypes.canonicalize_dtype(number) != number:
        raise InputError(f"dtype {dtype} works only with jax.enable_x64, in tests")
    one_of("initialiser", init, initializers.NAMES)
    common = {"init_name": init, "dtype": number, **fields}
    if "patch" in fields:
        return ViT(pool=pool, **common)
    least = 64 // fields.get("group_width", 64)
    if width < least:
        raise InputError(f"width must be at least {least} for {name}, got {width}")
    if width % 2 and fields.get("shortcut") == "pad":
        raise InputError(f"width must be even for {name}, got {width}")
    common |= {"zero_init": zero_init, "axis_name": axis_name, "engine": engine}
    return ResNet(stem=stem, width=width, **common)


def shapes(module: Backbone, shape: tuple[int, int, int]) -> tuple[Params, Params]:
    """Return shapes and dtypes of what `init` makes, without making it."""
    return jax.eval_shape(lambda key: _init(module, key, shape), jax.random.key(0))


def _init(
    module: Backbone, key: jax.Array, shape: tuple[int, int, int]
) -> tuple[Params, Params]:
    """Initialize ``params`` and ``batch_stats`` for images of ``shape`` (H, W, C)."""
    image = jnp.zeros((1, *shape), jnp.float32)
    variables: Any = module.init(key, image, jnp.ones(1, jnp.float32), moving=False)
    return variables.get("params", {}), variables.get("batch_stats", {})


# Code that runs once is not worth optimising: on CPUs that took up to 30 s.
init = jax.jit(
    _init, static_argnums=(0, 2), compiler_options={"xla_backend_optimization_level": 0}
)
