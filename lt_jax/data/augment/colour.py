"""Colour jitter of photographs, on the device.

Pure functions of arrays. Images are float[B, H, W, 3] of 0 .. 255, and stay in that
range; what is drawn for an example depends only on the key and on its position. The
formulas are those of Pillow's ``ImageEnhance``, without its rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lt_jax.errors import InputError

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601: grey of red, green and blue


def jitter(
    strength: tuple[float, ...], key: jax.Array, positions: jax.Array, images: jax.Array
) -> jax.Array:
    """Brightness, contrast, saturation and hue changed at random, in this order.

    As ``torchvision.transforms.ColorJitter``, which draws the order too.

    Args:
      strength: of each; a factor is uniform over ``max(0, 1 - s) .. 1 + s``, the hue
        turns by up to s of a whole turn to either side. 0 leaves it alone.
      key: one key for the step.
      positions: int32[B], of the examples in the global batch.
      images: float[B, H, W, 3].
    """
    colours(images)

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, position), (4,))

    drawn = jax.vmap(draw)(positions)
    for number, change in enumerate((brightness, contrast, saturation)):
        s = strength[number]
        if s:
            low = max(0.0, 1 - s)
            images = change(images, low + (1 + s - low) * drawn[:, number])
    if strength[3]:
        images = hue(images, strength[3] * (2 * drawn[:, 3] - 1))
    return images


def colours(images: jax.Array) -> None:
    """Raises ``InputError`` where the images do not have three channels."""
    if images.shape[-1] != 3:
        raise InputError(
            "colours are changed of images with 3 channels; these have "
            f"{images.shape[-1]}: set data.jitter to zeros and data.randaugment to "
            "(0, 0)"
        )


def blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """``other`` at factor 0, the images at 1, beyond them above; within 0 .. 255.

    Args:
      images: float[..., H, W, 3].
      other: of the same rank, to be broadcast.
      factor: float[...].
    """
    factor = factor[..., None, None, None]
    return jnp.clip(factor * images + (1 - factor) * other, 0, 255)


def grey(images: jax.Array) -> jax.Array:
    """float[..., H, W, 1]."""
    weight = jnp.asarray(LUMA, images.dtype).reshape((1,) * (images.ndim - 1) + (3,))
    return jnp.sum(images * weight, axis=-1, keepdims=True)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards black, or away from it."""
    return blend(images, jnp.zeros_like(images), factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards the mean grey of each image, or away from it."""
    return blend(images, jnp.mean(grey(images), (-3, -2, -1), keepdims=True), factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Towards the grey of each pixel, or away from it."""
    return blend(images, grey(images), factor)


def hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """The hue of HSV moved by ``turn``, float[B], in turns: 1 is the whole circle."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high, low = jnp.max(images, -1), jnp.min(images, -1)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1)
    # In sixths of a turn, from red over green to blue; of grey it is any.
    angle = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    angle = angle + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        along = (offset + angle) % 6
        fall = jnp.clip(jnp.minimum(along, 4 - along), 0, 1)
        channels.append(high - chroma * fall)
    return jnp.stack(channels, axis=-1)
