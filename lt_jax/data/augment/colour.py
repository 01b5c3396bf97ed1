"""Colour jitter of photographs on the device.

Images are float[B, H, W, 3] in 0 .. 255. The formulas are those of Pillow's
``ImageEnhance`` without its rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601: grey from red, green and blue


def jitter(
    strength: tuple[float, ...], key: jax.Array, positions: jax.Array, images: jax.Array
) -> jax.Array:
    """Change brightness, contrast, saturation and hue at random, in this order.

    Like ``torchvision.transforms.ColorJitter``, except for its random order. There is a
    strength s for each of the four. Factors are uniform in max(0, 1 - s) .. 1 + s, the
    hue is shifted by -s .. s of a full circle; 0 switches a change off.
    """
    keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
    drawn = jax.vmap(lambda own: jax.random.uniform(own, (4,)))(keys)
    for number, change in enumerate((brightness, contrast, saturation)):
        s = strength[number]
        if s:
            low = max(0.0, 1 - s)
            images = change(images, low + (1 + s - low) * drawn[:, number])
    if strength[3]:
        images = hue(images, strength[3] * (2 * drawn[:, 3] - 1))
    return images


def blend(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolate from ``other`` (factor 0) to float[..., H, W, 3] (1) and beyond."""
    factor = factor[..., None, None, None]
    return jnp.clip(factor * images + (1 - factor) * other, 0, 255)


def grey(images: jax.Array) -> jax.Array:
    """Convert to grey, float[..., H, W, 1]."""
    weight = jnp.asarray(LUMA, images.dtype).reshape((1,) * (images.ndim - 1) + (3,))
    return jnp.sum(images * weight, axis=-1, keepdims=True)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black."""
    return blend(images, jnp.zeros_like(images), factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean grey of each image."""
    return blend(images, jnp.mean(grey(images), (-3, -2, -1), keepdims=True), factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey of each pixel."""
    return blend(images, grey(images), factor)


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Shift the HSV hue by ``shift``, float[B]; 1 is the full circle."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high, low = jnp.max(images, -1), jnp.min(images, -1)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle, from red over green to blue; arbitrary for grey.
    angle = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    angle = angle + 6 * shift[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        along = (offset + angle) % 6
        fall = jnp.clip(jnp.minimum(along, 4 - along), 0, 1)
        channels.append(high - chroma * fall)
    return jnp.stack(channels, axis=-1)
