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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lt_jax import files, models, trees
from lt_jax.data import catalogue
from lt_jax.data.augment.transforms import Augment, normalise
from lt_jax.data.images.decode import FILTERS
from lt_jax.errors import InputError, brief, one_of
from lt_jax.experiment import extraction, results, weights
from lt_jax.experiment.config import workdir_config
from lt_jax.experiment.weights import Weights
from lt_jax.heads import Head
from lt_jax.pretrained import torch_names, weight_files
from lt_jax.retraining.analysis import MAX_TEMPERATURE
from lt_jax.training import checkpoint

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


class Finished(NamedTuple):
    """A finished fit with what an artefact needs to know."""

    title: str  # such as los/0.2
    classes: list[str] | None
    model: dict[str, Any]  # as in the config, or in the outcome of a converted file
    backbone: Any
    head: Head
    network: Weights
    temperature: float  # divisor of the logits for probabilities
    # From the config, which a folder that `lt-jax convert` made does not have.
    dataset: str = ""
    augment: Augment | None = None
    # How an image becomes pixels: ``size`` [H, W], ``resize`` of photographs before the
    # centre crop, ``flip``, perhaps ``interpolation``. None for features.
    images: dict[str, Any] | None = None


def finished(workdir: Path, method: str, seeds: str = "") -> Finished:
    """Load a finished fit of a workdir, or of a folder that ``convert`` made.

    Args:
      method, seeds: see ``weights.find``. An empty method is the recommended fit, with
        the weights of ``method.refit`` if there are any, or without validation the last
        finished one of ``config.method.names``.

    Raises:
      InputError: there is none, or it has no head.
    """
    config, names, best = None, [method], dict[str, Any]()
    if not method or (workdir / "config.json").exists():
        config = workdir_config(workdir)
        if not method:
            best = results.recommended(workdir)
            names = [*reversed(config.method.names), "stage1"]
    source = weights.find(workdir, [best["fit"]] if best else names, seeds)
    refit = best.get("refit") and [best["method"]]
    kept = weights.find(workdir / results.REFIT, refit) if refit else source
    model = dict(vars(config.model)) if config else source.outcome.get("model")
    leaves = weights.load_leaves(kept)
    if torch_names.KERNEL not in leaves:
        raise InputError(f"{workdir} has a backbone without a head")
    if model is None:
        raise InputError(f"{workdir} has no config.json, which describes its network")
    num_features, num_classes = np.atleast_2d(leaves[torch_names.KERNEL]).shape[-2:]
    if model["name"] == "none":
        scaled = "batch_stats/centre" in leaves
        shape, backbone = (1, 1, num_features), models.Identity(num_features, scaled)
    else:
        backbone = models.create(
            model["name"],
            stem=model["stem"],
            width=model["width"],
            pool=model.get("pool", "token"),
            zero_init=model.get("zero_init", False),
            init="torch",
            dtype=model.get("dtype", "float32"),
            axis_name=None,
        )
        stem = leaves.get("params/backbone/stem_conv/kernel", np.zeros((1, 1, 3, 1)))
        side, channels = 8 * backbone.side_multiple, np.atleast_3d(stem).shape[2]
        shape = side, side, channels
    head, network = weights.load_fit(kept, backbone, shape, num_classes)
    classes = (source.outcome.get("per_class") or {}).get("class")
    analysis = source.outcome.get("analysis") or {}  # of versions without the other
    fitted = source.outcome.get("temperature") or analysis.get("temperature")
    temperature = float(fitted or 0)
    if not 1 / MAX_TEMPERATURE < temperature < MAX_TEMPERATURE:
        temperature = 1.0  # none was fitted, or all validation examples are right
    given = source.title, classes, model, backbone, head, network
    fit = Finished(*given, temperature)
    if config is None:
        return fit
    data, images = config.data, None
    augment = Augment(0, False, data.mean, data.std)
    if model["name"] != "none":
        size, resize = list(catalogue.SHAPES.get(data.name, ())[:2]), None
        if data.name in catalogue.PHOTOS:
            size, resize = [data.size] * 2, data.resize
        images = {"size": size, "resize": resize, "flip": config.eval.flip}
    return fit._replace(dataset=data.name, augment=augment, images=images)


def with_backbone(fit: Finished, folder: Path, request: dict[str, Any]) -> Finished:
    """Put the backbone before a head that was trained on its features.

    Args:
      folder: of ``extraction.write_features``; it has the weights.
      request: see ``extraction.read_request``.
    """
    looks, arch = request["images"], request["arch"]
    backbone = models.create(
        one_of("architecture", arch, models.ARCHS),
        pool=one_of("pool", request["pool"], models.POOLS),
        dtype=one_of("dtype", request["dtype"], ("float32", "bfloat16")),
        axis_name=None,
    )
    shape = (looks["size"], looks["size"], 3)
    classes = len(fit.classes or ())
    before = functools.partial(_standardised, fit)
    head = fit.head._replace(apply=lambda params, f: fit.head.apply(params, before(f)))
    like = weights.blank(backbone, head, shape, classes)
    own = {f"params/head/{n}": a for n, a in fit.network.params["head"].items()}
    leaves = checkpoint.load_leaves(folder / extraction.BACKBONE / "0") | own
    network = checkpoint.merge_leaves(leaves, like, "", str(folder))
    return fit._replace(
        model={**fit.model, "name": arch},
        backbone=backbone,
        head=head,
        network=network,
        augment=Augment(0, False, tuple(looks["mean"]), tuple(looks["std"])),
        images=images_of(request),
    )


def _standardised(fit: Finished, features: jax.Array) -> Any:
    """Apply the ``Identity`` of a fit on features."""
    variables = {"batch_stats": fit.network.batch_stats}
    return fit.backbone.apply(variables, features, None, False)


def images_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return how an extraction made pixels of photographs, as ``Finished.images``."""
    looks = request["images"]
    return {
        "size": [looks["size"]] * 2,
        "resize": max(looks.get("resize", 0), looks["size"]),
        "flip": "mirror" in request["views"],
        "interpolation": looks.get("interpolation", ""),
    }


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
            values = _standardised(fit._replace(network=network), features)
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
