"""``lt-jax convert``: a file of weights to a stage 1, or a finished fit to a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util

from lt_jax import models, trees
from lt_jax.errors import InputError, first_few, located, one_of
from lt_jax.experiment import results, stored
from lt_jax.export import fits, stablehlo
from lt_jax.heads import linear
from lt_jax.pretrained import torch_names, weight_files
from lt_jax.training import checkpoint

MAX_SIZE = 10**6  # of a width, of channels, of classes
OUTCOME = {  # of a stage 1 that another program has trained
    "run": "stage1/0",
    "weights": results.FINAL,
    "backbone": "",
    "seeds": [0],
    "step": 0,
    "epochs": None,
    "hyper": {},
    "seconds": None,
    "images_per_second": None,
}


class Shape(NamedTuple):
    """The sizes of a network that its weights decide."""

    stem: str
    width: int
    channels: int
    num_classes: int


def convert(
    source: Path, target: Path, *, arch: str, method: str, seeds: str, part: str
) -> None:
    """Convert a file of weights to a folder, or a fit of a workdir to a file.

    Args:
      arch: architecture in a file of weights, a key of ``models.ARCHS``.
      method, seeds: which fit of a workdir, see ``stored.find``.
      part: prefix of the names to read from a file of weights.
    """
    if source.is_dir():
        stablehlo.write(fits.finished(source, method, seeds), target)
        return
    if source.suffix.lower() not in weight_files.SUFFIXES:
        raise InputError(
            f"{source} is neither a workdir nor a file of weights: expected a folder, "
            f"or a name that ends in {', '.join(weight_files.SUFFIXES)}"
        )
    if not arch:
        names = ", ".join(models.ARCHS)
        raise InputError(f"--arch is missing: which network is in {source}? {names}")
    one_of("arch", arch, models.ARCHS)
    directory = target / "checkpoints" / "stage1" / "0"
    if target.is_file() or directory.exists():
        raise InputError(f"{target} exists already: expected the name of a new folder")
    state = weight_files.read(source)
    shape = _shape(state, part)
    with located(f"{source} does not hold a {arch}"):
        if not all(1 <= size <= MAX_SIZE for size in shape[1:]):
            raise InputError(f"sizes from 1 to {MAX_SIZE:,} expected, got {shape}")
        expected = _expected(arch, shape)
        try:
            torch_names.match(state, expected, part)
        except InputError as error:
            raise InputError(f"{error}. {_guess(state, shape, part)}") from error
        # A few bytes may claim any shape; a number takes at least one.
        numbers, there = sum(a.size for a in expected.values()), source.stat().st_size
        if numbers > there:
            raise InputError(f"{there:,} bytes cannot be {numbers:,} numbers")
        found = torch_names.from_torch(state, expected, part)
    tree = traverse_util.unflatten_dict(found.leaves, sep="/")
    checkpoint.save_tree(directory / results.FINAL, 0, {"batch_stats": {}, **tree})
    model = {"name": arch, "stem": shape.stem, "width": shape.width}
    origin = {"fitted_on": f"unknown: converted from {source.name}", "model": model}
    results.save_outcome(directory, OUTCOME | origin)
    for line in found.lines:
        sizes = "x".join(map(str, found.leaves[line.name].shape))
        ours = line.name.removeprefix("params/")
        text = f"{line.source or '-':48s} -> {ours:44s} {sizes:16s} {line.note}"
        print(text.rstrip())
    if found.skipped:
        names = first_few(found.skipped, 3)
        print(f"skipped {len(found.skipped)} entries that are not weights: {names}")
    total = sum(leaf.size for leaf in found.leaves.values())
    sizes, flags = "", f"--config.model.name={arch} --config.init.path={target}"
    if "stages" in models.ARCHS[arch]:  # the sizes of a ViT are those of its name
        sizes = f", width {shape.width}, {shape.stem} stem"
        flags += f" --config.model.stem={shape.stem} --config.model.width={shape.width}"
    print(f"{len(found.lines)} arrays, {total:,} numbers in {target}: {arch}{sizes}")
    if torch_names.KERNEL not in found.leaves:
        print("NOTE: the file has no head; only methods with start='fresh' can use it")
        flags += " --config.init.skip='head/.*'"
    print(f"use it with: lt-jax retrain --config FILE --workdir DIR {flags}")


def _shape(state: dict[str, weight_files.Array], part: str) -> Shape:
    """Read sizes from the first convolution and the classifier, or guess."""
    heads = (a for n, a in state.items() if torch_names.is_head(n) and a.ndim == 2)
    num_classes = next((leaf.shape[0] for leaf in heads), 1)
    width, channels, side, _ = torch_names.stem(state, part) or (64, 3, 3, 3)
    return Shape("imagenet" if side == 7 else "cifar", width, channels, num_classes)


def _expected(arch: str, shape: Shape) -> dict[str, Any]:
    backbone = models.create(arch, shape.stem, shape.width)
    side = 8 * backbone.side_multiple
    size = side, side, shape.channels
    network = stored.blank(backbone, linear, size, shape.num_classes)
    return trees.leaves(network._asdict())


def _guess(state: dict[str, weight_files.Array], shape: Shape, part: str) -> str:
    """End an error message with the architecture that fits, if one does."""
    names = [name for name in state if name.startswith(part)]
    counts = torch_names.stages(names)
    if counts or any(name.endswith(torch_names.TOKEN) for name in names):
        for arch, fields in models.ARCHS.items():
            with contextlib.suppress(InputError):
                if fields.get("stages", ()) == counts:
                    torch_names.match(state, _expected(arch, shape), part)
                    return f"It is a {arch}: --arch {arch}"
    return "No known architecture fits: check --arch and --part"
