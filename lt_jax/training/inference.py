"""Compiled steps without gradients: evaluation, features, batches of resident images.

As the training step, they are cached by their arguments and run on all devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lt_jax import metrics
from lt_jax.data.augment import transforms as augmentation
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.heads import Head
from lt_jax.metrics import Tally
from lt_jax.models import Backbone
from lt_jax.training.steps import over_devices, sum_devices
from lt_jax.types import Batch, Params

# Views of the feature step: (augment, key, positions int32[B], images) -> images. The
# position of an image in its dataset determines its random crop.
VIEWS: dict[str, Callable[[Augment, jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "plain": lambda augment, key, positions, images: images,
    "mirror": lambda augment, key, positions, images: augmentation.mirror(images),
    "random": augmentation.vary,
}


@functools.cache
def make_gather() -> Callable[[Batch, jax.Array], Batch]:
    """Make ``(held, indices) -> batch``, which equals that of ``load_batches``.

    ``held`` is ``{"image": [N, H, W, C], "label": int32[N]}``, replicated. ``indices``
    is int32[devices, B / devices], -1 for padding.
    """

    def gather(held: Batch, indices: jax.Array) -> Batch:
        real = indices >= 0
        rows = jnp.where(real, indices, 0)
        return {
            "image": jnp.where(real[:, None, None, None], held["image"][rows], 0),
            "label": jnp.where(real, held["label"][rows], 0),
            "mask": real.astype(jnp.float32),
        }

    return over_devices(gather, in_axes=(None, 0), out_axes=0)


@functools.cache
def make_eval_step(
    backbone: Backbone, head: Head, augment: Augment, flip: bool
) -> Callable[[Params, Params, Batch, Tally], Tally]:
    """Make ``(params, batch_stats, batch, tally) -> tally`` with the batch added.

    With ``flip`` the logits are averaged over the image and its mirror image.
    """

    def step(params: Params, stats: Params, batch: Batch, tally: Tally) -> Tally:
        images = augmentation.normalise(augment, batch["image"])
        views = [images, augmentation.mirror(images)] if flip else [images]
        logits = [
            head.apply(params["head"], _features(backbone, params, stats, view))
            for view in views
        ]
        mean = jnp.mean(jnp.stack(logits), axis=0)
        new = metrics.tally(mean, batch["label"], batch["mask"])
        return metrics.merge(tally, sum_devices(new))

    return over_devices(step, in_axes=(None, None, 0, None))


@functools.cache
def make_feature_step(
    backbone: Backbone, augment: Augment, view: str
) -> Callable[[Params, Params, Batch, jax.Array, int], jax.Array]:
    """Make ``(params, batch_stats, batch, key, first) -> float[B, D]``, replicated.

    These are the features of a view in ``VIEWS``; masked rows are meaningless. ``key``
    is that of the random crops. ``first`` is the position of the batch's first image in
    its dataset.
    """
    make_view = VIEWS[view]

    def step(
        params: Params, stats: Params, batch: Batch, key: jax.Array, first: int
    ) -> jax.Array:
        size = len(batch["mask"])
        positions = first + jax.lax.axis_index(sharding.AXIS) * size + jnp.arange(size)
        crop_key = jax.random.wrap_key_data(key)
        images = make_view(augment, crop_key, positions, batch["image"])
        images = augmentation.normalise(augment, images)
        features = _features(backbone, params, stats, images)
        # Every process gets the features of the global batch.
        return jax.lax.all_gather(features, sharding.AXIS, tiled=True)

    return over_devices(step, in_axes=(None, None, 0, None, None))


def _features(
    backbone: Backbone, params: Params, stats: Params, images: jax.Array
) -> jax.Array:
    """Compute float[B, D] with frozen batch norm, each row independently."""
    variables = {"params": params["backbone"], "batch_stats": stats}
    features: Any = backbone.apply(variables, images, jnp.ones(len(images)), False)
    return features
