"""Speed of a config on this machine: ``lt-jax benchmark``.

It calls the functions of the other commands, on an untrained network at learning rate 0
so that nothing diverges. One process, all its devices; nothing is saved.

The keys of the ``--json`` object are in docs/howto/measure_speed.md.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import load_batches
from lt_jax.distributed import sharding
from lt_jax.errors import in_range
from lt_jax.experiment import results, weights
from lt_jax.experiment.config import UserConfig
from lt_jax.experiment.session import Session, open_session
from lt_jax.experiment.stages import first_stage
from lt_jax.files import as_json, write
from lt_jax.training import steps
from lt_jax.training.loop import evaluate
from lt_jax.training.stage import Stage, epoch_plan, step_inputs, step_spec
from lt_jax.types import Batch, Weights

LEAST = 3  # calls per measurement


def benchmark(config: UserConfig, seconds: float, file: Path | None = None) -> None:
    """Measure all parts, print a line after each, and write JSON to ``file``."""
    in_range("--seconds", seconds, "(0, 3600]")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(config, Path(folder), writes=False) as session,
    ):
        found = {
            "config": session.dataset["name"],
            "device": sharding.device_name(),
            "versions": results.versions(),
            "seconds": seconds,
            "batch": session.config.optim.batch,
        }
        network = session.config.model.name
        print(f"{found['config']}, {network} on {found['device']}", flush=True)
        for part, speed in speeds(session, seconds):
            found[part] = speed
            print(f"{part:14s}{speed:,.0f} img/s", flush=True)
    if file is not None:
        write(file, as_json(found))


def speeds(
    session: Session, seconds: float
) -> Generator[tuple[str, float], None, None]:
    """Measure images/s of loading, training steps and evaluation, for seconds each."""
    c, task = session.config, session.task
    stage = first_stage(session, c.seed)
    stage = stage._replace(rates=np.zeros_like(stage.rates))
    network = weights.fresh(task, c.model.init, stage.run)
    batches = _batches(task.splits.train, stage)
    with contextlib.closing(batches):
        batch = next(batches)
        yield "loader", stage.batch * _calls_per_second(lambda: next(batches), seconds)
    session.raise_if_stopped("the benchmark")
    step = _training_step(session, stage, network, batch)
    yield "training_step", stage.batch * _calls_per_second(step, seconds)
    session.raise_if_stopped("the benchmark")
    head, test = session.methods["stage1"].head, task.splits.test

    def measured(images: float) -> float:
        part = test.take(np.arange(min(int(images), len(test))))
        begun = time.monotonic()
        evaluate(task, head, network, part)
        return len(part) / (time.monotonic() - begun)

    measured(task.eval_batch)  # compiles
    once = measured(task.eval_batch)
    yield "evaluation", measured(max(task.eval_batch, seconds * once))


def _calls_per_second(call: Callable[[], Any], seconds: float) -> float:
    """Count calls that do not wait for each other, after one that may compile."""
    result = jax.block_until_ready(call())
    wait, count, begun = sharding.dispatch_limiter(), 0, time.monotonic()
    while count < LEAST or time.monotonic() - begun < seconds:
        result, count = call(), count + 1
        wait(result)
    jax.block_until_ready(result)
    return count / (time.monotonic() - begun)


def _training_step(
    session: Session, stage: Stage, network: Weights, batch: Batch
) -> Callable[[], Any]:
    """Return a function that trains on a batch and returns what the step measured."""
    step: Any = steps.make_train_step(step_spec(session.task, stage))
    state = steps.init_state(*network, stage.sgd, stage.trains)
    inputs = step_inputs(stage, network.params["head"])
    step = steps.compile_step(step, state, batch, inputs).run

    def call() -> Any:
        nonlocal state
        state, measured = step(state, batch, inputs)
        return measured

    return call


def _batches(train: Dataset, stage: Stage) -> Generator[Batch, None, None]:
    """Yield the complete batches of epoch after epoch."""
    full = slice(max(1, len(train) // stage.batch))
    for epoch in itertools.count():
        rows, crops = epoch_plan(train, stage, epoch, full)
        yield from load_batches(train, rows, sharding.shard_batch, crops=crops)
