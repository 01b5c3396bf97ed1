"""The meter of a fit: loss, accuracy and speed, without a sync per step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from lt_jax.distributed import sharding
from lt_jax.errors import Diverged
from lt_jax.types import Batch


class Meter:
    """Loss and accuracy of the current epoch, and the speed of the run.

    Args:
      title: of the fit.
      rates: the learning rate of every step.
      per_epoch: steps.
      least: the least possible loss, see `losses.least`.
    """

    def __init__(
        self, title: str, rates: np.ndarray, per_epoch: int, least: float = 0.0
    ):
        self._title, self._rates = title, rates
        self._per_epoch, self._least = per_epoch, least
        self._wait = sharding.dispatch_limiter()
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._started = time.monotonic()
        self._mark: float | None = None  # start of the clock; None: still compiling
        # Totals without the first step, which compiles, and without evaluation. Of the
        # seconds, the host waited for batches during "waited".
        self._timed = {"seconds": 0.0, "images": 0, "steps": 0, "waited": 0.0}
        self._earlier = 0.0  # seconds before the run was interrupted
        self.new_epoch()

    def notes(self) -> dict[str, Any]:
        """Return what a checkpoint keeps to continue the sums and clocks."""
        return {"wall": self.wall(), **self._timed, "epoch": self._epoch}

    def resume(self, notes: dict[str, Any]) -> None:
        """Continue from the ``notes`` of a checkpoint."""
        self._earlier, self._epoch = notes["wall"], notes["epoch"]
        # "waited" is missing in old checkpoints.
        self._timed = {name: notes.get(name, 0.0) for name in self._timed}

    def time_waits(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches through and measure how long the host waits for each."""
        before = time.monotonic()
        for batch in batches:
            if self._mark is not None:
                self._timed["waited"] += time.monotonic() - before
            yield batch
            before = time.monotonic()

    def new_epoch(self) -> None:
        """Reset the sums, and restart the clock after an evaluation."""
        self._epoch = {"loss_sum": 0.0, "weight_sum": 0.0, "right": 0.0, "seen": 0.0}
        if self._mark is not None:
            self._mark = time.monotonic()

    def add(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Add what a step measured, fetched later; waits for steps well in the past."""
        self._wait(measured)
        self._pending.append((step, measured))
        if self._mark is None:
            self.fetch()
            self._mark = time.monotonic()

    def fetch(self) -> None:
        """Add up the pending steps, in one sync; Diverged if one is not finite."""
        fetched, self._pending = jax.device_get(self._pending), []
        if self._mark is not None:
            now = time.monotonic()
            self._timed["seconds"] += now - self._mark
            self._timed["steps"] += len(fetched)
            self._timed["images"] += sum(int(one["seen"]) for _, one in fetched)
            self._mark = now
        for step, measured in fetched:
            # 0 of 0 if every image failed to decode.
            weight = measured["weight_sum"] if measured["seen"] else 1.0
            loss = measured["loss_sum"] / weight
            if not np.isfinite(loss):
                raise Diverged(f"{self._title}: the loss is {loss} at step {step:,}")
            if not measured["finite"]:
                raise Diverged(
                    f"{self._title}: step {step:,} made a parameter NaN or infinite"
                )
            for name in self._epoch:
                self._epoch[name] += float(measured[name])

    @property
    def loss(self) -> float:
        """Weighted mean loss of the epoch so far."""
        weight = self._epoch["weight_sum"]
        return self._epoch["loss_sum"] / weight if weight else float("nan")

    @property
    def accuracy(self) -> float:
        """Accuracy over the epoch so far, on augmented images, before each update."""
        seen = self._epoch["seen"]
        return self._epoch["right"] / seen if seen else float("nan")

    def wall(self) -> float:
        """Return the seconds of the run, including those before an interruption."""
        return self._earlier + time.monotonic() - self._started

    def rate(self) -> float:
        """Return training images per second, without compilation and evaluation."""
        seconds = self._timed["seconds"]
        return self._timed["images"] / seconds if seconds else float("nan")

    def data_share(self) -> float:
        """Return the fraction of training time that the host waited for data."""
        # With up to 16 steps queued, the devices wait only if it is large.
        seconds = self._timed["seconds"]
        return self._timed["waited"] / seconds if seconds else 0.0

    def each(self) -> float:
        """Return the seconds per step, without compilation and evaluation, or nan."""
        steps = self._timed["steps"]
        return self._timed["seconds"] / steps if steps else float("nan")

    def parts(self, step: int) -> dict[str, str]:
        """Describe the progress up to a step; fetches everything pending."""
        self.fetch()
        epoch, total = -(-step // self._per_epoch), len(self._rates)
        parts = {
            "epoch": f"epoch {epoch:,}/{total // self._per_epoch:,}",
            "step": f"step {step:,}/{total:,}",
            "loss": f"loss {self.loss:.3f}",
        }
        if self._least:
            parts["excess"] = f"{self.loss - self._least:.3f} above least"
        parts["rate"] = f"lr {self._rates[step - 1]:.3g}"
        parts["train"] = f"train {self.accuracy:.1%}"
        if self._timed["steps"]:  # the first step compiles: the speed is unknown
            parts["speed"] = f"{self.rate():,.0f} img/s"
            parts["data"] = f"data {self.data_share():.0%}"
        return parts
