"""``lt-jax list``: pairs of a name and a line about it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

Lines = list[tuple[str, str]]


def methods() -> Lines:
    from lt_jax.methods import METHODS

    return [(name, _summary(build)) for name, build in METHODS.items()]


def networks() -> Lines:
    from lt_jax.models import ARCHS

    lines = []
    for name, fields in ARCHS.items():
        if "stages" not in fields:
            kind = "{depth} blocks of width {width}, patches of {patch} pixels"
            lines.append((name, f"ViT with {kind.format(**fields)}"))
            continue
        stages = "-".join(map(str, fields["stages"]))
        kind = "bottleneck" if fields.get("bottleneck") else "basic"
        groups = f" of {fields['groups']} groups" if "groups" in fields else ""
        lines.append((name, f"ResNet with {stages} {kind} blocks{groups}"))
    return [*lines, ("none", "no network: for features as input")]


def pretrained() -> Lines:
    from lt_jax.pretrained.table import TABLE

    return [
        (
            name,
            f"{entry.arch}, {entry.recipe.size} pixels, {entry.recipe.licence}"
            + ", pinned" * bool(entry.sha256),
        )
        for name, entry in TABLE.items()
    ]


def data() -> Lines:
    from lt_jax.data.catalogue import PHOTOS, SOURCES

    loaders = {**SOURCES, **{name: photos.load for name, photos in PHOTOS.items()}}
    return [(name, _summary(load)) for name, load in loaders.items()]


def configs() -> Lines:
    """List config files in the current folder and those shipped with the package."""
    shipped = Path(__file__).parents[1] / "configs"
    found: dict[str, str] = {}
    for folder in (Path("configs"), shipped):
        for file in sorted(folder.glob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            found.setdefault(f"configs/{file.name}", (text or "").partition("\n")[0])
    return [*found.items()]


def _summary(function: Any) -> str:
    # The docstring of a loader called `load` is that of its module.
    owner = inspect.getmodule(function) if function.__name__ == "load" else function
    first, _, _ = (inspect.getdoc(owner) or "").partition("\n\n")
    return " ".join(first.split()).replace("``", "")
