"""The commands and flags of ``lt-jax``."""

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

    def _add_action(self, action: Any) -> Any:
        if action.type in (_path, _new_file) or action.dest == "config":
            action.complete = FILES
        return super()._add_action(action)

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
    )
    text = "print the version and exit"
    parser.add_argument("--version", action="version", version=__version__, help=text)
    group = parser.add_subparsers(dest="command", metavar="COMMAND", prog="lt-jax")
    _add_fit(group)
    for name, text in (
        ("run", "train both stages with every method, and write the report"),
        ("train", "train the representation (stage 1)"),
        ("retrain", "re-train classifiers on a finished stage 1 (stage 2)"),
        ("sweep", "re-train them at every point of the grids, on cached features"),
    ):
        _add_computing(group, name, commands.work, text)

    text = "measure every finished fit of a workdir"
    command = _add_computing(group, "evaluate", commands.evaluate, text)
    splits = ("train", "valid", "test")
    text = "default: %(default)s"
    command.add_argument("--split", choices=splits, default="test", help=text)
    text = "measure the sweep's heads with matching names, instead of the fits"
    command.add_argument("--heads", metavar="REGEX", default="", help=text)
    _add_json(command)

    text = "measure the speed of a config on this machine"
    command = _add(group, "benchmark", commands.benchmark, text, configured=True)
    text = "time per measurement (default: %(default)g)"
    command.add_argument("--seconds", type=float, default=5.0, help=text)
    text = "write one JSON object to FILE"
    command.add_argument("--json", type=_new_file, metavar="FILE", help=text)

    text = "print every value of a config, or what it would run"
    command = _add(group, "config", commands.config, text, configured=True)
    text = "print fits, steps and an estimate of the time"
    command.add_argument("--plan", action="store_true", help=text)
    text = "a workdir: with --plan, its finished fits are not counted"
    command.add_argument("--workdir", type=_path, help=text)
    _add_json(command)

    text = "draw figures and tables of workdirs on one page"
    command = _add(group, "report", commands.report, text, configured=False)
    command.add_argument("runs", metavar="RUN", nargs="+", type=_path, help="a workdir")
    text = "default: FIRST_RUN/report"
    command.add_argument("--out", type=_path, metavar="DIR", help=text)
    text = "also draw the charts as PNG and PDF files"
    command.add_argument("--figures", action="store_true", help=text)

    _add_features(group)
    _add_predict(group)
    _add_convert(group)
    _add_data(group)
    text = "list methods, networks, pre-trained weights, datasets or configs"
    command = _add(group, "list", commands.list_names, text, configured=False)
    whats = ("methods", "networks", "pretrained", "data", "configs")
    command.add_argument("what", choices=whats)
    texts = {name: f"{inner.description}" for name, inner in group.choices.items()}
    parser.epilog = help.overview(texts)
    return parser


def _add(
    group: Any, name: str, call: Callable[..., None], text: str, configured: bool
) -> argparse.ArgumentParser:
    """Add a command that calls ``call(config, options)`` or ``call(options)``."""
    command = group.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # For the help and completion: config_flags reads it.
    if configured and name not in ("features", "fit"):  # which choose the config
        text = "a config file; see below"
        command.add_argument("--config", metavar="FILE[:ARG]", help=text)
    command.epilog = help.epilog(command.prog.removeprefix("lt-jax "), configured)
    command.set_defaults(call=call, configured=configured, computes=False)
    text = "print the traceback of an error"
    command.add_argument("--debug", action="store_true", help=text)
    return command


def _add_computing(
    group: Any, name: str, call: Callable[..., None], text: str
) -> argparse.ArgumentParser:
    """Add a command that works in a workdir, optionally in several processes."""
    command = _add(group, name, call, text, configured=True)
    command.set_defaults(computes=True)
    text = "folder for checkpoints, logs and results"
    command.add_argument("--workdir", type=_path, required=True, help=text)
    add = command.add_argument_group(
        "several processes",
        "Detected under SLURM, Open MPI, Kubernetes and Cloud TPU; see launch/.\n"
        "--num-processes 1 turns detection off.",
    ).add_argument
    text = "address where process 0 listens, the same for all processes"
    add("--coordinator", metavar="HOST:PORT", help=text)
    add("--num-processes", type=int, metavar="N")
    add("--process-id", type=int, metavar="I", help="from 0 to N - 1")
    text = "how long to wait for the other processes (default: %(default)g)"
    seconds = cluster.JOIN_SECONDS
    add("--join-timeout", type=float, default=seconds, metavar="SECONDS", help=text)
    return command


def _add_fit(group: Any) -> None:
    text = "fit every method to photographs or features, and recommend one"
    command = _add(group, "fit", commands.fit, text, configured=False)
    add = command.add_argument
    text = (
        "a folder of photographs (SOURCE/CLASS/*.jpg, or SOURCE/train/CLASS/*.jpg and "
        "SOURCE/test/CLASS/*.jpg), a table of path,label (.csv, .parquet), or a folder "
        "of features (train.npz, test.npz)"
    )
    add("source", metavar="SOURCE", type=_path, help=text)
    text = (
        "computes features of photographs, as --model of `lt-jax features` (default: "
        "DINOv2's ViT-S, from the Hugging Face hub)"
    )
    add("--backbone", metavar="NAME", default="", help=text)
    text = "its weights, instead of the hub's: a file or a folder"
    add("--weights", metavar="PATH", default="", help=text)
    text = "folder for features, heads and results (default: runs/NAME_OF_SOURCE)"
    add("--workdir", type=_path, help=text)


def _add_features(group: Any) -> None:
    text = "compute features of a pre-trained backbone, for configs/features.py"
    command = _add(group, "features", commands.features, text, configured=True)
    add = command.add_argument
    text = (
        "a name of `lt-jax list pretrained`, hf:OWNER/NAME[@REVISION], a folder with "
        "model.safetensors and config.json, torch:timm/NAME, "
        "torch:open_clip/NAME/WEIGHTS, or torch:MODULE:CALLABLE, which returns a "
        "torch.nn.Module"
    )
    add("--model", required=True, help=text)
    text = "a config file, or a folder or table of photographs"
    add("--data", required=True, metavar="CONFIG_OR_FOLDER", help=text)
    add("--out", required=True, type=_path, metavar="DIR", help="folder to write")
    text = "the weights of a listed name, instead of the hub's: a file or a folder"
    add("--weights", metavar="PATH", default="", help=text)
    add("--sha256", default="", help="expected of the file of weights")
    text = "default: %(default)s"
    choices = ("float32", "bfloat16")
    add("--dtype", choices=choices, default="float32", help=text)
    text = (
        "features of a ViT: class token, or mean of the patches (default: %(default)s)"
    )
    add("--pool", choices=("token", "mean"), default="token", help=text)
    text = "side of the images in pixels (default: that of the model)"
    add("--size", type=int, default=0, metavar="N", help=text)
    add("--mirror", action="store_true", help="average over mirror images")
    text = "images per step, all devices together (default: %(default)s)"
    add("--batch", type=int, default=64, metavar="N", help=text)


def _add_predict(group: Any) -> None:
    text = "classify images, or features, with a finished run"
    command = _add(group, "predict", commands.predict, text, configured=False)
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--workdir", type=_path, help="a finished run")
    text = "a .stablehlo file written by `lt-jax convert`"
    network.add_argument("--artefact", type=_path, metavar="FILE", help=text)
    command.add_argument("images", metavar="INPUT", nargs="+", type=_path)
    text = (
        "which head: a method, a fit such as los/0.0, or none for stage 1; default: "
        "the recommended one, chosen on validation"
    )
    command.add_argument("--method", default="", help=text)
    text = "confirms a torch: backbone of the run, whose code is not in the workdir"
    command.add_argument("--backbone", metavar="NAME", default="", help=text)
    text = "classes per image (default: %(default)s)"
    command.add_argument("--top", type=int, default=5, metavar="N", help=text)
    _add_json(command)


def _add_convert(group: Any) -> None:
    text = "convert weights from PyTorch, or to it and to StableHLO"
    add = _add(group, "convert", commands.convert, text, False).add_argument
    text = "a file of PyTorch weights, or a workdir"
    add("source", metavar="IN", type=_path, help=text)
    text = "a folder for init.path; or a .safetensors, .pth or .stablehlo file"
    add("target", metavar="OUT", type=_path, help=text)
    add("--arch", default="", help="the network in a weights file")
    add("--part", default="", help="name prefix, if a file holds several networks")
    text = "a fit of a workdir, '' for the recommended one (default: %(default)s)"
    add("--method", default="stage1", help=text)
    add("--seeds", default="", help="seeds of that fit, such as 0.2; default: first")


def _add_data(group: Any) -> None:
    text = "inspect and prepare datasets"
    command = group.add_parser("data", help=text, description=text.capitalize() + ".")
    inner = command.add_subparsers(dest="what", metavar="COMMAND", required=True)

    text = "show counts, groups, imbalance and split hash"
    command = _add(inner, "info", commands.data_info, text, configured=True)
    text = "photographs, a table or features, as of `lt-jax fit`, in place of --config"
    command.add_argument("data", metavar="SOURCE", nargs="?", help=text)
    text = "also write the curve of class counts as an image"
    command.add_argument("--png", type=_new_file, metavar="FILE", help=text)
    _add_json(command)

    text = "build a TFDS dataset from its original archives"
    add = _add(inner, "prepare", commands.data_prepare, text, False).add_argument
    add("name", help="i_naturalist2018, imagenet_lt, cifar100 or cifar10")
    text, folder = "folder with the archives", {"type": _path, "metavar": "FOLDER"}
    add("--from", dest="archives", required=True, help=text, **folder)
    text = "folder with ImageNet_LT_train.txt etc.; default: that of the archives"
    add("--lists", help=text, **folder)
    text = "TFDS data folder; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"
    add("--dir", help=text, **folder)
    text = "check SHA-256 sums, not only sizes"
    add("--checksum", action="store_true", help=text)
    text = "accept archives of other sizes and other numbers of examples"
    add("--partial", action="store_true", help=text)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


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
