"""From the plan of an epoch to its steps: streamed, or on images the devices hold.

Both go through the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.training import steps
from lt_jax.training.steps import CompiledStep, StepInputs
from lt_jax.types import Batch, TrainState

# The state after some steps, what they measured (with a leading axis of steps where the
# devices took several at once), and how many they were.
Taken = tuple[TrainState, dict[str, jax.Array], int]


# (state, int32[S, B] for this process, crops, inputs) -> the steps of these rows.
# The state is donated.
Stepper = Callable[[TrainState, np.ndarray, CropPlan, StepInputs], Iterator[Taken]]


def holds(dataset: Dataset, most: float) -> bool:
    """Whether ``most`` GiB hold all images, as uint8; photographs are never held."""
    if dataset.decoder is not None:
        return False
    return len(dataset) * math.prod(dataset.shape) <= most * 2**30


def streamed(
    step: Any,
    dataset: Dataset,
    decode_errors: DecodeErrors,
    tell: Callable[[CompiledStep], None],
    timed: Callable[[Iterator[Batch]], Iterator[Batch]],
) -> Stepper:
    """A step at a time; batches are read while the devices are busy.

    Args:
      step: of ``steps.make_train_step``.
      tell: hears once of the compilation.
      timed: passes the batches on, and may note how long each let wait.
    """
    ready: list[CompiledStep] = []

    def take(
        state: TrainState, rows: np.ndarray, crops: CropPlan, inputs: StepInputs
    ) -> Iterator[Taken]:
        batches = load_batches(
            dataset, rows, sharding.shard_batch, crops=crops, errors=decode_errors
        )
        for batch in timed(batches):
            if not ready:
                ready.append(steps.compile_step(step, state, batch, inputs))
                tell(ready[0])
            state, measured = ready[0].run(state, batch, inputs)
            yield state, measured, 1

    return take


def resident(
    step: Any,
    several: Any,
    dataset: Dataset,
    at_once: int,
    tell: Callable[[CompiledStep], None],
) -> Stepper:
    """Images lie on the devices, only the numbers of rows travel to them.

    With ``at_once`` 1 the devices pick the batch and take the same step as `streamed`,
    to the same bits; with more they take so many in one call, in a program of its own.

    Args:
      step: of ``steps.make_train_step``.
      several: of ``steps.make_train_steps``.
      tell: hears once of the compilation.
    """
    held = sharding.replicate(
        {
            "image": dataset.read(np.arange(len(dataset))),
            "label": dataset.labels.astype(np.int32),
        }
    )
    ready: list[CompiledStep] = []

    def run(program: Any, *arguments: Any) -> Any:
        if not ready:
            ready.append(steps.compile_step(program, *arguments))
            tell(ready[0])
        return ready[0].run(*arguments)

    def take(
        state: TrainState, rows: np.ndarray, crops: CropPlan, inputs: StepInputs
    ) -> Iterator[Taken]:
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            filled = np.full((at_once, rows.shape[1]), -1, np.int32)
            filled[: len(some)] = some
            dealt = sharding.shard_indices(filled)
            if at_once == 1:
                batch = steps.make_pick()(held, dealt)
                state, measured = run(step, state, batch, inputs)
            else:
                count = sharding.replicate(np.asarray(len(some), np.int32))
                state, measured = run(several, state, held, dealt, count, inputs)
            yield state, measured, len(some)

    return take
