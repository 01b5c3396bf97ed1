"""The commands and flags of ``lt-jax``; their texts are in ``help.toml``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from lt_jax._version import __version__
from lt_jax.cli import commands, help
from lt_jax.distributed import cluster
from lt_jax.errors import InputError, one_of

if TYPE_CHECKING:
    from pathlib import Path

# shtab.FILE, for an argument that is a path: what completes it in a shell.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            names = action.option_strings or [str(action.metavar or "name").lower()]
            one_of(names[0], value, action.choices)


class Overview(argparse.RawDescriptionHelpFormatter):
    """Leaves the commands out, which the end of the help lists by group."""

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        super().add_arguments(a for a in actions if a.dest != "command")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lt-jax",
        usage="lt-jax [--version] COMMAND [FLAGS]",
        description="Long-tailed recognition: train a representation, re-train its "
        "classifier, compare methods.",
        formatter_class=Overview,
        epilog=help.overview(),
    )
    text = "print the version and exit"
    parser.add_argument("--version", action="version", version=__version__, help=text)
    group = parser.add_subparsers(dest="command", metavar="COMMAND", prog="lt-jax")
    _add_fit(group)
    for name in ("run", "train", "retrain", "sweep"):
        _add_computing(group, name, commands.work)
    command = _add_computing(group, "evaluate", commands.evaluate)
    splits = ("train", "valid", "test")
    command.add_argument("--split", choices=splits, default="test")
    command.add_argument("--heads", metavar="REGEX", default="")
    command.add_argument("--json", action="store_true")

    command = _add(group, "benchmark", commands.benchmark, configured=True)
    command.add_argument("--seconds", type=float, default=5.0)
    command.add_argument("--json", type=_new_file, metavar="FILE")

    command = _add(group, "config", commands.config, configured=True)
    command.add_argument("--plan", action="store_true")
    command.add_argument("--workdir", type=_path)
    command.add_argument("--json", action="store_true")

    command = _add(group, "report", commands.report)
    command.add_argument("runs", metavar="RUN", nargs="+", type=_path)
    command.add_argument("--out", type=_path, metavar="DIR")
    command.add_argument("--figures", action="store_true")

    _add_features(group)
    _add_predict(group)
    _add_convert(group)
    _add_data(group)
    command = _add(group, "list", commands.list_names)
    whats = ("methods", "networks", "pretrained", "data", "configs")
    command.add_argument("what", choices=whats)
    for command in group.choices.values():
        _explain(command)
    return parser


def _add(
    group: Any, name: str, call: Callable[..., None], configured: bool = False
) -> argparse.ArgumentParser:
    """Add a command that calls ``call(config, options)`` or ``call(options)``."""
    command = _add_parser(group, name)
    # For the help and completion: config_flags reads it.
    if configured and name != "features":  # which chooses the config
        command.add_argument("--config", metavar="FILE[:ARG]")
    command.epilog = help.epilog(_name(command), configured)
    command.set_defaults(call=call, configured=configured, computes=False)
    command.add_argument("--debug", action="store_true")
    return command


def _add_parser(group: Any, name: str) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    command = group.add_parser(name, formatter_class=form, help="")
    command.description = help.sentence(_name(command))
    return command


def _name(command: argparse.ArgumentParser) -> str:
    """Return the words of a command, such as ``data info``."""
    return command.prog.removeprefix("lt-jax ")


def _explain(command: argparse.ArgumentParser) -> None:
    """Set the help of all flags of a command, and what completes them."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                choice.help = help.COMMANDS[f"{_name(command)} {choice.dest}"]["about"]
            for inner in action.choices.values():
                _explain(inner)
        name = (action.option_strings or [action.dest])[0].lstrip("-")
        action.help = help.flag(_name(command), name) or action.help
        if action.type in (_path, _new_file) or action.dest == "config":
            vars(action)["complete"] = FILES


def _add_computing(
    group: Any, name: str, call: Callable[..., None]
) -> argparse.ArgumentParser:
    """Add a command that works in a workdir, optionally in several processes."""
    command = _add(group, name, call, configured=True)
    command.set_defaults(computes=True)
    command.add_argument("--workdir", type=_path, required=True)
    add = command.add_argument_group(
        "several processes",
        "Detected under SLURM, Open MPI, Kubernetes and Cloud TPU; see launch/.\n"
        "--num-processes 1 turns detection off.",
    ).add_argument
    add("--coordinator", metavar="HOST:PORT")
    add("--num-processes", type=int, metavar="N")
    add("--process-id", type=int, metavar="I")
    seconds = cluster.JOIN_SECONDS
    add("--join-timeout", type=float, default=seconds, metavar="SECONDS")
    return command


def _add_fit(group: Any) -> None:
    add = _add(group, "fit", commands.fit).add_argument
    add("source", metavar="SOURCE", type=_path)
    add("--backbone", metavar="NAME", default="")
    add("--weights", metavar="PATH", default="")
    add("--workdir", type=_path)


def _add_features(group: Any) -> None:
    add = _add(group, "features", commands.features, configured=True).add_argument
    add("--model", required=True)
    add("--data", required=True, metavar="CONFIG_OR_FOLDER")
    add("--out", required=True, type=_path, metavar="DIR")
    add("--weights", metavar="PATH", default="")
    add("--sha256", default="")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--pool", choices=("token", "mean"), default="token")
    add("--size", type=int, default=0, metavar="N")
    add("--mirror", action="store_true")
    add("--batch", type=int, default=64, metavar="N")


def _add_predict(group: Any) -> None:
    command = _add(group, "predict", commands.predict)
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", type=_path)
    network.add_argument("--artefact", type=_path, metavar="FILE")
    command.add_argument("images", metavar="INPUT", nargs="+", type=_path)
    command.add_argument("--method", default="")
    command.add_argument("--backbone", metavar="NAME", default="")
    command.add_argument("--top", type=int, default=5, metavar="N")
    command.add_argument("--json", action="store_true")


def _add_convert(group: Any) -> None:
    add = _add(group, "convert", commands.convert).add_argument
    add("source", metavar="IN", type=_path)
    add("target", metavar="OUT", type=_path)
    add("--arch", default="")
    add("--part", default="")
    add("--method", default="stage1")
    add("--seeds", default="")


def _add_data(group: Any) -> None:
    command = _add_parser(group, "data")
    inner = command.add_subparsers(dest="what", metavar="COMMAND", required=True)

    command = _add(inner, "info", commands.data_info, configured=True)
    command.add_argument("data", metavar="SOURCE", nargs="?")
    command.add_argument("--png", type=_new_file, metavar="FILE")
    command.add_argument("--json", action="store_true")

    add = _add(inner, "prepare", commands.data_prepare).add_argument
    folder: Any = {"type": _path, "metavar": "FOLDER"}
    add("name")
    add("--from", dest="archives", required=True, **folder)
    add("--lists", **folder)
    add("--dir", **folder)
    add("--checksum", action="store_true")
    add("--partial", action="store_true")


def _path(text: str) -> Path:
    """Return a path; an empty one would be the current folder."""
    from pathlib import Path

    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text).expanduser()


def _new_file(text: str) -> Path:
    """Return the path of a file to write, in a folder that exists."""
    path = _path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a file in an existing folder, got {text}"
        )
    return path
