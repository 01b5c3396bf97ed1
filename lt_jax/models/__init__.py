"""Backbones: images to features.

`networks` builds them by name. `resnet` and `vit` define the networks, `norm` the batch
norm and `convolution` the convolutions of ResNets. `identity` is the backbone for
precomputed features.

    module = create("resnet34", "cifar", 64)
    params, batch_stats = init(module, jax.random.key(0), (32, 32, 3))
    features = module.apply(
        {"params": params, "batch_stats": batch_stats}, images, mask, moving=False
    )  # [B, features_of(module)]

With ``moving=True`` also pass ``mutable=["batch_stats"]``. The result is then
``features, {"batch_stats": ...}``.
"""

from lt_jax.models.convolution import compiler_options, fastest_engine
from lt_jax.models.identity import Identity
from lt_jax.models.networks import (
    ARCHS,
    DTYPES,
    Backbone,
    create,
    features_of,
    init,
    shapes,
)
from lt_jax.models.norm import BatchNorm
from lt_jax.models.resnet import STEMS, ResNet
from lt_jax.models.vit import POOLS, ViT

__all__ = [
    "ARCHS",
    "DTYPES",
    "POOLS",
    "STEMS",
    "Backbone",
    "BatchNorm",
    "Identity",
    "ResNet",
    "ViT",
    "compiler_options",
    "create",
    "fastest_engine",
    "features_of",
    "init",
    "shapes",
]
