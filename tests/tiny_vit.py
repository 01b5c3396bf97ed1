"""A vision transformer of two blocks, and its random weights under timm's names."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from lt_jax import models, trees
from lt_jax.experiment import stored
from lt_jax.heads import linear
from lt_jax.pretrained import torch_names

NAME = "vit_test"
SIZES = {"patch": 4, "grid": 2, "width": 6, "depth": 2, "heads": 2}
SIDE = 8
# What timm writes next to its weights.
CONFIG = {
    "architecture": NAME,
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "input_size": [3, SIDE, SIDE],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "license": "mit",
    },
}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the network to the architectures."""
    monkeypatch.setitem(models.ARCHS, NAME, SIZES)


def drawn(channels: int = 3) -> dict[str, np.ndarray]:
    """Random leaves of the network with a head of seven classes."""
    rng = np.random.default_rng(0)
    like = stored.blank(models.create(NAME), linear, (SIDE, SIDE, channels), 7)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(size=leaf.shape).astype(np.float32)

    return trees.leaves(jax.tree.map(draw, like)._asdict())


def save(file: Path, channels: int = 3) -> dict[str, np.ndarray]:
    """Write random weights; return those of the backbone by our names."""
    leaves = drawn(channels)
    safetensors.numpy.save_file(torch_names.to_torch(leaves), file)
    return {n: leaf for n, leaf in leaves.items() if "/head/" not in n}


def folder(path: Path) -> Path:
    """Write a folder as ``hf:`` downloads it."""
    path.mkdir()
    save(path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path
