"""From a plan of indices to batches on the devices, read ahead in the background."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lt_jax import seeds
from lt_jax.data.dataset import Dataset
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.types import Batch

AT_ONCE = 8  # photographs that a thread reads and decodes in one go
NAMED = 10  # broken images that one message names


class CropPlan(NamedTuple):
    """Which random crops are taken of photographs."""

    run: tuple[int, ...]  # see seeds
    epoch: int
    # int[steps, B], places in the plan; what is drawn hangs on it
    positions: np.ndarray


class DecodeErrors:
    """The images of a data set that could not be decoded, and why."""

    def __init__(self, dataset: Dataset):
        self.reasons: dict[int, str] = {}  # by index into the data set
        self._dataset = dataset
        self._told = 0

    def new_warning(self) -> str:
        """A line on those that came since it was last asked for; "" if none did."""
        late = list(self.reasons.items())[self._told :]
        self._told += len(late)
        if not late:
            return ""
        what, counts = ("image", "counts") if len(late) == 1 else ("images", "count")
        return (
            f"{self._dataset.name}: {len(late):,} {what} cannot be decoded and "
            f"{counts} nowhere: " + self._named(late)
        )

    def all_indices(self) -> list[int]:
        """Their indices, of all processes, in order; all have to call it."""
        mask = np.zeros(len(self._dataset), bool)
        mask[list(self.reasons)] = True
        return np.flatnonzero(processes.any_process(mask)).tolist()

    def _named(self, late: list[tuple[int, str]]) -> str:
        return "; ".join(f"{self._dataset.ids[i]} ({why})" for i, why in late)

    def check(self) -> None:
        """Raises InputError if they are more than is tolerated of the whole set."""
        decoder, total = self._dataset.decoder, len(self._dataset)
        count = len(self.reasons)
        if decoder is None or count <= decoder.broken * total:
            return
        more = f"; and {count - NAMED:,} more" if count > NAMED else ""
        named = self._named(list(self.reasons.items())[:NAMED])
        raise InputError(
            f"{self._dataset.name}: {count:,} of {total:,} images cannot be decoded, "
            f"more than the share data.broken = {decoder.broken:g}: "
            f"{named}{more}. Restore or remove them, or tolerate "
            f"them with --config.data.broken={_above(count / total):g}"
        )


def _above(share: float) -> float:
    """A round share above this one: 1, 2 or 5 and zeros."""
    steps = [n * 10.0**-power for power in range(6, 0, -1) for n in (1, 2, 5)]
    return next((step for step in steps if step > share), 1.0)


def load_batches(
    dataset: Dataset,
    rows: np.ndarray,
    place: Callable[[Batch], Batch],
    ahead: int = 2,
    *,
    crops: CropPlan | None = None,
    errors: DecodeErrors | None = None,
) -> Iterator[Batch]:
    """Yields the batch of every row of a plan.

    Photographs are decoded by threads, as many as ``decoder.workers``; a batch depends
    on its row and its positions alone, so a plan may be entered at any row. One that
    cannot be decoded becomes padding.

    Args:
      dataset: what to read.
      rows: int32[steps, B] of indices; -1 is padding. A process that shares its batches
        with others passes its own columns, of the positions too, and reads no others.
      place: moves a host batch to the devices.
      ahead: batches that are read while the devices are busy with earlier ones.
      crops: of photographs; None: the centre of each.
      errors: learns which images could not be decoded.

    Yields:
      ``{"image": [B, H, W, C] of the type that is read, "label": int32, "mask":
      float32}`` as placed.

    Raises:
      InputError: more images are broken than ``decoder.broken`` allows of the whole
        set; as soon as they are.
    """
    errors = DecodeErrors(dataset) if errors is None else errors
    width = rows.shape[1]
    decoder = dataset.decoder

    def begin(step: int) -> Callable[[], Batch]:
        """Sets the threads on a batch; returns what waits for them and places it."""
        indices = rows[step]
        real = np.flatnonzero(indices >= 0)
        label = np.zeros(width, np.int32)
        mask = np.zeros(width, np.float32)
        label[real] = dataset.labels[indices[real]]
        mask[real] = 1
        batch = {"label": label, "mask": mask}
        if decoder is None:

            def read() -> Batch:
                found = dataset.read(indices[real])
                image = np.zeros((width, *dataset.shape), found.dtype)
                image[real] = found
                return place({**batch, "image": image})

            return read

        image = np.zeros((width, *dataset.shape), np.uint8)
        numbers = None
        if crops is not None and len(real):
            places = crops.positions[step][real]
            numbers = seeds.uniform(crops.run, crops.epoch, places, decoder.numbers)
        parts: list[tuple[np.ndarray, Future[list[str]]]] = []
        for first in range(0, len(real), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            chosen = real[part]
            drawn = None if numbers is None else numbers[part]
            out = [image[row] for row in chosen]
            parts.append(
                (chosen, pool.submit(decoder.fill, indices[chosen], drawn, out))
            )

        def gather() -> Batch:
            for chosen, done in parts:
                for row, why in zip(chosen, done.result(), strict=True):
                    if why:
                        mask[row] = label[row] = 0
                        errors.reasons.setdefault(int(indices[row]), why)
            errors.check()
            return place({**batch, "image": image})

        return gather

    with contextlib.ExitStack() as stack:
        # One thread puts the batches in order and moves them to the devices.
        reader = stack.enter_context(_pool(1))
        pool = stack.enter_context(_pool(decoder.workers if decoder else 1))
        waiting: deque[Future[Batch]] = deque()
        for step in range(len(rows)):
            waiting.append(reader.submit(begin(step)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave undone what nobody waits for any more."""
    threads = ThreadPoolExecutor(workers)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
