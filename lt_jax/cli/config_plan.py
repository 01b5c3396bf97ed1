"""``lt-jax config``: the resolved values of a config, and the plan of its runs."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from lt_jax.cli import benchmark
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment import checks
from lt_jax.experiment.cached import rows_of
from lt_jax.experiment.config import UserConfig, as_dict, resolve
from lt_jax.experiment.session import Session, open_session
from lt_jax.experiment.splits import describe, load_splits
from lt_jax.files import jsonable
from lt_jax.training.log import duration

SECONDS = 2.0  # per measurement


def show(config: UserConfig, as_json: bool) -> None:
    """Print every key with its value, and as comments the description of the data."""
    c, loaded, problem = resolve(config), None, ""
    try:
        loaded = load_splits(c)
        c = checks.from_data(c, loaded[0].full_class_counts)
    except InputError as error:
        problem = f"# the data cannot be loaded: {error}"
    tree = as_dict(c)
    if as_json:
        print(json.dumps(jsonable(tree), sort_keys=True))
        return
    for key, value in sorted(flatten_dict(tree, sep=".").items()):
        print(f"{key} = {value!r}")
    if loaded is None:
        print(problem)
        return
    splits, groups = loaded
    described = describe(c.data.name, splits, groups)
    for key, value in flatten_dict(described, sep=".").items():
        print(f"# dataset.{key} = {value!r}")
    for group, size in (("optim", c.optim), ("method", c.method)):
        steps_per_epoch = -(-len(splits.train) // size.batch)
        print(f"# {group}: {steps_per_epoch:,} steps per epoch")


def show_plan(config: UserConfig, workdir: Path | None, as_json: bool) -> None:
    """Measure a training step and an evaluation; print what would be run.

    Args:
      workdir: its finished fits are not counted.
    """
    with contextlib.ExitStack() as stack:
        folder = workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = stack.enter_context(open_session(config, folder, writes=False))
        found = _plan(session)
    if as_json:
        print(json.dumps({**found, "device": sharding.device_name()}))
        return
    for part, p in found.items():
        print(
            f"{part:8s} {p['fits']:,} fits, {p['epochs']:,} epochs, {p['steps']:,} "
            f"steps of {p['batch']} images: {duration(p['seconds'])}"
        )
    print(f"devices  {sharding.device_name()}")
    print(
        "Estimates from one measured training step and evaluation pass; heads on "
        "cached features count as their feature extraction only."
    )


def _plan(session: Session) -> dict[str, dict[str, Any]]:
    """Count the fits that are left, and estimate their seconds, by command."""
    c, splits = session.config, session.task.splits
    train, valid = len(splits.train), len(splits.valid)
    others = valid + len(splits.test)
    speed = dict(benchmark.speeds(session, SECONDS))
    passed = 1 / speed["evaluation"]  # seconds per image
    trained = 1 / min(speed["loader"], speed["training_step"])
    seeds = range(c.seed, c.seed + c.optim.repeats)
    first = sum(session.finished(f"stage1/{seed}") is None for seed in seeds)
    checks = c.optim.epochs / c.eval.every  # evaluations on validation
    per_fit = c.optim.epochs * train * trained + passed * (others + checks * valid)
    rows = [row for seed in seeds for row in rows_of(c, seed, grid=False)]
    rows = [row for row in rows if session.finished(row.title) is None]
    grids = all("grid" in c.method.entries[name] for name in c.method.names)
    swept = [row for seed in seeds if grids for row in rows_of(c, seed, grid=True)]
    rows, swept = (some * (1 + c.eval.folds) for some in (rows, swept))
    epochs, tried = (sum(r.hyper["epochs"] for r in some) for some in (rows, swept))
    extraction = c.optim.repeats * (train * c.method.views + others) * passed
    # Online, each epoch passes the backbone forwards.
    heads = (epochs * train + len(rows) * others) * passed
    heads = extraction if c.method.features == "cached" else heads

    def entry(fits: int, epochs: int, batch: int, seconds: float) -> dict[str, Any]:
        return {
            "fits": fits,
            "epochs": epochs,
            "steps": epochs * -(-train // batch),
            "batch": batch,
            "seconds": seconds if fits else 0.0,
        }

    return {
        "stage1": entry(first, first * c.optim.epochs, c.optim.batch, first * per_fit),
        "stage2": entry(len(rows), epochs, c.method.batch, heads),
        "sweep": entry(len(swept), tried, c.method.batch, extraction),
    }
