"""Crop, flip, mirror and normalisation against plain NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.data.augment import transforms
from lt_jax.data.augment.transforms import Augment

KEY = jax.random.key(0)
offsets = jax.jit(transforms.offsets, static_argnums=0)
crop_flip = jax.jit(transforms.crop_flip, static_argnums=0)
PLAIN = Augment(pad=4, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


def some_images(shape):
    """uint8 images in which all 256 values occur and nearly all pixels differ."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def cropped_by_hand(images, pad, top, left, mirrored):
    size = images.shape[1:3]
    out = []
    for image, t, le, m in zip(images, top, left, mirrored, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        crop = padded[t : t + size[0], le : le + size[1]]
        out.append(crop[:, ::-1] if m else crop)
    return np.stack(out)


@pytest.mark.parametrize(
    ("pad", "flip", "shape"),
    [
        (4, True, (64, 8, 8, 3)),
        (4, False, (64, 12, 7, 1)),
        (1, True, (64, 12, 7, 3)),
        (0, True, (64, 7, 12, 3)),
        (9, True, (64, 8, 8, 1)),  # crops that hold nothing of the image
    ],
)
def test_crop_flip_is_the_plain_loop(pad, flip, shape):
    this = PLAIN._replace(pad=pad, flip=flip)
    images, positions = some_images(shape), jnp.arange(64)
    top, left, mirrored = map(np.asarray, offsets(this, KEY, positions))
    result = crop_flip(this, KEY, positions, jnp.asarray(images))
    assert result.dtype == jnp.float32
    expected = cropped_by_hand(images, pad, top, left, mirrored)
    np.testing.assert_array_equal(np.asarray(result), expected)
    assert mirrored.any() == flip
    assert (len(set(top)) > 1) == (pad > 0)


def test_nothing_asked_is_the_identity():
    images = some_images((16, 8, 8, 3))
    this = PLAIN._replace(pad=0, flip=False)
    result = crop_flip(this, KEY, jnp.arange(16), jnp.asarray(images))
    np.testing.assert_array_equal(np.asarray(result), images)


def test_values_are_exact_in_bfloat16():
    # What the one-hot products rely on where the unit multiplies in fewer bits.
    values = jnp.arange(256, dtype=jnp.uint8)
    assert (values.astype(jnp.bfloat16).astype(jnp.int32) == jnp.arange(256)).all()
    with jax.default_matmul_precision("bfloat16"):
        images = jnp.asarray(some_images((8, 16, 16, 3)))
        low = crop_flip(PLAIN, KEY, jnp.arange(8), images)
    top, left, mirrored = offsets(PLAIN, KEY, jnp.arange(8))
    expected = cropped_by_hand(np.asarray(images), 4, top, left, mirrored)
    np.testing.assert_array_equal(np.asarray(low), expected)


def test_only_the_position_and_the_key_decide():
    images = jnp.asarray(some_images((32, 8, 8, 3)))
    positions = jnp.arange(100, 132)
    crop = functools.partial(crop_flip, PLAIN)
    whole = np.asarray(crop(KEY, positions, images))
    parts = [crop(KEY, positions[i : i + 8], images[i : i + 8]) for i in (0, 8, 16, 24)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    mixed = np.random.default_rng(1).permutation(32)
    np.testing.assert_array_equal(
        np.asarray(crop(KEY, positions[mixed], images[mixed])), whole[mixed]
    )
    assert not np.array_equal(crop(KEY, positions + 32, images), whole)
    assert not np.array_equal(crop(jax.random.key(1), positions, images), whole)


def test_jit_and_devices_agree_with_eager():
    images, positions = jnp.asarray(some_images((32, 8, 8, 3))), jnp.arange(32)
    eager = transforms.crop_flip(PLAIN, KEY, positions, images)
    np.testing.assert_array_equal(crop_flip(PLAIN, KEY, positions, images), eager)
    n = jax.local_device_count()
    spread = jax.pmap(
        functools.partial(transforms.crop_flip, PLAIN), in_axes=(None, 0, 0)
    )(KEY, positions.reshape(n, -1), images.reshape(n, -1, 8, 8, 3))
    np.testing.assert_array_equal(np.asarray(spread).reshape(eager.shape), eager)


def test_offsets_are_uniform_and_independent():
    n = 40_000
    top, left, mirrored = offsets(PLAIN, KEY, jnp.arange(n))
    cells = np.zeros((9, 9, 2))
    np.add.at(cells, (np.asarray(top), np.asarray(left), np.asarray(mirrored, int)), 1)
    expected = n / cells.size
    assert cells.sum() == n
    # 161 degrees of freedom: chance exceeds 236 once in 10,000 times.
    assert ((cells - expected) ** 2 / expected).sum() < 236


def test_normalise_by_hand():
    images = np.full((2, 1, 1, 3), 51, np.uint8)
    images[1] = 255
    result = np.asarray(transforms.normalise(PLAIN, jnp.asarray(images)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, 0, 0], [-1.5, -0.8, -0.2], atol=1e-6)
    np.testing.assert_allclose(result[1, 0, 0], [2.5, 2.4, 1.4], atol=1e-6)


def test_normalise_takes_cropped_images():
    images = jnp.asarray(some_images((4, 8, 8, 3)))
    np.testing.assert_array_equal(
        transforms.normalise(PLAIN, images.astype(jnp.float32)),
        transforms.normalise(PLAIN, images),
    )


def test_padding_is_black_before_normalisation():
    this = PLAIN._replace(pad=100, flip=False)  # every crop is nearly all padding
    white = jnp.full((64, 8, 8, 3), 255, jnp.uint8)
    result = transforms.normalise(this, crop_flip(this, KEY, jnp.arange(64), white))
    black = np.array([-2.5, -1.6, -0.6])
    outside = np.asarray(result)[np.all(np.asarray(result) < 0, axis=-1)]
    assert len(outside) > 60 * 64
    np.testing.assert_allclose(outside, np.tile(black, (len(outside), 1)), atol=1e-6)


def test_mirror():
    images = some_images((3, 4, 5, 2))
    once = transforms.mirror(jnp.asarray(images))
    np.testing.assert_array_equal(once, images[:, :, ::-1])
    np.testing.assert_array_equal(transforms.mirror(once), images)


def test_augment_is_hashable():
    assert hash(PLAIN) == hash(Augment(*PLAIN))
