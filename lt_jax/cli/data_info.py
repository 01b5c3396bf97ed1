"""Description of a config's data: numbers, and a curve of the sorted class counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from lt_jax.data.sources.cifar import original_order
from lt_jax.experiment import results, session
from lt_jax.experiment.config import UserConfig, resolve

WIDTH, HEIGHT = 60, 8  # characters of the curve in the terminal
BARS = " ▁▂▃▄▅▆▇█"
ORDER = {
    True: "as in the original archive: `first` picks the authors' images",
    False: "not as in the original archive: `first` picks other images than the "
    "authors'; a copy made by `lt-jax data prepare` has the original order",
}


def describe(config: UserConfig) -> dict[str, object]:
    """Return the ``dataset`` object of ``result.json``."""
    c = resolve(config)
    splits, groups = session.load_splits(c)
    return results.describe(c.data.name, splits, groups)


def text(config: UserConfig, png: Path | None) -> str:
    """Format the description with the curve; also draw the curve to ``png``."""
    c = resolve(config)
    splits, groups = session.load_splits(c)
    lines = []
    for key, value in results.describe(c.data.name, splits, groups).items():
        if key == "groups":
            value = ", ".join(f"{group} {size}" for group, size in value.items())
        lines.append(f"{key:12s} {value}")
    counts, classes = splits.full_class_counts, splits.train.classes
    lines.append(f"{'imbalance':12s} {counts.max() / counts.min():.1f}")
    for title, k in (("largest", counts.argmax()), ("smallest", counts.argmin())):
        lines.append(f"{title:12s} {classes[k]} ({counts[k]:,})")
    original = original_order(splits.train, splits.valid)
    if original is not None:
        lines.append(f"{'id order':12s} {ORDER[original]}")
    lines += ["", *curve(counts)]
    if png:
        from lt_jax.report import figures, style  # matplotlib is slow to import

        with style.style():
            limits = c.data.many, c.data.few
            drawn = style.render(figures.sorted_counts(counts, *limits))
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(drawn["png"])
        lines.append(f"curve: {png}")
    return "\n".join(lines)


def curve(counts: np.ndarray) -> list[str]:
    """Draw class counts int[K], largest first, as lines of text on a linear scale."""
    ordered = np.sort(counts)[::-1]
    edges = np.linspace(0, len(ordered), min(WIDTH, len(ordered)) + 1).astype(int)
    means = np.array(
        [ordered[low:high].mean() for low, high in itertools.pairwise(edges)]
    )
    steps = len(BARS) - 1
    # A column with images gets at least the thinnest bar.
    heights = np.maximum(np.round(means / means.max() * HEIGHT * steps), 1).astype(int)
    lines = []
    for row in reversed(range(HEIGHT)):
        clipped = np.clip(heights - row * steps, 0, steps)
        bars = "".join(BARS[h] * (WIDTH // len(heights)) for h in clipped)
        label = {HEIGHT - 1: f"{ordered[0]:,}", 0: f"{ordered[-1]:,}"}.get(row, "")
        lines.append(f"{label:>8s} {bars}".rstrip())
    return [*lines, f"{'':8s} {len(ordered):,} classes, largest first"]
