"""Runs a command in a sandbox and checks how it ends, whatever it was given.

A ``Box`` is a folder per case: the command may write below ``work`` and ``out`` only.
``faults`` lists what is wrong with an ended command; an empty list is a pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 120.0  # per command; a hang, also on a machine that others use
MEGABYTES = 2048  # above the server's own
LONGEST = 4000  # characters of all that a refused command prints to stderr
REFUSED = 2
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")

# A workdir of the digits with every kind of file: both stages, features, a sweep.
CONFIG = ("--config", str(ROOT / "configs" / "digits_lt.py"))
VALUES: Mapping[str, Any] = {
    "model.width": 4,
    "optim.repeats": 1,
    "optim.epochs": 2,
    "eval.every": 1,
    "save.every": 1,
    "method.names": ("los",),
    "method.repeats": 1,
    "method.los.grid.lr": (5e-4,),
    "method.los.grid.delta": (0.5,),
    "method.features": "cached",
}
FLAGS = (*CONFIG, *(f"--config.{key}={value}" for key, value in VALUES.items()))


class Ended(NamedTuple):
    """How a command ended."""

    argv: tuple[str, ...]
    code: int | None  # None if a signal ended it
    signal: int
    timed_out: bool
    seconds: float
    out: str
    err: str


class Server:
    """A running ``forkserver.py``."""

    def __init__(self, cache: Path):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), os.environ.get("PYTHONPATH", "")]
            ),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "MPLBACKEND": "agg",
            # One thread before the fork, and little address space for those after it.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            "MALLOC_ARENA_MAX": "2",
            "NPROC": "2",
        }
        command = [sys.executable, str(HERE / "forkserver.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=env, text=True
        )
        self.ready: dict[str, int] = self._answer()

    def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> Ended:
        with tempfile.TemporaryDirectory() as out:
            request = {"argv": list(argv), "cwd": str(cwd), "env": dict(env or {})}
            request |= {"seconds": seconds, "megabytes": MEGABYTES, "out": out}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
            texts = {
                name: Path(out, name).read_bytes().decode(errors="backslashreplace")
                for name in ("out", "err")
            }
        return Ended(argv=tuple(argv), **answer, **texts)

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fork server has ended")
        return json.loads(line)


def make_workdir(server: Server, folder: Path) -> Path:
    """Make the workdir that cases damage."""
    artefact = ("convert", str(folder), str(folder / "a.stablehlo"))
    on_it = (*FLAGS, "--workdir", str(folder))
    commands = [(name, *on_it) for name in ("train", "retrain", "sweep")]
    for argv in (*commands, artefact):
        ended = server.run(argv, folder.parent, seconds=2 * SECONDS)
        if ended.code != 0:
            raise RuntimeError(f"{argv} ended with {ended}")
    return folder


class Box:
    """The sandbox of a case.

    ``work`` is a copy of a workdir and ``out`` is for what a command writes. ``victim``
    holds files that resemble those of a workdir; together with ``cwd`` and ``home`` it
    must stay as it is.
    """

    def __init__(self, root: Path, workdir: Path | None = None):
        self.root = root
        self.work, self.out = root / "work", root / "out"
        self.victim, self.cwd = root / "victim", root / "cwd"
        self.home, self.temporary = root / "home", root / "tmp"
        for folder in (self.out, self.victim, self.cwd, self.home, self.temporary):
            folder.mkdir(parents=True)
        if workdir is not None:
            shutil.copytree(workdir, self.work, symlinks=True)
        (self.victim / "secret.txt").write_text("do not touch\n", encoding="utf-8")
        (self.victim / "outcome.json").write_text("{}", encoding="utf-8")
        state = self.victim / "final" / "200" / "state"
        state.mkdir(parents=True)
        (state / "array").write_bytes(bytes(100))

    def remove(self) -> None:
        """Delete the box, which Python cannot if it holds 1,500 nested folders."""
        subprocess.run(["rm", "-rf", str(self.root)], check=True)

    def fill(self, argv: Iterable[str]) -> list[str]:
        """Replace {work}, {out}, {victim} and {cwd} in the words of a command."""
        return [
            word.replace("{work}", str(self.work))
            .replace("{out}", str(self.out))
            .replace("{victim}", str(self.victim))
            .replace("{cwd}", str(self.cwd))
            for word in argv
        ]

    def run(
        self,
        server: Server,
        argv: Iterable[str],
        env: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> Ended:
        own = {"HOME": str(self.home), "TMPDIR": str(self.temporary)}
        return server.run(self.fill(argv), self.cwd, {**own, **(env or {})}, seconds)


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Describe everything below a folder; links are not followed."""
    found: dict[str, tuple[Any, ...]] = {}
    folders = [str(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:  # a path that is too long for the system
            continue
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            content: Any = about.st_ino, about.st_mtime_ns
            if stat.S_ISDIR(about.st_mode):
                content = ()
                folders.append(entry.path)
            elif stat.S_ISREG(about.st_mode) and about.st_size < 2**20:
                content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
            found[os.path.relpath(entry.path, folder)] = (about.st_mode, content)
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


def empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


class Guard:
    """Remembers the files of a box before a command.

    Args:
      writes: whether the command may write in the workdir.
    """

    def __init__(self, box: Box, writes: bool):
        self._box, self._writes = box, writes
        self._before = snapshot(box.root)

    def faults(self, ended: Ended) -> list[str]:
        """List the files that the command should not have changed or left."""
        found = []
        root = self._box.root
        for name in changed(self._before, snapshot(root)):
            first, _, rest = name.partition(os.sep)
            temporary = rest.endswith(".tmp") or ".orbax-checkpoint-tmp" in rest
            if first == "tmp" and not rest:
                continue
            if first not in ("work", "out") or (first == "work" and not self._writes):
                found.append(f"changed {name}")
            elif temporary:
                found.append(f"left {name}")
            elif first == "out" and ended.code != 0 and not Path(root, name).is_dir():
                found.append(f"half-written {name}")
        return found[:3]


def faults(ended: Ended, codes: Sequence[int] = (0, REFUSED)) -> list[str]:
    """List what is wrong with how a command ended."""
    found = []
    if ended.timed_out:
        return [f"hangs: killed after {ended.seconds:.0f} s"]
    if ended.code is None:
        return [f"ended by signal {ended.signal}: {_end(ended.err)}"]
    for text in ("Traceback (most recent call last)", "internal error"):
        if text in ended.err + ended.out:
            found.append(f"{text.split()[0].lower()}: {_end(ended.err)}")
    if ended.code not in codes:
        found.append(f"exit code {ended.code}: {_end(ended.err)}")
    if CONTROL.search(ended.out + ended.err):
        found.append("prints control characters")
    if ended.code == REFUSED and not found:
        # Progress may come before the message, and warnings have its form.
        lines = ended.err.splitlines()
        while lines and not lines[0].startswith("lt-jax"):
            del lines[0]
        if not lines:
            found.append(f"no message: {_end(ended.err)}")
        if len(ended.err) > LONGEST:
            found.append(f"a message of {len(ended.err):,} characters")
        if not all(line.startswith("lt-jax") for line in lines):
            found.append(f"{len(lines)} lines: {lines!r:.300}")
    return found


def _end(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing on stderr"
