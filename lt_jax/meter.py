"""What training steps measure, collected without a sync per step, and the time."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from lt_jax import steps
from lt_jax.log import duration


class Diverged(Exception):
    """The loss is no longer a number."""


class Meter:
    """The loss and accuracy of the running epoch, and the speed of the whole run."""

    def __init__(self, title: str, total: int):
        self._title = title
        self._total = total  # steps of the run
        self._wait = steps.throttle()
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._begun = self._told = time.monotonic()
        self._mark: float | None = None  # training is timed from here; None: compiling
        # Of the steps after the first one, which compiles; evaluation left out.
        self._seconds, self._images, self._steps = 0.0, 0, 0
        self._earlier = 0.0  # seconds before a stop
        self.new_epoch()

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps so that a resumed run reports the whole time."""
        return {
            "wall": self.wall(),
            "seconds": self._seconds,
            "images": self._images,
            "steps": self._steps,
        }

    def resume(self, notes: dict[str, Any]) -> None:
        self._earlier = notes["wall"]
        self._seconds, self._images = notes["seconds"], notes["images"]
        self._steps = notes["steps"]

    def new_epoch(self) -> None:
        """Starts the sums anew, and the clock where evaluation stopped it."""
        self._loss_sum, self._right, self._seen = 0.0, 0, 0
        if self._mark is not None:
            self._mark = time.monotonic()

    def add(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Takes what a step measured; waits only for a step of long ago."""
        self._wait(measured["loss"])
        self._pending.append((step, measured))
        if self._mark is None:
            self.fetch()
            self._mark = time.monotonic()

    def fetch(self) -> None:
        """Brings what is pending to the host, in one sync.

        Raises:
          Diverged: a loss is nan or infinite; names the first such step.
        """
        fetched = jax.device_get(self._pending)
        self._pending = []
        if self._mark is not None:
            now = time.monotonic()
            self._seconds, self._mark = self._seconds + now - self._mark, now
            self._steps += len(fetched)
            self._images += sum(int(measured["seen"]) for _, measured in fetched)
        for step, measured in fetched:
            if not np.isfinite(measured["loss"]):
                raise Diverged(
                    f"{self._title}: the loss is {measured['loss']} at step {step:,}"
                )
            self._loss_sum += float(measured["loss"]) * int(measured["seen"])
            self._right += int(measured["right"])
            self._seen += int(measured["seen"])

    @property
    def loss(self) -> float:
        """Mean loss of the epoch's examples so far."""
        return self._loss_sum / self._seen if self._seen else float("nan")

    @property
    def accuracy(self) -> float:
        """Of the epoch's examples so far, augmented and before each update."""
        return self._right / self._seen if self._seen else float("nan")

    def wall(self) -> float:
        """Seconds of the run, all included, time before a stop too."""
        return self._earlier + time.monotonic() - self._begun

    def rate(self) -> float:
        """Training images a second, compilation and evaluation left out."""
        return self._images / self._seconds if self._seconds else float("nan")

    def silence(self) -> float:
        """Seconds since the last line."""
        return time.monotonic() - self._told

    def line(self, step: int) -> str:
        """One line of progress; fetches what is pending."""
        self.fetch()
        self._told = time.monotonic()
        pace = self._seconds / self._steps if self._steps else 0.0
        return (
            f"{self._title} | step {step:,}/{self._total:,} | loss {self.loss:.3f} | "
            f"train {self.accuracy:.1%} | {self.rate():,.0f} img/s | "
            f"{duration((self._total - step) * pace)} left"
        )
