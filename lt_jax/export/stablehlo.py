"""Finished fits as files: weights with torchvision's names, or StableHLO artefacts.

An artefact holds normalisation, backbone and head for any number of images of any size.
It runs without this package. A note next to it, FILE.json, describes input and classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lt_jax import files, models, trees
from lt_jax.data.augment.transforms import normalise
from lt_jax.data.images.decode import FILTERS
from lt_jax.errors import InputError, brief
from lt_jax.export.fits import Finished, standardised
from lt_jax.pretrained import torch_names, weight_files
from lt_jax.types import Weights

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Batches that a new artefact is checked on: number of images, least side in pixels.
CHECKED = ((2, 32), (3, 40))
LARGEST = 2**31  # bytes of an artefact
SIDE = range(1, 4097)  # pixels of an image
NOTE: files.Schema = {
    "input": str,
    "run": str,
    "dataset": str,
    "classes": [str],
    "sha256?": str,
    "temperature?": float,
    "images": (
        {
            **{"size": [SIDE, 2], "resize": (SIDE, None), "flip": bool},
            "interpolation?": {"", *FILTERS},
        },
        None,
    ),
}
REMEDY = "Convert the workdir again: `lt-jax convert WORKDIR FILE.stablehlo`"


def write(fit: Finished, target: Path) -> None:
    """Write a fit in the format of the target's suffix, and print what was written.

    Raises:
      InputError: the suffix is unknown, or its format cannot hold the head.
    """
    if target.suffix == SUFFIX:
        _write_artefact(fit, target)
        return
    if target.suffix.lower() not in weight_files.SUFFIXES:
        raise InputError(
            f"{target}: expected a name that ends in {weight_files.SAFETENSORS}, .pth "
            f"or {SUFFIX}"
        )
    state = torch_names.to_torch(trees.leaves(fit.network._asdict()))
    model = json.dumps(fit.model)
    notes = {"model": model, "run": fit.title, "written_by": "lt_jax"}
    weight_files.write(target, state, notes)
    for name, leaf in state.items():
        print(f"{name:48s} {'x'.join(map(str, leaf.shape))}")
    print(f"{len(state)} arrays of {fit.title} in {target}")


def _write_artefact(fit: Finished, target: Path) -> None:
    compute, inputs = program(fit)
    compute = functools.partial(compute, fit.network)
    exported = export.export(jax.jit(compute), platforms=PLATFORMS)(inputs)
    written = bytes(exported.serialize())
    multiple = fit.backbone.side_multiple
    error = _largest_error(written, compute, inputs, multiple)
    if not error < 1e-5:
        raise InputError(
            f"{target} was not written: the artefact's logits differ from the "
            f"network's by {error:.1e}"
        )
    note = note_of(fit, inputs) | {"sha256": hashlib.sha256(written).hexdigest()}
    files.write(target, written)
    files.write(target.with_name(target.name + ".json"), files.as_json(note))
    print(
        f"{note['run']}: {note['input']} -> logits, {len(written) / 2**20:.1f} MiB in "
        f"{target}; checked: its logits equal the network's to {error:.0e}"
    )


def _largest_error(
    written: bytes, compute: Callable[..., Any], inputs: Any, multiple: int
) -> float:
    """Compare an artefact's logits with the network's; return the largest error."""
    artefact, worst = export.deserialize(bytearray(written)), 0.0
    for count, side in CHECKED:
        side += -side % multiple
        sides = (side, side) if len(inputs.shape) == 4 else ()
        size = (count, *sides, inputs.shape[-1])
        rng = np.random.default_rng(count)
        given = rng.integers(0, 256, size).astype(inputs.dtype)
        expected = np.asarray(jax.jit(compute)(given), np.float64)
        found = np.asarray(artefact.call(given), np.float64)
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
    return worst


def program(fit: Finished) -> tuple[Callable[[Weights, jax.Array], jax.Array], Any]:
    """Return what the artefact computes, and the shape and dtype of its input.

    It takes the network, so that compiled programs do not depend on its values.
    """
    head, backbone, augment = fit.head, fit.backbone, fit.augment
    if isinstance(backbone, models.Identity):

        def logits(network: Weights, features: jax.Array) -> jax.Array:
            values = standardised(fit._replace(network=network), features)
            return head.apply(network.params["head"], values)

        shape = export.symbolic_shape(f"b, {backbone.num_features}")
        return logits, jax.ShapeDtypeStruct(shape, jnp.float32)
    if augment is None:
        raise InputError(
            "a converted file does not define how images are normalised: run retrain "
            "on it first (--config.init.path), and convert that workdir"
        )

    def compute(network: Weights, images: jax.Array) -> jax.Array:
        params, batch_stats = network
        variables = {"params": params["backbone"], "batch_stats": batch_stats}
        pixels = normalise(augment, images)
        mask = jnp.ones(images.shape[0], jnp.float32)
        features = backbone.apply(variables, pixels, mask, False)
        return head.apply(params["head"], features)

    sides = [f"{backbone.side_multiple}*{side}" for side in "hw"]
    shape = export.symbolic_shape(f"b, {', '.join(sides)}, {len(augment.mean)}")
    return compute, jax.ShapeDtypeStruct(shape, jnp.uint8)


def note_of(fit: Finished, inputs: Any) -> dict[str, Any]:
    """Describe the input and the classes of an artefact."""
    return {
        "input": f"{np.dtype(inputs.dtype)}[{', '.join(map(str, inputs.shape))}]",
        "classes": fit.classes,
        "run": fit.title,
        "temperature": fit.temperature,
        "model": fit.model,
        "dataset": fit.dataset,
        "images": fit.images,
    }


def read(file: Path) -> tuple[export.Exported, dict[str, Any]]:
    """Read an artefact and its note.

    Raises:
      InputError: one of them is missing or invalid.
    """
    note = file.with_name(file.name + ".json")
    try:
        content, found = files.read(file, LARGEST), files.read_json(note, NOTE, REMEDY)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {error.filename}. {REMEDY}") from error
    digest = hashlib.sha256(content).hexdigest()
    if found.get("sha256", digest) != digest:
        raise InputError(f"{file} has changed since it was written. {REMEDY}")
    images = found["images"] or {"size": [], "resize": None}
    size, resize = images["size"], images["resize"]
    try:  # a damaged file may raise anything
        artefact = export.deserialize(bytearray(content))
        kind = artefact.in_avals[0]
        given = jax.ShapeDtypeStruct((1, *size, kind.shape[-1]), kind.dtype)
        fits = jax.eval_shape(artefact.call, given).shape == (1, len(found["classes"]))
        if resize is not None:  # photographs, cropped to a square
            fits &= kind.shape[-1] == 3 and size[0] == size[1] <= resize
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{file} is damaged or not an artefact ({brief(error)}). {REMEDY}"
        ) from error
    if not fits:
        raise InputError(f"{note} describes another program than {file}. {REMEDY}")
    return artefact, found
