"""``lt-jax features``: features of a pre-trained backbone, in the form of features.py.

OUT/train.npz, val.npz, test.npz  features [N, D], the mean over views, and labels
OUT/features.json                 provenance
OUT/parts/                        finished parts of an unfinished extraction
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from lt_jax import models, samplers
from lt_jax.data import arrays, catalogue
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Dataset
from lt_jax.data.images.decode import resized
from lt_jax.data.loader import DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.distributed.interrupt import EXIT_CODES, catch_signals, until_stopped
from lt_jax.errors import InputError, one_of
from lt_jax.experiment import results
from lt_jax.experiment.config import UserConfig, as_dict, resolve
from lt_jax.experiment.session import load_splits, make_task, workdir_lock
from lt_jax.files import as_json, atomic_path, jsonable, read_json, write
from lt_jax.pretrained import load as pretrained
from lt_jax.pretrained import torch_backbones
from lt_jax.pretrained.table import TABLE, Recipe
from lt_jax.retraining.features import Request, extract
from lt_jax.training.log import Bar, Logger
from lt_jax.training.loop import Task
from lt_jax.types import Weights

PART = 512  # images whose features are written at a time
QUIET = 10.0  # least seconds between lines about progress
REMEDY = "Remove it, or use another --out"


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


def write_features(config: UserConfig, options: Options, out: Path) -> None:
    """Write the features of every split of a config's data.

    Raises:
      InputError: the model, its weights or the data are invalid, or ``out`` holds other
        features. Nothing is written then.
      Interrupted: a signal; finished parts are kept.
    """
    backbone = _torch(options) if options.model.startswith("torch:") else _flax(options)
    recipe = backbone.recipe
    size = options.size or recipe.size
    resize = round(recipe.resize * size / recipe.size)
    c = resolve(config)
    looks: Any = {"mean": recipe.colours[0], "std": recipe.colours[1]}
    if c.data.name in catalogue.PHOTOS:
        looks |= {"size": size, "resize": resize}
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, **looks))
    c = resolve(as_dict(c))  # checks the size
    splits, groups = load_splits(c)
    named = {"train": splits.train, "val": splits.valid, "test": splits.test}
    datasets = {n: _resized(data, size) for n, data in named.items() if len(data)}
    views = ("plain", "mirror") if options.mirror else ("plain",)
    request = jsonable(
        {
            "model": options.model,
            **backbone.notes,
            "dtype": options.dtype,
            "views": views,
            "images": {**looks, "size": size, "resize": resize},
            "data": {"name": c.data.name, **{n: d.hash for n, d in datasets.items()}},
        }
    )
    with workdir_lock(out) as check, catch_signals(*EXIT_CODES) as signalled:
        log = Logger(out)

        def stop_requested() -> str:
            check()
            return signalled()

        task = make_task(c, splits, groups)._replace(
            augment=Augment(0, False, *recipe.colours),
            eval_batch=options.batch,
            log=log,
            stop_requested=stop_requested,
        )
        if _is_finished(out, request):
            log.info(f"{out} has these features already")
            return
        compute = functools.partial(backbone.compute, task, views)
        _compute_parts(compute, datasets, out / "parts", log)
        left_out = {name: _join(out, name, data) for name, data in datasets.items()}
        provenance = {
            "request": request,
            "examples": {name: len(data) for name, data in datasets.items()},
            "left_out": left_out,
            "classes": splits.train.classes,
            "versions": results.versions(),
        }
        write(out / "features.json", as_json(provenance))
        shutil.rmtree(out / "parts")
        log.info(f"features of {', '.join(datasets)}: {out}")


def _resized(dataset: Dataset, size: int) -> Dataset:
    """Resize the images of a dataset, unless its decoder does."""
    *sides, channels = dataset.shape
    if channels != 3 or sides == [1, 1]:
        raise InputError(
            f"{dataset.name} has examples of shape {list(dataset.shape)}: expected "
            "colour images, of 3 channels"
        )
    if dataset.decoder is not None:
        return dataset
    read = dataset.read
    return dataclasses.replace(
        dataset,
        shape=(size, size, 3),
        read=lambda rows: np.stack([resized(image, size) for image in read(rows)]),
    )


def _flax(options: Options) -> Backbone:
    """Load a backbone that this package computes."""
    entry, source = TABLE.get(options.model), options.weights or options.model
    if entry is None and (options.weights or not pretrained.is_weights(source)):
        one_of("model", options.model, [*TABLE, "torch:timm/NAME", "hf:OWNER/NAME"])
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

    return Backbone(described.recipe, notes, compute)


def _torch(options: Options) -> Backbone:
    """Load a backbone that PyTorch computes."""
    loaded = torch_backbones.load(options.model, options.dtype, options.size)
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


def _is_finished(out: Path, request: dict[str, Any]) -> bool:
    """Check that a folder holds these features or none; start them if it has none."""
    for file in (out / "features.json", out / "parts" / "request.json"):
        if not file.is_file():
            continue
        before = read_json(file, {"request": dict}, REMEDY)["request"]
        keys = before.keys() | request.keys()
        if other := sorted(k for k in keys if before.get(k) != request.get(k)):
            names = ", ".join(other)
            raise InputError(f"{out} has other features: {names} differ. {REMEDY}")
        return file.name == "features.json"
    if any(out.glob("*.np[yz]")):
        raise InputError(f"{out} has features of unknown origin. {REMEDY}")
    write(out / "parts" / "request.json", as_json({"request": request}))
    return False


def _compute_parts(
    compute: Callable[[Dataset, DecodeErrors], Iterator[np.ndarray]],
    datasets: dict[str, Dataset],
    folder: Path,
    log: Logger,
) -> None:
    """Write the features of every part of every split that is not there yet."""
    parts = [
        (file, name, np.arange(first, min(first + PART, len(dataset))))
        for name, dataset in datasets.items()
        for first, file in _files(folder, name, dataset)
        if not file.is_file()
    ]
    total = sum(len(rows) for _, _, rows in parts)
    with Bar(log, "features", 0, total, QUIET) as bar:
        for file, name, rows in parts:
            part, size = datasets[name].take(rows), len(rows)
            if part.decoder is not None:  # judged over the split, when it is complete
                decoder = part.decoder._replace(max_broken=1.0)
                part = dataclasses.replace(part, decoder=decoder)
            errors = DecodeErrors(part)
            values = np.concatenate(list(compute(part, errors)))
            values = values.reshape(-1, size, values.shape[-1]).mean(0, np.float32)
            if not np.isfinite(values).all():
                raise InputError(
                    f"the features of {name} are not finite: use --dtype float32, or "
                    "other weights"
                )
            left_out = errors.all_indices()
            _save(
                file,
                features=np.delete(values, left_out, axis=0),
                labels=np.delete(part.labels, left_out),
                left_out=np.asarray(part.ids)[left_out].astype(str),
            )
            end, size = rows[-1] + 1, len(datasets[name])
            if bar.advance(len(rows)) or end == size:
                bar.show({"done": f"{name}: {end:,} of {size:,} images"})


def _files(folder: Path, name: str, dataset: Dataset) -> list[tuple[int, Path]]:
    """List the parts of a split: the number of its first image, and its file."""
    firsts = range(0, len(dataset), PART)
    return [(first, folder / f"{name}-{first:09d}.npz") for first in firsts]


def _join(out: Path, name: str, dataset: Dataset) -> list[str]:
    """Write the features of a split from its parts; return the images left out."""
    parts = []
    for _, file in _files(out / "parts", name, dataset):
        with arrays.reading(file, "a part of the features; remove it and rerun"):
            parts.append(arrays.npz(file, ("features", "labels", "left_out")))
    features, labels, left_out = map(np.concatenate, zip(*parts, strict=True))
    decoder = dataset.decoder
    if decoder is not None and len(left_out) > decoder.max_broken * len(dataset):
        raise InputError(
            f"{len(left_out):,} of {len(dataset):,} images of {name} cannot be decoded,"
            f" such as {left_out[0]}: restore or remove them, or raise "
            "--config.data.broken"
        )
    _save(out / f"{name}.npz", features=features, labels=labels)
    return left_out.tolist()


def _save(file: Path, **columns: np.ndarray) -> None:
    with atomic_path(file) as draft, draft.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **columns)
