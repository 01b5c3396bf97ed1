"""From a plan of indices to batches on the devices, read ahead in the background."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lt_jax import seeds
from lt_jax.types import Batch, Dataset, InputError

AT_ONCE = 8  # photographs that a thread reads and decodes in one go
NAMED = 10  # broken images that one message names


class Crops(NamedTuple):
    """Which random crops are taken of photographs."""

    run: tuple[int, ...]  # see seeds
    epoch: int
    positions: (
        np.ndarray
    )  # int[steps, B], places in the plan; what is drawn hangs on it


class Broken:
    """The images of a data set that could not be decoded, and why."""

    def __init__(self, dataset: Dataset):
        self.why: dict[int, str] = {}  # by index into the data set
        self._dataset = dataset
        self._told = 0

    def news(self) -> str:
        """A line on those that came since it was last asked for; "" if none did."""
        late = list(self.why.items())[self._told :]
        self._told += len(late)
        if not late:
            return ""
        some = len(late) == 1
        return (
            f"{self._dataset.name}: {len(late):,} {'image' if some else 'images'} "
            f"cannot be decoded and {'counts' if some else 'count'} nowhere: "
            + self._named(late)
        )

    def _named(self, late: list[tuple[int, str]]) -> str:
        return "; ".join(f"{self._dataset.ids[i]} ({why})" for i, why in late)

    def check(self, count: int, total: int) -> None:
        """Raises InputError if ``count`` in ``total`` is more than is tolerated."""
        decoder = self._dataset.decoder
        if decoder is None or count <= decoder.broken * total:
            return
        late = list(self.why.items())
        more = f"; and {len(late) - NAMED:,} more" if len(late) > NAMED else ""
        raise InputError(
            f"{self._dataset.name}: {count:,} images cannot be decoded, of {total:,} "
            f"at most the share data.broken = {decoder.broken:g} may be: "
            f"{self._named(late[:NAMED])}{more}. Restore them, or tolerate a larger "
            "share with --config.data.broken"
        )


def feed(
    dataset: Dataset,
    rows: np.ndarray,
    width: int,
    place: Callable[[Batch], Batch],
    ahead: int = 2,
    *,
    crops: Crops | None = None,
    broken: Broken | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields the batch of every row of a plan.

    Photographs are decoded by threads, as many as ``decoder.workers``; a batch depends
    on its row and its positions alone, so a plan may be entered at any row. One that
    cannot be decoded becomes padding.

    Args:
      dataset: what to read.
      rows: int32[steps, B] of indices; -1 is padding.
      width: rows of the batch that is made, at least B; the rest is padding.
      place: moves a host batch to the devices.
      ahead: batches that are read while the devices are busy with earlier ones.
      crops: of photographs; None: the centre of each.
      broken: learns which images could not be decoded.
      process: this one's number and how many share each batch; only this one's part of
        its rows is read and made, ``width / processes`` neighbours.

    Yields:
      ``{"image": uint8[width, H, W, C], "label": int32, "mask": float32}`` as placed.

    Raises:
      InputError: more images are broken than ``decoder.broken`` allows of all the
        images of ``rows``; as soon as they are.
    """
    broken = Broken(dataset) if broken is None else broken
    number, processes = process
    own = slice(number * width // processes, (number + 1) * width // processes)
    rows = _padded(rows, width)[:, own]
    places = None if crops is None else _padded(crops.positions, width)[:, own]
    total, count = int((rows >= 0).sum()), 0
    decoder = dataset.decoder

    def begin(step: int) -> Callable[[], Batch]:
        """Sets the threads on a batch; returns what waits for them and places it."""
        indices = rows[step]
        real = np.flatnonzero(indices >= 0)
        image = np.zeros((len(indices), *dataset.shape), np.uint8)
        label = np.zeros(len(indices), np.int32)
        mask = np.zeros(len(indices), np.float32)
        label[real] = dataset.labels[indices[real]]
        mask[real] = 1
        batch = {"image": image, "label": label, "mask": mask}
        if decoder is None:

            def read() -> Batch:
                image[real] = dataset.read(indices[real])
                return place(batch)

            return read

        numbers = None
        if crops is not None and places is not None and len(real):
            numbers = seeds.numbers(
                crops.run, crops.epoch, places[step][real], decoder.numbers
            )
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
            nonlocal count
            for chosen, done in parts:
                for row, why in zip(chosen, done.result(), strict=True):
                    if why:
                        mask[row] = label[row] = 0
                        broken.why.setdefault(int(indices[row]), why)
                        count += 1
            broken.check(count, total)
            return place(batch)

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


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    """int[steps, width], filled up with -1."""
    filled = np.full((len(rows), width), -1, rows.dtype)
    filled[:, : rows.shape[1]] = rows
    return filled
