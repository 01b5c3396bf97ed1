"""``lt-jax data info``: numbers, and a curve of the sorted class counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lt_jax.data.sources.cifar import original_order
from lt_jax.experiment.checks import from_data
from lt_jax.experiment.config import UserConfig, resolve
from lt_jax.experiment.splits import describe, load_splits
from lt_jax.files import write
from lt_jax.report.charts import Panel, Series

NAMED = 5  # classes at each end
WIDTH, HEIGHT = 60, 8  # characters of the curve in the terminal
BARS = " ▁▂▃▄▅▆▇█"
ORDER = {
    True: "as in the original archive: `first` and `cao` pick the authors' images",
    False: "not as in the original archive: `first` and `cao` pick other images than "
    "the authors'; a copy made by `lt-jax data prepare` has the original order",
}


def show(config: UserConfig, as_json: bool, png: Path | None) -> None:
    """Print the description with the curve; also draw the curve to ``png``.

    Args:
      as_json: print the ``dataset`` object of ``result.json`` instead.
    """
    c = resolve(config)
    splits, groups = load_splits(c)
    c = from_data(c, splits.full_class_counts)
    described = describe(c.data.name, splits, groups)
    if as_json:
        print(json.dumps(described))
        return
    counts, sizes = splits.full_class_counts, described["groups"]
    if splits.train.ids.size < counts.sum():
        described["num_train"] = f"{counts.sum():,}, held-out ones included"
    limits = {"many": f" (> {c.data.many} images)", "few": f" (< {c.data.few})"}
    named = (f"{name} {size}{limits.get(name, '')}" for name, size in sizes.items())
    described["groups"] = ", ".join(named)
    lines = [f"{key:12s} {value}" for key, value in described.items()]
    lines.append(f"{'imbalance':12s} {counts.max() / counts.min():.1f}")
    order = np.argsort(-counts, kind="stable")
    named = [f"{splits.train.classes[k]} ({counts[k]:,})" for k in order]
    lines.append(f"{'largest':12s} {', '.join(named[:NAMED])}")
    lines.append(f"{'smallest':12s} {', '.join(named[: -NAMED - 1 : -1])}")
    for name in (name for name, size in sizes.items() if size == 1):
        tested = splits.test.class_counts[groups[name]].sum()
        lines.append(
            f"{'note':12s} {name!r} is one class: its accuracy is measured on {tested} "
            "test images, and does not describe other classes of its size"
        )
    held = splits.valid.class_counts
    if held.any() and held.min() < 3:
        lines.append(
            f"{'note':12s} {(held < 3).sum()} classes have fewer than 3 validation "
            "images: a choice made on them is uncertain for these classes"
        )
    original = original_order(splits.train, splits.valid)
    if original is not None:
        lines.append(f"{'id order':12s} {ORDER[original]}")
    lines += ["", *curve(counts)]
    if png:
        from lt_jax.report.drawing import draw  # matplotlib is slow, and an extra

        limits = {"many above": c.data.many, "few below": c.data.few}
        write(png, draw([_panel(counts, limits)])["png"])
        lines.append(f"curve: {png}")
    print("\n".join(lines))


def _panel(counts: np.ndarray, limits: dict[str, int]) -> Panel:
    """Chart of class counts int[K], largest first, with the limits of the groups."""
    ranks, ends = range(1, len(counts) + 1), [1, len(counts)]
    lines = [Series("classes", ranks, np.sort(counts)[::-1].tolist(), 2, marker="")]
    for name, limit in limits.items():
        lines.append(Series(f"{name} {limit:,}", ends, [limit, limit], marker=""))
    return Panel("class, largest first", "training images", lines, ylog=True)


def curve(counts: np.ndarray) -> list[str]:
    """Draw class counts int[K], largest first, as lines of text on a linear scale."""
    ordered = np.sort(counts)[::-1]
    edges = np.linspace(0, len(ordered), min(WIDTH, len(ordered)) + 1).astype(int)
    means = np.add.reduceat(ordered, edges[:-1]) / np.diff(edges)
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
