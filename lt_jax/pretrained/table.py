"""Pre-trained backbones by name: where the weights are, and what images they expect.

Names, repositories and preprocessing in ``table.json`` are those of timm 1.0.31,
licences those of the original weights; DINOv2 has the sizes of its own evaluation.

Some names are pinned. At least two independent public projects state each hash for that
file, and at least one of them its revision (looked up on 2026-11-26). The files were
not downloaded here, as the hub could not be reached.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

# Mean and standard deviation per channel, for pixels in 0 .. 1.
Colours = tuple[tuple[float, ...], tuple[float, ...]]


class Recipe(NamedTuple):
    """How images were prepared for a family of weights, and whose these are."""

    colours: Colours
    size: int  # side of the images in pixels
    resize: int  # shorter side before the centre crop
    interpolation: str  # of that resize, by Pillow; "": lt_jax's faster, linear one
    licence: str
    source: str


class Pretrained(NamedTuple):
    """Weights on the Hugging Face hub, or in a folder with timm's ``config.json``."""

    arch: str  # a key of models.ARCHS
    recipe: Recipe
    repository: str = ""  # OWNER/NAME on the hub
    revision: str = ""  # a commit; "": the newest
    sha256: str = ""  # of the file in it; "": not checked


def _read() -> dict[str, Pretrained]:
    table = json.loads(Path(__file__).with_name("table.json").read_text("utf-8"))
    found = {}
    for name, family in table["weights"].items():
        mean, std = table["recipes"][family]["colours"]
        looks = {**table["recipes"][family], "colours": (tuple(mean), tuple(std))}
        arch = name.partition(".")[0]
        if family == "openai":  # they need their own approximation of GELU
            arch = "vit_base_patch16_clip_quickgelu_224"
        pin = table["pins"].get(name, {})
        found[name] = Pretrained(arch, Recipe(**looks), f"timm/{name}", **pin)
    return found


TABLE = _read()
