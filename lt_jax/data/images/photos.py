"""Datasets of photographs of any size and format, decoded to one size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lt_jax.data.dataset import Dataset, Decoder
from lt_jax.data.images import crops
from lt_jax.data.images.decode import Undecodable, decode, decode_all, opencv, read_file
from lt_jax.errors import InputError


class PhotoOptions(NamedTuple):
    """How to crop and decode photographs; fields are keys of ``config.data``."""

    size: int  # side in pixels of the network's input
    resize: int  # shorter side before the centre crop of an evaluation
    scale: tuple[float, float]  # fraction of the area that a random crop covers
    ratio: tuple[float, float]  # width over height of a random crop
    broken: float  # share of undecodable images that a run tolerates
    workers: int = 1  # decoding threads; they do not change results


# Maps indices int[n] to the encoded images, or to the reasons why there is none; called
# from several threads.
Encoded = Callable[[np.ndarray], list[bytes | Undecodable]]


def from_files(paths: Sequence[str | Path]) -> Encoded:
    """Make the argument ``encoded`` of ``photographs`` for image files."""

    def content(row: int) -> bytes | Undecodable:
        try:
            return read_file(paths[row])
        except Undecodable as error:
            return error

    return lambda rows: [*map(content, rows)]


def same_size(
    name: str, shape: tuple[int, int, int], ids: np.ndarray, encoded: Encoded
) -> Callable[[np.ndarray], np.ndarray]:
    """Make ``Dataset.read`` for images that all have the shape H, W, C of a dataset."""

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *shape), np.uint8)
        for out, id, data in zip(pixels, ids[rows], encoded(rows), strict=True):
            try:
                image = decode_all(data)
            except Undecodable as error:
                raise InputError(f"image {id} cannot be decoded: {error}") from error
            height, width = image.shape[:2]
            if (height, width) != shape[:2]:
                raise InputError(
                    f"image {id} has {width} x {height} pixels, expected {shape[1]} x "
                    f"{shape[0]} as in {name}: resize it"
                )
            if shape[2] == 1:
                image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
            out[...] = image
        return pixels

    return read


def photographs(
    name: str,
    classes: tuple[str, ...],
    labels: np.ndarray,
    ids: np.ndarray,
    encoded: Encoded,
    options: PhotoOptions,
    interpolation: str = "",
) -> Dataset:
    """Make a dataset of photographs that are decoded on every read.

    ``Dataset.read`` returns centre crops; an undecodable image raises InputError.
    ``load_batches`` also makes random crops, and masks undecodable images. For
    ``interpolation`` see ``decode``.
    """
    size, resize, scale, ratio = options[:4]
    centre = functools.partial(crops.centre_box, size=size, resize=resize)
    random = functools.partial(crops.random_box, scale=scale, ratio=ratio)
    # Images are decoded in parallel, so OpenCV's own threads would only interfere.
    opencv().setNumThreads(1)

    def fill(
        rows: np.ndarray,
        numbers: np.ndarray | None,
        out: Sequence[np.ndarray] | np.ndarray,
    ) -> list[str]:
        reasons = []
        for i, data in enumerate(encoded(rows)):
            box_of = centre
            if numbers is not None:
                box_of = functools.partial(random, numbers=numbers[i])
            try:
                out[i][...] = decode(data, box_of, size, interpolation)
                reasons.append("")
            except Undecodable as error:
                out[i][...] = 0
                reasons.append(str(error))
        return reasons

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for row, reason in zip(rows, fill(rows, None, images), strict=True):
            if reason:
                raise InputError(f"image {ids[row]} cannot be decoded: {reason}")
        return images

    looks = {"size": size, "resize": resize, "scale": [*scale], "ratio": [*ratio]}
    looks |= {"interpolation": interpolation} if interpolation else {}
    decoder = Decoder(fill, crops.NUMBERS, options.workers, options.broken, looks)

    def at_size(size: int, resize: int, interpolation: str) -> Dataset:
        other = options._replace(size=size, resize=resize)
        given = name, classes, labels, ids, encoded, other
        return photographs(*given, interpolation=interpolation)

    shape = size, size, 3
    loaded = Dataset(name, classes, labels, ids, shape, read)
    return dataclasses.replace(loaded, decoder=decoder, at_size=at_size)
