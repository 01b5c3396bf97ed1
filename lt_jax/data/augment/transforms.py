"""Augmentation on the device: crop and flip, colours, mixup, normalisation.

``key`` is one key per step. ``positions``, int32[B], are those of the examples in the
global batch. What is drawn for an example depends only on these two, so one device and
N devices see the same images.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lt_jax.data.augment import colour, randaugment

# Folded into the key of a step, except for crop and flip. No position is as high.
JITTER, RANDAUGMENT, MIX = 2**32 - 1, 2**32 - 2, 2**32 - 3


class Augment(NamedTuple):
    """Augmentation settings; hashable, so usable as a static argument of ``jit``."""

    pad: int  # black pixels on each side before the crop to the original size
    flip: bool  # mirror left to right with probability 1/2
    # Per channel, for values in 0 .. 1; both empty for no normalisation.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Brightness, contrast, saturation and hue, see colour.jitter; off in the paper.
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    # Operations per image and their magnitude, see randaugment; off in the paper.
    randaugment: tuple[int, float] = (0, 0)


def normalise(augment: Augment, images: jax.Array) -> jax.Array:
    """Scale 0 .. 255 to 0 .. 1, subtract the mean, divide by the std; float32.

    Values stay as they are if mean and std are empty.
    """
    if not (augment.mean or augment.std):
        return images.astype(jnp.float32)
    mean = jnp.asarray(augment.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(augment.std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - mean) / std


def offsets(
    augment: Augment, key: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw top row and left column, 0 .. 2 * pad, of each crop; whether to mirror it.

    The key is one of JAX's default generator: under ``vmap``, ``rbg`` would draw per
    batch instead of per example.
    """

    def draw(position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        crop, mirrored = jax.random.split(jax.random.fold_in(key, position))
        row, column = jax.random.randint(crop, (2,), 0, 2 * augment.pad + 1)
        return row, column, jax.random.bernoulli(mirrored) & augment.flip

    return jax.vmap(draw)(positions)


def crop_flip(
    augment: Augment, key: jax.Array, positions: jax.Array, images: jax.Array
) -> jax.Array:
    """Pad with black, crop to the original size, and mirror at random.

    Maps uint8[B, H, W, C] to float32 integers 0 .. 255. As in the authors' code, the
    padding is black before normalisation.
    """
    if augment.pad == 0 and not augment.flip:
        return images.astype(jnp.float32)
    batch, height, width, _ = images.shape
    top, left, mirrored = (
        drawn.reshape(batch, 1) for drawn in offsets(augment, key, positions)
    )
    if augment.pad == 0:  # photographs, which were cropped on the host
        flip = mirrored.reshape(batch, 1, 1, 1)
        return jnp.where(flip, mirror(images), images).astype(jnp.float32)
    # Two products with one-hot rows (or zero rows, for the padding) are several times
    # faster than a gather or slices, measured. They are exact even in bfloat16 or TF32:
    # 0, 1 and 0 .. 255 fit 8 bits of mantissa, and each sum has one nonzero term.
    rows = jnp.arange(height).reshape(1, height) + top - augment.pad
    columns = jnp.arange(width).reshape(1, width)
    columns = jnp.where(mirrored, width - 1 - columns, columns) + left - augment.pad
    cropped = jnp.einsum(
        "brh,bhwk->brwk", jax.nn.one_hot(rows, height), images.astype(jnp.float32)
    )
    return jnp.einsum("bcw,brwk->brck", jax.nn.one_hot(columns, width), cropped)


def vary(
    augment: Augment, key: jax.Array, positions: jax.Array, images: jax.Array
) -> jax.Array:
    """Apply crop and flip, RandAugment and jitter; uint8[B, H, W, C] to float32."""
    images = crop_flip(augment, key, positions, images)
    number, magnitude = augment.randaugment
    if number:
        own = jax.random.fold_in(key, RANDAUGMENT)
        images = randaugment.rand_augment(number, magnitude, own, positions, images)
    if any(augment.jitter):
        own = jax.random.fold_in(key, JITTER)
        images = colour.jitter(augment.jitter, own, positions, images)
    return images


def mix_shares(
    alpha: float, key: jax.Array, positions: jax.Array, mask: jax.Array
) -> jax.Array:
    """Draw the share of itself, float32[B], that each example keeps under mixup.

    "mixup: Beyond Empirical Risk Minimization", ICLR 2018: Beta(alpha, alpha), here
    drawn per example. It is 1 if the partner is padding, where ``mask`` is 0.
    """
    own = jax.random.fold_in(key, MIX)

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.beta(jax.random.fold_in(own, position), alpha, alpha)

    shares = jax.vmap(draw)(positions).astype(jnp.float32)
    return jnp.where(partner(mask) > 0, shares, 1.0)


def partner(array: jax.Array) -> jax.Array:
    """Swap neighbouring rows of [B, ...]: 0 and 1, 2 and 3, ...

    The plan is random, so neighbours are too; they are on the same device.
    """
    pairs = array.reshape(-1, 2, *array.shape[1:])
    return jnp.flip(pairs, axis=1).reshape(array.shape)


def mirror(images: jax.Array) -> jax.Array:
    """Mirror [B, H, W, C] left to right."""
    return jnp.flip(images, axis=2)
