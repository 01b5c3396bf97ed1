"""Backbones from files of weights: named, downloaded, checked, under our names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax import models, trees
from lt_jax.errors import InputError, located, one_of, suggest
from lt_jax.files import read_json
from lt_jax.pretrained import hub, torch_names, transformers_names, weight_files
from lt_jax.pretrained.table import TABLE, Pretrained, Recipe

HUB = "hf:"
FILE = "model.safetensors"
# What is read of the ``config.json`` that timm writes next to its weights.
CONFIG = {
    "architecture": str,
    "pretrained_cfg": {
        "mean": [float],
        "std": [float],
        "input_size": [range(1, 10_000), 3],
        "crop_pct?": (float, None),
        "interpolation?": str,
        "license?": (str, None),
    },
}
REMEDY = (
    "Expected what timm writes, such as hf:timm/... For other weights, also those of "
    "transformers: lt-jax features --model NAME --weights FILE.safetensors"
)


class Weights(NamedTuple):
    source: str  # as the user gave it
    file: Path
    described: Pretrained | None  # None for a lone file
    notes: dict[str, Any]  # provenance, for JSON


def is_weights(path: str) -> bool:
    """Check whether ``path`` names weights: on the hub, in a file, or in a folder."""
    return (
        path.startswith(HUB)
        or path.lower().endswith(weight_files.SUFFIXES)
        or (Path(path).expanduser() / FILE).is_file()
    )


def find(source: str, sha256: str = "") -> Weights:
    """Find weights, download them if necessary, and check their hash.

    ``source`` is ``hf:OWNER/NAME``, ``hf:OWNER/NAME@REVISION``, a file, or a folder
    with FILE and timm's ``config.json``. ``sha256`` "" takes that of the table, if any,
    and the table's revision unless ``source`` has one.
    """
    described, pin, notes = None, "", {"source": source}
    if source.startswith(HUB):
        repository, _, revision = source.removeprefix(HUB).partition("@")
        if repository.count("/") != 1 or source.endswith("@"):
            raise InputError(
                f"expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got {source!r}"
            )
        name = repository.removeprefix("timm/")
        if described := TABLE.get(name):
            if not (revision or sha256):
                revision, pin = described.revision, described.sha256
        else:
            try:
                listed = hub.fetch(repository, "config.json", revision)
                described = _from_config(listed)
            except InputError as error:
                raise InputError(f"{error}{suggest(name, TABLE)}") from error
        file = hub.fetch(repository, FILE, revision, pin)
        notes["revision"] = file.parent.name  # the commit, in the cache of the hub
    else:
        file = Path(source).expanduser()
        if file.is_dir():
            described = _from_config(file / "config.json")
            file = file / FILE
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    expected = sha256 or (described.sha256 if described else "")
    if expected and digest != expected.lower():
        raise InputError(
            f"{file} has the SHA-256 {digest}, expected {expected}: it is damaged or "
            f"another version. Delete {file.resolve()} and download it again, or give "
            "its hash (init.sha256; --sha256 of `lt-jax features`) or the file itself "
            "(--weights FILE)"
        )
    notes |= {"file": file.name, "sha256": digest, "checked": bool(expected)}
    if described:
        notes |= {"licence": described.recipe.licence, "from": described.recipe.source}
    return Weights(source, file, described, notes)


def _from_config(file: Path) -> Pretrained:
    """Read timm's ``config.json``."""
    if not file.is_file():
        raise InputError(f"no such file: {file}. {REMEDY}")
    found = read_json(file, CONFIG, REMEDY)
    with located(str(file)):
        arch = one_of("architecture", found["architecture"], models.ARCHS)
    looks = found["pretrained_cfg"]
    size = looks["input_size"][1]
    recipe = Recipe(
        colours=(tuple(looks["mean"]), tuple(looks["std"])),
        size=size,
        resize=int(size / (looks.get("crop_pct") or 1)),
        interpolation=looks.get("interpolation", "bicubic"),
        licence=looks.get("license") or "unknown",
        source=str(file),
    )
    return Pretrained(arch, recipe)


def backbone(
    weights: Weights, name: str, module: models.ResNet | models.ViT, channels: int
) -> dict[str, np.ndarray]:
    """Read the backbone of a file, without its head, by our names.

    ``name`` is the architecture of ``module``, ``channels`` are those of the images.
    """
    source = weights.source
    if name == "none":
        raise InputError(f"{source} cannot start model.name='none': features as input")
    if weights.described and weights.described.arch != name:
        raise InputError(
            f"{source} is a {weights.described.arch}, but the network is a {name}: set "
            f"--config.model.name={weights.described.arch}"
        )
    state = transformers_names.to_timm(weight_files.read(weights.file))
    state = {n: leaf for n, leaf in state.items() if not torch_names.is_head(n)}
    stem = torch_names.stem(state)
    if stem and stem[1] != channels:
        raise InputError(
            f"{source} takes images of {stem[1]} channels, but these have {channels}"
        )
    side = 8 * module.side_multiple
    params, stats = models.shapes(module, (side, side, channels))
    expected = trees.leaves({"params": {"backbone": params}, "batch_stats": stats})
    with located(f"{source} does not hold a {name}"):
        return torch_names.from_torch(state, expected).leaves
