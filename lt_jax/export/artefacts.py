"""Classes of single images by a StableHLO artefact, without the workdir it came from.

``exporting`` writes the artefact, and beside it what this needs to know: the names of
the classes, how an image becomes pixels, and whether mirror images are averaged over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import export

from lt_jax.data.images.photos import PhotoOptions
from lt_jax.errors import InputError
from lt_jax.export.pictures import check_top, pictures, ranked

AT_ONCE = 32  # images, so that memory does not grow with their number


def note_of(file: Path) -> Path:
    """Where it stands what an artefact takes and gives."""
    return file.with_name(file.name + ".json")


def predict(file: Path, images: Sequence[Path], top: int) -> dict[str, Any]:
    """The most probable classes of images, as ``predict.predict`` tells them.

    Args:
      file: of ``lt-jax convert WORKDIR FILE.stablehlo``.
      images: paths.
      top: classes told of each image.

    Raises:
      InputError: no artefact, or one that takes features; a file that is no image, or
        one of another size than the network was trained on where that size is fixed.
    """
    check_top(top)
    artefact, note = _read(file), _note(file)
    looks = note["images"]
    if looks is None:
        raise InputError(f"{file} takes features ({note['input']}), not images")
    size = looks["size"][0]
    view: PhotoOptions | tuple[int, int, int] = (
        *looks["size"],
        artefact.in_avals[0].shape[-1],
    )
    if looks["resize"] is not None:
        view = PhotoOptions(size, looks["resize"], (1.0, 1.0), (1.0, 1.0), 0.0)
    classes = note["classes"]
    dataset = pictures(images, tuple(classes), view, note["dataset"])
    found = []
    for first in range(0, len(images), AT_ONCE):
        rows = np.arange(first, min(first + AT_ONCE, len(images)))
        pixels = dataset.read(rows)
        views = [pixels, pixels[:, :, ::-1]] if looks["flip"] else [pixels]
        logits = [np.asarray(artefact.call(seen), np.float32) for seen in views]
        found.append(np.mean(logits, axis=0))
    return ranked(note["run"], images, classes, np.concatenate(found), top)


def _read(file: Path) -> export.Exported:
    try:
        return export.deserialize(bytearray(file.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}") from error
    except Exception as error:  # of a damaged file anything is raised
        raise InputError(
            f"{file} is damaged or no artefact: expected what `lt-jax convert WORKDIR "
            f"FILE.stablehlo` writes ({type(error).__name__})"
        ) from error


def _note(file: Path) -> dict[str, Any]:
    try:
        note = json.loads(note_of(file).read_text(encoding="utf-8"))
        if {"input", "images", "classes", "run", "dataset"} <= set(note):
            return note
    except (OSError, ValueError):
        pass
    raise InputError(
        f"{note_of(file)} is not there or does not fit: expected what `lt-jax convert "
        "WORKDIR FILE.stablehlo` writes beside the artefact; convert the workdir again"
    )
