"""RandAugment of photographs on the device.

"RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", CVPR
Workshops 2020. Operations and ranges are those of torchvision's ``RandAugment`` (31
magnitudes, nearest neighbours, black outside); each operation follows Pillow.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lt_jax.data.augment import colour

MAX_MAGNITUDE = 30

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PHOTOMETRIC = (
    *("identity", "brightness", "colour", "contrast", "sharpness", "posterize"),
    *("solarize", "autocontrast", "equalize"),
)


def rand_augment(
    number: int,
    magnitude: float,
    key: jax.Array,
    positions: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """Apply ``number`` random operations of a magnitude 0 .. 30 to each image.

    Maps uint8 or float[B, H, W, 3] in 0 .. 255 to float32.
    """
    strength = magnitude / MAX_MAGNITUDE

    def one(position: jax.Array, image: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, position)
        for turn in range(number):
            which, way = jax.random.split(jax.random.fold_in(own, turn))
            op = jax.random.randint(which, (), 0, len(GEOMETRIC) + len(PHOTOMETRIC))
            sign = jnp.where(jax.random.bernoulli(way), 1.0, -1.0)
            image = apply_op(image, op, strength, sign)
        return image

    return jax.vmap(one)(positions, images.astype(jnp.float32))


def apply_op(
    image: jax.Array, op: jax.Array, strength: float, sign: jax.Array
) -> jax.Array:
    """Apply the operation ``(GEOMETRIC + PHOTOMETRIC)[op]`` to float32[H, W, 3].

    ``strength`` is the fraction of its range, 0 .. 1; ``sign``, 1 or -1, its direction.
    """
    image = warp(image, _matrix(op, strength * sign, image.shape[1], image.shape[0]))
    factor = 1 + 0.9 * strength * sign
    cleared_bits = round(4 * strength)
    changes = [
        lambda x: x,
        lambda x: colour.brightness(x, factor),
        lambda x: colour.saturation(x, factor),
        lambda x: colour.contrast(x, factor),
        lambda x: colour.blend(x, _smooth(x), factor),
        lambda x: jnp.floor(x / 2**cleared_bits) * 2**cleared_bits,
        lambda x: jnp.where(x >= 255 * (1 - strength), 255 - x, x),
        autocontrast,
        equalize,
    ]
    # Under vmap this computes all of them and selects.
    return jax.lax.switch(jnp.maximum(op - len(GEOMETRIC), 0), changes, image)


def _matrix(op: jax.Array, amount: jax.Array, width: int, height: int) -> jax.Array:
    """float[2, 3] that maps (x, y, 1) to its source; identity for ``PHOTOMETRIC``."""
    shear = 0.3 * amount
    right, down = (150 / 331 * side * amount for side in (width, height))
    angle = math.radians(30) * amount
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    one, zero = jnp.ones(()), jnp.zeros(())
    kinds = [
        (one, shear, zero, zero, one, zero),
        (one, zero, zero, shear, one, zero),
        (one, zero, right, zero, one, zero),
        (one, zero, zero, zero, one, down),
        (cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos),
        (one, zero, zero, zero, one, zero),
    ]
    table = jnp.stack([jnp.stack(kind) for kind in kinds])
    return table[jnp.minimum(op, len(GEOMETRIC))].reshape(2, 3)


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Take each pixel of float[H, W, C] from where the matrix maps it, or black.

    Pixel centres are at halves, as in Pillow's ``Image.transform``.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij"
    )
    columns = jnp.floor(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2])
    rows = jnp.floor(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2])
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = image[
        jnp.clip(rows, 0, height - 1).astype(int),
        jnp.clip(columns, 0, width - 1).astype(int),
    ]
    return jnp.where(inside[..., None], found, 0.0)


def _smooth(image: jax.Array) -> jax.Array:
    """Filter with 1 1 1 / 1 5 1 / 1 1 1 over 13, Pillow's SMOOTH; keep borders."""
    height, width, _ = image.shape
    middle = image[1:-1, 1:-1]
    around = sum(
        image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)
    )
    return image.at[1:-1, 1:-1].set((around + 4 * middle) / 13)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretch each channel to 0 .. 255, unless it has a single value."""
    low = jnp.min(image, (0, 1), keepdims=True)
    high = jnp.max(image, (0, 1), keepdims=True)
    stretched = (image - low) * (255 / jnp.where(high > low, high - low, 1))
    return jnp.where(high > low, stretched, image)


def equalize(image: jax.Array) -> jax.Array:
    """Equalise the histogram of each channel in integers, as Pillow does."""

    def one(channel: jax.Array) -> jax.Array:
        values = jnp.round(channel).astype(jnp.int32)
        counts = jnp.bincount(values.ravel(), length=256)
        highest = counts[jnp.max(values)]
        step = (values.size - highest) // 255
        below = jnp.cumsum(counts) - counts
        table = (step // 2 + below) // jnp.maximum(step, 1)
        equalised = jnp.minimum(table, 255)[values].astype(channel.dtype)
        return jnp.where(step > 0, equalised, channel)

    return jax.vmap(one, in_axes=2, out_axes=2)(image)
