"""Images of a user's own as a data set, and the most probable classes of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.errors import InputError

UNREADABLE = (OSError, SyntaxError, ValueError)  # what Pillow raises


def pictures(
    images: Sequence[Path],
    classes: tuple[str, ...],
    looks: PhotoOptions | tuple[int, int, int],
    trained_on: str,
) -> Dataset:
    """The images as a data set whose labels mean nothing.

    Args:
      images: paths.
      classes: K names.
      looks: how photographs are looked at, or the H, W, C that images have to have.
      trained_on: the data set of the network.

    Raises:
      InputError: a file that is no image, or an image of another size.
    """
    contents = [_checked(path) for path in images]
    labels = np.zeros(len(images), np.int32)
    ids = np.array([str(path) for path in images])

    def encoded(rows: np.ndarray) -> list[bytes]:
        return [images[row].read_bytes() for row in rows]

    if isinstance(looks, PhotoOptions):
        return photographs("images", classes, labels, ids, encoded, looks)
    height, width, channels = looks
    for path, size in zip(images, contents, strict=True):
        if size != (width, height):
            raise InputError(
                f"{path} has {size[0]} x {size[1]} pixels, expected {width} x {height}:"
                f" the network was trained on {trained_on}, whose images all have this "
                "size"
            )

    def read(rows: np.ndarray) -> np.ndarray:
        pixels, mode = [], "RGB" if channels > 1 else "L"
        for row in rows:
            with Image.open(images[row]) as image:
                turned = ImageOps.exif_transpose(image).convert(mode)
                pixels.append(np.asarray(turned))
        return np.stack(pixels).reshape(len(rows), *looks)

    return Dataset("images", classes, labels, ids, looks, read)


def _checked(path: Path) -> tuple[int, int]:
    """Width and height of an image that can be decoded to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except FileNotFoundError as error:
        raise InputError(f"no image {path}") from error
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def ranked(
    head: str,
    images: Sequence[Path],
    classes: Sequence[str],
    logits: np.ndarray,
    top: int,
) -> dict[str, Any]:
    """What ``predict`` tells, see there.

    Args:
      head: names it.
      logits: float[N, K], averaged over views.
      top: classes told of each image.
    """
    probability = np.asarray(jax.nn.softmax(logits, axis=-1))
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    return {
        "head": head,
        "images": [
            {
                "path": str(path),
                "top": [
                    {"class": classes[k], "probability": float(probability[i, k])}
                    for k in order[i]
                ],
            }
            for i, path in enumerate(images)
        ],
    }


def check_top(top: int) -> None:
    """Raises InputError where no class would be told."""
    if top < 1:
        raise InputError(f"--top must be at least 1, found {top}")
