"""A profiler trace of a few training steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax

from lt_jax.training.log import Logger

SKIPPED = 10  # steps before the trace; the first one compiles
TRACED = 5  # steps in the trace


class Profile:
    """Traces steps 11 to 15 of a fit in this process, or the last five of fewer.

    Only process 0 traces, to ``directory``; None: no trace. A fit with a single step,
    which compiles, is not traced. ``done``: steps of earlier processes.
    """

    def __init__(self, directory: Path | None, done: int, total: int, log: Logger):
        self._directory, self._total, self._log = directory, total, log
        self._due = directory is not None and log.enabled
        self._first = done + max(1, min(SKIPPED, total - done - TRACED))
        self._started: tuple[int, float] | None = None  # step and time

    def step(self, step: int, result: Any) -> None:
        """Start or stop the trace, after ``step`` steps have been dispatched.

        Waits for ``result``, arrays of the last step, twice per fit, so that the trace
        contains complete steps.
        """
        if self._started is None:
            if self._due and self._first <= step < self._total:
                jax.block_until_ready(result)
                jax.profiler.start_trace(str(self._directory))
                self._due, self._started = False, (step, time.monotonic())
        elif step >= min(self._started[0] + TRACED, self._total):
            jax.block_until_ready(result)
            first, started = self._started
            each = 1e3 * (time.monotonic() - started) / (step - first)
            self.close()
            self._log.info(
                f"profile of steps {first + 1:,} to {step:,}, {each:,.1f} ms each; "
                f"open {self._directory} in TensorBoard, or its .trace.json.gz in "
                "ui.perfetto.dev"
            )

    def close(self) -> None:
        """End a trace that is in progress, for example after an interruption."""
        if self._started is not None:
            self._started = None
            jax.profiler.stop_trace()
