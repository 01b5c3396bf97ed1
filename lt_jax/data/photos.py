"""Photographs: encoded bytes in, pixels of one size out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lt_jax.types import Dataset, InputError


class View(NamedTuple):
    """How a photograph is looked at; the numbers of the config."""

    size: int  # pixels of a side, of what the network sees
    resize: int  # of the shorter side before the centre crop of an evaluation
    scale: tuple[float, float]  # share of the area that a random crop takes
    ratio: tuple[float, float]  # width over height of a random crop
    broken: float  # share of images that may be undecodable before a run stops
    workers: int = 1  # threads that decode; no result depends on them


def photographs(
    name: str,
    classes: tuple[str, ...],
    labels: np.ndarray,
    ids: np.ndarray,
    encoded: Callable[[np.ndarray], list[bytes]],
    view: View,
) -> Dataset:
    """A data set of photographs of any size, decoded when they are read.

    Args:
      name: of the set.
      classes: K names.
      labels: int32[N].
      ids: str[N].
      encoded: int[n] -> the encoded bytes of these examples.
      view: resizing and crop; ``read`` gives the centre crop of an evaluation.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), view.size, view.size, 3), np.uint8)
        for i, data in enumerate(encoded(rows)):
            images[i] = centre(data, view, str(ids[rows[i]]))
        return images

    return Dataset(name, classes, labels, ids, (view.size, view.size, 3), read)


def centre(data: bytes, view: View, name: str) -> np.ndarray:
    """uint8[size, size, 3]: the shorter side resized, then the middle cropped."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
            array = np.asarray(image, np.float64)
            image = Image.fromarray((array / 257).round().clip(0, 255).astype(np.uint8))
        image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"image {name} cannot be decoded: {error}") from error
    factor = view.resize / min(image.size)
    wide, high = (max(round(side * factor), view.size) for side in image.size)
    left, top = (wide - view.size) // 2, (high - view.size) // 2
    box = (left, top, left + view.size, top + view.size)
    return np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR).crop(box))
