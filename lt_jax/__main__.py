"""``python -m lt_jax`` and ``lt-jax`` are the same command."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run a command; before and after it, Ctrl-C ends the process without traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    hide_closed_loops()
    from lt_jax.cli.main import main

    return main()


def hide_closed_loops() -> None:
    """Hide tracebacks of Orbax's threads about a damaged checkpoint.

    Orbax raises the first error and closes its event loop. Each other file that it was
    reading then fails in a thread, perhaps after the command has ended.
    """
    hook = sys.unraisablehook

    def print_others(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = print_others


if __name__ == "__main__":
    raise SystemExit(main())
