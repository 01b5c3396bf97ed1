"""The ``lt-jax`` command: its flags, and what it exits with.

Heavy imports stand inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lt_jax._version import __version__
from lt_jax.cli import commands
from lt_jax.cli import config_flags as configuring

CONFIG_HELP = """\
config flags:
  --config FILE[:ARG]      a Python file with get_config(ARG); a config is code.
                           Not there: the one that an installed package brings
  --config.KEY.KEY=VALUE   changes one value; an unknown key is an error
"""
EXAMPLE = """\
example:
  lt-jax run --config configs/digits_lt.py --workdir runs/digits
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      0; 1 for training that diverged; 2 for bad input or a file that cannot be
      written; 69 where another process of the job was lost; 130 after Ctrl-C; 75 after
      SIGTERM: saved, run the same command again.
    """
    try:
        with _without_late_answers():
            code = _main(argv)
    except Exception:
        from lt_jax.distributed import cluster

        if cluster.is_distributed():
            traceback.print_exc()
            cluster.leave(1)
        raise
    from lt_jax.distributed import cluster

    return cluster.leave(code)


@contextlib.contextmanager
def _without_late_answers() -> Iterator[None]:
    """Keeps quiet about reads that end after one beside them has failed.

    Orbax raises the error of the first file of a damaged checkpoint and ends its event
    loop; Python then prints a traceback for the others, from their threads.
    """
    before = sys.unraisablehook

    def hear(told: sys.UnraisableHookArgs) -> None:
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def _main(argv: Sequence[str] | None) -> int:
    # Orbax logs an error with tracebacks from its threads, and raises it as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    config_flags, rest = configuring.split(sys.argv[1:] if argv is None else list(argv))
    options = _parser().parse_args(rest)
    if options.command is None:
        _parser().print_help()
        return 2
    from lt_jax.errors import Diverged, InputError, Interrupted

    try:
        if options.computes:
            from lt_jax.distributed import cluster

            cluster.join(
                options.coordinator,
                options.num_processes,
                options.process_id,
                options.join_timeout,
            )
            cluster.enable_compilation_cache()
        if options.configured:
            options.call(configuring.read(config_flags), options)
        elif config_flags:
            raise InputError(f"{options.command} takes no --config: it reads workdirs")
        else:
            options.call(options)
    except InputError as error:
        print(f"lt-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        print(f"lt-jax: {error.strerror or error}{what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        lost = ", without a checkpoint" if options.configured else ""
        print(f"lt-jax: stopped at once{lost}", file=sys.stderr)
        from lt_jax.distributed import cluster

        # The others may know nothing of it, and would be waited for.
        return cluster.leave(130, alone=True)
    except Exception as error:
        from lt_jax.distributed.interrupt import EXIT_CODES

        if isinstance(error, Interrupted):
            print(
                f"lt-jax: stopped and saved at {error}; the same command goes on",
                file=sys.stderr,
            )
            return EXIT_CODES[error.by]
        if isinstance(error, Diverged):
            print(
                f"lt-jax: {error}. What was saved before it stands in "
                f"{options.workdir}/checkpoints. A lower learning rate (optim.lr or "
                "the method's lr) or a longer warm-up may help, in a new workdir.",
                file=sys.stderr,
            )
            return 1
        if _lost_a_process(error):
            print(
                "lt-jax: another process of this job was lost. What was saved stands "
                f"in {options.workdir}; the same command goes on from there",
                file=sys.stderr,
            )
            return 69  # EX_UNAVAILABLE
        raise
    return 0


def _lost_a_process(error: Exception) -> bool:
    """Whether a collective failed because its other end is gone."""
    from lt_jax.distributed import cluster

    # Between CPUs it is a ValueError, between GPUs jax.errors.JaxRuntimeError.
    return cluster.is_distributed() and any(
        word in str(error) for word in ("Gloo", "NCCL")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lt-jax",
        description="Long-tailed recognition: train a representation, re-train its "
        "classifier, compare.",
        epilog=CONFIG_HELP + EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    known = parser.add_subparsers(dest="command", metavar="COMMAND")

    for name, text in (
        ("run", "both stages, every method of the config, table and report"),
        ("train", "stage 1: train the representation"),
        ("retrain", "stage 2: re-train classifiers on a finished stage 1"),
        ("sweep", "stage 2 at every point of the grids, on cached features"),
    ):
        _add_computing(known, name, commands.fit, text)
    text = "measure every finished fit of a workdir"
    command = _add_computing(known, "evaluate", commands.evaluate, text)
    command.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        default="test",
        help="%(default)s",
    )
    command.add_argument(
        "--heads",
        metavar="REGEX",
        default="",
        help="instead of the fits, the heads of the sweep whose name this matches",
    )
    command.add_argument("--json", action="store_true", help="one JSON object")

    text = "speed of a config on this machine"
    command = _add(known, "benchmark", commands.benchmark, text)
    command.add_argument(
        "--seconds", type=float, default=5.0, help="for each part; %(default)g"
    )
    command.add_argument(
        "--json", type=_path, metavar="FILE", help="writes one JSON object there"
    )

    text = "figures, tables and one page"
    command = _add(known, "report", commands.report, text, configured=False)
    command.add_argument("runs", metavar="RUN", nargs="+", type=_path, help="a workdir")
    command.add_argument(
        "--out", type=_path, metavar="DIR", help="default: FIRST_RUN/report"
    )

    text = "classes of images"
    command = _add(known, "predict", commands.predict, text, configured=False)
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", type=_path, help="of a finished run")
    network.add_argument(
        "--artefact",
        type=_path,
        metavar="FILE",
        help="a .stablehlo of `lt-jax convert`, in place of a workdir",
    )
    command.add_argument("images", metavar="IMAGE", nargs="+", type=_path)
    command.add_argument(
        "--method",
        default="",
        help="whose head: a method, a fit as los/0.0, or none for stage 1's; default: "
        "the last of config.method.names that is finished",
    )
    command.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes told; %(default)s"
    )
    command.add_argument("--json", action="store_true", help="one JSON object")

    text = (
        "weights from PyTorch (IN a file, OUT a folder for init.path) or to it (IN a "
        "workdir, OUT a .safetensors, .pth or .stablehlo)"
    )
    command = _add(known, "convert", commands.convert, text, configured=False)
    command.add_argument("source", metavar="IN", type=_path)
    command.add_argument("target", metavar="OUT", type=_path)
    command.add_argument("--arch", default="", help="the network in a file of weights")
    command.add_argument(
        "--part", default="", help="start of the names, where a file holds several"
    )
    command.add_argument(
        "--method", default="stage1", help="the fit of a workdir, as los (%(default)s)"
    )
    command.add_argument("--seeds", default="", help="of that fit, as 0.2 (the first)")

    _add_data(known)
    return parser


def _add(
    known: Any, name: str, call: Any, text: str, configured: bool = True
) -> argparse.ArgumentParser:
    """A command that calls ``call(config, options)``, or ``call(options)``."""
    command = known.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=CONFIG_HELP if configured else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(call=call, configured=configured, computes=False)
    return command


def _add_computing(
    known: Any, name: str, call: Any, text: str
) -> argparse.ArgumentParser:
    """One that works in a workdir, perhaps in several processes."""
    command = _add(known, name, call, text)
    command.set_defaults(computes=True)
    command.add_argument(
        "--workdir",
        type=_path,
        required=True,
        help="where checkpoints, logs and results go",
    )
    _add_processes(command)
    return command


def _add_data(known: Any) -> None:
    """``data info``, ``data prepare`` and ``data convert``."""
    text = "prepare data sets, and tell of them"
    command = known.add_parser("data", help=text, description=text)
    inner = command.add_subparsers(dest="what", metavar="WHAT", required=True)

    text = "counts, groups, imbalance, hash"
    command = _add(inner, "info", commands.data_info, text)
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.add_argument(
        "--png", type=_path, metavar="FILE", help="draws the sorted counts there"
    )

    text = "a TFDS set from its original archives"
    command = _add(inner, "prepare", commands.data_prepare, text, configured=False)
    command.add_argument(
        "name", help="i_naturalist2018, imagenet_lt, cifar100 or cifar10"
    )
    command.add_argument(
        "--from",
        dest="archives",
        type=_path,
        required=True,
        metavar="FOLDER",
        help="where the archives lie",
    )
    command.add_argument(
        "--lists",
        type=_path,
        metavar="FOLDER",
        help="where ImageNet_LT_train.txt and its like lie; default: with the archives",
    )
    command.add_argument(
        "--dir",
        default="",
        help="TFDS's data folder; default: TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    command.add_argument(
        "--checksum", action="store_true", help="compares SHA-256 sums as well as sizes"
    )
    command.add_argument(
        "--partial",
        action="store_true",
        help="takes archives of other sizes and sets of other counts",
    )
    command.add_argument(
        "--with",
        dest="by",
        choices=("lt_jax", "tfds"),
        default="lt_jax",
        help="who prepares; tfds is TFDS's own builder, which needs TensorFlow "
        "(lt_jax[prepare]); %(default)s",
    )

    text = "array_record files beside the TFRecord files of a TFDS set"
    command = _add(inner, "convert", commands.data_convert, text, configured=False)
    command.add_argument("folder", type=_path, help="DIR/NAME/VERSION")


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes",
        "SLURM, Open MPI, Kubernetes and Cloud TPU are found without these flags; see "
        "launch/. --num_processes 1 turns the search off.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 runs and listens, the same for all",
    )
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument(
        "--process_id", type=int, metavar="I", help="from 0 to N - 1, each once"
    )
    group.add_argument(
        "--join_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="to wait for the other processes (default: %(default)g)",
    )


def _path(text: str) -> Path:
    return Path(text).expanduser()
