"""Backbones: images to features. `resnet` holds the networks, `norm` their batch norm,
`onednn` their convolutions on CPUs, `identity` what stands in for a network where the
examples are features already.

    module = create("resnet34", "cifar", 64, False, "torch", "float32", None)
    params, batch_stats = init(module, jax.random.key(0), (32, 32, 3))
    features = module.apply(
        {"params": params, "batch_stats": batch_stats}, images, mask, moving=False
    )  # [B, features_of(module)]

With ``moving=True`` also pass ``mutable=["batch_stats"]``; then the answer is
``features, {"batch_stats": ...}``.
"""

from lt_jax.models.identity import Identity
from lt_jax.models.norm import BatchNorm
from lt_jax.models.resnet import (
    ARCHS,
    ResNet,
    create,
    fastest_engine,
    features_of,
    init,
)

__all__ = [
    "ARCHS",
    "BatchNorm",
    "Identity",
    "ResNet",
    "create",
    "fastest_engine",
    "features_of",
    "init",
]
