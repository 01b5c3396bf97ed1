"""What a fit is: what its run shares, its own settings, and the inputs of its steps.

Stages differ in the values of a ``Stage``, not in code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax import samplers, seeds
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.loader import CropPlan
from lt_jax.distributed import sharding
from lt_jax.distributed.interrupt import never_stop
from lt_jax.methods import Method, projection_steps
from lt_jax.training.log import Logger
from lt_jax.training.optim import Sgd
from lt_jax.training.steps import StepInputs, StepSpec
from lt_jax.types import Params, Weights


class Task(NamedTuple):
    """What all stages of a run share."""

    splits: Splits
    groups: dict[str, np.ndarray]  # bool[K] by name
    group_average: str  # of the accuracy of a group: over "classes" or "examples"
    backbone: Any  # a Backbone, which pyright considers unhashable
    augment: Augment
    flip: bool  # whether evaluation averages over the mirror image
    eval_batch: int
    eval_every: int  # epochs
    save_every: int  # epochs
    select: str  # which checkpoint to keep: "last", or best on "validation"/"test"
    resident: float  # GiB of training images that a device may hold; 0: stream
    log_seconds: float  # between progress lines, without a progress bar
    profile: str = ""  # folder for traces of some steps of each fit; "": no traces
    log: Logger = Logger(Path(), enabled=False)
    stop_requested: Callable[[], str] = never_stop  # the name of a signal, or ""


class Stage(NamedTuple):
    """The settings of one fit."""

    title: str
    run: tuple[int, ...]  # names the random streams, see seeds
    method: Method
    epochs: int
    batch: int  # over all devices
    rates: np.ndarray  # float32[steps]
    sgd: Sgd
    trains: str  # regular expression for full parameter names
    batch_norm: str  # see steps.BATCH_NORM
    accumulate: int  # micro-batches per step
    mixup: float  # alpha of mixup; 0: none

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch, at least 1."""
        return max(1, len(self.rates) // max(1, self.epochs))


class FitResult(NamedTuple):
    """The result of a fit."""

    network: Weights
    step: int  # of the checkpoint that is kept
    seconds: float  # wall time, including evaluation and compilation
    images_per_second: float  # of the training steps, without compilation


def epoch_plan(
    train: Dataset, stage: Stage, epoch: int, which: slice
) -> tuple[np.ndarray, CropPlan]:
    """Plan some steps of an epoch: int32[S, B] for this process, and its crops."""
    sampler, batch, run = stage.method.sampler, stage.batch, stage.run
    indices = samplers.plan(train.labels, sampler, batch, run, epoch)

    def local(rows: np.ndarray) -> np.ndarray:
        arranged = sharding.arrange_micro_batches(
            rows[which], stage.accumulate, pairs=stage.mixup > 0
        )
        return sharding.process_part(arranged)

    # The position of an image in the plan determines its crop.
    positions = np.arange(indices.size).reshape(indices.shape)
    return local(indices), CropPlan(run, epoch, local(positions))


def step_inputs(stage: Stage, head: Params) -> StepInputs:
    """Place the step inputs of a stage that starts from ``head`` on the devices."""
    pairs = stage.mixup > 0
    return sharding.replicate(
        StepInputs(
            key=seeds.key(stage.run, "augment"),
            rates=stage.rates,
            adjust=stage.method.adjust,
            start=head,
            projects=projection_steps(stage.method, stage.epochs, stage.per_epoch),
            micro_batch_size=sharding.micro_batch_size(
                stage.batch, stage.accumulate, pairs
            ),
        )
    )


def step_spec(task: Task, stage: Stage) -> StepSpec:
    """Describe what the training step of a stage is compiled for."""
    return StepSpec(
        backbone=task.backbone,
        head=stage.method.head,
        loss=stage.method.loss,
        project=stage.method.project,
        sgd=stage.sgd,
        trains=stage.trains,
        batch_norm=stage.batch_norm,
        augment=task.augment,
        micro_batches=stage.accumulate,
        mixup=stage.mixup,
    )
