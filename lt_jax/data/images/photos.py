"""Photographs of any size and format: encoded bytes in, pixels of one size out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from lt_jax.data.dataset import Dataset, Decoder
from lt_jax.data.images import crops
from lt_jax.data.images.decode import Undecodable, decode
from lt_jax.errors import InputError


class PhotoOptions(NamedTuple):
    """How photographs are looked at; the numbers of the config."""

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
    view: PhotoOptions,
) -> Dataset:
    """A data set of photographs, decoded each time they are read.

    Args:
      name: of the set.
      classes: K names.
      labels: int32[N].
      ids: str[N].
      encoded: int[n] -> the encoded bytes of these examples; several threads call it
        at once.
      view: ``read`` gives the centre crop of an evaluation, ``load_batches`` random
        crops too.

    Raises:
      InputError: a value of ``view`` that makes no sense. And from ``read``: an image
        that cannot be decoded; ``load_batches`` masks it.
    """
    check(view)
    # Threads decode whole images, so that OpenCV's own would only get in their way.
    cv2.setNumThreads(1)

    def fill(
        rows: np.ndarray, numbers: np.ndarray | None, out: Sequence[np.ndarray]
    ) -> list[str]:
        wrong = []
        for i, data in enumerate(encoded(rows)):
            box_of = _centre(view) if numbers is None else _random(view, numbers[i])
            try:
                out[i][...] = decode(data, box_of, view.size)
                wrong.append("")
            except Undecodable as error:
                out[i][...] = 0
                wrong.append(str(error))
        return wrong

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), view.size, view.size, 3), np.uint8)
        for i, data in enumerate(encoded(rows)):
            images[i] = centre(data, view, str(ids[rows[i]]))
        return images

    looks = {"size": view.size, "resize": view.resize}
    looks |= {"scale": list(view.scale), "ratio": list(view.ratio)}
    return Dataset(
        name=name,
        classes=classes,
        labels=labels,
        ids=ids,
        shape=(view.size, view.size, 3),
        read=read,
        decoder=Decoder(fill, crops.NUMBERS, view.workers, view.broken, looks),
    )


def centre(data: bytes, view: PhotoOptions, name: str) -> np.ndarray:
    """uint8[size, size, 3]: the shorter side resized, then the middle cropped.

    Raises:
      InputError: it cannot be decoded; the message calls it ``name``.
    """
    try:
        return decode(data, _centre(view), view.size)
    except Undecodable as error:
        raise InputError(f"image {name} cannot be decoded: {error}") from error


def check(view: PhotoOptions) -> None:
    """Raises InputError for a value that makes no sense, by its name in the config."""
    if not 1 <= view.size <= view.resize:
        raise InputError(
            "data.size is cut from an image of data.resize pixels: expected 1 <= size "
            f"<= resize, found {view.size} and {view.resize}"
        )
    if not 0 < view.scale[0] <= view.scale[1] <= 1:
        raise InputError(
            "data.scale is the least and largest share of the area that is cropped: "
            f"expected 0 < least <= largest <= 1, found {view.scale}"
        )
    if not 0 < view.ratio[0] <= view.ratio[1]:
        raise InputError(
            "data.ratio is the least and largest width over height of a crop: expected "
            f"0 < least <= largest, found {view.ratio}"
        )
    if not 0 <= view.broken < 1:
        raise InputError(
            "data.broken is the share of images that may be undecodable: expected 0 <= "
            f"broken < 1, found {view.broken}"
        )
    if view.workers < 1:
        raise InputError(
            "data.workers counts the threads that decode, at least 1; found "
            f"{view.workers}"
        )


def _centre(view: PhotoOptions) -> Callable[[int, int], crops.Box]:
    return functools.partial(crops.centre_box, size=view.size, resize=view.resize)


def _random(view: PhotoOptions, numbers: np.ndarray) -> Callable[[int, int], crops.Box]:
    return functools.partial(
        crops.random_box, numbers=numbers, scale=view.scale, ratio=view.ratio
    )
