"""The ``lt-jax`` command: dispatch and exit codes.

Heavy imports are inside the functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lt_jax.cli import commands, config_flags
from lt_jax.cli.parser import make_parser
from lt_jax.distributed import cluster
from lt_jax.errors import (
    Diverged,
    InputError,
    Interrupted,
    near_name,
    one_line,
    safe_streams,
)

if TYPE_CHECKING:
    from types import FrameType

    from lt_jax.experiment.config import UserConfig

REDUCE = (
    "lower optim.batch or raise optim.accumulate in stage 1 (method.* in stage 2), or "
    "lower eval.batch, optim.resident or method.memory"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
      0 on success; 1 if training diverged; 2 for invalid input or a file that cannot be
      written; 69 if another process of the job was lost; 70 for a bug; 75 after SIGTERM
      and 130 after Ctrl-C, with progress saved: rerun the same command to resume.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with safe_streams():
        options = argparse.Namespace(computes=False, debug=False)
        with _ctrl_c():
            try:
                _run(argv, options)
                code = 0
            except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 0
            except KeyboardInterrupt:
                unsaved = " without saving a checkpoint" * options.computes
                print(f"lt-jax: stopped{unsaved}", file=sys.stderr)
                # Others may not have been interrupted, so do not wait for them.
                return cluster.leave(130, alone=True)
            except Exception as error:
                if options.debug:
                    import traceback

                    traceback.print_exc()
                code, message = _failure(error, argv, options)
                print(f"lt-jax: {one_line(message)}", file=sys.stderr)
        return cluster.leave(code)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, except where it would be lost: exit there.

    C code that imports a module prints it; the garbage collector, which calls JAX,
    ignores it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        inner = frame
        while inner:
            code = inner.f_code
            importing = code.co_filename.startswith("<frozen importlib")
            if importing or code.co_name == "_xla_gc_callback":
                os.write(2, b"lt-jax: stopped\n")
                os._exit(130)
            inner = inner.f_back
        signal.default_int_handler(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(argv: list[str], options: argparse.Namespace) -> None:
    """Parse the flags into ``options`` and call the command."""
    flags, rest = config_flags.split(argv)
    # The spelling of version 0.1, such as --num_processes.
    rest = [re.sub("^--[a-z_]+", lambda m: m[0].replace("_", "-"), w) for w in rest]
    parser = make_parser()
    parser.parse_args(rest, options)
    if options.command is None:
        parser.print_help()
        raise InputError("expected a COMMAND")
    import logging

    # Orbax raises its errors; its threads also log them, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    cluster.import_jax()
    if data := getattr(options, "data", None):
        flags = config_flags.of_data(data) + flags
    if options.computes:
        cluster.join(
            options.coordinator,
            options.num_processes,
            options.process_id,
            options.join_timeout,
        )
        cluster.use_devices()
        options.call(_config(flags, options), options)
    elif options.call is commands.fit:
        options.call(flags, options)
    elif options.configured:
        workdir = getattr(options, "workdir", None)
        options.call(config_flags.read(flags, workdir), options)
    elif flags:
        raise InputError(f"{options.command} does not take --config")
    else:
        options.call(options)
    sys.stdout.flush()  # a full disk is an error here, not at the end


def _config(flags: list[str], options: argparse.Namespace) -> UserConfig:
    """Read the config; check that all processes of the job run the same command."""
    from lt_jax.distributed import processes

    same = ("command", "workdir", "split", "heads")
    given = {key: str(value) for key, value in vars(options).items() if key in same}
    return processes.together(
        lambda: config_flags.read(flags, options.workdir), lambda _: given
    )


def _failure(
    error: Exception, argv: list[str], options: argparse.Namespace
) -> tuple[int, str]:
    """Return the exit code and message of an error."""
    text = str(error)
    if isinstance(error, Interrupted):
        from lt_jax.distributed.interrupt import EXIT_CODES

        resume = ""
        if options.call in (commands.fit, commands.work):
            resume = "; checkpoint saved; rerun the same command to resume"
        elif options.call is commands.features:
            resume = "; parts saved; rerun the same command to resume"
        return EXIT_CODES[error.by], f"stopped at {error}{resume}"
    if isinstance(error, InputError):
        return 2, text
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        near = near_name(error.filename) if error.errno == errno.ENOENT else ""
        return 2, f"{error.strerror or error}{file}{near}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        reason = text.partition("\n")[0] or "host"
        return 2, f"out of memory ({reason}): {REDUCE}"
    if isinstance(error, Diverged):
        return 1, (
            f"{error}. Earlier checkpoints are in {options.workdir}/checkpoints. Try a "
            "lower learning rate (optim.lr or the method's lr) or a longer warm-up, in "
            "a new workdir"
        )
    # A failed collective is a ValueError on CPUs, a JaxRuntimeError on GPUs.
    if cluster.is_distributed() and any(w in text for w in ("Gloo", "NCCL")):
        return 69, (  # EX_UNAVAILABLE
            "another process of this job was lost. Progress is saved in "
            f"{options.workdir}; rerun the same command to resume"
        )
    from lt_jax.cli import bug_report

    file = bug_report.write(error, argv, getattr(options, "workdir", None))
    summary = f"{type(error).__name__}: {text}".partition("\n")[0]
    return 70, f"internal error: {summary}; please report it with {file}"  # EX_SOFTWARE
