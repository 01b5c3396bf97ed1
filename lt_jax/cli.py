"""The ``lt-jax`` command: flags in, one call per command.

Heavy imports stand inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_jax import __version__

if TYPE_CHECKING:
    from lt_jax.types import Config

CONFIG_HELP = """\
config flags:
  --config FILE[:ARG]      a Python file with get_config(ARG); a config is code
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
      written; 130 after Ctrl-C.
    """
    # Orbax logs an error with tracebacks from its threads, and raises it as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    config_flags, rest = _split(sys.argv[1:] if argv is None else list(argv))
    options = _parser().parse_args(rest)
    if options.command is None:
        _parser().print_help()
        return 2
    from lt_jax.types import InputError

    try:
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
        print("lt-jax: stopped at once, without a checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        from lt_jax.loop import Interrupted
        from lt_jax.meter import Diverged

        if isinstance(error, Interrupted):
            print(
                f"lt-jax: stopped and saved at {error}; the same command goes on",
                file=sys.stderr,
            )
            return 130
        if isinstance(error, Diverged):
            print(
                f"lt-jax: {error}. What was saved before it stands in "
                f"{options.workdir}/checkpoints. A lower learning rate (optim.lr or "
                "the method's lr) or a longer warm-up may help, in a new workdir.",
                file=sys.stderr,
            )
            return 1
        raise
    return 0


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
        name: str, call: Any, text: str, workdir: bool = True, configured: bool = True
    ) -> Any:
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=CONFIG_HELP if configured else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call, configured=configured)
        if workdir:
            command.add_argument(
                "--workdir",
                type=_path,
                required=True,
                help="where checkpoints, logs and results go",
            )
        return command

    add("run", _run, "both stages, every method of the config, table and report")
    add("train", _train, "stage 1: train the representation")
    add("retrain", _retrain, "stage 2: re-train classifiers on a finished stage 1")
    add("sweep", _sweep, "stage 2 at every point of the grids, on cached features")
    command = add("evaluate", _evaluate, "measure every finished fit of a workdir")
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
        "report", _report, "figures, tables and one page", False, configured=False
    )
    command.add_argument("runs", metavar="RUN", nargs="+", type=_path, help="a workdir")
    command.add_argument(
        "--out", type=_path, metavar="DIR", help="default: FIRST_RUN/report"
    )

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

    command = add("data", _data, "counts, groups, imbalance, hash", workdir=False)
    command.add_argument("what", choices=("info",))
    command.add_argument("--json", action="store_true", help="one JSON object")
    return parser


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
    from lt_jax import train
    from lt_jax.log import plain

    found = train.evaluate_all(config, options.workdir, options.split, options.heads)
    if options.json:
        print(json.dumps(plain(found), allow_nan=False))
        return
    names = ("all", "many", "medium", "few", "balanced", "worst", "ece")
    print(f"{options.split} split, per cent")
    wide = max([16, *(len(run) + 2 for run in found)])
    print(f"{'fit':{wide}s}" + "".join(f"{name:>10s}" for name in names))
    for run, values in found.items():
        cells = "".join(f"{100 * values[name]:10.1f}" for name in names)
        print(f"{run:{wide}s}{cells}")


def _report(options: argparse.Namespace) -> None:
    from lt_jax import report

    page = report.write(options.runs, options.out or options.runs[0] / "report")
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


def _data(config: Config, options: argparse.Namespace) -> None:
    from lt_jax import results, session
    from lt_jax.data.cifar import original_order

    splits, groups = session.load_splits(config)
    dataset = results.describe(config.data.name, splits, groups)
    if options.json:
        print(json.dumps(dataset))
        return
    for key, value in dataset.items():
        if key == "groups":
            value = ", ".join(f"{group} {size}" for group, size in value.items())
        print(f"{key:12s} {value}")
    print(f"{'imbalance':12s} {splits.counts.max() / splits.counts.min():.1f}")
    told = {
        True: "that of the original archive: `first` picks the authors' images",
        False: "not that of the original archive: `first` picks other images",
    }
    original = original_order(splits.train, splits.valid)
    if original is not None:
        print(f"{'id order':12s} {told[original]}")


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
        path = files[0].removeprefix("--config=").split(":")[0]
        if not os.path.isfile(path):
            raise InputError(f"no config file {path!r} here ({os.getcwd()})")
        known = _keys(_parsed(files))
        for arg in config_args:
            key = arg.split("=")[0].removeprefix("--config.")
            if arg not in files and key not in known:
                raise InputError(f"unknown config key {key!r}{near(key, known)}")
        return _parsed(config_args)


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
