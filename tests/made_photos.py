"""Synthetic photographs: smooth colours and a few edges, in every format."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs

VIEW = PhotoOptions(
    size=32, resize=36, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), broken=0.0
)


def scene(wide: int, high: int, seed: int = 0) -> np.ndarray:
    """uint8[high, wide, 3]: a smooth gradient between four corner colours."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(30, 225, (2, 2, 3))
    y = np.linspace(0, 1, high)[:, None, None]
    x = np.linspace(0, 1, wide)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    waves = 20 * np.sin(2 * np.pi * (2 * x + 3 * y + rng.uniform()))
    return (top * (1 - y) + bottom * y + waves).clip(0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "JPEG", **how) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if format == "JPEG":
        how = {"quality": 95, **how}
    image.save(file, format, **how)
    return file.getvalue()


def patterned(labels: np.ndarray, num_classes: int, seed: int) -> list[bytes]:
    """Make a JPEG per label, in the colours of its class and of varying size."""
    rng = np.random.default_rng(seed)
    files = []
    for label in labels:
        wide, high = rng.integers(40, 90, 2)
        image = scene(int(wide), int(high), seed=int(label))
        noise = rng.normal(0, 8, image.shape)
        files.append(encoded((image + noise).clip(0, 255).astype(np.uint8)))
    return files


def dataset(
    files: Sequence[bytes],
    view: PhotoOptions = VIEW,
    labels: np.ndarray | None = None,
    num_classes: int = 2,
    name: str = "made",
) -> Dataset:
    if labels is None:
        labels = np.arange(len(files), dtype=np.int32) % num_classes
    return photographs(
        name,
        tuple(f"class {k}" for k in range(num_classes)),
        labels.astype(np.int32),
        np.array([f"{name}/{i:04d}.jpg" for i in range(len(files))]),
        lambda rows: [files[i] for i in rows],
        view,
    )
