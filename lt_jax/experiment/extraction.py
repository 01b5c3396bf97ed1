"""``lt-jax features``: features of a pre-trained backbone, in the form of features.py.

OUT/train.npz, val.npz, test.npz  features [N, D], the mean over views, and labels
OUT/features.json                 provenance
OUT/backbone/                     of `lt-jax fit`: the weights, for `lt-jax predict`
OUT/parts/                        finished parts of an unfinished extraction
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from lt_jax.data import arrays, catalogue
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Dataset
from lt_jax.data.images.decode import FILTERS, resized
from lt_jax.data.loader import DecodeErrors
from lt_jax.distributed.interrupt import EXIT_CODES, catch_signals
from lt_jax.errors import InputError, one_of
from lt_jax.experiment import backbones, results
from lt_jax.experiment.backbones import Options
from lt_jax.experiment.config import UserConfig, as_dict, from_json, resolve
from lt_jax.experiment.records import Config
from lt_jax.experiment.session import make_task, workdir_lock
from lt_jax.experiment.splits import load_splits
from lt_jax.files import Schema, as_json, atomic_path, jsonable, read_json, write
from lt_jax.training import checkpoint
from lt_jax.training.log import Bar, Logger, duration

PART = 512  # images whose features are written at a time
QUIET = 10.0  # least seconds between lines about progress
FOLDER = "extracted"  # of a workdir, with the features of `lt-jax fit`
BACKBONE = "backbone"  # folder of its weights
REMEDY = "Remove it, or use another folder"
FOUND_BY = {"weights.checked", "weights.revision"}  # the hash identifies weights


def write_features(
    config: UserConfig, options: Options, out: Path, keep: bool = False
) -> None:
    """Write the features of every split of a config's data.

    Args:
      keep: also write the backbone, unless PyTorch computes it.

    Raises:
      InputError: the model, its weights or the data are invalid, or ``out`` holds other
        features. Nothing is written then.
      Interrupted: a signal; finished parts are kept.
    """
    backbones.check(options)
    c = resolve(config)
    splits, groups = load_splits(c)
    named = {"train": splits.train, "val": splits.valid, "test": splits.test}
    datasets = {name: data for name, data in named.items() if len(data)}
    _check_colours(splits.train)
    backbone = backbones.load(options, c.data)
    recipe = backbone.recipe
    size = options.size or recipe.size
    resize = round(recipe.resize * size / recipe.size)
    looks: Any = {"mean": recipe.colours[0], "std": recipe.colours[1]}
    if c.data.name in catalogue.PHOTOS:
        looks |= {"size": size, "resize": resize}
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, **looks))
    c = resolve(as_dict(c))  # checks the size
    if how := recipe.interpolation:
        one_of("interpolation", how, FILTERS)
    filtered = {"interpolation": how} if how else {}
    datasets = {n: _resized(data, size, resize, how) for n, data in datasets.items()}
    views = ("plain", "mirror") if options.mirror else ("plain",)
    request = jsonable(
        {
            "model": options.model,
            **backbone.notes,
            "dtype": options.dtype,
            "views": views,
            "images": looks | {"size": size, "resize": resize} | filtered,
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
        if keep and backbone.network is not None:
            checkpoint.save_tree(out / BACKBONE, 0, backbone.network._asdict())
        compute = functools.partial(backbone.compute, task, views)
        _compute_parts(compute, datasets, out / "parts", log, len(views))
        left_out = {name: _join(out, name, data) for name, data in datasets.items()}
        provenance = {
            "request": request,
            "examples": {name: len(data) for name, data in datasets.items()},
            "left_out": left_out,
            "config": as_dict(c)["data"],
            "classes": splits.train.classes,
            "versions": results.versions(),
        }
        write(out / "features.json", as_json(provenance))
        shutil.rmtree(out / "parts")
        log.info(f"features of {', '.join(datasets)}: {out}")


# What ``read_request`` checks of ``features.json``.
SIDE = range(1, 4097)
REQUEST: Schema = {
    "model": str,
    "arch?": str,
    "pool?": str,
    "dtype": str,
    "views": [str, 1],
    "weights": dict,
    "images": {
        **{"mean": [float, 3], "std": [float, 3], "size": SIDE, "resize?": SIDE},
        "interpolation?": {"", *FILTERS},
    },
}
# And ``source_images``.
IMAGES: Schema = {
    "request": {"data": {"test": str}},
    "config": dict,
    "left_out": {"test": [str]},
}


def read_request(folder: Path) -> dict[str, Any] | None:
    """Read which features a folder has; None if it was not written here."""
    file = folder / "features.json"
    if not file.is_file():
        return None
    return read_json(file, {"request": REQUEST}, REMEDY)["request"]


def source_images(folder: Path) -> Dataset:
    """Load the images whose features are the test set in a folder, in their order.

    Raises:
      InputError: the images are unknown, or others by now.
    """
    file = folder / "features.json"
    if not file.is_file():
        raise InputError("they are features, not images")
    note = read_json(file, IMAGES, REMEDY)
    images = from_json({**as_dict(Config()), "data": note["config"]})
    test = load_splits(images)[0].test
    if test.hash != note["request"]["data"]["test"]:
        raise InputError(f"the test images in {images.data.dir} are others by now")
    return test.take(np.flatnonzero(~np.isin(test.ids, note["left_out"]["test"])))


def _check_colours(dataset: Dataset) -> None:
    *sides, channels = dataset.shape
    if channels != 3 or sides == [1, 1]:
        raise InputError(
            f"{dataset.name} has examples of shape {list(dataset.shape)}: expected "
            "colour images, of 3 channels"
        )


def _resized(dataset: Dataset, size: int, resize: int, how: str) -> Dataset:
    """Resize the images of a dataset to the side that a backbone takes."""
    if dataset.at_size is not None:
        return dataset.at_size(size, resize, how)
    read = dataset.read
    return dataclasses.replace(
        dataset,
        shape=(size, size, 3),
        read=lambda rows: np.stack([resized(image, size, how) for image in read(rows)]),
    )


def differences(stored: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """Name the values of two requests that make their features different."""
    # A key whose value is "" may be absent.
    before, now = (
        {k: v for k, v in flatten_dict(tree, sep=".").items() if v != ""}
        for tree in (stored, request)
    )
    keys = (before.keys() | now.keys()) - FOUND_BY
    return sorted(k for k in keys if before.get(k) != now.get(k))


def _is_finished(out: Path, request: dict[str, Any]) -> bool:
    """Check that a folder holds these features or none; start them if it has none."""
    for file in (out / "features.json", out / "parts" / "request.json"):
        if not file.is_file():
            continue
        stored = read_json(file, {"request": dict}, REMEDY)["request"]
        if other := differences(stored, request):
            raise InputError(
                f"{out} has other features, which differ in {', '.join(other)}. Use "
                "another folder (for `lt-jax fit`: another --workdir)"
            )
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
    views: int,
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
            blocks = compute(part, errors)
            if file == parts[0][0]:
                blocks = _estimated(blocks, views * total, log)
            values = np.concatenate(list(blocks))
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


def _estimated(
    blocks: Iterator[np.ndarray], views: int, log: Logger
) -> Iterator[np.ndarray]:
    """Log after the second block, as the first compiles, how long all views take."""
    begun = 0.0
    for number, block in enumerate(blocks):
        seconds = (time.monotonic() - begun) * views / len(block)
        if number == 1 and seconds > QUIET:
            log.info(
                f"{views:,} images take about {duration(seconds)} on this machine; a "
                "smaller backbone or size takes less"
            )
        begun = time.monotonic()
        yield block


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
