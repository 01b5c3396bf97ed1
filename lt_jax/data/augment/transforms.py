"""Augmentation on the device: crop and flip, colours, mixing, normalisation.

Pure functions of arrays. What is drawn for an example depends only on the key and on
the example's position in the global batch, so one device and N devices see the same
images.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lt_jax.data.augment import colour, randaugment
from lt_jax.errors import InputError

# Keys of a step, apart from that of crop and flip, are folded from it with numbers that
# no position has.
JITTER, RANDAUGMENT, MIX = 2**32 - 1, 2**32 - 2, 2**32 - 3


class Augment(NamedTuple):
    """What is done to an image; hashable, so it can be a static argument of ``jit``."""

    pad: int  # black pixels on each side before the crop to the original size
    flip: bool  # mirror left to right, every second time
    # Of each of the C channels, of values in 0 .. 1; both empty: values as they are.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Of brightness, contrast, saturation and hue, see colour.jitter; off in the paper.
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    # Operations an image and their magnitude, see randaugment; off in the paper.
    randaugment: tuple[int, float] = (0, 0)


def normalise(augment: Augment, images: jax.Array) -> jax.Array:
    """float32[B, H, W, C]: values of 0 .. 255 scaled to 0 .. 1, less mean, over std.

    Where mean and std are both empty, the values as they are.

    Raises:
      InputError: ``mean`` or ``std`` is not of the C channels, or a std is not above 0.
    """
    if not (augment.mean or augment.std):
        return images.astype(jnp.float32)
    channels = images.shape[-1]
    if not len(augment.mean) == len(augment.std) == channels:
        raise InputError(
            f"the images have {channels} channels, so mean and std need {channels} "
            f"values each; found {augment.mean} and {augment.std}"
        )
    if min(augment.std) <= 0:
        raise InputError(f"std is divided by and must be above 0; found {augment.std}")
    mean = jnp.asarray(augment.mean, jnp.float32).reshape(1, 1, 1, channels)
    std = jnp.asarray(augment.std, jnp.float32).reshape(1, 1, 1, channels)
    return (images.astype(jnp.float32) / 255 - mean) / std


def offsets(
    augment: Augment, key: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each example is cropped and whether it is mirrored.

    Args:
      augment: its ``pad`` and ``flip`` are read.
      key: one key for the step, of JAX's default generator: under ``vmap`` the ``rbg``
        one draws by batch, not by example.
      positions: int32[B], of the examples in the global batch.

    Returns:
      int32[B] and int32[B], top row and left column of the crop in the padded image,
      each uniform over 0 .. 2 * pad; bool[B], mirrored after the crop.
    """
    if augment.pad < 0:
        raise InputError(f"pad counts pixels, at least 0; found {augment.pad}")

    def draw(position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        crop, mirrored = jax.random.split(jax.random.fold_in(key, position))
        row, column = jax.random.randint(crop, (2,), 0, 2 * augment.pad + 1)
        return row, column, jax.random.bernoulli(mirrored) & augment.flip

    return jax.vmap(draw)(positions)


def crop_flip(
    augment: Augment, key: jax.Array, positions: jax.Array, images: jax.Array
) -> jax.Array:
    """float32[B, H, W, C] of whole values 0 .. 255: padded, cropped, perhaps mirrored.

    The padding is black before normalisation, as the authors' is. Takes uint8 images;
    the result goes to ``normalise``.

    Args:
      augment: its ``pad`` and ``flip`` are read.
      key: one key for the step.
      positions: int32[B], of the examples in the global batch.
      images: uint8[B, H, W, C].
    """
    if augment.pad == 0 and not augment.flip:
        return images.astype(jnp.float32)
    batch, height, width, _ = images.shape
    top, left, mirrored = (
        drawn.reshape(batch, 1) for drawn in offsets(augment, key, positions)
    )
    if augment.pad == 0:  # nothing to crop, as of photographs, cropped when decoded
        turned = mirrored.reshape(batch, 1, 1, 1)
        return jnp.where(turned, mirror(images), images).astype(jnp.float32)
    # Two products with selectors of one 1 a row (or none, which makes the padding)
    # are several times faster than a gather or slices, measured. They are exact even
    # where the unit multiplies in bfloat16 or TF32: 0, 1 and 0 .. 255 fit 8 bits of
    # mantissa, and no sum has more than one term that is not zero.
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
    """float32[B, H, W, C] of 0 .. 255: all that is done at random to one image.

    Crop and flip, then RandAugment, then colour jitter.

    Args:
      augment: all but its ``mean`` and ``std`` is read.
      key: one key for the step.
      positions: int32[B], of the examples in the global batch.
      images: uint8[B, H, W, C].
    """
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
    """float32[B], the share that each example keeps of itself under mixup.

    "mixup: Beyond Empirical Risk Minimization", ICLR 2018: drawn from Beta(alpha,
    alpha), here for each example. It is 1 beside padding.

    Args:
      alpha: above 0.
      key: one key for the step.
      positions: int32[B], of the examples in the global batch.
      mask: float32[B], 0 for padding; B is even.
    """
    own = jax.random.fold_in(key, MIX)

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.beta(jax.random.fold_in(own, position), alpha, alpha)

    shares = jax.vmap(draw)(positions).astype(jnp.float32)
    return jnp.where(partner(mask) > 0, shares, 1.0)


def partner(array: jax.Array) -> jax.Array:
    """[B, ...] with neighbours, rows 0 and 1, 2 and 3 and so on, in each other's place.

    Neighbours meet by chance, as a plan is in random order, and on one device.
    """
    pairs = array.reshape(-1, 2, *array.shape[1:])
    return jnp.flip(pairs, axis=1).reshape(array.shape)


def mirror(images: jax.Array) -> jax.Array:
    """The images of [B, H, W, C] mirrored left to right."""
    return jnp.flip(images, axis=2)
