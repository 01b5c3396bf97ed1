"""``lt-jax predict``: classify images or features with a workdir or an artefact.

Neither needs the dataset: both hold the names of the classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lt_jax.data.images.photos import PhotoOptions, from_files, photographs, same_size
from lt_jax.data.sources.features import FORMATS, read_features
from lt_jax.errors import InputError
from lt_jax.experiment import extraction, result_json
from lt_jax.export import fits, stablehlo
from lt_jax.pretrained import torch_backbones
from lt_jax.pretrained.table import Recipe
from lt_jax.retraining.analysis import MAX_TEMPERATURE

BATCH = 32  # images per call


def predict(
    workdir: Path, inputs: Sequence[Path], method: str, top: int, backbone: str = ""
) -> dict[str, Any]:
    """Find the most probable classes of images, or of features, with a finished fit.

    Args:
      inputs: images, or files of features if the run was trained on features.
      method: see ``fits.finished``.
      top: classes to return per example, at least 1.
      backbone: name of a backbone in PyTorch, which runs code that is not in the
        workdir; needed for a head on its features.

    Returns:
      ``recommended``: whether validation recommends the fit. ``refit``: whether it was
      fitted on all training examples. ``head``: the fit. ``temperature``: T, from
      validation. ``images``: for each its ``path`` and ``top``, ``class`` and
      ``probability`` with the most probable class first. Probabilities are the softmax
      of logits / T, averaged over mirror images if ``eval.flip`` is set.

    Raises:
      InputError: there is no such fit, a file is not an image, or it has another size
        than the training images.
    """
    fit, network = fits.finished(workdir, method), None
    folder = workdir / extraction.FOLDER
    request = extraction.read_request(folder)
    if backbone and backbone != (request or {}).get("model"):
        raise InputError(
            f"the head in {workdir} was not trained on features of {backbone}"
            + (f", but of {request['model']}" if request else "")
        )
    if request and any(file.suffix in FORMATS for file in inputs):
        _check_origin(inputs, request, workdir)
    elif request and "arch" in request:
        fit = fits.with_backbone(fit, folder, request)
    elif request:
        network = _in_torch(backbone, request, workdir)
    compute, kind = stablehlo.program(fit)
    note = stablehlo.note_of(fit, kind)
    logits_of = functools.partial(jax.jit(compute), fit.network)
    channels = kind.shape[-1]
    if network and request:
        head, channels = logits_of, 3
        note["images"] = fits.images_of(request)
        logits_of = lambda images: head(network(images))  # noqa: E731
    best = result_json.recommended(workdir)
    found = _classify(logits_of, channels, note, inputs, top)
    return {
        "recommended": fit.title == best.get("fit"),
        "refit": not method and bool(best.get("refit") or best.get("folds")),
        **found,
    }


def predict_by_artefact(file: Path, inputs: Sequence[Path], top: int) -> dict[str, Any]:
    """Like ``predict``, with a file that ``lt-jax convert`` wrote.

    Raises:
      InputError: the file is not an artefact.
    """
    artefact, note = stablehlo.read(file)
    return _classify(artefact.call, artefact.in_avals[0].shape[-1], note, inputs, top)


def _check_origin(
    files: Sequence[Path], request: dict[str, Any], workdir: Path
) -> None:
    """Refuse features that `lt-jax features` computed with another backbone."""
    for file in files:
        other = extraction.read_request(file.parent) or request
        weights = ({"weights": r["weights"]} for r in (other, request))
        if extraction.differences(*weights):
            raise InputError(
                f"{file} are features of another backbone, {other['model']}, than "
                f"{request['model']}, on which the head in {workdir} was trained"
            )


def _in_torch(
    name: str, request: dict[str, Any], workdir: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Load the backbone of an extraction: uint8[B, H, W, 3] -> float32[B, D]."""
    model, looks = request["model"], request["images"]
    if not name:
        raise InputError(
            f"the head in {workdir} was trained on features of {model}, which is code "
            f"outside of the workdir: confirm it with --backbone {model}"
        )
    mean, std = (np.asarray(looks[key], np.float32) for key in ("mean", "std"))
    recipe = Recipe((looks["mean"], looks["std"]), looks["size"], 0, "", "", "")
    loaded = torch_backbones.load(model, request["dtype"], looks["size"], recipe)
    if loaded.notes["weights"] != request["weights"]:
        raise InputError(
            f"the weights of {model} are not those whose features the head in "
            f"{workdir} was trained on: restore them, or run `lt-jax fit` again"
        )
    return lambda images: loaded.apply((images.astype(np.float32) / 255 - mean) / std)


def _classify(
    logits_of: Callable[[np.ndarray], Any],
    channels: int,
    note: dict[str, Any],
    inputs: Sequence[Path],
    top: int,
) -> dict[str, Any]:
    examples, flip = _features(inputs, channels, note), False
    if note["images"] is not None:
        examples, flip = _images(inputs, channels, note), note["images"]["flip"]
    temperature = note.get("temperature", 1.0)
    temperature = min(max(temperature, 1 / MAX_TEMPERATURE), MAX_TEMPERATURE)
    found, classes = [], note["classes"]
    for paths, values in examples:
        views = [values, values[:, :, ::-1]] if flip else [values]
        logits = np.mean([np.asarray(logits_of(v), np.float32) for v in views], axis=0)
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        probability = np.asarray(jax.nn.softmax(logits / temperature, axis=-1))
        for path, best, row in zip(paths, order, probability, strict=True):
            guesses = [
                {"class": classes[k], "probability": float(row[k])} for k in best
            ]
            found.append({"path": path, "top": guesses})
    return {"head": note["run"], "temperature": temperature, "images": found}


Examples = Iterator[tuple[Sequence[str], np.ndarray]]  # names and values of batches


def _images(paths: Sequence[Path], channels: int, note: dict[str, Any]) -> Examples:
    """Yield uint8[B, H, W, C]."""
    size, resize = note["images"]["size"], note["images"]["resize"]
    ids, encoded = np.array([str(path) for path in paths]), from_files(paths)
    if resize is None:
        read = same_size(note["dataset"], (*size, channels), ids, encoded)
    else:
        view = PhotoOptions(size[0], resize, (1.0, 1.0), (1.0, 1.0), 0.0)
        labels, classes = np.zeros(len(paths), np.int32), tuple(note["classes"])
        how = note["images"].get("interpolation", "")
        given = "", classes, labels, ids, encoded, view
        read = photographs(*given, interpolation=how).read
    for first in range(0, len(paths), BATCH):
        rows = np.arange(first, min(first + BATCH, len(paths)))
        yield ids[rows].tolist(), read(rows)


def _features(files: Sequence[Path], width: int, note: dict[str, Any]) -> Examples:
    """Yield float32[N, D] per file."""
    for file in files:
        if file.suffix not in FORMATS:
            raise InputError(
                f"{note['run']} takes features, {width} numbers per example: expected "
                f"files that end in {', '.join(FORMATS)}, got {file}"
            )
        values = read_features(file)
        if values.shape[1] != width:
            raise InputError(
                f"{file} has {values.shape[1]} numbers per example, but "
                f"{note['run']} was trained on {width}: they are features of another "
                "backbone"
            )
        yield [f"{file}[{row}]" for row in range(len(values))], values
