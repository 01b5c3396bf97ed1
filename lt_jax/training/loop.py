"""The training loop of every stage and method, and the evaluation.

Stages differ in the values of a ``Stage``, not in code. The loop knows no config.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import metrics, samplers, seeds
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import never_stop, until_stopped
from lt_jax.errors import Diverged, InputError, Interrupted
from lt_jax.heads import Head
from lt_jax.methods import Method, projection_steps
from lt_jax.metrics import Tally
from lt_jax.training import steps
from lt_jax.training.checkpoint import Checkpoints
from lt_jax.training.log import Logger
from lt_jax.training.optim import Sgd
from lt_jax.training.profiling import Profile
from lt_jax.training.progress import Meter
from lt_jax.training.stepping import holds, resident, streamed
from lt_jax.training.steps import StepInputs, StepSpec
from lt_jax.types import Params, TrainState

# A compilation that took less is nothing to tell of.
TOLD_SECONDS = 1.0


class Task(NamedTuple):
    """What all stages of a run share."""

    splits: Splits
    groups: dict[str, np.ndarray]  # bool[K] by name
    backbone: Any  # a ResNet, which pyright takes for unhashable
    augment: Augment
    flip: bool  # whether evaluation averages over the mirror image
    eval_batch: int
    eval_every: int  # epochs
    save_every: int  # epochs
    select: str  # the checkpoint that is kept: "last", or best on "validation"/"test"
    resident: float  # GiB of training images that a device may hold; 0: streamed
    at_once: int  # steps in one call where they do; 0: what is fastest
    log_seconds: float  # between progress lines where there is no progress bar
    profile: str = ""  # folder for a trace of some steps of each fit; "": none

    @property
    def chooser(self) -> Dataset | None:
        """What is evaluated during training; the test set only where select says so."""
        if self.select == "test":
            return self.splits.test
        return self.splits.valid if len(self.splits.valid) else None


class Stage(NamedTuple):
    """What one fit differs in."""

    title: str
    run: tuple[int, ...]  # names its random streams, see seeds
    method: Method
    epochs: int
    batch: int  # of all devices together
    rates: np.ndarray  # float32[steps]
    sgd: Sgd
    trains: str  # regular expression over whole names of parameters
    batch_norm: str  # see steps.BATCH_NORM
    accumulate: int  # micro-batches that a step is computed in
    mixup: float  # alpha of mixup; 0: none
    drop_last: bool  # leaves out the last batch of an epoch where it is smaller


class FitResult(NamedTuple):
    """What a fit ends with."""

    params: Params
    batch_stats: Params
    step: int  # of the checkpoint that was kept
    seconds: float  # wall time, evaluation and compilation included
    images_per_second: float  # of the training steps alone, compilation left out


def step_spec(task: Task, stage: Stage) -> StepSpec:
    """What the train step of a stage is compiled for."""
    return StepSpec(
        task.backbone,
        stage.method.head,
        stage.method.loss,
        stage.method.project,
        stage.sgd,
        stage.trains,
        stage.batch_norm,
        task.augment,
        stage.accumulate,
        stage.mixup,
    )


def step_inputs(stage: Stage, head: Params, per_epoch: int) -> StepInputs:
    """What a stage turns; ``head`` begins, ``per_epoch`` steps are an epoch."""
    method = stage.method
    return sharding.replicate(
        StepInputs(
            seeds.key(stage.run, "augment"),
            stage.rates,
            method.adjust,
            head,
            projection_steps(method, stage.epochs, per_epoch),
            sharding.micro_batch_size(stage.batch, stage.accumulate, stage.mixup > 0),
        )
    )


def planned(
    train: Dataset, stage: Stage, epoch: int, which: slice
) -> tuple[np.ndarray, CropPlan]:
    """int32[S, B] of this process, and its crops: some steps of an epoch of a stage."""
    rows = samplers.plan(
        train.labels, stage.method.sampler, stage.batch, stage.run, epoch
    )
    # The place of an image in the plan draws its crop.
    places = np.arange(rows.size).reshape(rows.shape)
    rows, places = (
        sharding.process_part(
            sharding.arrange_micro_batches(
                each[which], stage.accumulate, pairs=stage.mixup > 0
            )
        )
        for each in (rows, places)
    )
    return rows, CropPlan(stage.run, epoch, places)


def fit(
    task: Task,
    stage: Stage,
    params: Params,
    batch_stats: Params,
    directory: Path,
    log: Logger,
    stopped: Callable[[], str],
) -> FitResult:
    """Trains from ``params``, or goes on from the newest checkpoint in ``directory``.

    Raises:
      Interrupted: ``stopped`` named a signal; a checkpoint has been written.
      meter.Diverged: the loss became nan or infinite; names the step. The checkpoints
        written before it stand.
    """
    train = task.splits.train
    images = samplers.examples_per_epoch(len(train), stage.batch, stage.drop_last)
    per_epoch = -(-images // stage.batch)
    total = stage.epochs * per_epoch
    method = stage.method
    state = steps.init_state(params, batch_stats, stage.sgd, stage.trains)
    early = step_inputs(stage, params["head"], per_epoch)
    late = early._replace(adjust=sharding.replicate(method.deferred or method.adjust))
    late_from = round(method.defer * stage.epochs)
    program = step_spec(task, stage)
    decode_errors = DecodeErrors(train)
    meter = Meter(stage.title, total)

    def tell(compiled: steps.CompiledStep) -> None:
        if (
            compiled.compile_seconds < TOLD_SECONDS
        ):  # as a rule of every seed but the first
            return
        log.info(
            f"{stage.title}: compiled the training step in "
            f"{compiled.compile_seconds:.1f} s; temporary memory per device: "
            f"{compiled.temporary_bytes / 2**20:,.0f} MiB"
        )

    step_of = steps.make_train_step(program)
    if holds(train, task.resident):
        several = steps.make_train_steps(program)
        at_once = steps.at_once(task.at_once)
        stepper = resident(step_of, several, train, at_once, tell)
    else:
        stepper = streamed(step_of, train, decode_errors, tell, meter.timed)

    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        step = 0
        if (found := checkpoints.resume(state, log.info)) is not None:
            step, state, notes = found
            if notes["examples"] != train.hash:
                raise InputError(
                    f"{directory} was fitted on other examples ({notes['examples']}) "
                    f"than the data now hold ({train.hash}); use another --workdir"
                )
            state = sharding.replicate(state)
            meter.resume(notes)
            if step % per_epoch == 0:
                meter.new_epoch()
            log.info(f"{stage.title}: goes on from step {step:,} of {total:,}")
        elif total:
            log.info(
                f"{stage.title}: {stage.epochs:,} epochs of {per_epoch:,} steps; "
                "the first waits for the compiler"
            )

        log.rewind(stage.title, step)  # what a killed run did after its checkpoint

        def save(score: float | None) -> None:
            meter.fetch()  # nothing is saved after a step whose loss was not a number
            notes = {**meter.notes(), "examples": train.hash}
            checkpoints.save(step, state, notes, score)

        def here() -> str:
            return f"{stage.title}: step {step:,} of {total:,}"

        by = ""
        bar = log.bar(stage.title, step * stage.batch, total * stage.batch)
        traces = Path(task.profile, stage.title) if task.profile else None
        profile = Profile(traces, total - step, log)
        with bar, profile, jax.transfer_guard("disallow"):
            while step < total:
                epoch = step // per_epoch
                left = slice(step % per_epoch, per_epoch)
                rows, crops = planned(train, stage, epoch, left)
                inputs = early if epoch < late_from else late
                for after, measured, count in stepper(state, rows, crops, inputs):
                    state, step = after, step + count
                    meter.add(step, measured, count)
                    profile.step(step, measured)
                    bar.update(count * stage.batch)
                    if processes.is_sync_step(step, count) and (by := stopped()):
                        break
                    if warning := decode_errors.new_warning():
                        log.warning(warning)
                    if meter.silence() > task.log_seconds:
                        line = meter.line(step)
                        if bar.disable:
                            log.info(line)
                        else:
                            bar.set_postfix(loss=f"{meter.loss:.3f}")
                if step % per_epoch:  # stopped within the epoch
                    save(None)
                    raise Interrupted(here(), by)

                meter.fetch()
                score, due = None, step == total or (epoch + 1) % task.eval_every == 0
                if due:
                    score = _report(task, stage, state, meter, step, total, log)
                by = stopped()
                if due or (epoch + 1) % task.save_every == 0 or by:
                    save(score)
                if by and step < total:
                    raise Interrupted(here(), by)
                meter.new_epoch()

        if checkpoints.latest() is None:  # a fit of no epochs
            save(None)
        if task.select != "last" and (best := checkpoints.best()) is not None:
            step = best
            state, _ = checkpoints.restore(step, state)
    return FitResult(state.params, state.batch_stats, step, meter.wall(), meter.rate())


def _report(
    task: Task,
    stage: Stage,
    state: TrainState,
    meter: Meter,
    step: int,
    total: int,
    log: Logger,
) -> float | None:
    """Evaluates on what chooses the checkpoint and tells; returns the score.

    The test set chooses by accuracy, as the authors do; validation, which is as
    long-tailed as the training set, by the mean over classes.
    """
    line = meter.line(step)
    values: dict[str, Any] = {}
    if (chooser := task.chooser) is not None:
        tally = evaluate(
            task, stage.method.head, state.params, state.batch_stats, chooser, log
        )
        values = metrics.summary(tally, task.groups)
        if task.select == "test":
            line += f" | test {values['all']:.1%}"
        else:
            line += f" | validation {values['balanced']:.1%} balanced"
    log.info(line)
    log.record(
        run=stage.title,
        step=step,
        epoch=stage.epochs * step / total,
        rate=stage.rates[step - 1],
        loss=meter.loss,
        train_accuracy=meter.accuracy,
        images_per_second=meter.rate(),
        **values,
    )
    return values.get("all" if task.select == "test" else "balanced")


def evaluate(
    task: Task,
    head: Head,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    log: Logger,
    stopped: Callable[[], str] = never_stop,
) -> Tally:
    """The tally of a whole data set: every example once, one sync at the end.

    An image that cannot be decoded is named, and scored nowhere: ``tally.seen`` lacks
    it.

    Raises:
      InputError: more of them than the data set tolerates.
      Interrupted: ``stopped`` named a signal.
      meter.Diverged: logits are nan or infinite, where the parameters need not be.
    """
    eval_step = steps.make_eval_step(task.backbone, head, task.augment, task.flip)
    params, batch_stats, tally = sharding.replicate(
        (params, batch_stats, metrics.empty(len(dataset.classes)))
    )
    wait = sharding.dispatch_limiter()
    rows = sharding.process_part(
        samplers.batch_indices(np.arange(len(dataset)), task.eval_batch)
    )
    decode_errors = DecodeErrors(dataset)
    batches = load_batches(dataset, rows, sharding.shard_batch, errors=decode_errors)
    doing = f"the evaluation on {dataset.name}, which begins anew"
    for batch in until_stopped(batches, stopped, doing):
        tally = eval_step(params, batch_stats, batch, tally)
        wait(tally.seen)
    if warning := decode_errors.new_warning():
        log.warning(warning)
    tally = jax.device_get(tally)
    if not np.isfinite(tally.loss_sum).all():
        raise Diverged(
            "the network has diverged: its logits on "
            f"{dataset.name} are nan or infinite"
        )
    return tally
