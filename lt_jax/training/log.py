"""Output of a run: text lines, JSON lines and progress bars; only in process 0."""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lt_jax import trees
from lt_jax.errors import printable, terminal
from lt_jax.files import COUNT, append, check, jsonable, parse_json, read, write
from lt_jax.types import Params

# A line of ``metrics.jsonl``, and the largest file of them that is read.
RECORD = {"run": str, "step": COUNT}
LARGEST = 2**30
# What a bar has room for, of that which a line shows.
ON_BAR = ("epoch", "loss", "excess", "rate", "speed")
BAR_SECONDS = 2.0  # between updates of the text on a bar, each of which costs a sync


class Logger:
    """Writes ``log.txt`` and ``metrics.jsonl`` in a workdir, and to the terminal."""

    def __init__(self, workdir: Path, enabled: bool = True):
        self.enabled = enabled and jax.process_index() == 0
        self._text = workdir / "log.txt"
        self._lines = workdir / "metrics.jsonl"
        self._warned: set[str] = set()
        self.worked = False  # whether there was anything to do
        self._sinks: Any = None
        self._sent: dict[str, int] = {}  # the last step of a fit that sinks have
        console = terminal(sys.stdout) if self.enabled else None
        self.bars: Any = _make_bars(console) if console else None
        self.plan({})

    def info(self, text: str) -> None:
        """Write a line to the terminal and ``log.txt``."""
        self._write(text, lambda _: printable(text))

    def result(self, text: str, draw: Callable[[int], Any]) -> None:
        """Write the final table, for sinks too.

        A terminal gets what ``draw`` returns for its width, which rich can print.
        """
        self._write(text, draw)
        if self._sinks:
            self._sinks.each("text", "result", text)

    def _write(self, text: str, draw: Callable[[int], Any]) -> None:
        if not self.enabled:
            return
        if self.bars:
            console = self.bars.console
            console.print(draw(console.width))
        else:
            now = f"{time.strftime('%H:%M:%S')} " if text else ""
            print(f"{now}{printable(text)}", flush=True)
        self.detail(text)

    def detail(self, text: str) -> None:
        """Write a line to ``log.txt`` only."""
        if self.enabled:
            now = f"{time.strftime('%Y-%m-%d %H:%M:%S')} " if text else ""
            append(self._text, f"{now}{printable(text)}\n")

    def warning(self, text: str) -> None:
        """Write a line like ``info``, once; a disabled logger prints it to stderr."""
        if text in self._warned:
            return
        self._warned.add(text)
        if self.enabled:
            self.info(text)
        elif jax.process_index() == 0:
            print(text, file=sys.stderr)

    def open_sinks(self, names: tuple[str, ...], about: dict[str, Any]) -> None:
        """Send what follows to sinks too; see `sinks.Sinks`."""
        if self.enabled and names:
            from lt_jax.training.sinks import Sinks  # which brings their libraries

            self._sinks = Sinks(names, self._text.parent, about, self.warning)

    def record(self, per_class: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Append ``values`` to ``metrics.jsonl``; sinks get ``per_class`` too."""
        if self.enabled:
            append(self._lines, json.dumps(jsonable(values), allow_nan=False) + "\n")
            if values["step"] > self._sent.get(values["run"], -1):
                numbers = {k: v for k, v in values.items() if k not in RECORD}
                self.publish(values["run"], values["step"], numbers, per_class or {})

    def publish(self, run: str, step: int, *values: Mapping[str, Any]) -> None:
        """Send numbers and values per class of a fit to the sinks alone."""
        self.worked = True
        if self._sinks:
            self._sinks.record(run, step, *values)

    def rewind(self, run: str, step: int) -> None:
        """Drop the records of a run after this step; a resumed run repeats them."""
        if not self.enabled or not self._lines.exists():
            return
        kept, unknown = [], 0
        for line in read(self._lines, LARGEST).splitlines():
            try:
                record = parse_json(line)
                check(record, RECORD, str(self._lines), "")
            except ValueError:  # such as a line that a kill cut off
                unknown += 1
                continue
            if record["run"] != run or record["step"] <= step:
                kept.append(line + b"\n")
            else:
                self._sent[run] = max(record["step"], self._sent.get(run, 0))
        if unknown:
            self.warning(f"{self._lines}: removed {unknown:,} invalid line(s)")
        write(self._lines, b"".join(kept))

    def plan(self, epochs: dict[str, int]) -> None:
        """Set the fits of this job and their epochs, for the time that all take."""
        self.due, self.planned = dict(epochs), sum(epochs.values())
        self.estimated = False

    def close(self) -> None:
        """Remove the bars and close the sinks."""
        if self.bars:
            self.bars.stop()
        if self._sinks:
            self._sinks.each("close")


class Bar(contextlib.AbstractContextManager["Bar"]):
    """Progress of some work: a bar on a terminal, lines elsewhere.

    Args:
      title: of the work; that of a fit in the log's plan is counted in it.
      done, total: units of work.
      every: seconds between lines.
    """

    def __init__(self, log: Logger, title: str, done: int, total: int, every: float):
        self._log, self._title, self._total = log, title, total
        log.worked = True
        self._first = self._done = done
        self._begun = self._shown = time.monotonic()
        self._every = min(every, BAR_SECONDS) if log.bars else every
        self._epochs = log.due.pop(title, 0)
        self._others = sum(log.due.values())  # epochs of the fits after this one
        self._tasks: list[Any] = []
        if log.bars:
            titles = [title, *["all fits"] * (self._others > 0)]
            self._tasks = [log.bars.add_task(t, note="", left="") for t in titles]
            self._move()
            log.bars.start()

    def advance(self, count: int) -> bool:
        """Count work that is done; return whether it is time for ``show``."""
        self._done += count
        self._move()
        late = time.monotonic() - self._shown > self._every
        return self._log.enabled and (late or (bool(self._tasks) and self._share == 1))

    @property
    def _share(self) -> float:
        return self._done / max(self._total, 1)

    def _move(self) -> None:
        left = self._others + (1 - self._share) * self._epochs  # epochs of the job
        shares = self._share, 1 - left / max(self._log.planned, 1)
        for task, value in zip(self._tasks, shares, strict=False):
            self._log.bars.update(task, completed=100 * value)

    def left(self, each: float) -> tuple[str, str]:
        """Format the time left for this work, and for this and the fits after it.

        ``each`` counts seconds per unit of work; nan: not known yet.
        """
        left = (self._total - self._done) * each
        after = self._others * self._total * each / max(self._epochs, 1)
        return duration(left), duration(left + after) if self._others else ""

    def show(self, parts: Mapping[str, str], each: float | None = None) -> None:
        """Show ``parts`` and the time left; see ``left``.

        By default ``each`` is the mean since the start.
        """
        self._shown = time.monotonic()
        if each is None:
            each = (self._shown - self._begun) / max(self._done - self._first, 1)
        left, in_all = self.left(each)
        hidden = "loss" if "excess" in parts else ""
        note = "  ".join(parts[k] for k in ON_BAR if k in parts and k != hidden)
        notes = (note, left), (f"then {len(self._log.due)} more", in_all)
        for task, (note, left) in zip(self._tasks, notes, strict=False):
            self._log.bars.update(task, note=note, left=left)
        if not self._tasks:
            shown = [self._title, *(parts.values() or [f"{self._share:.0%}"])]
            shown += [left and f"{left} left", in_all and f"{in_all} for all fits"]
            self._log.info(" | ".join(filter(None, shown)))

    def estimate(self, each: float) -> None:
        """Log the time left, at ``each`` seconds per unit of work, once per job."""
        if not self._log.estimated and (left := self.left(each)[0]):
            self._log.estimated = True
            self._log.info(f"estimated time left: {self.left(each)[1] or left}")

    def __exit__(self, *error: object) -> None:
        for task in self._tasks:
            self._log.bars.remove_task(task)
        if self._tasks and not self._log.bars.tasks:
            self._log.bars.stop()


def _make_bars(console: Any) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    fields = ("{task.percentage:3.0f}%", "{task.fields[note]}", "{task.fields[left]}")
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(None),
        *(TextColumn(field) for field in fields),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=4,
        redirect_stderr=sys.stderr.isatty(),
    )


def parameter_table(params: Params, trained: Params) -> tuple[str, str]:
    """List name, shape and state (trained or frozen) of each parameter, and the sums.

    For example ``75,002 parameters: backbone 74,352 trained, head 650 trained``.
    """
    trained_names = trees.leaves(trained)
    lines, sums = [], collections.Counter[tuple[str, str]]()
    for name, leaf in trees.leaves(params).items():
        state = "trained" if name in trained_names else "frozen"
        sums[name.split("/")[0], state] += leaf.size
        lines.append(f"  {name:44s} {leaf.shape!s:20s} {state}")
    parts = ", ".join(f"{part} {n:,} {state}" for (part, state), n in sums.items())
    return "\n".join(lines), f"{sums.total():,} parameters: {parts}"


def duration(seconds: float) -> str:
    """Format seconds as ``1:02:03`` or ``2:03``; nan as ""."""
    if seconds != seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
