"""A folder of small photographs in three classes, and a config that trains on it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tiny_digits
from ml_collections import ConfigDict
from PIL import Image

COLOURS = {"blau": (40, 40, 200), "grün wiese": (40, 200, 40), "rot": (200, 40, 40)}


def image(colour: tuple[int, ...], seed: int, kind: str = "PNG") -> bytes:
    """Make an image of 52 x 40 pixels of a colour with noise."""
    noise = np.random.default_rng(seed).normal(0, 20, (40, 52, len(colour)))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(folder: Path, sizes: dict[str, int], first: int = 0) -> Path:
    """Write images of each class, half of them JPEG; return the folder."""
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(size):
            kind, suffix = (("JPEG", "jpg"), ("PNG", "PNG"))[i % 2]
            content = image(COLOURS[name], first + 100 * i + len(name), kind)
            (folder / name / f"bild {i}.{suffix}").write_bytes(content)
    return folder


def config(folder: Path, **changes: object) -> ConfigDict:
    """Return the small digits config on this folder; ``__`` in keys means a dot."""
    c = tiny_digits.config()
    photos = {
        "name": "folder",
        "dir": str(folder),
        "imbalance": 1.0,
        "split": "whole",
        "valid": 0.2,
        "many": 15,
        "few": 8,
        "pad": 0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "size": 16,
        "resize": 20,
        "scale": (0.08, 1.0),
        "ratio": (0.75, 4 / 3),
        "broken": 0.01,
        "workers": 1,
        "table": "",
        "test": 0.25,
    }
    with c.unlocked():
        c.data.update(photos)
        c.optim.batch = c.method.batch = 16
        c.update_from_flattened_dict(
            {k.replace("__", "."): v for k, v in changes.items()}
        )
    return c.lock()
