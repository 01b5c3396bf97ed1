"""Finished fits with what `lt-jax predict` and artefacts need besides the weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import models
from lt_jax.data import catalogue
from lt_jax.data.augment.transforms import Augment
from lt_jax.errors import InputError, one_of
from lt_jax.experiment import extraction, result_json, results, stored
from lt_jax.experiment.config import workdir_config
from lt_jax.heads import Head
from lt_jax.pretrained import torch_names
from lt_jax.retraining.analysis import MAX_TEMPERATURE
from lt_jax.training import checkpoint
from lt_jax.types import Weights


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
      method, seeds: see ``stored.find``. An empty method is the recommended fit, with
        the weights of ``method.refit`` if there are any, or without validation the last
        finished one of ``config.method.names``.

    Raises:
      InputError: there is none, or it has no head.
    """
    config, names, best = None, [method], dict[str, Any]()
    if not method or (workdir / "config.json").exists():
        config = workdir_config(workdir)
        if not method:
            best = result_json.recommended(workdir)
            names = [*reversed(config.method.names), "stage1"]
    source = stored.find(workdir, [best["fit"]] if best else names, seeds)
    refit = best.get("refit") and [best["method"]]
    kept = stored.find(workdir / results.REFIT, refit) if refit else source
    model = dict(vars(config.model)) if config else source.outcome.get("model")
    leaves = stored.load_leaves(kept)
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
    head, network = stored.load_fit(kept, backbone, shape, num_classes)
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
    before = functools.partial(standardised, fit)
    head = fit.head._replace(apply=lambda params, f: fit.head.apply(params, before(f)))
    like = stored.blank(backbone, head, shape, classes)
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


def standardised(fit: Finished, features: jax.Array) -> Any:
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
