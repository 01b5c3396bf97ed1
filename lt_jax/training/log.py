"""What a run tells: one readable line at a time, JSON lines, a progress bar.

Process 0 alone talks; the others keep silent.
"""

from __future__ import annotations

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
    """Writes ``log.txt`` and ``metrics.jsonl`` in a workdir, and to the terminal."""

    def __init__(self, workdir: Path, talks: bool = True):
        self.talks = talks and jax.process_index() == 0
        self._text = workdir / "log.txt"
        self._lines = workdir / "metrics.jsonl"

    def info(self, text: str) -> None:
        """One line for people, on the terminal and in ``log.txt``."""
        if self.talks:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            self.detail(text)

    def detail(self, text: str) -> None:
        """In ``log.txt`` alone: what would push everything else off the terminal."""
        if self.talks:
            with self._text.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def warning(self, text: str) -> None:
        """One line that is told, on stderr, even by a command that only reads."""
        if self.talks:
            self.info(text)
        elif jax.process_index() == 0:
            print(text, file=sys.stderr)

    def record(self, **values: Any) -> None:
        """One line for programs, in ``metrics.jsonl``."""
        if self.talks:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(values), allow_nan=False) + "\n")

    def rewind(self, run: str, step: int) -> None:
        """Drops the lines of a run after this step: a killed run does them again."""
        if not self.talks or not self._lines.exists():
            return
        kept = []
        for line in self._lines.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # killed while it wrote
                record = json.loads(line)
                if record["run"] != run or record["step"] <= step:
                    kept.append(line + "\n")
        with atomic_path(self._lines) as draft:
            draft.write_text("".join(kept), encoding="utf-8")

    def bar(self, title: str, done: int, total: int) -> tqdm:
        """Images done, rate and time left; on a terminal only."""
        return tqdm(
            desc=title,
            initial=done,
            total=total,
            unit="img",
            unit_scale=True,
            leave=False,
            disable=not (self.talks and sys.stderr.isatty()),
        )


def plain(value: Any) -> Any:
    """The same value in the types of JSON; nan and infinities become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old one or the new one, never half.

    Of several processes the first writes, and all go on when the file stands.
    """

    def write() -> None:
        with atomic_path(path) as draft, draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    processes.on_process_zero(write)


def overview(params: Params, trained: Params) -> tuple[str, str]:
    """A line for each parameter: name, shape, trained or frozen; and their sums in one.

    Returns:
      The lines, and as in ``75,002 parameters: backbone 74,352 trained, head 650
      trained``.
    """
    moving = trees.leaves(trained)
    lines: list[str] = []
    sums: dict[tuple[str, str], int] = {}
    for name, leaf in trees.leaves(params).items():
        state = "trained" if name in moving else "frozen"
        group = name.split("/")[0], state
        sums[group] = sums.get(group, 0) + leaf.size
        lines.append(f"  {name:44s} {leaf.shape!s:20s} {state}")
    parts = ", ".join(f"{part} {n:,} {state}" for (part, state), n in sums.items())
    return "\n".join(lines), f"{sum(sums.values()):,} parameters: {parts}"


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
