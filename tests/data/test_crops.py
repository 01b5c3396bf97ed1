"""Crop boxes by hand, and by the distributions in torchvision's documentation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lt_jax import seeds
from lt_jax.data.images import crops

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def numbers(*first: tuple[float, float, float, float]) -> np.ndarray:
    drawn = np.full((crops.ATTEMPTS, 4), 0.5)
    drawn[: len(first)] = first
    return drawn.ravel()


def test_centre_boxes_by_hand():
    # 800x600 -> 341x256 -> columns 58 to 282 (58.5 rounds to even), rows 16 to 240.
    x, y, w, h = crops.centre_box(800, 600, 224, 256)
    assert (x, y) == pytest.approx((58 * 800 / 341, 16 * 600 / 256))
    assert (w, h) == pytest.approx((224 * 800 / 341, 224 * 600 / 256))
    # Portrait: the same with the axes swapped.
    assert crops.centre_box(600, 800, 224, 256) == pytest.approx((y, x, h, w))
    assert crops.centre_box(256, 256, 256, 256) == (0, 0, 256, 256)
    assert crops.centre_box(10, 5, 224, 224) == pytest.approx((2.5, 0, 5, 5))


def test_random_boxes_by_hand():
    # Halfway from 8 % to all of 100x100, and square.
    side = round(math.sqrt(0.54 * 100 * 100))
    box = crops.random_box(100, 100, numbers((0.5, 0.5, 0.0, 0.999999)), SCALE, RATIO)
    assert box == (0, 100 - side, side, side)
    # The complete area in the shape 4:3 does not fit; the second attempt does.
    twice = numbers((0.999, 0.999, 0, 0), (0.0, 0.0, 0.999999, 0.0))
    w, h = round(math.sqrt(800 * 3 / 4)), round(math.sqrt(800 * 4 / 3))
    assert crops.random_box(100, 100, twice, SCALE, RATIO) == (100 - w, 0, w, h)


@pytest.mark.parametrize(
    ("wide", "high", "box"),
    [
        (400, 10, (193, 0, 13, 10)),  # too broad: 4:3 of the height, in the middle
        (10, 400, (0, 193, 10, 13)),
        (40, 40, (0, 0, 40, 40)),
    ],
)
def test_a_box_that_never_fits_is_centred(wide, high, box):
    never = numbers(*[(1.0, 0.0 if wide > high else 1.0, 0.0, 0.0)] * crops.ATTEMPTS)
    if wide == high:  # no square either: all of it, in a shape that is too long
        never = numbers(*[(1.0, 1.0, 0.0, 0.0)] * crops.ATTEMPTS)
    assert crops.random_box(wide, high, never, SCALE, RATIO) == box


def test_random_boxes_are_inside_and_have_the_right_distribution():
    drawn = seeds.uniform((1, 0), 0, np.arange(4000), crops.NUMBERS)
    boxes = np.array([crops.random_box(640, 480, n, SCALE, RATIO) for n in drawn])
    x, y, w, h = boxes.T
    assert (boxes >= 0).all()
    assert (x + w <= 640).all()
    assert (y + h <= 480).all()
    area, shape = w * h / (640 * 480), np.log(w / h)
    assert 0.079 < area.min() < 0.1
    assert area.max() > 0.9
    # Small boxes nearly always fit: uniform in area and in the logarithm of the shape.
    small = area < 0.3
    assert abs(np.median(area[small]) - 0.19) < 0.01
    assert abs(np.median(shape[small])) < 0.03
    assert shape.min() >= math.log(3 / 4) - 0.02
    assert shape.max() <= math.log(4 / 3) + 0.02
    # The position is uniform: on average in the middle of the free space.
    free = w < 600
    assert abs((x[free] / (640 - w[free])).mean() - 0.5) < 0.03


def test_each_position_has_its_own_numbers():
    whole = seeds.uniform((1, 0), 3, np.arange(64), crops.NUMBERS)
    part = seeds.uniform((1, 0), 3, np.array([17, 40, 21]), crops.NUMBERS)
    np.testing.assert_array_equal(part, whole[[17, 40, 21]])
    assert len(np.unique(whole)) == whole.size
    for other in (((1, 0), 4), ((1, 1), 3), ((2, 0, 0), 3)):
        assert not np.isin(
            seeds.uniform(*other, np.arange(64), crops.NUMBERS), whole
        ).any()
    assert abs(whole.mean() - 0.5) < 0.02
