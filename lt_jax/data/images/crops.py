"""Which part of a photograph is looked at: boxes in pixels, as torchvision draws them.

A box is ``(left, top, wide, high)`` in the pixels of the photograph as it is to be
seen, that is, after the rotation that its EXIF entry asks for.
"""

from __future__ import annotations

import math

import numpy as np

Box = tuple[float, float, float, float]

ATTEMPTS = 10
NUMBERS = 4 * ATTEMPTS  # uniform numbers that decide a random crop


def random_box(
    wide: int,
    high: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A box of random area and shape: torchvision's ``RandomResizedCrop``.

    The area is a share of the photograph's, uniform over ``scale``; the logarithm of
    width over height is uniform over that of ``ratio``. What does not fit is drawn
    again; after ten times, the largest box in the middle that keeps to ``ratio``.
    "Going Deeper with Convolutions", CVPR 2015, in the form of torchvision.

    Args:
      wide, high: of the photograph.
      numbers: float64[NUMBERS], uniform in [0, 1); four for each attempt.
      scale, ratio: from and to.
    """
    narrow, broad = ratio
    for area, shape, x, y in numbers.reshape(ATTEMPTS, 4).tolist():
        area = wide * high * (scale[0] + area * (scale[1] - scale[0]))
        shape = narrow * (broad / narrow) ** shape
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= wide and 0 < h <= high:
            return int(x * (wide - w + 1)), int(y * (high - h + 1)), w, h
    w = min(wide, max(1, round(high * broad)))
    h = min(high, max(1, round(wide / narrow)))
    return (wide - w) // 2, (high - h) // 2, w, h


def centre_box(wide: int, high: int, size: int, resize: int) -> Box:
    """The box of torchvision's ``Resize(resize)`` and ``CenterCrop(size)``.

    The shorter side becomes ``resize`` pixels, the longer one is rounded down, and of
    that the middle is taken. The box is that middle in the pixels of the photograph,
    so its numbers are no whole ones.

    Args:
      wide, high: of the photograph.
      size: pixels of a side of the crop, at most ``resize``.
      resize: pixels of the shorter side before it.
    """
    shorter = min(wide, high)
    w, h = resize * wide // shorter, resize * high // shorter
    left, top = round((w - size) / 2), round((h - size) / 2)
    x, y = wide / w, high / h
    return left * x, top * y, size * x, size * y
