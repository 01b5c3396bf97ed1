"""How a command ends before its end: signals, the lock of its workdir, exit codes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lt_jax import steps
from lt_jax.types import InputError

# What a command that was asked to stop, and saved, exits with. After Ctrl-C a person
# goes on when it suits; after SIGTERM (preemption, a time limit) the launcher should:
# EX_TEMPFAIL of sysexits.h, "try again".
EXITS = {"SIGINT": 130, "SIGTERM": 75}


class Interrupted(Exception):
    """The run was asked to stop, and did so after saving what it had.

    Args:
      where: the run and its step.
      by: the signal, a key of ``EXITS``.
    """

    def __init__(self, where: str, by: str):
        super().__init__(where)
        self.by = by


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], str]]:
    """Turns the first SIGINT or SIGTERM into an answer; the second stops at once.

    Yields:
      A function that all processes call at the same places; it gives all the same
      answer: the name of the signal that any of them got, "" for none.
    """
    heard = ""

    def note(number: int, _frame: Any) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = signal.Signals(number).name
        # Not print: the signal may come in the middle of one.
        text = f"\n{heard}: saves and stops; once more stops at once\n"
        os.write(2, text.encode())

    def stopped() -> str:
        number = steps.agreed(signal.Signals[heard].value if heard else 0)
        return signal.Signals(number).name if number else ""

    # After jax.distributed, whose own handler would swallow SIGTERM.
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """Keeps a second job out of a workdir; a dead job's lock goes with it.

    The operating system holds the lock for process 0 as long as it lives, so there is
    no stale one to remove. Where the file system has no locks, there is none.

    Raises:
      InputError: another job works there; tells which.
    """
    held: list[int] = []

    def lock() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        file = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        held.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 1000).decode(errors="replace").strip()
            raise InputError(
                f"another lt-jax works in {workdir}: {owner or 'unknown'}. Wait for "
                "it, stop it, or use another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        text = f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
        os.pwrite(file, text.encode(), 0)

    try:
        steps.first_does(lock)
        yield
    finally:
        for file in held:
            os.close(file)
