"""Output of a run: text lines, JSON lines and a progress bar; only in process 0."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from lt_jax import trees
from lt_jax.errors import printable
from lt_jax.files import COUNT, append, check, jsonable, parse_json, read, write
from lt_jax.types import Params

# A line of ``metrics.jsonl``, and the largest file of them that is read.
RECORD = {"run": str, "step": COUNT}
LARGEST = 2**30


class Logger:
    """Writes ``log.txt`` and ``metrics.jsonl`` in a workdir, and to the terminal."""

    def __init__(self, workdir: Path, enabled: bool = True):
        self.enabled = enabled and jax.process_index() == 0
        self._text = workdir / "log.txt"
        self._lines = workdir / "metrics.jsonl"

    def info(self, text: str) -> None:
        """Write a line to the terminal and ``log.txt``."""
        if self.enabled:
            tqdm.write(printable(text), file=sys.stdout)
            sys.stdout.flush()
            self.detail(text)

    def detail(self, text: str) -> None:
        """Write a line to ``log.txt`` only."""
        if self.enabled:
            append(self._text, printable(text) + "\n")

    def warning(self, text: str) -> None:
        """Write a line like ``info``; a disabled logger prints it to stderr."""
        if self.enabled:
            self.info(text)
        elif jax.process_index() == 0:
            print(text, file=sys.stderr)

    def record(self, **values: Any) -> None:
        """Append a JSON line to ``metrics.jsonl``."""
        if self.enabled:
            append(self._lines, json.dumps(jsonable(values), allow_nan=False) + "\n")

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
        if unknown:
            self.warning(f"{self._lines}: removed {unknown:,} invalid line(s)")
        write(self._lines, b"".join(kept))

    def bar(self, title: str, done: int, total: int) -> tqdm:
        """Make a progress bar over images, disabled unless stderr is a terminal."""
        disable = not (self.enabled and sys.stderr.isatty())
        looks = {"unit": "img", "unit_scale": True, "leave": False}
        return tqdm(desc=title, initial=done, total=total, disable=disable, **looks)


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
    """Format seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
