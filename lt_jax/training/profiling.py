"""A trace of a few steady training steps, and which operations took most of them."""

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

BEFORE = 10  # steps that are left out: the first one compiles
TRACED = 5  # steps that are traced
TOLD = 10  # operations that are named


class Profile:
    """Traces steps 11 to 15 of a fit in this process, or the last five of fewer.

    The trace lies in ``directory/plugins/profile/TIME/HOST.*``, where TensorBoard's
    profiler finds it; Perfetto opens the ``.trace.json.gz`` of it. Process 0 alone
    traces. A fit of a single step, which compiles, is not traced.

    Args:
      directory: a folder of this fit's own; None: nothing is traced.
      steps: that the fit has left.
    """

    def __init__(self, directory: Path | None, steps: int, log: Logger):
        self._directory, self._log = directory, log
        self._active = directory is not None and log.talks
        self._first = max(1, min(BEFORE, steps - TRACED))
        self._left = steps
        self._came: int | None = None  # steps done when the first one came back
        self._began: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active and self._began is not None:  # stopped in the middle
            self._active = False
            jax.profiler.stop_trace()

    def step(self, step: int, result: Any) -> None:
        """To be called after every dispatch.

        Waits for the devices twice in the whole fit, so that whole steps are traced.

        Args:
          step: that were dispatched so far, of the whole fit.
          result: arrays that the last one gives.
        """
        if not self._active:
            return
        if self._came is None:
            self._came = step - 1
        done = step - self._came
        if self._began is None:
            if self._first <= done < self._left:
                jax.block_until_ready(result)
                jax.profiler.start_trace(str(self._directory))
                self._began = step, time.monotonic()
        elif step >= self._began[0] + TRACED or done >= self._left:
            jax.block_until_ready(result)
            self._end(step)

    def _end(self, step: int) -> None:
        first, began = self._began or (step, 0.0)
        seconds, count = time.monotonic() - began, step - first
        self._active = False
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
    """Operations of the devices, the most expensive first.

    Each with the number of its calls and its own seconds: what runs within it on the
    same thread, as a loop's body does, counts there alone. Operations that differ in
    the number behind their names (``fusion.3``, ``ffi_call.3__target``) are one.

    Args:
      events: ``traceEvents`` of a trace; others than of operations are passed over.
    """
    threads: dict[Any, list[tuple[float, float, str]]] = collections.defaultdict(list)
    for event in events:
        arguments = event.get("args", {})
        if event.get("ph") == "X" and "hlo_op" in arguments:
            begin, last = float(event["ts"]), float(event.get("dur", 0.0))
            name = re.sub(r"\.(?:\d+|clone)|_\d+$", "", arguments["hlo_op"])
            threads[event["pid"], event["tid"]].append((begin, last, name))
    calls: dict[str, int] = collections.Counter()
    own: dict[str, float] = collections.defaultdict(float)
    for each in threads.values():
        outer: list[tuple[float, str]] = []  # end and name of what is going on
        for begin, last, name in sorted(each, key=lambda e: (e[0], -e[1])):
            while outer and outer[-1][0] <= begin:
                outer.pop()
            if outer:
                own[outer[-1][1]] -= last
            own[name] += last
            calls[name] += 1
            outer.append((begin + last, name))
    order = sorted(own, key=lambda name: -own[name])
    return [(name, calls[name], own[name] / 1e6) for name in order]


def table(found: list[tuple[str, int, float]]) -> str:
    """The first ten as lines of text: share of the time, milliseconds, calls, name."""
    total = sum(seconds for _, _, seconds in found)
    lines = [
        f"  {seconds / total:6.1%} {1e3 * seconds:10.1f} ms {calls:6,d} x  {name}"
        for name, calls, seconds in found[:TOLD]
    ]
    return "\n".join(lines) if lines else "  the trace names no operation"
