"""Look, axes, panels and file formats shared by all figures.

Figures stay readable in grey and for colour-blind readers: the colours are those of
Okabe and Ito, and a marker, line style or hatch repeats what each colour means.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PINK, GREY, INK = "#CC79A7", "#8A8A8A", "#222222"
NOTE: dict[str, Any] = {"color": "#6A6A6A", "ha": "right"}  # look of annotations
WIDTH = 7.5  # inches, for a figure that fills a page
LINES = ((BLUE, "o", "-"), (RED, "^", "--"), (GREEN, "s", ":"), (ORANGE, "D", "-."))
LOOK = Path(__file__).with_name("look.mplstyle")


def style() -> AbstractContextManager[None]:
    """Apply the look of the report; draw and render inside this context."""
    return matplotlib.style.context(["default", LOOK])


def render(figure: Figure) -> dict[str, bytes]:
    """Render a figure as ``png`` and ``svg``, without dates or external addresses."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout of the first file is kept
    blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg, format="svg", metadata=blank)
    text = svg.getvalue()
    text = text[text.index(b"<svg") :]  # drops the document type and its address
    return {
        "png": png.getvalue(),
        "svg": b'<?xml version="1.0" encoding="utf-8"?>\n' + text,
    }


def trend(
    x: np.ndarray, y: np.ndarray, quantile: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Median x and quantile of y, in at most 12 groups of points of similar x."""
    order = np.argsort(x, kind="stable")
    parts = [p for p in np.array_split(order, min(12, max(len(order), 1))) if len(p)]
    middles = np.array([np.median(x[part]) for part in parts])
    return middles, np.array([np.quantile(y[part], quantile) for part in parts])


def limits(values: np.ndarray, log: bool = False) -> tuple[float, float, int]:
    """Axis limits that ignore far outliers, and the number of points outside them."""
    known = values[np.isfinite(values)]
    inside = np.log(known[known > 0]) if log else known
    if not len(inside):
        return 0.1 if log else 0.0, 1.0, len(known)
    low, high = np.percentile(inside, (5, 95))  # 1 method of 25 may be an outlier
    more = (high - low) / 2
    low, high = max(inside.min(), low - more), min(inside.max(), high + more)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    ends = np.array([low - margin, high + margin])
    low, high = map(float, np.exp(ends) if log else ends)
    return low, high, int(((known < low) | (known > high)).sum())


def small_panels(number: int, ratio: float) -> tuple[Figure, list[Axes], float]:
    """A grid of panels with shared axes, and the font size of their titles."""
    columns = number if number <= 4 else 4 if number <= 12 else 5
    rows = -(-number // columns)
    width = min(WIDTH, 1.2 + 2.3 * columns)
    height = 0.75 + rows * ((width - 0.5) / columns * ratio + 0.2)
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes[max(0, number - columns) : number]:
        axis.tick_params(labelbottom=True)  # the panel below may be hidden
    return figure, axes[:number], 8 if columns < 5 else 7


def legend(figure: Figure, *axes: Axes) -> None:
    """Place one legend above the figure, with every label of these axes once."""
    entries = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    above: dict[str, Any] = {"loc": "outside upper left", "ncols": len(entries)}
    figure.legend(list(entries.values()), list(entries), **above)


def mark_empty(axis: Axes) -> None:
    """Placeholder for a group without classes."""
    axis.text(0.5, 0.5, "no such class", transform=axis.transAxes, ha="center")


def log_axis(axis: Axes, which: str, low: float, high: float) -> None:
    """Make an axis logarithmic, labelled with plain numbers, not powers of ten."""
    axis.set(**{f"{which}scale": "log"})
    line = axis.xaxis if which == "x" else axis.yaxis
    subs = (1.0,) if high > 60 * low else (1.0, 2.0, 5.0)
    subs = (1.0, 2.0, 3.0, 5.0) if high < 8 * low else subs
    # In a short range LogLocator finds no round numbers and then labels far too many.
    ends = FixedLocator(sorted({low, high}))
    line.set_major_locator(LogLocator(subs=subs) if high > 2 * low else ends)
    line.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    line.set_minor_formatter(NullFormatter())
