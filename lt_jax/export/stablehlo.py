"""A finished fit as a file: weights under torchvision's names, or StableHLO.

The StableHLO artefact holds normalisation, backbone and head, for any number of images
of any size, and runs without this package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lt_jax import models, trees
from lt_jax.data import catalogue
from lt_jax.data.augment.transforms import Augment, normalise
from lt_jax.errors import InputError
from lt_jax.experiment import weights
from lt_jax.experiment.config import workdir_config
from lt_jax.experiment.weights import Weights
from lt_jax.export import artefacts, torch_names, weight_files
from lt_jax.files import atomic_path
from lt_jax.heads import Head
from lt_jax.types import Params

STABLEHLO = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Of the images that the artefact is checked on: how many, pixels on a side.
CHECKED = ((2, 32), (3, 40))


class Finished(NamedTuple):
    """A finished fit, ready to be computed with."""

    backbone: Any
    head: Head
    network: Weights
    model: dict[str, Any]  # as in the config, or in the outcome of a converted file
    augment: Augment | None  # None where no config says how images are normalised
    outcome: dict[str, Any]
    dataset: str  # its name; "" where no config says so
    # How an image becomes pixels: ``size`` [H, W], ``resize`` of photographs before the
    # centre crop, ``flip``. None where no config says so, and for features.
    images: dict[str, Any] | None


def finished(workdir: Path, method: str, seeds: str = "") -> Finished:
    """A fit of a workdir, or the stage 1 of a converted folder.

    Args:
      method, seeds: as in ``convert``.

    Raises:
      InputError: there is none, or it lacks what was asked for.
    """
    source = weights.find(workdir, [method], seeds)
    outcome = source.outcome
    # A converted folder has no config.
    config = workdir_config(workdir) if (workdir / "config.json").is_file() else None
    model = dict(vars(config.model)) if config else outcome["model"]
    kept = weights.load_leaves(source)
    kernel = kept.get("params/head/kernel")
    if kernel is None:
        raise InputError(f"{workdir} holds a backbone without a head")
    shape = 1, 1, len(kernel)
    if model["name"] == "none":
        backbone: Any = models.Identity(len(kernel))
    else:
        shape = 32, 32, kept["params/backbone/stem_conv/kernel"].shape[2]
        backbone = models.create(
            model["name"],
            model["stem"],
            model["width"],
            model.get("zero_init", False),
            "torch",
            model.get("dtype", "float32"),
            None,
        )
    head, network = weights.load_fit(source, backbone, shape, kernel.shape[1])
    augment, images, name = None, None, ""
    if config:
        data, name = config.data, config.data.name
        augment = Augment(0, False, data.mean, data.std)
        if model["name"] != "none":
            photos = name in catalogue.PHOTOS
            images = {
                "size": [data.size] * 2 if photos else list(catalogue.SHAPES[name][:2]),
                "resize": data.resize if photos else None,
                "flip": config.eval.flip,
            }
    return Finished(backbone, head, network, model, augment, outcome, name, images)


def write(fit: Finished, target: Path, tell: Callable[[str], None]) -> None:
    """Writes a fit as the name of the target asks, reads it back, and tells.

    Raises:
      InputError: another kind of file, or a head that does not fit it.
    """
    if target.suffix == STABLEHLO:
        _artefact(fit, target, tell)
        return
    if not weight_files.is_weights(target):
        raise InputError(
            f"{target}: expected a name that ends in {weight_files.SAFETENSORS}, .pth "
            f"or {STABLEHLO}"
        )
    state = torch_names.to_torch(trees.leaves(fit.network._asdict()))
    notes = {
        "model": json.dumps(fit.model),
        "run": fit.outcome["run"],
        "written_by": "lt_jax",
    }
    weight_files.write(target, state, notes)
    back = weight_files.read(target)
    if any(not np.array_equal(back[name], leaf) for name, leaf in state.items()):
        raise InputError(f"{target} does not read back as it was written; try again")
    for name, leaf in state.items():
        tell(f"{name:48s} {'x'.join(map(str, leaf.shape))}")
    tell(f"{len(state)} leaves of {fit.outcome['run']} in {target}")


def _artefact(fit: Finished, target: Path, tell: Callable[[str], None]) -> None:
    """Images or features to logits as StableHLO, checked by running it."""
    compute, inputs = program(fit)
    artefact = export.export(jax.jit(compute), platforms=PLATFORMS)(inputs)
    written = bytes(artefact.serialize())
    again = export.deserialize(bytearray(written))
    worst = 0.0
    for count, side in CHECKED:
        sides = (side, side) if len(inputs.shape) == 4 else ()
        rng = np.random.default_rng(count)
        size = (count, *sides, inputs.shape[-1])
        given = rng.integers(0, 256, size).astype(inputs.dtype)
        expected = np.asarray(jax.jit(compute)(given), np.float64)
        found = np.asarray(again.call(given), np.float64)
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
    if not worst < 1e-5:
        raise InputError(
            f"the artefact computes other logits than the network, by {worst:.1e}; it "
            "was not written"
        )
    kind = str(np.dtype(inputs.dtype))
    note = {
        "input": f"{kind}[{', '.join(map(str, inputs.shape))}]",
        "classes": fit.outcome.get("per_class", {}).get("class"),
        "run": fit.outcome["run"],
        "model": fit.model,
        "dataset": fit.dataset,
        "images": fit.images,
    }
    with atomic_path(target) as draft:
        draft.write_bytes(written)
    with atomic_path(artefacts.note_of(target)) as draft:
        draft.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    tell(
        f"{fit.outcome['run']}: {note['input']} -> logits, {len(written) / 2**20:.1f} "
        f"MiB in {target}; it runs, and gives the network's logits to {worst:.0e}"
    )


def program(fit: Finished) -> tuple[Callable[[jax.Array], jax.Array], Any]:
    """What the artefact computes, and the shape of what it takes."""
    params, batch_stats = fit.network

    def logits(features: jax.Array) -> jax.Array:
        return fit.head.apply(params["head"], features)

    if isinstance(fit.backbone, models.Identity):
        shape = export.symbolic_shape(f"b, {fit.backbone.size}")
        return logits, jax.ShapeDtypeStruct(shape, jnp.float32)
    augment = fit.augment
    if augment is None:
        raise InputError(
            "a converted file does not say how images are normalised: retrain or "
            "evaluate it first (--config.init.path), and convert that workdir"
        )
    variables: Params = {"params": params["backbone"], "batch_stats": batch_stats}

    def compute(images: jax.Array) -> jax.Array:
        seen = normalise(augment, images)
        mask = jnp.ones(images.shape[0], jnp.float32)
        return logits(fit.backbone.apply(variables, seen, mask, False))

    # JAX cannot tell that a strided slice of h pixels, as the shortcuts of the CIFAR
    # networks take, is as long as a strided convolution, unless 2 divides h.
    stages = len(fit.backbone.stages) if fit.backbone.shortcut == "pad" else 1
    sides = [f"{2 ** (stages - 1)}*{side}" for side in "hw"]
    shape = export.symbolic_shape(f"b, {', '.join(sides)}, {len(augment.mean)}")
    return compute, jax.ShapeDtypeStruct(shape, jnp.uint8)
