"""The ``lt-jax`` command: flags in, one call per command.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_jax import __version__

if TYPE_CHECKING:
    from lt_jax.types import Config

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
        from lt_jax import cluster

        if cluster.joined():
            traceback.print_exc()
            cluster.leave(1)
        raise
    from lt_jax import cluster

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
    config_flags, rest = _split(sys.argv[1:] if argv is None else list(argv))
    options = _parser().parse_args(rest)
    if options.command is None:
        _parser().print_help()
        return 2
    from lt_jax.types import InputError

    try:
        if options.computes:
            from lt_jax import cluster

            cluster.join(
                options.coordinator,
                options.num_processes,
                options.process_id,
                options.join_timeout,
            )
            cluster.keep_compiled()
        if options.configured:
            options.call(_config(config_flags), options)
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
        from lt_jax import cluster

        # The others may know nothing of it, and would be waited for.
        return cluster.leave(130, alone=True)
    except Exception as error:
        from lt_jax.meter import Diverged
        from lt_jax.stopping import EXITS, Interrupted

        if isinstance(error, Interrupted):
            print(
                f"lt-jax: stopped and saved at {error}; the same command goes on",
                file=sys.stderr,
            )
            return EXITS[error.by]
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
    from lt_jax import cluster

    # Between CPUs it is a ValueError, between GPUs jax.errors.JaxRuntimeError.
    return cluster.joined() and any(word in str(error) for word in ("Gloo", "NCCL"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lt-jax",
        description="Long-tailed recognition: train a representation, re-train its "
        "classifier, compare.",
        epilog=CONFIG_HELP + EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str,
        call: Any,
        text: str,
        workdir: bool = True,
        configured: bool = True,
        computes: bool = False,
    ) -> Any:
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=CONFIG_HELP if configured else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call, configured=configured, computes=computes)
        if workdir:
            command.add_argument(
                "--workdir",
                type=_path,
                required=True,
                help="where checkpoints, logs and results go",
            )
        if computes:
            _add_processes(command)
        return command

    def computing(name: str, call: Any, text: str) -> Any:
        return add(name, call, text, computes=True)

    computing("run", _run, "both stages, every method of the config, table and report")
    computing("train", _train, "stage 1: train the representation")
    computing(
        "retrain", _retrain, "stage 2: re-train classifiers on a finished stage 1"
    )
    computing(
        "sweep", _sweep, "stage 2 at every point of the grids, on cached features"
    )
    command = computing(
        "evaluate", _evaluate, "measure every finished fit of a workdir"
    )
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

    command = add(
        "benchmark", _benchmark, "speed of a config on this machine", workdir=False
    )
    command.add_argument(
        "--seconds", type=float, default=5.0, help="for each part; %(default)g"
    )
    command.add_argument(
        "--json", type=_path, metavar="FILE", help="writes one JSON object there"
    )

    command = add(
        "report", _report, "figures, tables and one page", False, configured=False
    )
    command.add_argument("runs", metavar="RUN", nargs="+", type=_path, help="a workdir")
    command.add_argument(
        "--out", type=_path, metavar="DIR", help="default: FIRST_RUN/report"
    )

    command = add(
        "predict", _predict, "classes of images", workdir=False, configured=False
    )
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

    command = add(
        "convert",
        _convert,
        "weights from PyTorch (IN a file, OUT a folder for init.path) or to it (IN a "
        "workdir, OUT a .safetensors, .pth or .stablehlo)",
        False,
        configured=False,
    )
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

    _add_data(commands)
    return parser


def _add_data(commands: Any) -> None:
    """``data info``, ``data prepare`` and ``data convert``."""
    text = "prepare data sets, and tell of them"
    command = commands.add_parser("data", help=text, description=text)
    inner = command.add_subparsers(dest="what", metavar="WHAT", required=True)

    def add(name: str, call: Any, text: str, configured: bool) -> Any:
        command = inner.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=CONFIG_HELP if configured else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call, configured=configured, computes=False)
        return command

    command = add("info", _data_info, "counts, groups, imbalance, hash", True)
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.add_argument(
        "--png", type=_path, metavar="FILE", help="draws the sorted counts there"
    )

    command = add(
        "prepare", _data_prepare, "a TFDS set from its original archives", False
    )
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
    command = add("convert", _data_convert, text, False)
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


def _run(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import train

    train.run(config, options.workdir)


def _train(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import train

    train.train(config, options.workdir)


def _retrain(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import train

    train.retrain(config, options.workdir)


def _sweep(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import train

    train.sweep(config, options.workdir)


def _evaluate(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import cluster, train
    from lt_jax.log import plain

    found = train.evaluate_all(config, options.workdir, options.split, options.heads)
    if not cluster.talks():
        return
    if options.json:
        print(json.dumps(plain(found), allow_nan=False))
        return
    names = ("all", "many", "medium", "few", "balanced", "worst", "ece")
    print(f"{options.split} split, per cent")
    wide = max([16, *(len(run) + 2 for run in found)])
    last = "" if options.heads else "  lowest classes"
    print(f"{'fit':{wide}s}" + "".join(f"{name:>10s}" for name in names) + last)
    for run, values in found.items():
        cells = "".join(f"{100 * values[name]:10.1f}" for name in names)
        lowest = (f"{name} {100 * a:.1f}" for name, a in values.get("lowest", ()))
        print(f"{run:{wide}s}{cells}  {', '.join(lowest)}".rstrip())


def _benchmark(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import benchmark

    tell = functools.partial(print, flush=True)
    benchmark.benchmark(config, options.seconds, tell, options.json)


def _report(options: argparse.Namespace) -> None:
    from lt_jax import report

    out = options.out or options.runs[0] / "report"
    if sys.stderr.isatty():
        print(f"drawing into {out}", file=sys.stderr, flush=True)
    page = report.write(options.runs, out)
    print(f"report: {page}")


def _convert(options: argparse.Namespace) -> None:
    from lt_jax import convert

    convert.convert(
        options.source,
        options.target,
        arch=options.arch,
        method=options.method,
        seeds=options.seeds,
        part=options.part,
        tell=print,
    )


def _predict(options: argparse.Namespace) -> None:
    from lt_jax import artefacts, predict
    from lt_jax.types import InputError

    if options.artefact is None:
        found = predict.predict(
            options.workdir, options.images, options.method, options.top
        )
    elif options.method:
        raise InputError("an artefact holds one head: leave --method out")
    else:
        found = artefacts.predict(options.artefact, options.images, options.top)
    if options.json:
        print(json.dumps(found))
        return
    print(f"by {found['head']}")
    for image in found["images"]:
        print(image["path"])
        for guess in image["top"]:
            print(f"  {100 * guess['probability']:5.1f} %  {guess['class']}")


def _data_info(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import info

    if options.json:
        print(json.dumps(info.describe(config)))
    else:
        print(info.text(config, options.png))


def _data_prepare(options: argparse.Namespace) -> None:
    from lt_jax.data import prepare, tfds_own

    if options.by == "tfds":
        tfds_own.prepare(options.name, options.archives, options.dir)
        return
    prepare.prepare(
        options.name,
        options.archives,
        options.dir,
        lists=options.lists,
        checksum=options.checksum,
        partial=options.partial,
    )


def _data_convert(options: argparse.Namespace) -> None:
    from lt_jax.data.convert import convert

    convert(options.folder)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Parts the flags of the config from the others; both ``=`` and space work."""
    config, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if word != "--config" and not word.startswith(("--config.", "--config=")):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            config.append(word)  # a truth value may stand alone
        else:
            config.append(f"{word}={words.pop(0)}")
    return config, rest


def _config(config_args: list[str]) -> Config:
    """The locked config of a file and its overrides.

    Raises:
      InputError: no such file, an unknown key, a value of the wrong type.
    """
    from lt_jax.types import InputError, near

    with warnings.catch_warnings():
        # ml_collections imports the config file in a way Python is about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        files = [arg for arg in config_args if arg.startswith("--config=")]
        if len(files) != 1:
            raise InputError(
                "expected --config FILE once, for example --config configs/digits_lt.py"
            )
        path, colon, argument = files[0].removeprefix("--config=").partition(":")
        file = f"--config={_config_file(path)}{colon}{argument}"
        config_args = [file if arg in files else arg for arg in config_args]
        files = [file]
        known = _keys(_parsed(files))
        for arg in config_args:
            key = arg.split("=")[0].removeprefix("--config.")
            if arg not in files and key not in known:
                raise InputError(f"unknown config key {key!r}{near(key, known)}")
        return _parsed(config_args)


def _config_file(path: str) -> str:
    """The file at hand, else the one of this name that the package brought along.

    Raises:
      InputError: there is neither.
    """
    from lt_jax.types import InputError

    if os.path.isfile(path):
        return path
    # In a wheel; a checkout has them beside the package.
    shipped = Path(__file__).parent / "configs"
    own = shipped / path.removeprefix("configs/")
    if own.is_file():
        return str(own)
    names = ", ".join(f"configs/{p.name}" for p in sorted(shipped.glob("*.py")))
    with_it = f"; with the package came {names}" if names else ""
    raise InputError(f"no config file {path!r} here ({os.getcwd()}){with_it}")


def _parsed(config_args: list[str]) -> Config:
    from absl import flags
    from ml_collections import config_flags

    from lt_jax.types import InputError

    values, argv = flags.FlagValues(), ["lt-jax", *config_args]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.IllegalFlagValueError as error:
        # An error of the file may come as a traceback in text: its last line.
        raise InputError(str(error).strip().splitlines()[-1]) from error
    except Exception as error:  # the file is code of the user's, and may raise anything
        file = config_args[0].removeprefix("--config=")
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    return values.config


def _keys(config: Config, prefix: str = "") -> list[str]:
    """The dotted names of all values."""
    keys = []
    for key, value in config.items():
        if hasattr(value, "items"):
            keys += _keys(value, f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys
