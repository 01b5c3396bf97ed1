"""What training steps measure, collected without a sync per step, and the time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from lt_jax.distributed import sharding
from lt_jax.errors import Diverged
from lt_jax.training.log import duration
from lt_jax.types import Batch


class Meter:
    """The loss and accuracy of the running epoch, and the speed of the whole run."""

    def __init__(self, title: str, total: int):
        self._title = title
        self._total = total  # steps of the run
        self._wait = sharding.dispatch_limiter()
        self._pending: list[tuple[int, int, dict[str, jax.Array]]] = []
        self._begun = self._told = time.monotonic()
        self._mark: float | None = None  # training is timed from here; None: compiling
        # Of the steps after the first one, which compiles; evaluation left out.
        self._seconds, self._images, self._steps = 0.0, 0, 0
        self._waited = 0.0  # of these seconds, for the next batch
        self._earlier = 0.0  # seconds before a stop
        self.new_epoch()

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps so that a resumed run reports the whole time."""
        return {
            "wall": self.wall(),
            "seconds": self._seconds,
            "images": self._images,
            "steps": self._steps,
            "waited": self._waited,
            "epoch": self._epoch,
        }

    def resume(self, notes: dict[str, Any]) -> None:
        self._earlier = notes["wall"]
        self._seconds, self._images = notes["seconds"], notes["images"]
        self._steps, self._epoch = notes["steps"], notes["epoch"]
        self._waited = notes.get("waited", 0.0)  # older checkpoints do not tell

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what they let the host wait is noted."""
        source = iter(batches)
        while True:
            before = time.monotonic()
            batch = next(source, None)
            self.waiting(time.monotonic() - before)
            if batch is None:
                return
            yield batch

    def waiting(self, seconds: float) -> None:
        """Takes how long the host waited for a batch, of the steps that are timed."""
        if self._mark is not None:
            self._waited += seconds

    def new_epoch(self) -> None:
        """Starts the sums anew, and the clock where evaluation stopped it."""
        self._epoch = {"loss_sum": 0.0, "weight_sum": 0.0, "right": 0.0, "seen": 0.0}
        if self._mark is not None:
            self._mark = time.monotonic()

    def add(self, step: int, measured: dict[str, jax.Array], count: int = 1) -> None:
        """Takes what a step measured; waits only for a step of long ago.

        With ``count`` above 1 what so many steps measured, the last of them ``step``:
        arrays with a leading axis of steps.
        """
        self._wait(measured)
        self._pending.append((step, count, measured))
        if self._mark is None:
            self.fetch()
            self._mark = time.monotonic()

    def fetch(self) -> None:
        """Brings what is pending to the host, in one sync.

        Raises:
          Diverged: a loss or a parameter is nan or infinite; names the step.
        """
        fetched = [
            (last - count + 1 + at, {k: np.reshape(v, -1)[at] for k, v in each.items()})
            for last, count, each in jax.device_get(self._pending)
            for at in range(count)
        ]
        self._pending = []
        if self._mark is not None:
            now = time.monotonic()
            self._seconds, self._mark = self._seconds + now - self._mark, now
            self._steps += len(fetched)
            self._images += sum(int(measured["seen"]) for _, measured in fetched)
        for step, measured in fetched:
            loss = measured["loss_sum"]
            if measured["seen"]:  # there may be a step that saw nothing but padding
                loss = loss / measured["weight_sum"]
            if not np.isfinite(loss):
                raise Diverged(f"{self._title}: the loss is {loss} at step {step:,}")
            if not measured["finite"]:
                raise Diverged(
                    f"{self._title}: step {step:,} made a parameter nan or infinite"
                )
            for name in self._epoch:
                self._epoch[name] += float(measured[name])

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far, by weight."""
        weight = self._epoch["weight_sum"]
        return self._epoch["loss_sum"] / weight if weight else float("nan")

    @property
    def accuracy(self) -> float:
        """Of the epoch's examples so far, augmented and before each update."""
        seen = self._epoch["seen"]
        return self._epoch["right"] / seen if seen else float("nan")

    def wall(self) -> float:
        """Seconds of the run, all included, time before a stop too."""
        return self._earlier + time.monotonic() - self._begun

    def rate(self) -> float:
        """Training images a second, compilation and evaluation left out."""
        return self._images / self._seconds if self._seconds else float("nan")

    def starved(self) -> float:
        """Share of the timed seconds in which the host waited for data.

        The devices have work of up to 16 steps when it begins to wait, so much of it
        means that they wait as well, a little of it does not.
        """
        return self._waited / self._seconds if self._seconds else 0.0

    def silence(self) -> float:
        """Seconds since the last line."""
        return time.monotonic() - self._told

    def line(self, step: int) -> str:
        """One line of progress; fetches what is pending."""
        self.fetch()
        self._told = time.monotonic()
        line = (
            f"{self._title} | step {step:,}/{self._total:,} | loss {self.loss:.3f} | "
            f"train {self.accuracy:.1%}"
        )
        if not self._steps:  # the first one compiles, and tells nothing of the pace
            return line
        left = duration((self._total - step) * self._seconds / self._steps)
        return (
            f"{line} | {self.rate():,.0f} img/s | data {self.starved():.0%} | "
            f"{left} left"
        )
