"""How a command ends before its end: signals and exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lt_jax.distributed import processes
from lt_jax.errors import Interrupted

# What a command that was asked to stop, and saved, exits with. After Ctrl-C a person
# goes on when it suits; after SIGTERM (preemption, a time limit) the launcher should:
# EX_TEMPFAIL of sysexits.h, "try again".
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 75}

# What is under way at the second signal has so long to unwind. A save, or a step that
# waits for another process, may take any time, and no exception reaches into it.
UNWIND_SECONDS = 10
WATCHER = "lt_jax signals"  # the thread that sees to it


@contextlib.contextmanager
def catch_signals(*names: str) -> Iterator[Callable[[], str]]:
    """Turns the first of these signals into an answer; the second stops at once.

    At once: by ``KeyboardInterrupt``, and where that has not led out of here after
    ``UNWIND_SECONDS``, by the end of the process, code 130.

    Args:
      names: keys of ``EXIT_CODES``.

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
        number = processes.max_over_processes(
            signal.Signals[heard].value if heard else 0
        )
        return signal.Signals(number).name if number else ""

    # After jax.distributed, whose own handler would swallow SIGTERM.
    numbers = [signal.Signals[name] for name in names]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        with _ends_after_two(numbers):
            yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ends_after_two(numbers: list[signal.Signals]) -> Iterator[None]:
    """Ends the process ``UNWIND_SECONDS`` after the second signal, if still in here.

    A thread, because a handler has to wait for the main one to come back from
    whatever library it is in.
    """
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        came = 0
        while came < 2 and (byte := reads.recv(1)):
            came += byte[0] in numbers
        if came == 2 and not left.wait(UNWIND_SECONDS):
            text = (
                f"\nlt-jax: what was under way did not end in {UNWIND_SECONDS} s; left "
                "alone. Checkpoints that were finished are whole\n"
            )
            os.write(2, text.encode())
            os._exit(EXIT_CODES["SIGINT"])

    watcher = threading.Thread(target=watch, name=WATCHER, daemon=True)
    watcher.start()
    outer = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        left.set()
        writes.close()
        watcher.join()
        reads.close()


def never_stop() -> str:
    """The answer where nobody can ask for an end."""
    return ""


def until_stopped(
    batches: Iterable[Any], stopped: Callable[[], str], doing: str
) -> Iterator[Any]:
    """The same batches, as many in all processes, unless a signal comes between them.

    Args:
      stopped: of ``catch_signals``.
      doing: what is given up, told of ``Interrupted``.
    """
    for number, batch in enumerate(batches):
        if processes.is_sync_step(number) and (by := stopped()):
            raise Interrupted(doing, by)
        yield batch
