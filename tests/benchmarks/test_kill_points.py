"""Kills at system calls happen at the call that was chosen, before or after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import kill_points
import pytest

# Made calls: mkdir a, fsync a/b.tmp, rename a/b, unlink a/b, rmdir a. The call in the
# other folder is not counted.
SCRIPT = """
import os, pathlib, shutil, sys
import kill_points
root, other = map(pathlib.Path, sys.argv[1:3])
kill_points.install(root, root.parent / "calls", int(sys.argv[3]), sys.argv[4] == "1")
(root / "a").mkdir()
(other / "x").mkdir()
with open(root / "a" / "b.tmp", "w") as file:
    os.fsync(file.fileno())
(root / "a" / "b.tmp").replace(root / "a" / "b")
shutil.rmtree(root / "a")
"""
CALLS = ["mkdir a", "fsync a/b.tmp", "rename a/b", "unlink a/b", "rmdir a"]
FULL, DONE = ["a", "a/b.tmp"], ["a", "a/b"]
BEFORE, AFTER = [[], FULL, FULL, DONE, ["a"]], [["a"], FULL, DONE, ["a"], []]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [*range(len(CALLS)), -1])
def test_the_chosen_call(tmp_path: Path, at: int, after: bool):
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), str(other), str(at), str(int(after))],
        cwd=Path(kill_points.__file__).parent,
        timeout=60,
    )
    assert ended.returncode == (0 if at < 0 else -signal.SIGKILL)
    made = (tmp_path / "calls").read_text().splitlines()
    assert made == (CALLS if at < 0 else CALLS[: at + 1])
    left = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    assert left == ([] if at < 0 else (AFTER if after else BEFORE)[at])
