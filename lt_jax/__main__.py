"""``python -m lt_jax`` and ``lt-jax`` are the same command."""

from __future__ import annotations

import signal


def main() -> int:
    """Run a command; before and after it, Ctrl-C ends the process without traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lt_jax.cli.main import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
