"""``lt-jax predict``: classify a user's images with a workdir or an artefact.

Neither needs the dataset: both hold the names of the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.errors import InputError
from lt_jax.export import stablehlo

BATCH = 32  # images per call


def predict(
    workdir: Path, images: Sequence[Path], method: str, top: int
) -> dict[str, Any]:
    """Find the most probable classes of images with a finished fit.

    Args:
      method: see ``stablehlo.finished``.
      top: classes to return per image, at least 1.

    Returns:
      ``{"head": fit, "images": [{"path", "top": [{"class", "probability"}]}]}``, the
      most probable class first. Probabilities are the softmax of the logits, averaged
      over mirror images if ``eval.flip`` is set.

    Raises:
      InputError: there is no such fit, a file is not an image, or it has another size
        than the training images.
    """
    fit = stablehlo.finished(workdir, method)
    compute, inputs = stablehlo.program(fit)
    note = stablehlo.note_of(fit, inputs)
    return _classify(jax.jit(compute), inputs.shape[-1], note, images, top)


def predict_by_artefact(file: Path, images: Sequence[Path], top: int) -> dict[str, Any]:
    """Like ``predict``, with a file that ``lt-jax convert`` wrote.

    Raises:
      InputError: the file is not an artefact, or it takes features.
    """
    artefact, note = stablehlo.read(file)
    return _classify(artefact.call, artefact.in_avals[0].shape[-1], note, images, top)


def _classify(
    logits_of: Callable[[np.ndarray], Any],
    channels: int,
    note: dict[str, Any],
    images: Sequence[Path],
    top: int,
) -> dict[str, Any]:
    looks, classes = note["images"], note["classes"]
    if looks is None:
        raise InputError(f"{note['run']} takes features ({note['input']}), not images")
    view: Any = (*looks["size"], channels)
    if looks["resize"] is not None:
        view = PhotoOptions(view[0], looks["resize"], (1.0, 1.0), (1.0, 1.0), 0.0)
    dataset = _dataset(images, tuple(classes), view, note["dataset"])
    found = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        pixels = dataset.read(np.arange(first, first + len(part)))
        views = [pixels, pixels[:, :, ::-1]] if looks["flip"] else [pixels]
        logits = np.mean([np.asarray(logits_of(v), np.float32) for v in views], axis=0)
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        probability = np.asarray(jax.nn.softmax(logits, axis=-1))
        for path, best, row in zip(part, order, probability, strict=True):
            guesses = [
                {"class": classes[k], "probability": float(row[k])} for k in best
            ]
            found.append({"path": str(path), "top": guesses})
    return {"head": note["run"], "images": found}


def _dataset(
    images: Sequence[Path],
    classes: tuple[str, ...],
    view: PhotoOptions | tuple[int, int, int],
    trained_on: str,
) -> Dataset:
    """Make a dataset of images, all labelled 0.

    Args:
      view: how to decode photographs, or the H, W, C that all images must have.
      trained_on: the dataset of the network.
    """
    sizes = [_size(path) for path in images]
    labels = np.zeros(len(images), np.int32)
    ids = np.array([str(path) for path in images])
    if isinstance(view, PhotoOptions):

        def encoded(rows: np.ndarray) -> list[bytes]:
            return [images[row].read_bytes() for row in rows]

        return photographs("images", classes, labels, ids, encoded, view)
    height, width, channels = view
    for path, size in zip(images, sizes, strict=True):
        if size != (width, height):
            raise InputError(
                f"{path} has {size[0]} x {size[1]} pixels, expected {width} x {height}"
                f" as in {trained_on}, which the network was trained on. Resize it"
            )

    def read(rows: np.ndarray) -> np.ndarray:
        mode = "RGB" if channels > 1 else "L"
        pixels = np.empty((len(rows), *view), np.uint8)
        for out, row in zip(pixels, rows, strict=True):
            with Image.open(images[row]) as image:
                upright = ImageOps.exif_transpose(image).convert(mode)
                out[...] = np.asarray(upright).reshape(view)
        return pixels

    return Dataset("images", classes, labels, ids, view, read)


def _size(path: Path) -> tuple[int, int]:
    """Return width and height of an image; decode all of it to find damage."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except FileNotFoundError as error:
        raise InputError(f"no such image: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:  # raised by Pillow
        raise InputError(f"{path} cannot be read as an image: {error}") from error
