"""Checks of a resolved config against its data, its network and the machine.

A command makes them before it writes anything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lt_jax import methods, metrics, models, recipes, samplers, trees
from lt_jax.data.dataset import Splits
from lt_jax.distributed import sharding
from lt_jax.errors import InputError, first_few, located
from lt_jax.experiment.config import OPTIMISER
from lt_jax.experiment.records import Config, FitConfig
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.training import optim
from lt_jax.training.optim import Sgd


def from_data(config: Config, counts: np.ndarray) -> Config:
    """Replace the values that the config leaves to the data, int[K] per class.

    Group limits follow the class counts; delta and its grid are the paper's amounts of
    smoothing at this number of classes.
    """
    case = recipes.Case(recipes.smoothing(len(counts)))
    limits = dict(zip(("many", "few"), metrics.group_limits(counts), strict=True))
    open_limits = {k: v for k, v in limits.items() if vars(config.data)[k] < 0}
    entries = {}
    for name, entry in config.method.entries.items():
        filled, known = dict(entry), recipes.RECIPES.get(name, recipes.RECIPES["los"])
        grid = dict(entry.get(recipes.GRID, {}))
        if filled.get("delta") == recipes.FROM_DATA:
            filled["delta"] = case.smoothing.delta
        if recipes.FROM_DATA in grid.get("delta", ()):
            grid["delta"] = known(case)[recipes.GRID]["delta"]
            filled[recipes.GRID] = grid
        entries[name] = filled
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **open_limits),
        method=dataclasses.replace(config.method, entries=entries),
    )


def check_data(config: Config, splits: Splits) -> None:
    """Check values against the data."""
    c, size = config, len(splits.train)
    *sides, channels = splits.train.shape
    if not samplers.examples_per_epoch(size, c.optim.batch, c.optim.drop_last):
        raise InputError(
            f"optim.drop_last leaves none of {size} training images in batches of "
            f"{c.optim.batch}: set it to False, or lower optim.batch"
        )
    if (any(c.data.jitter) or c.data.randaugment[0]) and channels != 3:
        raise InputError(
            f"data.jitter and data.randaugment need 3 channels, but images of "
            f"{c.data.name} have {channels}: set them to (0, 0, 0, 0) and (0, 0)"
        )
    for key, values in (("mean", c.data.mean), ("std", c.data.std)):
        if (c.data.mean or c.data.std) and len(values) != channels:
            raise InputError(
                f"data.{key} must have one value for each of the {channels} channels "
                f"of {c.data.name}, got {values}"
            )
    if sides == [1, 1] and (c.data.pad or c.data.flip or c.eval.flip):
        raise InputError(
            f"the examples of {c.data.name} are features, which cannot be cropped or "
            "mirrored: expected data.pad=0, data.flip=False and eval.flip=False, got "
            f"{c.data.pad}, {c.data.flip} and {c.eval.flip}"
        )
    if c.data.pad >= max(sides) > 1:
        raise InputError(
            f"data.pad must be smaller than the images, {max(sides)} pixels, got "
            f"{c.data.pad}: crops would miss the image"
        )
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )


def cut_batches(config: Config, splits: Splits) -> tuple[Config, list[str]]:
    """Cut batches to the examples there are; return a note for each that was cut."""
    train, notes = len(splits.train), []
    largest = max(train, len(splits.valid), len(splits.test))
    for name, limit in {"optim": train, "method": train, "eval": largest}.items():
        group = getattr(config, name)
        if group.batch > limit:
            notes.append(
                f"{name}.batch is {group.batch:,}, but a pass has {limit:,} examples: "
                f"using {limit:,}"
            )
            cut: Any = {name: dataclasses.replace(group, batch=limit)}
            config = dataclasses.replace(config, **cut)
    return config, notes


def _check_memory(config: Config, splits: Splits, params: Any, trained: Any) -> None:
    """Refuse what cannot fit: less than this no step of stage 1 can use."""
    # Parameters, and gradients and momentum of the trained ones, on every device.
    leaves = [*jax.tree.leaves(params), *2 * jax.tree.leaves(trained)]
    network = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    batch = max(config.optim.batch, config.eval.batch)
    images = batch * math.prod(splits.train.shape) // jax.device_count()
    needed, there = network + images, sharding.device_memory()
    if needed > there:
        raise InputError(
            f"training needs at least {needed / 2**30:,.1f} GiB per device, "
            f"{network / 2**30:,.1f} of them for parameters, gradients and momentum, "
            f"but {there / 2**30:,.1f} are there: lower model.width, data.size or "
            "the batches"
        )


def make_method(name: str, counts: np.ndarray, hyper: Mapping[str, Any]) -> Method:
    """Make a method from the values of its entry, those of its optimiser included.

    Args:
      counts: int[K], training examples per class.
    """
    own = {key: value for key, value in hyper.items() if key not in OPTIMISER}
    return methods.make(name, counts, own)


def rates(group: FitConfig, lr: float, epochs: int, images: int) -> np.ndarray:
    """Return the learning rate of every step, float32[steps].

    Args:
      lr: highest rate for a batch of ``group.lr_batch``; it scales with the batch.
      images: per epoch.
    """
    return optim.rates(
        lr * group.batch / group.lr_batch,  # linear scaling, arXiv 1706.02677
        epochs,
        -(-images // group.batch),
        group.warmup,
        group.schedule,
        milestones=group.milestones,
        fall=group.fall,
    )


def make_methods(
    config: Config, splits: Splits, backbone: Any, grids: bool = False
) -> dict[str, Method]:
    """Make the methods of ``method.names``; check all optimisers against parameters.

    Args:
      grids: check every row of every grid as well, as a sweep needs.

    Raises:
      InputError: names the method, and the row of its grid.
    """
    o, init, shape = config.optim, config.model.init, splits.train.shape
    counts, size = splits.train.class_counts, len(splits.train)
    sizes = backbone.num_features, len(counts)

    @functools.cache
    def shapes(head: Head) -> Any:
        return jax.eval_shape(lambda: head.init(jax.random.key(0), None, *sizes, init))

    params, _ = models.shapes(backbone, shape)
    network = {"backbone": params, "head": shapes(linear)}
    with located("optim.trains"):
        trained, _ = trees.partition(network, o.trains)
    with located("optim.decay_on"):
        Sgd(o.momentum, o.decay, o.decay_on).check(trained)
    _check_memory(config, splits, network, trained)
    with located("optim.epochs"):
        rates(o, o.lr, o.epochs, size)

    def checked(name: str, hyper: Mapping[str, Any]) -> Method:
        method, m = make_method(name, counts, hyper), config.method
        rates(m, hyper["lr"], hyper["epochs"], size)
        trains = f"head/(?:{method.head.trains})"
        trained, _ = trees.partition({"head": shapes(method.head)}, trains)
        with located("method.decay_on"):
            Sgd(m.momentum, hyper["decay"], m.decay_on).check(trained)
        return method

    made, entries = {}, config.method.entries
    for name in config.method.names:
        if name not in entries:
            raise InputError(
                f"method.names has {name!r}, but config.method has no entry of that "
                f"name: expected some of {', '.join(entries)}; several are written "
                "--config.method.names=ce,los"
            )
        with located(f"method.{name}"):
            made[name] = checked(name, recipes.own(entries[name]))
            rows = recipes.expand(entries[name]) if grids else ()
        for row in rows:
            tried = (f"{key}={row[key]!r}" for key in entries[name][recipes.GRID])
            with located(f"method.{name}.grid, {', '.join(tried)}"):
                checked(name, row)
    return made


def validated(config: Config, splits: Splits) -> np.ndarray:
    """Count the examples per class that a sweep chooses by, int[K]."""
    counts = splits.train.class_counts
    in_folds = np.where(counts > 1, counts, 0)  # a single one is always trained on
    return in_folds if config.eval.folds else splits.valid.class_counts


def check_sweep(config: Config, splits: Splits) -> list[str]:
    """Check that features can be cached, and that validation images can choose.

    Returns:
      A note for the log if some classes cannot affect the choice.
    """
    method = dataclasses.replace(config.method, features="cached")
    dataclasses.replace(config, method=method)  # raises if they cannot be
    choose, held = config.eval.choose, validated(config, splits) > 0
    if not held.any():
        raise InputError(
            "a sweep chooses on validation images, but data.valid is 0: hold out a "
            "share of the training set"
            if not config.eval.folds
            else "eval.folds: no class has two examples, so none can be held out"
        )
    if choose in metrics.GROUPS:
        limits = config.data.many, config.data.few
        if not held[metrics.groups(splits.full_class_counts, *limits)[choose]].any():
            why = "a validation image: raise data.valid, or"
            if config.eval.folds:
                why = "two examples, which eval.folds needs:"
            raise InputError(
                f"eval.choose is {choose!r}, but no class of that group has {why} "
                "choose by another group"
            )
    elif choose in ("balanced", "balanced_nll", "worst") and not held.all():
        without = [str(splits.train.classes[k]) for k in (~held).nonzero()[0]]
        return [
            f"NOTE: {len(without)} classes have no validation image, so they do not "
            f"affect the choice: {first_few(without, 10)}"
        ]
    return []
