"""``lt-jax predict``: classes of a user's images, by a workdir or by an artefact.

Neither way needs the dataset: an outcome and an artefact hold the names of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from lt_jax.data import catalogue
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.data.loader import DecodeErrors
from lt_jax.errors import InputError
from lt_jax.experiment import weights
from lt_jax.experiment.config import workdir_config
from lt_jax.experiment.session import make_task, photo_options
from lt_jax.export import stablehlo
from lt_jax.retraining.features import Request, evaluated_views, extract
from lt_jax.training.log import Logger

UNREADABLE = (OSError, SyntaxError, ValueError)  # raised by Pillow
ARTEFACT_BATCH = 32  # images per call of an artefact


def predict(
    workdir: Path, images: Sequence[Path], method: str, top: int
) -> dict[str, Any]:
    """Find the most probable classes of images with a finished fit.

    Args:
      method: see ``weights.find``; "": the last of ``config.method.names`` that is
        finished.
      top: classes to return per image.

    Returns:
      ``{"head": fit, "images": [{"path", "top": [{"class", "probability"}]}]}``, the
      most probable class first. Probabilities are the softmax of the logits, averaged
      over mirror images if ``eval.flip`` is set.

    Raises:
      InputError: there is no such fit; a file is not an image, or its size differs from
        that of the training images where all have the same.
    """
    config = workdir_config(workdir)
    names = [method] if method else [*reversed(config.method.names), "stage1"]
    source = weights.find(workdir, names)
    per_class = source.outcome["per_class"]
    classes = tuple(per_class["class"])
    name = config.data.name
    view = catalogue.SHAPES.get(name) or photo_options(config.data)
    dataset = _dataset(images, classes, view, name)
    counts = np.array(per_class["train_count"])
    task = make_task(config, Splits(dataset, dataset, dataset, counts, ""), {})
    task = task._replace(eval_batch=min(task.eval_batch, len(images)))
    head, network = weights.load_fit(source, task.backbone, dataset.shape, len(classes))
    views = evaluated_views(task.flip)
    request = Request(views, (), "float32")
    silent = Logger(workdir, enabled=False)
    errors = DecodeErrors(dataset)
    blocks = list(extract(task, *network, dataset, request, log=silent, errors=errors))
    if errors.reasons:
        listed = (f"{images[row]}: {why}" for row, why in errors.reasons.items())
        raise InputError(f"cannot decode {'; '.join(listed)}")
    features = np.concatenate(blocks).reshape(len(views) * len(images), -1)
    logits = np.asarray(jax.jit(head.apply)(network.params["head"], features))
    mean = logits.reshape(len(views), len(images), -1).mean(axis=0)
    return _ranked(source.outcome["run"], images, classes, mean, top)


def predict_by_artefact(file: Path, images: Sequence[Path], top: int) -> dict[str, Any]:
    """Find the most probable classes of images with a StableHLO artefact.

    Args:
      file: written by ``lt-jax convert WORKDIR FILE.stablehlo``.

    Returns:
      See ``predict``.

    Raises:
      InputError: the file is not an artefact, or it takes features; see ``predict``.
    """
    artefact, note = stablehlo.read(file)
    looks, classes = note["images"], note["classes"]
    if looks is None:
        raise InputError(f"{file} takes features ({note['input']}), not images")
    height, width = looks["size"]
    view: Any = (height, width, artefact.in_avals[0].shape[-1])
    if looks["resize"] is not None:
        view = PhotoOptions(height, looks["resize"], (1.0, 1.0), (1.0, 1.0), 0.0)
    dataset = _dataset(images, tuple(classes), view, note["dataset"])
    found = []
    for first in range(0, len(images), ARTEFACT_BATCH):
        last = min(first + ARTEFACT_BATCH, len(images))
        pixels = dataset.read(np.arange(first, last))
        views = [pixels, pixels[:, :, ::-1]] if looks["flip"] else [pixels]
        logits = [np.asarray(artefact.call(view), np.float32) for view in views]
        found.append(np.mean(logits, axis=0))
    return _ranked(note["run"], images, classes, np.concatenate(found), top)


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

    Raises:
      InputError: a file is not an image, or an image has another size.
    """
    sizes = [_size(path) for path in images]
    labels = np.zeros(len(images), np.int32)
    ids = np.array([str(path) for path in images])

    def encoded(rows: np.ndarray) -> list[bytes]:
        return [images[row].read_bytes() for row in rows]

    if isinstance(view, PhotoOptions):
        return photographs("images", classes, labels, ids, encoded, view)
    height, width, channels = view
    for path, size in zip(images, sizes, strict=True):
        if size != (width, height):
            raise InputError(
                f"{path} has {size[0]} x {size[1]} pixels, expected {width} x {height}"
                f" as in {trained_on}, which the network was trained on. Resize it"
            )

    def read(rows: np.ndarray) -> np.ndarray:
        pixels, mode = [], "RGB" if channels > 1 else "L"
        for row in rows:
            with Image.open(images[row]) as image:
                upright = ImageOps.exif_transpose(image).convert(mode)
                pixels.append(np.asarray(upright))
        return np.stack(pixels).reshape(len(rows), *view)

    return Dataset("images", classes, labels, ids, view, read)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image, which is decoded to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except FileNotFoundError as error:
        raise InputError(f"no such image: {path}") from error
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def _ranked(
    head: str,
    images: Sequence[Path],
    classes: Sequence[str],
    logits: np.ndarray,
    top: int,
) -> dict[str, Any]:
    """Make the result of ``predict`` from logits float[N, K]."""
    probability = np.asarray(jax.nn.softmax(logits, axis=-1))
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    found = []
    for path, best, row in zip(images, order, probability, strict=True):
        guesses = [{"class": classes[k], "probability": float(row[k])} for k in best]
        found.append({"path": str(path), "top": guesses})
    return {"head": head, "images": found}
