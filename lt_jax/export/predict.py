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

from lt_jax.data.images.photos import PhotoOptions, from_files, photographs, same_size
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
    ids, encoded = np.array([str(path) for path in images]), from_files(images)
    size, resize = looks["size"], looks["resize"]
    if resize is None:
        read = same_size(note["dataset"], (*size, channels), ids, encoded)
    else:
        view = PhotoOptions(size[0], resize, (1.0, 1.0), (1.0, 1.0), 0.0)
        labels = np.zeros(len(images), np.int32)
        read = photographs("", tuple(classes), labels, ids, encoded, view).read
    found = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        pixels = read(np.arange(first, first + len(part)))
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
