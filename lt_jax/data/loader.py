"""Batches on the devices from a plan of indices, read ahead in background threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lt_jax import seeds
from lt_jax.data.dataset import Dataset
from lt_jax.distributed import processes
from lt_jax.errors import InputError, first_few
from lt_jax.types import Batch

IMAGES_PER_TASK = 8  # photographs that a thread reads and decodes in one task
MAX_NAMED = 10  # undecodable images named in an error message


class CropPlan(NamedTuple):
    """The random crops of photographs in an epoch."""

    run: tuple[int, ...]  # see seeds
    epoch: int
    positions: np.ndarray  # int[steps, B] in the epoch; they seed the crops


class DecodeErrors:
    """The images of a dataset that could not be decoded."""

    def __init__(self, dataset: Dataset):
        self.reasons: dict[int, str] = {}  # by index into the dataset
        self._dataset = dataset
        self._reported = 0

    def new_warning(self) -> str:
        """Name the images added since the last call; "" if there are none."""
        new = list(self.reasons)[self._reported :]
        self._reported += len(new)
        if not new:
            return ""
        images = f"undecodable image{'s' * (len(new) > 1)}"
        names = ", ".join(self._names(new))
        return f"{self._dataset.name}: skipped {len(new):,} {images}: {names}"

    def all_indices(self) -> list[int]:
        """Collect the sorted indices of all processes; every process must call it."""
        mask = np.zeros(len(self._dataset), bool)
        mask[list(self.reasons)] = True
        return np.flatnonzero(processes.any_process(mask)).tolist()

    def check(self) -> None:
        """Raise InputError if there are more than ``decoder.max_broken`` tolerates."""
        decoder, total = self._dataset.decoder, len(self._dataset)
        count = len(self.reasons)
        if decoder is None or count <= decoder.max_broken * total:
            return
        raise InputError(
            f"{self._dataset.name}: {count:,} of {total:,} images cannot be decoded, "
            f"more than the share data.broken = {decoder.max_broken:g}: "
            f"{first_few(self._names(self.reasons), MAX_NAMED)}. Restore or remove "
            "them, or raise the limit with "
            f"--config.data.broken={math.ceil(1000 * count / total) / 1000:g}"
        )

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [f"{self._dataset.ids[i]} ({self.reasons[i]})" for i in indices]


def load_batches(
    dataset: Dataset,
    rows: np.ndarray,
    place: Callable[[Batch], Batch],
    ahead: int = 2,
    *,
    crops: CropPlan | None = None,
    errors: DecodeErrors | None = None,
) -> Iterator[Batch]:
    """Yield one batch per row of a plan.

    A batch depends only on its row and its crop positions, so a plan can be entered at
    any row. An image that cannot be decoded becomes padding.

    Args:
      rows: int32[steps, B] of indices; -1 is padding. Each of several processes passes
        its own columns of ``rows`` and ``crops.positions``.
      place: moves a host batch to the devices.
      ahead: number of batches to prepare while the devices work.
      crops: random crops of photographs; None for centre crops.
      errors: collects the images that cannot be decoded; see its ``check``.
    """
    errors = DecodeErrors(dataset) if errors is None else errors
    decoder = dataset.decoder
    # Grain was 6 % slower than these threads (docs/benchmarks/performance.md). One
    # thread finishes the batches in order and moves them to the devices.
    finisher = ThreadPoolExecutor(1)
    workers = ThreadPoolExecutor(decoder.workers if decoder else 1)
    pending: deque[Future[Batch]] = deque()
    try:
        for step, indices in enumerate(rows):
            numbers, real = None, indices >= 0
            if decoder and crops is not None and real.any():
                seeding = crops.run, crops.epoch, crops.positions[step][real]
                numbers = seeds.uniform(*seeding, decoder.crop_numbers)
            finish = _start(workers, dataset, indices, numbers, errors)
            pending.append(finisher.submit(lambda finish=finish: place(finish())))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # drops pending work if the caller stops early
        for threads in (workers, finisher):
            threads.shutdown(cancel_futures=True)


def _start(
    workers: ThreadPoolExecutor,
    dataset: Dataset,
    indices: np.ndarray,
    numbers: np.ndarray | None,
    errors: DecodeErrors,
) -> Callable[[], Batch]:
    """Start to decode a batch; return a function that waits for it, or reads it."""
    shape, tasks = (len(indices), *dataset.shape), []
    real = np.flatnonzero(indices >= 0)
    decoded = np.zeros(shape if dataset.decoder else 0, np.uint8)
    if dataset.decoder:
        for first in range(0, len(real), IMAGES_PER_TASK):
            part = slice(first, first + IMAGES_PER_TASK)
            drawn = None if numbers is None else numbers[part]
            out = [decoded[position] for position in real[part]]
            fill = dataset.decoder.fill
            tasks.append(workers.submit(fill, indices[real[part]], drawn, out))

    def finish() -> Batch:
        label, mask = (
            np.zeros(len(indices), np.int32),
            np.zeros(len(indices), np.float32),
        )
        label[real], mask[real] = dataset.labels[indices[real]], 1
        if dataset.decoder:
            reasons = [reason for task in tasks for reason in task.result()]
            for position, reason in zip(real, reasons, strict=True):
                if reason:
                    mask[position] = label[position] = 0
                    errors.reasons.setdefault(int(indices[position]), reason)
            errors.check()
            image = decoded
        else:
            found = dataset.read(indices[real])
            image = np.zeros(shape, found.dtype)
            image[real] = found
        return {"label": label, "mask": mask, "image": image}

    return finish
