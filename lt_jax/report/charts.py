"""Charts as data. ``chart.svg.j2`` draws them on the page, ``drawing.py`` in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_jax.experiment.tables import csv_text

# Colours on a light and on a dark page: of the stage-1 head, of LOS, of other methods.
COLOURS = (
    ("#767676", "#9c9c9c"),
    ("#d0420b", "#ff8b57"),
    ("#0072b2", "#5bb2ea"),
    ("#00795a", "#3fc79a"),
    ("#7b4fb5", "#bb9df0"),
    ("#b3447f", "#e993c3"),
    ("#8a6a00", "#dfb93c"),
    ("#007a8a", "#4fc6d6"),
    ("#8b5a3c", "#d2a384"),
    ("#4d7a1e", "#a3cd66"),
)
DASHES = ("", "5 3", "2 2", "7 2 2 2")  # for methods of one colour
MARKERS = {  # relative SVG paths
    "circle": "h0",  # a line of no length with round ends
    "square": "m-2.6-2.6h5.2v5.2h-5.2z",
    "triangle": "m0-3.4l3.5 6.2h-7z",
    "bar": "m-1-6h2v12h-2z",
    "": "",
}
WIDTH, HEIGHT, ROW = 340, 226, 19  # pixels of a panel, and of a row of methods

Numbers = Sequence[float] | np.ndarray


class Series(NamedTuple):
    """A line, or points, of one colour."""

    name: str
    x: Numbers
    y: Numbers
    look: int = 0  # its colour and dash, see ``looks``
    method: str = ""  # the filter of the page shows or hides it
    spread: Numbers = ()  # the standard deviation of y; of x in a panel of rows
    marker: str = "circle"  # a key of MARKERS
    line: bool = True
    labels: Sequence[str] = ()  # of the points


class Panel(NamedTuple):
    """One pair of axes."""

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    title: str = ""
    xlog: bool = False
    ylog: bool = False
    rows: Sequence[str] = ()  # names along the y axis, from the top
    xticks: Mapping[float, str] = {}
    diagonal: bool = False  # a line where x and y are equal

    def yticks(self, axis: Axis) -> dict[float, str]:
        """Return the ticks of the y axis: rows, or round numbers."""
        return dict(enumerate(self.rows)) or axis.ticks()


class Table(NamedTuple):
    """A header and rows of cells; None and nan are empty in the CSV file."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    heat: bool = False  # shade numbers by value
    framed: Mapping[str, int] = {}  # by the first cell of a row, a column with a frame
    dotted: Mapping[str, int] = {}  # and one with a dot

    def shade(self, value: float) -> str:
        """Return the opacity of a cell of a heat map."""
        found = [c for row in self.rows for c in row if isinstance(c, float) and c == c]
        low, high = min(found), max(found)
        return f"{0.55 * (value - low) / ((high - low) or 1):.2f}"


class Part(NamedTuple):
    """A section of the page: a caption with charts or a table."""

    name: str  # of its files and its anchor
    title: str
    caption: str = ""
    missing: str = ""  # why there is nothing to show
    panels: Sequence[Panel] = ()
    table: Table | None = None
    images: Sequence[tuple[str, str]] = ()  # data URIs and their texts
    note: str = ""  # on the images

    def csv(self) -> str:
        """Return the numbers as CSV, with eight significant digits."""
        header, rows, *_ = self.table or Table((), ())
        if self.panels:
            header = ["panel", "series", "label", "x", "y", "std", "xlabel", "ylabel"]
            rows = [*_numbers(self.panels)]
        return csv_text([header, *([*map(_csv_cell, row)] for row in rows)])


def _numbers(panels: Sequence[Panel]) -> Iterator[Sequence[Any]]:
    for panel in panels:
        for s in panel.series:
            labels = s.labels or [panel.rows[int(y)] if panel.rows else "" for y in s.y]
            spread = s.spread if len(s.spread) else [math.nan] * len(s.x)
            for label, *values in zip(labels, s.x, s.y, spread, strict=True):
                numbers, names = map(float, values), (panel.xlabel, panel.ylabel)
                yield panel.title, s.name, label, *numbers, *names


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, float):
        return f"{cell:.8g}" if math.isfinite(cell) else ""
    return cell


def looks(methods: Iterable[str]) -> dict[str, int]:
    """Number the looks of methods: 0 for the stage-1 head, 1 for LOS, then the rest.

    >>> looks(["none", "ce", "los", "crt"])
    {'none': 0, 'los': 1, 'ce': 2, 'crt': 3}
    """
    names = dict.fromkeys(["none", "los", *methods])
    return {name: look for look, name in enumerate(names)}


def paint(look: int) -> tuple[int, str]:
    """Return the index of the colour and the dash of a look."""
    turn, colour = divmod(max(look - 2, 0), len(COLOURS) - 2)
    return min(look, 2) + colour, DASHES[turn % len(DASHES)]


class Axis(NamedTuple):
    """A scale from values to pixels."""

    low: float
    high: float
    log: bool
    start: float  # the pixel of ``low`` ...
    end: float  # ... and of ``high``

    def at(self, value: float) -> float:
        """Return the pixel of a value, rounded."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def shows(self, value: float) -> bool:
        """Return whether a value has a pixel."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> dict[float, str]:
        """Return three to seven round values of the axis, with their labels.

        >>> list(Axis(0.0, 47.0, False, 0, 1).ticks().values())
        ['0', '10', '20', '30', '40']
        >>> list(Axis(4.0, 600.0, True, 0, 1).ticks().values())
        ['5', '10', '20', '50', '100', '200', '500']
        """
        values: list[float] = []
        if self.log:
            first, last = (math.floor(math.log10(v)) for v in (self.low, self.high))
            decades = range(first, last + 1, 1 + (last - first) // 7)
            heads = (1, 2, 5) if last - first < 4 else (1,)
            values = [float(f"{head}e{d}") for d in decades for head in heads]
            values = [v for v in values if self.low <= v <= self.high]
        if len(values) < 2:
            raw = (self.high - self.low) / 5 or 1.0
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            values = [float(f"{step * i:.10g}") for i in range(first, last + 1)]
        return {v: f"{v:,.6g}".replace("-", "\N{MINUS SIGN}") for v in values}


def limits(values: np.ndarray, log: bool = False) -> tuple[float, float, int]:
    """Axis limits that ignore far outliers, and the number of points outside them."""
    known = values[np.isfinite(values)]
    # A hostile workdir may have numbers whose exponential is 0 or infinite.
    inside = np.log(known[(known > 1e-99) & (known < 1e99)]) if log else known
    if not len(inside):
        return 0.1 if log else 0.0, 1.0, len(known)
    low, high = np.percentile(inside, (5, 95))  # 1 method of 25 may be an outlier
    more = (high - low) / 2
    low, high = max(inside.min(), low - more), min(inside.max(), high + more)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    ends = np.array([low - margin, high + margin])
    low, high = map(float, np.exp(ends) if log else ends)
    return low, high, int(((known < low) | (known > high)).sum())


def axes(
    panel: Panel, across: tuple[float, float], up: tuple[float, float]
) -> tuple[Axis, Axis, int]:
    """Return the scales of a panel, and the number of points outside them."""
    x, y = ([np.asarray(s[at], float) for s in panel.series] for at in (1, 2))
    if panel.rows:
        ends = [np.nan_to_num(np.asarray(s.spread, float)) for s in panel.series]
        x = [v + sign * end for v, end in zip(x, ends, strict=True) for sign in (-1, 1)]
    low, high, outside = limits(np.concatenate([*x, [*panel.xticks]]), panel.xlog)
    bottom, top, above = limits(np.concatenate(y), panel.ylog)
    if panel.rows:
        bottom, top, above = len(panel.rows) - 0.4, -0.6, 0
    return (
        Axis(low, high, panel.xlog, *across),
        Axis(bottom, top, panel.ylog, *up),
        outside + above,
    )


def geometry(panel: Panel) -> tuple[int, int, Axis, Axis, int]:
    """Return width, height, scales and the number of points outside, for the page."""
    left, width, height = 58.0, WIDTH, HEIGHT
    if panel.rows:
        left = min(190, 16 + 6.6 * max(map(len, panel.rows)))
        width, height = 2 * WIDTH, ROW * len(panel.rows) + 50
    return width, height, *axes(panel, (left, width - 12), (height - 40, 10))


def paths(s: Series, x: Axis, y: Axis, across: bool) -> dict[str, Any]:
    """Return the SVG paths and the values of a series.

    Args:
      across: its whiskers are horizontal, those of y are vertical.
    """
    known = [i for i in range(len(s.x)) if x.shows(s.x[i]) and y.shows(s.y[i])]
    places = {i: f"{x.at(s.x[i]):g} {y.at(s.y[i]):g}" for i in known}
    whiskers = []
    for i in known if len(s.spread) else ():
        scale, middle = (x, s.x[i]) if across else (y, s.y[i])
        ends = [
            v for v in (middle - s.spread[i], middle + s.spread[i]) if scale.shows(v)
        ]
        if len(ends) == 2 and ends[0] < ends[1]:
            start, end = map(scale.at, ends)
            fixed = y.at(s.y[i]) if across else x.at(s.x[i])
            whiskers.append(
                f"M{start} {fixed}H{end}" if across else f"M{fixed} {start}V{end}"
            )
    return {
        "line": "".join(
            ("L" if i - 1 in places else "M") + p for i, p in places.items()
        ),
        "points": "".join(f"M{place}{MARKERS[s.marker]}" for place in places.values()),
        "whiskers": "".join(whiskers),
        "data": " ".join(f"{s.x[i]:.4g} {s.y[i]:.4g}" for i in known),
        "spread": " ".join(f"{s.spread[i]:.3g}" for i in known if len(s.spread)),
        "labels": [s.labels[i] for i in known if s.labels],
    }
