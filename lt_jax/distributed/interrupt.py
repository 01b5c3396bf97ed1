"""Interruption of a command by SIGINT and SIGTERM, and the exit codes for it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lt_jax.distributed import processes
from lt_jax.errors import Interrupted

# Exit codes of a command that saved its work and stopped. After SIGTERM (preemption, a
# time limit) the launcher should retry: 75 is EX_TEMPFAIL of sysexits.h.
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 75}


@contextlib.contextmanager
def catch_signals(*names: str) -> Iterator[Callable[[], str]]:
    """Record the first of these signals; the second one ends the process at once.

    The second one ends even a process that waits in a collective. Nothing is cleaned
    up, which is safe: checkpoints are written atomically.

    Yields:
      ``stop_requested``, which all processes must call at the same places. It returns
      the name of the signal that any of them received, or "".
    """
    received, numbers = 0, [signal.Signals[name] for name in names]

    def handle(number: int, _frame: Any) -> None:
        nonlocal received
        received = number
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        again = "press Ctrl-C" if number == signal.SIGINT else "send it"
        name = signal.Signals(number).name
        # Not print, which the signal may have interrupted.
        text = f"\n{name}: saving and stopping ({again} again to quit now)\n"
        os.write(2, text.encode())

    def stop_requested() -> str:
        number = processes.max_over_processes(received)
        return signal.Signals(number).name if number else ""

    # Call this after jax.distributed.initialize, whose handler swallows SIGTERM.
    before = {number: signal.signal(number, handle) for number in numbers}
    for number in numbers:
        _reset_on_delivery(number)
    try:
        yield stop_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reset_on_delivery(number: int) -> None:
    """Have the kernel restore the default action when the signal arrives.

    Python runs handlers in the main thread, between bytecodes. In a collective or a
    compilation it may not get there for minutes, or ever.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "sysv_signal"):  # glibc
        libc.sysv_signal.restype = ctypes.c_void_p
        handler = libc.sysv_signal(number, None)
        libc.sysv_signal(number, ctypes.c_void_p(handler))


def never_stop() -> str:
    """Default for arguments named ``stop_requested``: never interrupted."""
    return ""


def until_stopped(
    batches: Iterable[Any], stop_requested: Callable[[], str], doing: str
) -> Iterator[Any]:
    """Yield batches, equally many in all processes, until a signal: `Interrupted`.

    ``doing`` is the work that is given up, for the exception.
    """
    for number, batch in enumerate(batches):
        if processes.is_sync_step(number) and (by := stop_requested()):
            raise Interrupted(doing, by)
        yield batch
