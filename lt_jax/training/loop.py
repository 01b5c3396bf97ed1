"""The training loop of every stage and method, and the evaluation.

The loop takes no config. What it trains is in ``stage.py``, the compiled steps are in
``steps.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lt_jax import losses, metrics, samplers
from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import DecodeErrors, load_batches
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import never_stop, until_stopped
from lt_jax.errors import Diverged, InputError, Interrupted
from lt_jax.heads import Head
from lt_jax.metrics import Tally
from lt_jax.training import batches, inference, steps
from lt_jax.training.checkpoint import Checkpoints
from lt_jax.training.log import Bar
from lt_jax.training.profiling import Profile
from lt_jax.training.progress import Meter
from lt_jax.training.stage import (
    FitResult,
    Stage,
    Task,
    epoch_plan,
    step_inputs,
    step_spec,
)
from lt_jax.training.steps import StepInputs
from lt_jax.types import Batch, TrainState, Weights

LOGGED_COMPILATION = 1.0  # shorter compilations (seconds) are not logged


@dataclasses.dataclass
class _Fit:
    """A fit in progress."""

    task: Task
    stage: Stage
    checkpoints: Checkpoints
    meter: Meter
    state: TrainState
    step: int = 0

    @property
    def where(self) -> str:
        """For example ``step 40 of 100``."""
        return f"step {self.step:,} of {len(self.stage.rates):,}"


def fit(task: Task, stage: Stage, start: Weights, directory: Path) -> FitResult:
    """Train from ``start``, or resume from the newest checkpoint in ``directory``.

    Raises:
      Interrupted: ``task.stop_requested`` named a signal; a checkpoint has been saved.
      Diverged: a loss or parameter became NaN or infinite; names the step. Earlier
        checkpoints remain.
    """
    least = _least_loss(task, stage)
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        meter = Meter(stage.title, stage.rates, stage.per_epoch, least)
        state = steps.init_state(*start, stage.sgd, stage.trains)
        run = _Fit(task, stage, checkpoints, meter, state)
        _resume(run)
        _train(run, step_inputs(stage, start.params["head"]))
        if checkpoints.latest() is None:  # a fit of zero epochs
            _save(run, None)
        if task.select != "last" and (best := checkpoints.best()) is not None:
            run.step = best
            run.state, _ = checkpoints.restore(best, run.state)
    network = Weights(run.state.params, run.state.batch_stats)
    return FitResult(network, run.step, run.meter.wall(), run.meter.rate())


def _resume(run: _Fit) -> None:
    """Continue from the newest checkpoint, if there is one."""
    log, stage, train = run.task.log, run.stage, run.task.splits.train
    if (found := run.checkpoints.resume(run.state, log.info)) is not None:
        run.step, state, notes = found
        if notes["examples"] != train.hash:
            raise InputError(
                f"{run.checkpoints.directory} was trained on other examples "
                f"({notes['examples']}) than the dataset has now ({train.hash}); use "
                "another --workdir"
            )
        run.state = sharding.replicate(state)
        run.meter.resume(notes)
        if run.step % stage.per_epoch == 0:
            run.meter.new_epoch()
        log.info(f"{stage.title}: resuming from {run.where}")
    elif stage.epochs:
        log.info(f"{stage.title}: {stage.epochs:,} epochs of {stage.per_epoch:,} steps")
    # A killed run may have recorded steps after its last checkpoint.
    log.rewind(stage.title, run.step)


def _train(run: _Fit, early: StepInputs) -> None:
    """Train from the current step to the last one.

    ``early`` are the inputs of the first epochs; the loss may change after them.
    """
    task, stage, total = run.task, run.stage, len(run.stage.rates)
    stop, step = task.stop_requested, None
    adjust = stage.method.deferred or stage.method.adjust
    late = early._replace(adjust=sharding.replicate(adjust))
    late_from = round(stage.method.defer * stage.epochs)
    train, errors = task.splits.train, DecodeErrors(task.splits.train)
    resident = batches.fits_on_device(train, task.resident)
    source = batches.resident(train) if resident else batches.streamed(train, errors)
    bar = Bar(task.log, stage.title, run.step, total, task.log_seconds)
    traces = Path(task.profile, stage.title) if task.profile else None
    profile = Profile(traces, run.step, total, task.log)
    with bar, contextlib.closing(profile), jax.transfer_guard("disallow"):
        while run.step < total:
            epoch, done = divmod(run.step, stage.per_epoch)
            inputs, signal = early if epoch < late_from else late, ""
            rest = slice(done, stage.per_epoch)
            loaded = source(*epoch_plan(train, stage, epoch, rest))
            for batch in run.meter.time_waits(loaded):
                step = step or _compile(run, batch, inputs)
                run.state, measured = step(run.state, batch, inputs)
                run.step += 1
                run.meter.add(run.step, measured)
                profile.step(run.step, measured)
                if processes.is_sync_step(run.step) and (signal := stop()):
                    break
                if warning := errors.new_warning():
                    task.log.warning(warning)
                if bar.advance(1):
                    bar.show(run.meter.parts(run.step), run.meter.each())
            if run.step % stage.per_epoch:  # stopped within the epoch
                _save(run, None)
                raise Interrupted(f"{stage.title}: {run.where}", signal)
            _end_epoch(run, epoch)
            bar.estimate(run.meter.each())


def _compile(run: _Fit, batch: Batch, inputs: StepInputs) -> Callable[..., Any]:
    made = steps.make_train_step.cache_info().misses
    step = steps.make_train_step(step_spec(run.task, run.stage))
    if steps.make_train_step.cache_info().misses > made:  # fits may share a step
        run.task.log.info(f"{run.stage.title}: compiling the training step ...")
    compiled = steps.compile_step(step, run.state, batch, inputs)
    if compiled.compile_seconds >= LOGGED_COMPILATION:
        run.task.log.detail(
            f"{run.stage.title}: compiled the training step in "
            f"{compiled.compile_seconds:.1f} s; temporary memory per device: "
            f"{compiled.temporary_bytes / 2**20:,.0f} MiB"
        )
    return compiled.run


def _least_loss(task: Task, stage: Stage) -> float:
    """Return the least possible loss of a fit; 0 if it is not known."""
    method, power = stage.method, samplers.POWERS[stage.method.sampler]
    if stage.mixup or method.deferred is not None:
        return 0.0
    counts = task.splits.train.class_counts
    return losses.least(method.adjust, counts ** (1.0 if power is None else power))


def _end_epoch(run: _Fit, epoch: int) -> None:
    """Evaluate and save where due; stop if a signal came."""
    task, last = run.task, run.step == len(run.stage.rates)
    run.meter.fetch()  # stops the clock before the evaluation
    evaluates = last or (epoch + 1) % task.eval_every == 0
    score = _evaluate_checkpoint(run) if evaluates else None
    signal = task.stop_requested()
    if evaluates or (epoch + 1) % task.save_every == 0 or signal:
        _save(run, score)
    if signal and not last:
        raise Interrupted(f"{run.stage.title}: {run.where}", signal)
    run.meter.new_epoch()


def _save(run: _Fit, score: float | None) -> None:
    run.meter.fetch()  # raises if a loss is NaN, before it can be saved
    notes = {**run.meter.notes(), "examples": run.task.splits.train.hash}
    run.checkpoints.save(run.step, run.state, notes, score)


def _evaluate_checkpoint(run: _Fit) -> float | None:
    """Evaluate on the split that selects the checkpoint; record and return the score.

    The test set selects by accuracy, as in the authors' code. Validation, which is as
    long-tailed as the training set, selects by the mean over classes.
    """
    task, stage, meter = run.task, run.stage, run.meter
    tests = task.select == "test"
    dataset = task.splits.test if tests else task.splits.valid
    line, score = " | ".join([stage.title, *meter.parts(run.step).values()]), None
    values, per_class = dict[str, Any](), dict[str, np.ndarray]()
    if len(dataset):
        network = Weights(run.state.params, run.state.batch_stats)
        # A signal is left to the end of the epoch, which saves this result.
        uninterrupted = task._replace(stop_requested=never_stop)
        tally = evaluate(uninterrupted, stage.method.head, network, dataset)
        values = metrics.summary(tally, task.groups, task.group_average)
        per_class = metrics.per_class(tally)
        score = values["all" if tests else "balanced"]
        line += f" | test {score:.1%}" * tests
        line += f" | validation {score:.1%} balanced" * (not tests)
    task.log.info(line)
    task.log.record(
        per_class,
        run=stage.title,
        step=run.step,
        epoch=stage.epochs * run.step / len(stage.rates),
        rate=stage.rates[run.step - 1],
        loss=meter.loss,
        train_accuracy=meter.accuracy,
        images_per_second=meter.rate(),
        **values,
    )
    return score


def evaluate(task: Task, head: Head, network: Weights, dataset: Dataset) -> Tally:
    """Compute the tally of a dataset: every example once, one sync at the end.

    Images that cannot be decoded are logged and left out of ``tally.seen``.

    Raises:
      Interrupted: ``task.stop_requested`` named a signal.
      Diverged: logits are NaN or infinite, which finite parameters do not exclude.
    """
    eval_step = inference.make_eval_step(task.backbone, head, task.augment, task.flip)
    network, tally = sharding.replicate((network, metrics.empty(len(dataset.classes))))
    wait, errors = sharding.dispatch_limiter(), DecodeErrors(dataset)
    rows = samplers.batch_indices(np.arange(len(dataset)), task.eval_batch)
    rows = sharding.process_part(rows)
    loaded = load_batches(dataset, rows, sharding.shard_batch, errors=errors)
    doing = f"the evaluation on {dataset.name}, which restarts"
    for batch in until_stopped(loaded, task.stop_requested, doing):
        tally = eval_step(*network, batch, tally)
        wait(tally.seen)
    if warning := errors.new_warning():
        task.log.warning(warning)
    tally = jax.device_get(tally)
    if not np.isfinite(tally.loss_sum).all():
        raise Diverged(
            f"the network has diverged: logits on {dataset.name} are NaN or infinite"
        )
    return tally
