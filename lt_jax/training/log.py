"""Output of a run: text lines, JSON lines and a progress bar; only in process 0."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lt_jax import trees
from lt_jax.distributed import processes
from lt_jax.files import atomic_path
from lt_jax.types import Params


class Logger:
    """Writes ``log.txt`` and ``metrics.jsonl`` in a workdir, and to the terminal.

    Commands that only read a workdir disable it.
    """

    def __init__(self, workdir: Path, enabled: bool = True):
        self.enabled = enabled and jax.process_index() == 0
        self._text = workdir / "log.txt"
        self._lines = workdir / "metrics.jsonl"

    def info(self, text: str) -> None:
        """Write a line to the terminal and ``log.txt``."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            self.detail(text)

    def detail(self, text: str) -> None:
        """Write a line to ``log.txt`` only."""
        if self.enabled:
            with self._text.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def warning(self, text: str) -> None:
        """Write a line like ``info``; a disabled logger prints it to stderr."""
        if self.enabled:
            self.info(text)
        elif jax.process_index() == 0:
            print(text, file=sys.stderr)

    def record(self, **values: Any) -> None:
        """Append a JSON line to ``metrics.jsonl``."""
        if self.enabled:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(jsonable(values), allow_nan=False) + "\n")

    def rewind(self, run: str, step: int) -> None:
        """Drop the records of a run after this step; a resumed run repeats them."""
        if not self.enabled or not self._lines.exists():
            return
        kept = []
        for line in self._lines.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                record = json.loads(line)
                if record["run"] != run or record["step"] <= step:
                    kept.append(line + "\n")
        with atomic_path(self._lines) as draft:
            draft.write_text("".join(kept), encoding="utf-8")

    def bar(self, title: str, done: int, total: int) -> tqdm:
        """Make a progress bar over images, disabled unless stderr is a terminal."""
        return tqdm(
            desc=title,
            initial=done,
            total=total,
            unit="img",
            unit_scale=True,
            leave=False,
            disable=not (self.enabled and sys.stderr.isatty()),
        )


def jsonable(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in process 0, all at once; other processes wait for it."""

    def write() -> None:
        with atomic_path(path) as draft, draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    processes.on_process_zero(write)


def parameter_table(params: Params, trained: Params) -> tuple[str, str]:
    """List name, shape and state (trained or frozen) of each parameter.

    Returns:
      The list, and a summary such as ``75,002 parameters: backbone 74,352 trained,
      head 650 trained``.
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
