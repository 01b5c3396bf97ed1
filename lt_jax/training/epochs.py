"""The steps of an epoch: on streamed batches, or on images held by the devices.

Both take the same steps on the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.training import steps
from lt_jax.training.steps import CompiledStep, Measured, StepInputs, StepSpec
from lt_jax.types import Batch, TrainState

# (state, int32[S, B] for this process, crops, inputs) -> for each call of a compiled
# step: the state, what it measured and the number of steps taken. With several steps
# the measured arrays have a leading axis of steps. The state is donated.
Stepper = Callable[
    [TrainState, np.ndarray, CropPlan, StepInputs],
    Iterator[tuple[TrainState, Measured, int]],
]
OnCompile = Callable[[CompiledStep], None]  # called once, after compilation


def fits_on_device(dataset: Dataset, limit: float) -> bool:
    """Return whether all images fit into ``limit`` GiB; encoded photos never do."""
    if dataset.decoder is not None:
        return False
    return len(dataset) * math.prod(dataset.shape) <= limit * 2**30


def streaming_stepper(
    spec: StepSpec,
    dataset: Dataset,
    errors: DecodeErrors,
    on_compile: OnCompile,
    time_waits: Callable[[Iterator[Batch]], Iterator[Batch]],
) -> Stepper:
    """Take single steps on batches that are loaded while the devices work.

    Args:
      spec: what the step is compiled for.
      dataset: the training examples.
      errors: collects the images that cannot be decoded.
      on_compile: called once, after compilation.
      time_waits: passes batches through and may measure how long each takes.
    """
    step = _compile_on_first_call(steps.make_train_step(spec), on_compile)

    def take(
        state: TrainState, indices: np.ndarray, crops: CropPlan, inputs: StepInputs
    ) -> Iterator[tuple[TrainState, Measured, int]]:
        batches = load_batches(
            dataset, indices, sharding.shard_batch, crops=crops, errors=errors
        )
        for batch in time_waits(batches):
            state, measured = step(state, batch, inputs)
            yield state, measured, 1

    return take


def resident_stepper(
    spec: StepSpec, dataset: Dataset, per_call: int, on_compile: OnCompile
) -> Stepper:
    """Take steps on images that the devices hold; only indices travel.

    With ``per_call`` 1 the devices gather the batch and take the same step as
    `streaming_stepper`, bit for bit. Otherwise one call takes ``per_call`` steps.
    """
    images, labels = dataset.read(np.arange(len(dataset))), dataset.labels
    held = sharding.replicate({"image": images, "label": labels.astype(np.int32)})
    make = steps.make_train_step if per_call == 1 else steps.make_multi_step
    step = _compile_on_first_call(make(spec), on_compile)

    def take(
        state: TrainState, indices: np.ndarray, crops: CropPlan, inputs: StepInputs
    ) -> Iterator[tuple[TrainState, Measured, int]]:
        for first in range(0, len(indices), per_call):
            rows = indices[first : first + per_call]
            padded = np.full((per_call, indices.shape[1]), -1, np.int32)
            padded[: len(rows)] = rows
            sharded = sharding.shard_indices(padded)
            if per_call == 1:
                batch = steps.make_gather()(held, sharded)
                state, measured = step(state, batch, inputs)
            else:
                count = sharding.replicate(np.asarray(len(rows), np.int32))
                state, measured = step(state, held, sharded, count, inputs)
            yield state, measured, len(rows)

    return take


def _compile_on_first_call(step: Any, on_compile: OnCompile) -> Callable[..., Any]:
    compiled: CompiledStep | None = None

    def run(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = steps.compile_step(step, *arguments)
            on_compile(compiled)
        return compiled.run(*arguments)

    return run
