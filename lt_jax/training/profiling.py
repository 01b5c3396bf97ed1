"""A profiler trace of a few training steps, and their most expensive operations."""

from __future__ import annotations

import collections
import gzip
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import jax

from lt_jax.training.log import Logger

SKIPPED = 10  # steps before the trace; the first one compiles
TRACED = 5  # steps in the trace
LISTED = 10  # operations in the summary


class Profile:
    """Traces steps 11 to 15 of a fit in this process, or the last five of fewer.

    The trace is written to ``directory/plugins/profile/TIME/HOST.*``, where
    TensorBoard's profiler finds it. Perfetto opens the ``.trace.json.gz``. Only process
    0 traces. A fit with a single step, which compiles, is not traced.

    Args:
      directory: a folder for this fit; None: no trace.
      steps: the steps that are left in the fit.
      log: where the summary goes.
    """

    def __init__(self, directory: Path | None, steps: int, log: Logger):
        self._directory, self._log = directory, log
        self._active = directory is not None and log.enabled
        self._skipped = max(1, min(SKIPPED, steps - TRACED))
        self._steps = steps
        self._resumed_at: int | None = None  # steps of the fit before this process
        self._started: tuple[int, float] | None = None  # step and time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active and self._started is not None:  # interrupted during the trace
            self._active = False
            jax.profiler.stop_trace()

    def step(self, step: int, result: Any) -> None:
        """Start or stop the trace; call this after every dispatch.

        Waits for the devices twice per fit, so that the trace contains complete steps.

        Args:
          step: the number of steps dispatched so far, over the complete fit.
          result: arrays that the last step returns.
        """
        if not self._active:
            return
        if self._resumed_at is None:
            self._resumed_at = step - 1
        done = step - self._resumed_at
        if self._started is None:
            if self._skipped <= done < self._steps:
                jax.block_until_ready(result)
                jax.profiler.start_trace(str(self._directory))
                self._started = step, time.monotonic()
        elif step >= self._started[0] + TRACED or done >= self._steps:
            jax.block_until_ready(result)
            self._active = False
            self._finish(step, *self._started)

    def _finish(self, step: int, first: int, started: float) -> None:
        seconds, count = time.monotonic() - started, step - first
        jax.profiler.stop_trace()
        files = sorted((self._directory or Path()).rglob("*.trace.json.gz"))
        if not files:
            self._log.info(f"profile: no trace was written in {self._directory}")
            return
        newest = max(files, key=lambda file: file.stat().st_mtime_ns)
        with gzip.open(newest, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        self._log.info(
            f"profile of steps {first + 1:,} to {step:,}, {1e3 * seconds / count:,.1f} "
            f"ms each; open {newest} in ui.perfetto.dev\n{table(slowest(events))}"
        )


def slowest(events: Iterable[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Rank the operations of the devices: name, calls and own seconds.

    Operations nested on the same thread, such as the body of a loop, do not count
    towards the outer one. Names that differ only in the compiler's numbers, such as
    ``fusion.3``, are merged.

    Args:
      events: ``traceEvents`` of a trace; other events are ignored.
    """
    threads: dict[Any, list[tuple[float, float, str]]] = collections.defaultdict(list)
    for event in events:
        arguments = event.get("args", {})
        if event.get("ph") == "X" and "hlo_op" in arguments:
            begin, length = float(event["ts"]), float(event.get("dur", 0.0))
            name = re.sub(r"\.(?:\d+|clone)|_\d+$", "", arguments["hlo_op"])
            threads[event["pid"], event["tid"]].append((begin, length, name))
    calls: dict[str, int] = collections.Counter()
    own: dict[str, float] = collections.defaultdict(float)
    for operations in threads.values():
        outer: list[tuple[float, str]] = []  # end and name of enclosing operations
        for begin, length, name in sorted(operations, key=lambda e: (e[0], -e[1])):
            while outer and outer[-1][0] <= begin:
                outer.pop()
            if outer:
                own[outer[-1][1]] -= length
            own[name] += length
            calls[name] += 1
            outer.append((begin + length, name))
    order = sorted(own, key=lambda name: -own[name])
    return [(name, calls[name], own[name] / 1e6) for name in order]


def table(ranked: list[tuple[str, int, float]]) -> str:
    """Format the first operations: share of the time, milliseconds, calls, name."""
    total = sum(seconds for _, _, seconds in ranked)
    lines = [
        f"  {seconds / total:6.1%} {1e3 * seconds:10.1f} ms {calls:6,d} x  {name}"
        for name, calls, seconds in ranked[:LISTED]
    ]
    return "\n".join(lines) if lines else "  the trace contains no operations"
