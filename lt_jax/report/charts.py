"""Charts as data. ``chart.svg.j2`` draws them on the page, ``drawing.py`` in files."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.experiment.tables import csv_text

WIDTH, HEIGHT, ROW = 340, 226, 19  # pixels of a panel, and of a row of methods

PAGE = tomllib.loads(Path(__file__).with_name("page.toml").read_text("utf-8"))
COLOURS, DASHES = PAGE["colours"], PAGE["dashes"]

Numbers = Sequence[float] | np.ndarray


class Series(NamedTuple):
    """A line, or points, of one colour."""

    name: str
    x: Numbers
    y: Numbers
    look: int = 0  # its colour and dash, see ``looks``
    method: str = ""  # the filter of the page shows or hides it
    spread: Numbers = ()  # the standard deviation of y; of x in a panel of rows
    marker: str = "circle"  # of ``page.toml``
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

        def text(cell: Any) -> Any:
            if not isinstance(cell, float):
                return cell
            return f"{cell:.8g}" if math.isfinite(cell) else ""

        header, rows, *_ = self.table or Table((), ())
        if self.panels:
            header = ["panel", "series", "label", "x", "y", "std", "xlabel", "ylabel"]
            rows = [*_numbers(self.panels)]
        return csv_text([header, *([*map(text, row)] for row in rows)])


def part(name: str, **content: Any) -> Part:
    """Make a part from fields of ``Part`` and from what its texts need."""
    text = {key: PAGE[name.rstrip("12")][key] for key in ("title", "caption")}
    text = {key: value.format(**content) for key, value in text.items()}
    return Part(name, **text, **{k: v for k, v in content.items() if k in Part._fields})


def missing(name: str, reason: str = "missing", **content: Any) -> Part:
    """Make a part without content; ``reason`` is a key of its texts, or a text."""
    text = PAGE[name.rstrip("12")]
    return Part(name, text["title"].format(**content), missing=text.get(reason, reason))


def _numbers(panels: Sequence[Panel]) -> Iterator[Sequence[Any]]:
    for panel in panels:
        for s in panel.series:
            labels = s.labels or [panel.rows[int(y)] if panel.rows else "" for y in s.y]
            spread = s.spread if len(s.spread) else [math.nan] * len(s.x)
            for label, *values in zip(labels, s.x, s.y, spread, strict=True):
                numbers, names = map(float, values), (panel.xlabel, panel.ylabel)
                yield panel.title, s.name, label, *numbers, *names


def looks(methods: Iterable[str]) -> dict[str, int]:
    """Number the looks of methods: 0 for the stage-1 head, 1 for LOS, then the rest."""
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
        scale = math.log if self.log else float
        low, high, value = map(scale, (self.low, self.high, value))
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)

    def shows(self, value: float) -> bool:
        """Return whether a value has a pixel."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> dict[float, str]:
        """Return three to seven round values of the axis, with their labels."""
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
    x_axis, y_axis = (low, high, panel.xlog, *across), (bottom, top, panel.ylog, *up)
    return Axis(*x_axis), Axis(*y_axis), outside + above


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
    scale, middles = (x, s.x) if across else (y, s.y)
    mark, whiskers = PAGE["markers"][s.marker], []
    for i in known if len(s.spread) else ():
        ends = middles[i] - s.spread[i], middles[i] + s.spread[i]
        if ends[0] < ends[1] and all(map(scale.shows, ends)):
            start, end = map(scale.at, ends)
            left = f"M{start} {y.at(s.y[i])}H{end}"
            whiskers.append(left if across else f"M{x.at(s.x[i])} {start}V{end}")
    return {
        "line": "".join("ML"[i - 1 in places] + place for i, place in places.items()),
        "points": "".join(f"M{place}{mark}" for place in places.values()),
        "whiskers": "".join(whiskers),
        "data": " ".join(f"{s.x[i]:.4g} {s.y[i]:.4g}" for i in known),
        "spread": " ".join(f"{s.spread[i]:.3g}" for i in known if len(s.spread)),
        "labels": [s.labels[i] for i in known if s.labels],
    }
