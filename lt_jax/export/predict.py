"""``lt-jax predict``: classify a user's images with a workdir or an artefact.

Neither needs the dataset: both hold the names of the classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.decode import Undecodable, decode_all, read_file
from lt_jax.data.images.photos import PhotoOptions, from_files, photographs
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
    logits_of = functools.partial(jax.jit(compute), fit.network)
    return _classify(logits_of, inputs.shape[-1], note, images, top)


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
    labels = np.zeros(len(images), np.int32)
    ids = np.array([str(path) for path in images])
    if isinstance(view, PhotoOptions):
        return photographs("images", classes, labels, ids, from_files(images), view)
    height, width, channels = view

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(rows), *view), np.uint8)
        for out, row in zip(pixels, rows, strict=True):
            path = images[row]
            try:
                image = decode_all(read_file(path))
            except Undecodable as error:
                raise InputError(f"image {path} cannot be decoded: {error}") from error
            if image.shape[:2] != (height, width):
                raise InputError(
                    f"{path} has {image.shape[1]} x {image.shape[0]} pixels, expected "
                    f"{width} x {height} as in {trained_on}, which the network was "
                    "trained on. Resize it"
                )
            if channels == 1:
                image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
            out[...] = image
        return pixels

    return Dataset("images", classes, labels, ids, view, read)
