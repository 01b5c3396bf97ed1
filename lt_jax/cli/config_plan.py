"""``lt-jax config``: the resolved values of a config, and the plan of its runs."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from lt_jax.cli import benchmark
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment import results, weights
from lt_jax.experiment.cached import Row, rows_of
from lt_jax.experiment.config import UserConfig, as_dict, resolve
from lt_jax.experiment.session import Session, load_splits, open_session
from lt_jax.files import jsonable
from lt_jax.training import steps
from lt_jax.training.log import duration
from lt_jax.training.loop import evaluate

SECONDS = 2.0  # per measurement


def show(config: UserConfig, as_json: bool) -> None:
    """Print every key with its value, and as comments the description of the data."""
    c = resolve(config)
    tree = as_dict(c)
    if as_json:
        print(json.dumps(jsonable(tree), sort_keys=True))
        return
    for key, value in sorted(flatten_dict(tree, sep=".").items()):
        print(f"{key} = {value!r}")
    try:
        splits, groups = load_splits(c)
    except InputError as error:
        print(f"# the data cannot be loaded: {error}")
        return
    described = results.describe(c.data.name, splits, groups)
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
        found = jsonable(_plan(session))
    if as_json:
        print(json.dumps(found))
        return
    for part in ("stage1", "stage2", "sweep"):
        p = found[part]
        print(
            f"{part:8s} {p['fits']:,} fits, {p['epochs']:,} epochs, {p['steps']:,} "
            f"steps of {p['batch']} images: {duration(p['seconds'])}"
        )
    memory = found["memory"]
    print(f"devices  {found['device']}")
    print(f"memory   {memory['bytes'] / 2**30:.2f} GiB, {memory['of']}")
    print(
        "Estimates from one measured training step and evaluation pass; heads on "
        "cached features count as their feature extraction only."
    )


def _plan(session: Session) -> dict[str, Any]:
    c, task = session.config, session.task
    train, valid = len(task.splits.train), len(task.splits.valid)
    others = valid + len(task.splits.test)
    network = weights.fresh(task, c.model.init, (1, c.seed))
    per_step = _step_seconds(session, network)
    head = session.methods["stage1"].head
    run = functools.partial(evaluate, task, head, network)
    test = task.splits.test
    per_image = 1 / benchmark.images_per_second(run, test, session, SECONDS)

    seeds = range(c.seed, c.seed + c.optim.repeats)
    first = sum(session.finished(f"stage1/{seed}") is None for seed in seeds)
    checks = c.optim.epochs / c.eval.every  # evaluations on validation
    steps_per_fit = c.optim.epochs * -(-train // c.optim.batch)
    first_seconds = steps_per_fit * per_step + per_image * (others + checks * valid)
    rows = [row for seed in seeds for row in rows_of(c, seed, grid=False)]
    rows = [row for row in rows if session.finished(row.title) is None]
    grids = all("grid" in c.method.entries[name] for name in c.method.names)
    swept = [row for seed in seeds if grids for row in rows_of(c, seed, grid=True)]
    extraction = c.optim.repeats * (train * c.method.views + others) * per_image
    epochs = sum(row.hyper["epochs"] for row in rows)
    # Online, each epoch passes the backbone forwards.
    online = (epochs * train + len(rows) * others) * per_image
    cached = c.method.features == "cached"

    def entry(fits: int, epochs: int, batch: int, seconds: float) -> dict[str, Any]:
        return {
            "fits": fits,
            "epochs": epochs,
            "steps": epochs * -(-train // batch),
            "batch": batch,
            "seconds": seconds if fits else 0.0,
        }

    def heads(rows: list[Row], seconds: float) -> dict[str, Any]:
        epochs = sum(row.hyper["epochs"] for row in rows)
        return entry(len(rows), epochs, c.method.batch, seconds)

    first_epochs, first_seconds = first * c.optim.epochs, first * first_seconds
    return {
        "stage1": entry(first, first_epochs, c.optim.batch, first_seconds),
        "stage2": heads(rows, extraction if cached else online),
        "sweep": heads(swept, extraction),
        "device": sharding.device_name(),
        "step_seconds": per_step,
        "memory": benchmark.peak_memory(),
    }


def _step_seconds(session: Session, network: weights.Weights) -> float:
    """Measure a step of stage 1 with batches from the data."""
    stage, spec, state, inputs = benchmark.idle_stage(session, network)
    step: Any = steps.make_train_step(spec)

    def take_step() -> Any:
        nonlocal state
        state, measured = step(state, next(batches), inputs)
        return measured

    train = session.task.splits.train
    with contextlib.closing(benchmark.batches_of(train, stage)) as batches:
        return benchmark.seconds_per_call(take_step, SECONDS)
