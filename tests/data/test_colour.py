"""Colour jitter and RandAugment against Pillow, and what their draws depend on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from lt_jax.data.augment import colour, randaugment, transforms
from lt_jax.data.augment.transforms import Augment

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# Neither square nor of full range, with a patch of one grey.
IMAGE = RNG.integers(20, 230, (18, 26, 3)).astype(np.uint8)
IMAGE[:5, :5] = 90
PHOTO = Image.fromarray(IMAGE)
OPS = randaugment.GEOMETRIC + randaugment.PHOTOMETRIC
operate = jax.jit(randaugment.apply_op, static_argnums=2)


def close(found, expected, atol=1.0):
    """Pillow works in whole numbers, several times over in a blend."""
    np.testing.assert_allclose(found, np.asarray(expected, np.float32), atol=atol)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("change", "theirs"),
    [
        (colour.brightness, ImageEnhance.Brightness),
        (colour.contrast, ImageEnhance.Contrast),
        (colour.saturation, ImageEnhance.Color),
    ],
)
def test_blends_are_pillows(change, theirs, factor):
    found = change(jnp.asarray(IMAGE[None], jnp.float32), jnp.array([factor]))[0]
    close(found, theirs(PHOTO).enhance(factor), atol=2)


@pytest.mark.parametrize("turn", [0.0, 0.5, -0.3])
def test_hue(turn):
    """Against the standard library's own, pixel by pixel."""
    import colorsys

    found = colour.hue(jnp.asarray(IMAGE[None], jnp.float32), jnp.array([turn]))[0]
    for row, column in ((0, 0), (3, 20), (17, 25), (9, 9)):
        h, s, v = colorsys.rgb_to_hsv(*IMAGE[row, column] / 255)
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        close(found[row, column], expected, atol=1e-2)


def test_jitter_of_nothing_is_the_identity_and_of_everything_stays_in_range():
    images = jnp.asarray(np.stack([IMAGE] * 64), jnp.float32)
    positions = jnp.arange(64)
    none = colour.jitter((0.0, 0.0, 0.0, 0.0), KEY, positions, images)
    np.testing.assert_array_equal(none, images)
    much = np.asarray(colour.jitter((2.0, 1.0, 1.0, 0.5), KEY, positions, images))
    assert much.min() >= 0
    assert much.max() <= 255
    # Brightness alone: the factor can be read off, and fills 0.6 .. 1.4.
    bright = colour.jitter((0.4, 0.0, 0.0, 0.0), KEY, positions, images)
    factors = np.asarray(bright[:, 0, 0, 0]) / 90
    assert (factors.min() > 0.6) & (factors.min() < 0.65)
    assert (factors.max() < 1.4) & (factors.max() > 1.35)


@pytest.mark.parametrize("op", randaugment.GEOMETRIC)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_moves_are_pillows(op, sign):
    at, share = jnp.asarray(OPS.index(op)), 0.7
    matrix = np.asarray(randaugment._matrix(at, share * sign, 26, 18), np.float64)
    theirs = PHOTO.transform(
        PHOTO.size, Image.Transform.AFFINE, matrix.ravel().tolist(),
        Image.Resampling.NEAREST,
    )  # fmt: skip
    found = np.asarray(operate(jnp.asarray(IMAGE, jnp.float32), at, share, sign))
    # A source at the very border of two pixels may fall to either side.
    assert (found != np.asarray(theirs)).any(axis=2).mean() < 0.02
    assert (found != IMAGE).any()
    if op == "rotate":
        turned = np.asarray(PHOTO.rotate(-sign * share * 30))  # Pillow's to the left
        assert (found != turned).any(axis=2).mean() < 0.02


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_values_are_pillows(share, sign):
    factor = 1 + 0.9 * share * sign
    # ImageEnhance.Sharpness blends with this; it copies the outermost pixels.
    theirs = {
        "identity": PHOTO,
        "brightness": ImageEnhance.Brightness(PHOTO).enhance(factor),
        "colour": ImageEnhance.Color(PHOTO).enhance(factor),
        "contrast": ImageEnhance.Contrast(PHOTO).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(PHOTO).enhance(factor),
        "posterize": ImageOps.posterize(PHOTO, 8 - round(4 * share)),
        "solarize": ImageOps.solarize(PHOTO, 255 * (1 - share)),
        "autocontrast": ImageOps.autocontrast(PHOTO),
        "equalize": ImageOps.equalize(PHOTO),
    }
    assert tuple(theirs) == randaugment.PHOTOMETRIC
    image = jnp.asarray(IMAGE, jnp.float32)
    for name, expected in theirs.items():
        found = operate(image, jnp.asarray(OPS.index(name)), share, sign)
        exact = name in ("identity", "posterize", "solarize", "equalize")
        close(found, expected, atol=0 if exact else 2)
    smooth = PHOTO.filter(ImageFilter.SMOOTH)
    close(randaugment._smooth(image), smooth)


def test_an_image_of_one_colour_survives():
    flat = jnp.full((8, 8, 3), 77.0)
    for name in randaugment.PHOTOMETRIC[-2:]:
        found = operate(flat, jnp.asarray(OPS.index(name)), 0.5, 1.0)
        np.testing.assert_array_equal(found, flat)


def test_every_operation_is_drawn():
    """And nothing else: the results are those of single operations, both ways."""
    image = IMAGE
    images = jnp.asarray(np.stack([image] * 400))
    draw = jax.jit(randaugment.rand_augment, static_argnums=(0, 1))
    found = draw(1, 15, KEY, jnp.arange(400), images)
    made = {np.round(one).tobytes() for one in np.asarray(found, np.float64)}
    known = {
        np.round(
            np.asarray(
                operate(jnp.asarray(image, jnp.float32), jnp.asarray(at), 0.5, sign),
                np.float64,
            )
        ).tobytes()
        for at in range(len(OPS))
        for sign in (1.0, -1.0)
    }
    assert made == known
    assert len(known) == 2 * 9 + 5  # five have no direction


WHOLE = Augment(
    pad=2, flip=True, mean=(0.5,) * 3, std=(0.2,) * 3,
    jitter=(0.4, 0.4, 0.4, 0.1), randaugment=(2, 9.0),
)  # fmt: skip


def test_only_the_position_and_the_key_decide():
    images = jnp.asarray(RNG.integers(0, 256, (16, 12, 12, 3)), jnp.uint8)
    positions = jnp.arange(100, 116)
    vary = jax.jit(functools.partial(transforms.vary, WHOLE))
    whole = np.asarray(vary(KEY, positions, images))
    parts = [vary(KEY, positions[i : i + 8], images[i : i + 8]) for i in (0, 8)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)
    assert whole.min() >= 0
    assert whole.max() <= 255
    assert not np.allclose(vary(KEY, positions + 16, images), whole)
    assert not np.allclose(vary(jax.random.key(1), positions, images), whole)


def test_off_is_crop_and_flip_alone():
    images = jnp.asarray(RNG.integers(0, 256, (16, 12, 12, 3)), jnp.uint8)
    off = WHOLE._replace(jitter=(0.0,) * 4, randaugment=(0, 9.0))
    np.testing.assert_array_equal(
        transforms.vary(off, KEY, jnp.arange(16), images),
        transforms.crop_flip(off, KEY, jnp.arange(16), images),
    )


def test_crops_do_not_move_when_colours_are_turned_on():
    """Other draws stay as they were, so an option changes nothing but itself."""
    images = jnp.asarray(RNG.integers(0, 256, (16, 12, 12, 3)), jnp.uint8)
    bright = WHOLE._replace(jitter=(1e-6, 0.0, 0.0, 0.0), randaugment=(0, 9.0))
    np.testing.assert_allclose(
        transforms.vary(bright, KEY, jnp.arange(16), images),
        transforms.crop_flip(bright, KEY, jnp.arange(16), images),
        atol=1e-2,
    )


def test_shares_of_mixup():
    """Uniform at alpha 1; by position alone; 1 if the partner is padding."""
    positions = jnp.arange(2000)
    shares = transforms.mix_shares(1.0, KEY, positions, jnp.ones(2000))
    assert shares.dtype == jnp.float32
    counts, _ = np.histogram(shares, bins=10, range=(0, 1))
    # 9 degrees of freedom: chance exceeds 34 once in 10,000 times.
    assert ((counts - 200) ** 2 / 200).sum() < 34
    part = transforms.mix_shares(1.0, KEY, positions[500:520], jnp.ones(20))
    np.testing.assert_array_equal(part, shares[500:520])
    ends = transforms.mix_shares(0.1, KEY, positions, jnp.ones(2000))
    assert np.mean((ends < 0.05) | (ends > 0.95)) > 0.6
    mask = jnp.array([1.0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(
        np.asarray(transforms.mix_shares(1.0, KEY, positions[:6], mask)) == 1,
        [False, False, True, False, True, True],
    )


def test_partner():
    rows = jnp.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(
        transforms.partner(rows), rows[jnp.array([1, 0, 3, 2, 5, 4])]
    )
