"""Pre-trained backbones that compute features, by Flax or by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from lt_jax import models, samplers
from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.distributed.interrupt import until_stopped
from lt_jax.errors import InputError, suggest
from lt_jax.experiment.records import DataConfig
from lt_jax.pretrained import load as pretrained
from lt_jax.pretrained import torch_backbones
from lt_jax.pretrained.table import TABLE, Recipe
from lt_jax.retraining.features import Request, extract
from lt_jax.training.stage import Task
from lt_jax.types import Weights


class Options(NamedTuple):
    """Which features to compute."""

    model: str  # a name of TABLE, hf:OWNER/NAME, a folder, or torch:LIBRARY/NAME
    weights: str = ""  # file or folder of the weights of a name of TABLE
    sha256: str = ""  # expected of the file of weights
    pool: str = "token"  # of a ViT, see models.POOLS
    dtype: str = "float32"  # of the computation
    size: int = 0  # side of the images in pixels; 0: that of the model
    mirror: bool = False  # average over mirror images
    batch: int = 64  # images per step, all devices together


class Backbone(NamedTuple):
    """A loaded backbone."""

    recipe: Recipe  # how to prepare images
    notes: dict[str, Any]  # provenance
    # (task, views, dataset, errors) -> float32[n, D], view after view, in order
    compute: Callable[..., Iterator[np.ndarray]]
    network: Weights | None = None  # without a head; None: PyTorch has it


def check(options: Options) -> None:
    """Refuse the name of an unknown backbone, without looking for weights."""
    name = options.model
    if name.startswith("torch:"):
        if options.weights or options.sha256:
            raise InputError(f"{name} finds its own weights: no --weights")
    elif name not in TABLE and (options.weights or not pretrained.is_weights(name)):
        raise InputError(
            f"unknown backbone {name!r:.100}: expected a name of `lt-jax list "
            "pretrained`, hf:OWNER/NAME, torch:timm/NAME, torch:MODULE:CALLABLE, or a "
            f"folder with model.safetensors{suggest(name, TABLE)}"
        )


def load(options: Options, data: DataConfig) -> Backbone:
    """Load a backbone; ``data`` describes images for a module that does not.

    Raises:
      InputError: the model or its weights are invalid.
    """
    check(options)
    is_torch = options.model.startswith("torch:")
    return _torch(options, data) if is_torch else _flax(options)


def _flax(options: Options) -> Backbone:
    """Load a backbone that this package computes."""
    entry, source = TABLE.get(options.model), options.weights or options.model
    if entry is not None and not options.weights:
        source = f"{pretrained.HUB}{entry.repository}"
    found = pretrained.find(source, options.sha256)
    described = entry or found.described
    if described is None:
        raise InputError(
            f"{source} does not state its architecture: use --model NAME --weights "
            f"{source}, or a folder with timm's config.json"
        )
    arch, size = described.arch, options.size or described.recipe.size
    module = models.create(
        arch,
        pool=options.pool,
        dtype=options.dtype,
        axis_name=sharding.AXIS,
        engine=models.fastest_engine(),
    )
    models.shapes(module, (size, size, 3))  # refuses a size that patches do not cover
    found = found._replace(described=described)
    leaves = pretrained.backbone(found, arch, module, 3)
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    network = Weights(tree["params"], tree.get("batch_stats", {}))
    notes = {"weights": found.notes, "arch": arch, "pool": options.pool}

    def compute(
        task: Task, views: tuple[str, ...], dataset: Dataset, errors: DecodeErrors
    ) -> Iterator[np.ndarray]:
        task, request = task._replace(backbone=module), Request(views, (), "float32")
        return extract(task, network, dataset, request, errors)

    return Backbone(described.recipe, notes, compute, network)


def _torch(options: Options, data: DataConfig) -> Backbone:
    """Load a backbone that PyTorch computes."""
    recipe = None
    if data.size and data.resize:
        colours = data.mean, data.std
        recipe = Recipe(colours, data.size, data.resize, "", "unknown", "")
    loaded = torch_backbones.load(options.model, options.dtype, options.size, recipe)

    mean, std = (np.asarray(v, np.float32) for v in loaded.recipe.colours)

    def compute(
        task: Task, views: tuple[str, ...], dataset: Dataset, errors: DecodeErrors
    ) -> Iterator[np.ndarray]:
        rows = samplers.batch_indices(np.arange(len(dataset)), task.eval_batch)
        doing = f"the features of {dataset.name}"
        for view in views:
            batches = load_batches(dataset, rows, lambda b: b, errors=errors)
            batches = until_stopped(batches, task.stop_requested, doing)
            for row, batch in zip(rows, batches, strict=True):
                images = (batch["image"].astype(np.float32) / 255 - mean) / std
                images = images[:, :, ::-1] if view == "mirror" else images
                yield loaded.apply(images)[: (row >= 0).sum()]

    return Backbone(loaded.recipe, loaded.notes, compute)
