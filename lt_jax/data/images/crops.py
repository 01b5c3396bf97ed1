"""Crop boxes in photographs, as torchvision chooses them.

A box is ``(left, top, width, height)`` in pixels of the upright photograph, that is,
after its EXIF rotation.
"""

from __future__ import annotations

import math

import numpy as np

Box = tuple[float, float, float, float]

ATTEMPTS = 10
NUMBERS = 4 * ATTEMPTS  # uniform random numbers per crop


def random_box(
    width: int,
    height: int,
    numbers: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Choose a box of random area and shape, as ``RandomResizedCrop`` does.

    The fraction of the area is uniform in ``scale``, the logarithm of width / height in
    that of ``ratio``. A box that does not fit is drawn again. After ten attempts, it is
    the largest centred box whose shape is in ``ratio``.
    "Going Deeper with Convolutions", CVPR 2015, in torchvision's form.
    ``numbers`` is float64[NUMBERS], uniform in [0, 1); four per attempt.
    """
    low, high = ratio
    for area, shape, x, y in numbers.reshape(ATTEMPTS, 4).tolist():
        area = width * height * (scale[0] + area * (scale[1] - scale[0]))
        shape = low * (high / low) ** shape
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def centre_box(width: int, height: int, size: int, resize: int) -> Box:
    """Return the box of torchvision's ``Resize(resize)`` and ``CenterCrop(size)``.

    The shorter side becomes ``resize`` pixels, the longer one is rounded down, and
    ``size`` x ``size`` pixels in the centre are cropped. Coordinates may be fractional.
    """
    shorter = min(width, height)
    w, h = resize * width // shorter, resize * height // shorter
    left, top = round((w - size) / 2), round((h - size) / 2)
    x, y = width / w, height / h
    return left * x, top * y, size * x, size * y
