"""Charts as files for papers: PNG and PDF by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_jax.errors import InputError
from lt_jax.report import charts
from lt_jax.report.charts import COLOURS, Panel

try:
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise InputError(
        f"matplotlib, which draws charts as files, cannot be imported ({error}): "
        "run pip install 'lt_jax[report]'"
    ) from error

WIDTH = 7.5  # inches, for a figure that fills a page
GREY = "#8a8a8a"
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "bar": "|", "": ""}
LOOK = Path(__file__).with_name("look.mplstyle")


def draw(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Draw panels in rows of three; return the content of the files by format.

    The same numbers give the same bytes.
    """
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.style.context(["default", LOOK]):
        figure = _figure(panels)
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.set_layout_engine("none")  # the layout of the first file is kept
        blank = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        figure.savefig(pdf, format="pdf", metadata=blank)
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def _figure(panels: Sequence[Panel]) -> Figure:
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    rows = panels[0].rows
    height = 1.0 + 0.19 * len(rows) if rows else 0.5 + 2.1 * lines
    figure = Figure(figsize=(WIDTH, height))
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, panel in zip(grid, panels, strict=False):
        _draw_panel(axis, panel)
    entries: dict[str, Any] = {}
    for axis in grid:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        axis.set_visible(axis.has_data())
    if 1 < len(entries) <= 40:
        above: Any = {"loc": "outside upper left", "ncols": 4}
        figure.legend(list(entries.values()), list(entries), **above)
    return figure


def _draw_panel(axis: Axes, panel: Panel) -> None:
    x, y, _ = charts.axes(panel, (0, 1), (0, 1))
    for s in panel.series:
        colour, dash = charts.paint(s.look)
        line = (0, [*map(float, dash.split())]) if dash else "-"
        look: Any = {"color": COLOURS[colour][0], "marker": MARKERS[s.marker]}
        look["ls"] = line if s.line else "none"
        look["label"] = "" if panel.rows else s.method or s.name
        if panel.rows:  # a row has a method and its colour, a marker a kind of accuracy
            kind = s.name.removeprefix(f"{s.method}, ")
            axis.plot([], [], c=GREY, marker=look["marker"], ls="none", label=kind)
        if len(s.spread):
            look["xerr" if panel.rows else "yerr"] = s.spread
        axis.errorbar(s.x, s.y, elinewidth=0.8, **look)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
    if panel.diagonal:
        axis.axline((x.low, x.low), slope=1, color=GREY, lw=0.7)
    ends = (("x", x, panel.xticks or x.ticks()), ("y", y, panel.yticks(y)))
    for name, scale, ticks in ends:
        axis.set(**{f"{name}scale": "log" if scale.log else "linear"})
        axis.set(**{f"{name}ticks": [*ticks], f"{name}ticklabels": [*ticks.values()]})
    axis.minorticks_off()
    axis.set(xlim=(x.low, x.high), ylim=(y.low, y.high))
