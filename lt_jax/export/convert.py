"""``lt-jax convert``: weights into a folder that ``init.path`` takes for a stage 1.

The other way, from a workdir to a file, is ``exporting``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from lt_jax import models, trees
from lt_jax.errors import InputError, one_of
from lt_jax.experiment import results, weights
from lt_jax.export import stablehlo, torch_names, weight_files
from lt_jax.heads import linear
from lt_jax.training import checkpoint


class Shape(NamedTuple):
    """What of a network its weights decide."""

    arch: str
    stem: str
    width: int
    channels: int


def convert(
    source: Path,
    target: Path,
    *,
    arch: str,
    method: str,
    seeds: str,
    part: str,
    tell: Callable[[str], None],
) -> None:
    """A file of weights into a folder, or a fit of a workdir into a file.

    Args:
      arch: of a file of weights, a key of ``models.ARCHS``.
      method: of a workdir, whose fit is written; ``stage1`` is the head of stage 1, and
        ``chosen/los`` one that a sweep chose.
      seeds: of that fit, as in ``0.2``; "" takes the first.
      part: begins the names in the file that are read.

    Raises:
      InputError: one of them is not what it should be; nothing is written then.
    """
    if source.is_dir():
        stablehlo.write(stablehlo.finished(source, method, seeds), target, tell)
        return
    if not weight_files.is_weights(source):
        kinds = ", ".join((*weight_files.PYTORCH, weight_files.SAFETENSORS))
        raise InputError(
            f"{source} is neither a workdir nor a file of weights: expected a folder, "
            f"or a name in {kinds}"
        )
    if not arch:
        raise InputError(
            f"which network is in {source.name}? Say it with --arch NAME, one of "
            f"{', '.join(models.ARCHS)}"
        )
    _in(source, target, arch, part, tell)


def _in(
    source: Path, target: Path, arch: str, part: str, tell: Callable[[str], None]
) -> None:
    one_of("arch", arch, models.ARCHS)
    directory = target / "checkpoints" / "stage1" / "0"
    if target.is_file() or directory.exists():
        raise InputError(
            f"{target} is there already: expected the name of a new folder, which will "
            "hold the converted stage 1"
        )
    state = weight_files.read(source)
    shape = _shape_of(state, arch, part)
    try:
        found = torch_names.from_torch(state, _expected(shape, _classes(state)), part)
    except InputError as error:
        raise InputError(
            f"{source} does not hold a {arch}: {error}{_meant(state, shape, part)}"
        ) from error
    tree = traverse_util.unflatten_dict(found.leaves, sep="/")
    headless = "params/head/kernel" not in found.leaves
    checkpoint.write(directory / results.FINAL, 0, {"batch_stats": {}, **tree})
    results.save_outcome(
        directory,
        {
            "run": "stage1/0",
            "weights": results.FINAL,
            "backbone": "",
            "seeds": [0],
            "step": 0,
            "epochs": None,
            "hyper": {},
            "fitted_on": f"unknown: converted from {source.name}",
            "seconds": None,
            "images_per_second": None,
            "model": {"name": arch, "stem": shape.stem, "width": shape.width},
        },
    )
    for line in found.lines:
        sizes = "x".join(map(str, found.leaves[line.name].shape))
        ours = line.name.removeprefix("params/")
        tell(f"{line.source or '-':48s} -> {ours:44s} {sizes:16s} {line.note}".rstrip())
    if found.aside:
        tell(f"left out, as no weights: {len(found.aside)} ({_some(found.aside)})")
    total = sum(leaf.size for leaf in found.leaves.values())
    tell(
        f"{len(found.lines)} leaves, {total:,} numbers: {arch} {shape.width} wide with "
        f"the {shape.stem} stem, in {target}"
    )
    flags = f"--config.model.name={arch} --config.model.stem={shape.stem} "
    flags += f"--config.model.width={shape.width} --config.init.path={target}"
    if headless:
        tell("NOTE: the file has no head; one is drawn, so let methods start fresh")
        flags += " --config.init.skip='head/.*'"
    tell(f"use it with: lt-jax retrain --config FILE --workdir DIR {flags}")


def _shape_of(state: dict[str, np.ndarray], arch: str, part: str) -> Shape:
    """The stem and the width that the first convolution tells."""
    for name, leaf in state.items():
        if name.startswith(part) and (name == "conv1.weight" or _is_stem(name)):
            if leaf.ndim == 4:
                stem = "imagenet" if leaf.shape[-1] == 7 else "cifar"
                return Shape(arch, stem, leaf.shape[0], leaf.shape[1])
    return Shape(arch, "cifar", 64, 3)  # whatever is wrong is told leaf by leaf


def _is_stem(name: str) -> bool:
    return name.endswith(".conv1.weight") and ".layer" not in f".{name}"


def _classes(state: dict[str, np.ndarray]) -> int:
    for name, leaf in state.items():
        if torch_names.is_head(name) and leaf.ndim == 2:
            return leaf.shape[0]
    return 1


def _expected(shape: Shape, num_classes: int) -> dict[str, Any]:
    """The shapes of the leaves by our names."""
    backbone = models.create(
        shape.arch, shape.stem, shape.width, False, "torch", "float32", None
    )
    like = weights.blank(backbone, linear, (32, 32, shape.channels), num_classes)
    return trees.leaves(like._asdict())


def _meant(state: dict[str, np.ndarray], shape: Shape, part: str) -> str:
    """The end of the message: which network it is, if it is one of ours."""
    for arch in models.ARCHS:
        try:
            expected = _expected(shape._replace(arch=arch), _classes(state))
            torch_names.from_torch(state, expected, part)
        except InputError:
            continue
        return f"\nIt is a {arch}: --arch {arch}"
    return "\nIt is none of ours: check --arch, or what else the file holds"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
