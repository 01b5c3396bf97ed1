"""What all figures share: the look, the files, axes and panels.

Readable in grey and by the colour-blind: colours are those of Okabe and Ito, and what a
colour says, a marker, a line style or a hatch says too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PINK, GREY, INK = "#CC79A7", "#8A8A8A", "#222222"
SOFT = "#6A6A6A"  # of notes
WIDTH = 7.5  # inches, of a figure that fills a page
LINES = ((BLUE, "o", "-"), (RED, "^", "--"), (GREEN, "s", ":"), (ORANGE, "D", "-."))
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "savefig.dpi": 200,
    "svg.fonttype": "path",  # the same picture wherever it is opened
    "svg.hashsalt": "lt_jax",  # the same numbers give the same file
}


def style() -> AbstractContextManager[None]:
    """The look of every figure; draw and render inside it."""
    return matplotlib.style.context(["default", STYLE])


def render(figure: Figure) -> dict[str, bytes]:
    """The files of a figure by kind, ``png`` and ``svg``; no dates, no addresses."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not for each file
    figure.savefig(png, format="png", metadata={"Software": None})
    blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg, format="svg", metadata=blank)
    text = svg.getvalue()  # without the address of the document type
    drawn = b'<?xml version="1.0" encoding="utf-8"?>\n' + text[text.index(b"<svg") :]
    return {"png": png.getvalue(), "svg": drawn}


def trend(
    x: np.ndarray, y: np.ndarray, quantile: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Medians of 12 runs of the points in order of x; fewer points are all.

    Args:
      quantile: what to take of y in place of the median.
    """
    order = np.argsort(x, kind="stable")
    pieces = np.array_split(order, min(12, max(len(order), 1)))
    held = [piece for piece in pieces if len(piece)]
    middles = np.array([np.median(x[piece]) for piece in held])
    return middles, np.array([np.quantile(y[piece], quantile) for piece in held])


def limits(values: np.ndarray, log: bool = False) -> tuple[float, float, int]:
    """Ends of an axis that a few far values do not stretch, and how many are beyond."""
    known = values[np.isfinite(values)]
    inside = np.log(known[known > 0]) if log else known
    if not len(inside):
        return 0.1 if log else 0.0, 1.0, len(known)
    low, high = np.percentile(inside, (5, 95))  # one method of 25 may stand far off
    more = (high - low) / 2
    low, high = max(inside.min(), low - more), min(inside.max(), high + more)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    ends = np.array([low - room, high + room])
    low, high = map(float, np.exp(ends) if log else ends)
    return low, high, int(((known < low) | (known > high)).sum())


def small_panels(number: int, ratio: float) -> tuple[Figure, list[Axes], float]:
    """Panels with shared axes, and the size of their titles in points."""
    columns = number if number <= 4 else 4 if number <= 12 else 5
    rows = -(-number // columns)
    width = min(WIDTH, 1.2 + 2.3 * columns)
    panel = (width - 0.5) / columns
    size = (width, 0.75 + rows * (panel * ratio + 0.2))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[number:]:
        axis.set_visible(False)
    for axis in axes[max(0, number - columns) : number]:
        axis.tick_params(labelbottom=True)  # also above a place that stays empty
    return figure, axes[:number], 8 if columns < 5 else 7


def legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Names beside horizontal bars, the first one on top."""
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)


def tell_nobody(axis: Axes) -> None:
    """In place of the bars of a group that has no classes."""
    axis.text(0.5, 0.5, "no such class", transform=axis.transAxes, ha="center")


def tell_beyond(figure: Figure, axis: Axes, beyond: int, points: int) -> None:
    if beyond:
        note = f"{beyond:,} of {points:,} points lie beyond the axis"
        figure.suptitle(note, x=0.99, ha="right", size=7, color=SOFT)


def count_axis(axis: Axes, counts: np.ndarray) -> None:
    log_axis(axis, "x", counts.min(), counts.max())
    axis.set_xlim(counts.min() / 1.25, counts.max() * 1.25)


def log_axis(axis: Axes, which: str, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis, not powers of ten."""
    axis.set(**{f"{which}scale": "log"})
    line = axis.xaxis if which == "x" else axis.yaxis
    subs = (1.0,) if high > 60 * low else (1.0, 2.0, 5.0)
    subs = (1.0, 2.0, 3.0, 5.0) if high < 8 * low else subs
    # Between so near ends LogLocator finds no round numbers, then far too many.
    ends = FixedLocator(sorted({low, high}))
    line.set_major_locator(LogLocator(subs=subs) if high > 2 * low else ends)
    line.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    line.set_minor_formatter(NullFormatter())


def label_ends(
    axis: Axes, ends: Sequence[tuple[float, str, str]], height: float
) -> None:
    """Names of lines right of their ends, moved apart where they would overlap.

    Args:
      ends: y, text and colour.
      height: of the axis in points, about.
    """
    scale = axis.transData + axis.transAxes.inverted()  # also of logarithmic axes
    apart = 8.5 / height
    places: list[float] = []
    for y, _, _ in sorted(ends):
        place = float(scale.transform((1e-3, y))[1])
        places.append(max(place, places[-1] + apart) if places else place)
    over = max(0.0, places[-1] - 1) if places else 0.0
    for place, (_, text, colour) in zip(places, sorted(ends), strict=True):
        axis.annotate(
            text,
            (1, place - over),
            xycoords="axes fraction",
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            size=7,
        )
