"""The report's figures: numbers in, a matplotlib figure out.

Readable in grey and by the colour-blind: colours are those of Okabe and Ito, and what a
colour says, a marker, a line style or a hatch says too. Many methods become many small
panels, each with the same grey reference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PINK, GREY, INK = "#56B4E9", "#CC79A7", "#8A8A8A", "#222222"
WIDTH = 7.5  # inches, of a figure that fills a page
MANY_CLASSES = 1500  # from here on classes are a band, as points would drown it
QUARTILES = (0.25, 0.75)  # its edges
MANY_POINTS = 2000  # from here on the points of a vector figure are one picture
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


class Curve(NamedTuple):
    """What a hyper-parameter does at one choice of learning rate."""

    label: str
    x: np.ndarray  # float[n], the hyper-parameter, increasing
    lr: np.ndarray  # float[n]
    values: dict[str, tuple[np.ndarray, np.ndarray]]  # mean and deviation, float[n]


class Diagram(NamedTuple):
    """A reliability diagram: bins of confidence, summed over seeds."""

    seen: np.ndarray  # [bins], examples
    right: np.ndarray  # of these, predicted right
    conf: np.ndarray  # sum of the confidences


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


def sorted_counts(counts: np.ndarray, many: int, few: int) -> Figure:
    """Training images of each class, largest first, and the limits of the groups.

    Args:
      counts: int[K].
      many, few: limits, see ``metrics.groups``.
    """
    figure = Figure(figsize=(WIDTH, WIDTH / 2.5), layout="constrained")
    axis = figure.add_subplot()
    ordered = np.sort(counts)[::-1]
    rank = np.arange(1, len(ordered) + 1)
    axis.fill_between(rank, ordered, step="mid", color=BLUE, alpha=0.25, linewidth=0)
    axis.step(rank, ordered, where="mid", color=BLUE)
    for limit, name in ((many, "many above"), (few, "few below")):
        axis.axhline(limit, color=GREY, linestyle="--", linewidth=0.8)
        axis.annotate(
            f"{name} {limit:,}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontsize=7,
        )
    _log_axis(axis, "y", max(ordered[-1], 1) * 0.8, ordered[0] * 1.25)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("class, largest first")
    axis.set_ylabel("training images")
    return figure


def per_class(
    counts: np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    reference: Mapping[str, np.ndarray],
    ylabel: str,
    log: bool = False,
) -> Figure:
    """A value of each class against its count, a panel for each method.

    Args:
      counts: int[K], training examples.
      panels: by method, the lines of its panel by label, each float[K].
      reference: the same lines of the stage-1 head, in grey in every panel; may be
        empty.
      ylabel: name and unit of the value.
      log: a logarithmic axis of values; what is not positive is beyond it.
    """
    figure, axes, size = _panels(len(panels), 0.85)
    everything = [v for lines in (*panels.values(), reference) for v in lines.values()]
    low, high, beyond = limits(np.concatenate(everything), log)
    beyond = 0 if len(counts) > MANY_CLASSES else beyond
    drawn_as_picture = sum(map(len, everything)) > MANY_POINTS
    few = len(counts) <= 30  # then the points are what is looked at
    handles: dict[str, Line2D] = {}
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for role, shown in (("none", reference), ("", lines)):
            for (label, values), kind in zip(shown.items(), LINES, strict=False):
                colour, marker, dash = (GREY, "x", kind[2]) if role else kind
                known = np.isfinite(values)
                x, y = trend(counts[known], values[known])
                if len(counts) > MANY_CLASSES:
                    quarters = (
                        trend(counts[known], values[known], q) for q in QUARTILES
                    )
                    low_y, high_y = (of for _, of in quarters)
                    axis.fill_between(x, low_y, high_y, color=colour, alpha=0.25, lw=0)
                else:
                    points = axis.scatter(
                        counts[known],
                        values[known],
                        s=16 if few else 7,
                        marker=marker,
                        color=colour,
                        alpha=0.9 if few else 0.45,
                        linewidths=(1 if few else 0.6) if role else 0,
                        zorder=3 if few else 1,
                    )
                    points.set_rasterized(drawn_as_picture)
                axis.plot(x, y, dash, color=colour, lw=1 if role else 1.4)
                name = " ".join(part for part in (role, label) if part) or "method"
                handles[name] = Line2D(
                    [], [], color=colour, ls=dash, marker=marker, label=name
                )
        axis.set_title(title, fontsize=size)
    # The limits first: the first panel may show nothing above 0 where others do.
    axes[0].set_ylim(low, high)
    if log:
        _log_axis(axes[0], "y", low, high)
    _count_axis(axes[0], counts)
    figure.supxlabel("training examples of the class (log scale)", fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    figure.legend(
        handles=list(handles.values()), loc="outside upper left", ncols=len(handles)
    )
    _beyond(figure, axes[-1], beyond, sum(map(len, everything)))
    return figure


def bars(
    names: Sequence[str],
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]],
    reference: str,
    highlight: str,
) -> Figure:
    """Horizontal bars of per cent, a column of panels a group, whiskers for the spread.

    Args:
      names: of the methods, from top to bottom.
      columns: mean and deviation (nan: unknown) by title, each float[methods].
      reference: the method whose value is a line through the panel.
      highlight: the method that stands out.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.19 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    looks = {reference: (GREY, "////"), highlight: (RED, "")}
    place = np.arange(len(names))
    for axis, (title, (mean, std)) in zip(axes, columns.items(), strict=True):
        known = np.isfinite(mean)
        reach = np.where(known, mean + np.nan_to_num(std), 0)
        top = max(float(reach.max(initial=0)), 1e-9)
        for i, name in enumerate(names):
            colour, hatch = looks.get(name, (BLUE, ""))
            if not known[i]:
                continue
            axis.barh(i, mean[i], 0.72, color=colour, hatch=hatch, edgecolor="white")
            axis.text(
                reach[i] + 0.03 * top,
                i,
                f"{mean[i]:.1f}",
                va="center",
                size=6.5,
                bbox={"fc": "white", "ec": "none", "pad": 0.4},
                zorder=4,
            )
        whiskers = known & np.isfinite(std)
        axis.errorbar(
            mean[whiskers],
            place[whiskers],
            xerr=std[whiskers],
            fmt="none",
            ecolor=INK,
            elinewidth=0.8,
            capsize=1.6,
        )
        if reference in names and known[names.index(reference)]:
            axis.axvline(
                mean[names.index(reference)], color=INK, lw=0.7, ls=(0, (4, 3))
            )
        if not known.any():
            axis.text(0.5, 0.5, "no such class", transform=axis.transAxes, ha="center")
            axis.set_xticks([])  # there is no scale either
        axis.set_title(title)
        axis.set_xlim(0, 1.28 * top)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(place, names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("accuracy (per cent)", fontsize=8)
    return figure


def smoothing(curves: Sequence[Curve], num_classes: int, split: str) -> Figure:
    """What the amount of label smoothing does, in six panels.

    Args:
      curves: one for each choice of learning rate, with every metric that is drawn.
      num_classes: K of the gap that a perfect fit has, see ``gap``.
      split: on which the values were measured.
    """
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    axes = figure.subplots(2, 3)
    rsd = ("rsd_row_true", "rsd_row_false", "rsd_col_true", "rsd_col_false")
    panels = (
        ("accuracy (per cent)", 100, {"all": "all", "balanced": "balanced"}),
        ("accuracy (per cent)", 100, {g: g for g in ("many", "medium", "few")}),
        ("Logits Magnitude (nats)", 1, {"loma_row": "row", "loma_col": "column"}),
        ("RSD", 1, {key: key[4:].replace("_", " ") for key in rsd}),
    )
    dashes = ("-", (0, (3, 2)))
    for axis, (ylabel, factor, keys) in zip(axes.flat, panels, strict=False):
        ends = []
        for (key, name), (colour, marker, _) in zip(keys.items(), LINES, strict=False):
            for curve, dash in zip(curves, dashes, strict=False):
                mean, std = (factor * a for a in curve.values[key])
                x = 1 - curve.x
                first = dash == "-"
                face = colour if first else "white"
                axis.plot(x, mean, color=colour, ls=dash, marker=marker, mfc=face)
                if first:
                    axis.fill_between(
                        x, mean - std, mean + std, color=colour, alpha=0.15, lw=0
                    )
                    known = mean[np.isfinite(mean)]
                    ends += [(known[-1], name, colour)] if len(known) else []
        _smoothing_axis(axis, curves)
        axis.set_ylabel(ylabel)
        drawn = np.concatenate(
            [curve.values[key][0] for curve in curves for key in keys]
        )
        if ylabel == "RSD" and drawn.min() > 0:  # not so where LoMa is negative
            _log_axis(axis, "y", *axis.get_ylim())
            axis.set_ylabel("RSD (log scale)")
        _label_ends(axis, ends, 118)
    axis = axes.flat[4]
    reached = [0.0]
    for curve, dash in zip(curves, dashes, strict=False):
        mean = curve.values["loma_row"][0]
        x = gap(curve.x, num_classes)
        shown = np.isfinite(x) & np.isfinite(mean)
        face = BLUE if dash == "-" else "white"
        axis.plot(x[shown], mean[shown], color=BLUE, ls=dash, marker="o", mfc=face)
        reached += [*x[shown], *mean[shown]]
    axis.axline((0, 0), slope=1, color=GREY, lw=1)
    edge = 1.06 * max(reached) or 1.0
    axis.set(xlim=(0, edge), ylim=(min(0.0, 1.06 * min(reached)), edge))
    axis.annotate(
        "gap reached",
        (0.72 * edge, 0.72 * edge),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right",
        color="#6A6A6A",
        size=7,
    )
    axis.set_xlabel("gap asked for, ln(1 + K(1-δ)/δ) (nats)")
    axis.set_ylabel("gap measured, LoMa row (nats)")
    axis = axes.flat[5]
    for curve, dash in zip(curves, dashes, strict=False):
        face = BLUE if dash == "-" else "white"
        axis.plot(1 - curve.x, curve.lr, color=BLUE, ls=dash, marker="o", mfc=face)
    _smoothing_axis(axis, curves)
    rates = np.unique(np.concatenate([curve.lr for curve in curves]))
    if rates[0] > 0:
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(FixedLocator([]))
    axis.set_yticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_ylabel("learning rate")
    handles = [
        Line2D([], [], color=INK, ls=dash, marker="o", mfc=face, label=curve.label)
        for curve, dash, face in zip(curves, dashes, (INK, "white"), strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    figure.suptitle(f"{split} split", x=0.99, ha="right", size=7.5, color="#6A6A6A")
    return figure


def heat(
    names: Sequence[str],
    rates: Sequence[float],
    values: np.ndarray,
    chosen: Mapping[str, float],
    fixed: Mapping[str, float],
) -> Figure:
    """Per cent by method and learning rate, written into the cells.

    Args:
      values: float[methods, rates]; nan was not tried.
      chosen, fixed: a learning rate by method: framed; marked with a dot.
    """
    size = max(3.4, 1.9 + 0.58 * len(rates)), 0.9 + 0.21 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    mesh = axis.pcolormesh(values, cmap="cividis", vmin=low, vmax=high, ec="white")
    for i, name in enumerate(names):
        for j, rate in enumerate(rates):
            value = values[i, j]
            if np.isfinite(value):
                shade = colormaps["cividis"]((value - low) / ((high - low) or 1))
                light = np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.5
                dot = " •" if fixed.get(name) == rate else ""
                axis.text(
                    j + 0.5,
                    i + 0.5,
                    f"{value:.1f}{dot}",
                    ha="center",
                    va="center",
                    size=6.5,
                    color=INK if light else "white",
                )
            if chosen.get(name) == rate:
                frame = Rectangle((j + 0.04, i + 0.06), 0.92, 0.88, fill=False)
                frame.set(edgecolor=RED, linewidth=1.6)
                axis.add_patch(frame)
    axis.set_xticks(np.arange(len(rates)) + 0.5, [f"{rate:g}" for rate in rates])
    axis.set_yticks(np.arange(len(names)) + 0.5, names)
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("learning rate")
    bar = figure.colorbar(mesh, ax=axis, aspect=max(8, 1.4 * len(names)), pad=0.02)
    bar.set_label("accuracy (per cent)")
    bar.outline.set_visible(False)  # type: ignore[operator]  # its stub says Figure
    return figure


def correlation(
    panels: Mapping[str, tuple[np.ndarray, float]],
    accuracy: np.ndarray,
    highlight: np.ndarray,
    label: str,
) -> Figure:
    """Accuracy of every head against each of its other metrics.

    Args:
      panels: the metric, float[heads], and its rank correlation, by name.
      accuracy: float[heads], per cent.
      highlight: bool[heads], the heads that stand out, named ``label``.
    """
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.95 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, sharey=True, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    many = len(accuracy) > MANY_POINTS // 4
    for axis, (name, (values, rho)) in zip(axes, panels.items(), strict=False):
        known = np.isfinite(values) & np.isfinite(accuracy)
        for which, colour, marker, title in (
            (~highlight & known, BLUE, "o", "other methods"),
            (highlight & known, RED, "^", label),
        ):
            points = axis.scatter(
                values[which],
                accuracy[which],
                s=10,
                marker=marker,
                color=colour,
                alpha=0.55,
                linewidths=0,
                label=title,
            )
            points.set_rasterized(many)
        held = values[known]
        # Spearman's correlation is the same on any increasing axis.
        log = bool(len(held)) and held.min() > 0 and held.max() > 20 * held.min()
        low, high, beyond = limits(held, log)
        if log:
            _log_axis(axis, "x", low, high)
        axis.set_xlim(low, high)
        axis.set_xlabel(name)
        axis.set_title(f"ρ = {rho:+.2f}".replace("-", "\N{MINUS SIGN}"))
        if beyond:
            axis.set_title(f"{beyond} beyond the axis", loc="right", size=6.5)
    figure.supylabel("accuracy (per cent)", fontsize=8)
    _legend(figure, axes[0])
    return figure


def reliability(
    panels: Mapping[str, tuple[Diagram, Diagram | None, str]],
    reference: Diagram | None,
) -> Figure:
    """Accuracy against confidence, before and after dividing by the temperature.

    Args:
      panels: before, after, and a note, by method.
      reference: the stage-1 head before; grey in every panel.
    """
    figure, axes, size = _panels(len(panels), 1.0)
    for axis, (title, (before, after, note)) in zip(axes, panels.items(), strict=True):
        axis.plot([0, 100], [0, 100], color=INK, lw=0.6, ls=(0, (1, 2)))
        if reference is not None:
            axis.plot(*_bins(reference), color=GREY, lw=1, label="none, before")
        axis.plot(
            *_bins(before), color=RED, ls="--", marker="^", mfc="white", label="before"
        )
        if after is not None:
            axis.plot(*_bins(after), color=BLUE, marker="o", label="after")
        axis.set_title(title, fontsize=size)
        axis.text(
            0.96, 0.04, note, transform=axis.transAxes, ha="right", size=size - 0.8
        )
        axis.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    figure.supxlabel("confidence (per cent)", fontsize=8)
    figure.supylabel("accuracy (per cent)", fontsize=8)
    handles = {
        text: handle
        for axis in axes
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper left", ncols=3
    )
    return figure


def confusion(
    names: Sequence[str], groups: Sequence[str], shares: np.ndarray
) -> Figure:
    """Where the examples of each group go, as stacked bars of per cent.

    Args:
      shares: float[methods, groups, 1 + groups], summing to 100: right, then wrong by
        the group of the class that was predicted; nan for an empty group.
    """
    figure = Figure(figsize=(WIDTH, 0.95 + 0.19 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    looks = ((BLUE, ""), (ORANGE, "////"), ("#F3DFA2", "...."), (PINK, "\\\\\\\\"))
    labels = ["right", *(f"wrong, to {group}" for group in groups)]
    place = np.arange(len(names))
    for g, (axis, group) in enumerate(zip(axes, groups, strict=True)):
        left = np.zeros(len(names))
        for part, ((colour, hatch), label) in enumerate(
            zip(looks, labels, strict=True)
        ):
            width = np.nan_to_num(shares[:, g, part])
            axis.barh(
                place,
                width,
                0.78,
                left,
                color=colour,
                hatch=hatch,
                edgecolor="white" if part == 0 else "#00000066",
                linewidth=0,
                label=label,
            )
            left += width
        for i in place:
            right = shares[i, g, 0]
            if np.isfinite(right):
                inside = right > 14
                axis.text(
                    1.5 if inside else right + 1.5,
                    i,
                    f"{right:.0f}",
                    va="center",
                    size=6.5,
                    color="white" if inside else INK,
                    bbox=None
                    if inside
                    else {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85},
                )
        if not np.isfinite(shares[:, g, 0]).any():
            axis.text(0.5, 0.5, "no such class", transform=axis.transAxes, ha="center")
        axis.set_title(f"true class: {group}")
        axis.set_xlim(0, 100)
        axis.grid(visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(place, names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("share of the group's test examples (per cent)", fontsize=8)
    _legend(figure, axes[0])
    return figure


def gap(delta: np.ndarray, num_classes: int) -> np.ndarray:
    """ln(1 + K (1 - delta) / delta): what a perfect fit puts between two logits."""
    with np.errstate(divide="ignore"):
        return np.log1p(num_classes * (1 - delta) / delta)


def trend(
    x: np.ndarray, y: np.ndarray, quantile: float = 0.5, parts: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Medians of ``parts`` runs of the points in order of x; fewer points are all.

    Args:
      quantile: what to take of y in place of the median.
    """
    order = np.argsort(x, kind="stable")
    pieces = np.array_split(order, min(parts, max(len(order), 1)))
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


def _panels(number: int, ratio: float) -> tuple[Figure, list[Axes], float]:
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


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))


def _beyond(figure: Figure, axis: Axes, beyond: int, points: int) -> None:
    if beyond:
        note = f"{beyond:,} of {points:,} points lie beyond the axis"
        figure.suptitle(note, x=0.99, ha="right", size=7, color="#6A6A6A")


def _count_axis(axis: Axes, counts: np.ndarray) -> None:
    _log_axis(axis, "x", counts.min(), counts.max())
    axis.set_xlim(counts.min() / 1.25, counts.max() * 1.25)


def _log_axis(axis: Axes, which: str, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis, not powers of ten."""
    axis.set(**{f"{which}scale": "log"})
    line = axis.xaxis if which == "x" else axis.yaxis
    subs = (1.0,) if high > 60 * low else (1.0, 2.0, 5.0)
    subs = (1.0, 2.0, 3.0, 5.0) if high < 8 * low else subs
    line.set_major_locator(LogLocator(subs=subs))
    line.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    line.set_minor_formatter(NullFormatter())


def _smoothing_axis(axis: Axes, curves: Sequence[Curve]) -> None:
    """Delta on a scale that is logarithmic in 1 - delta, as all happens near 1."""
    most = max(float(curve.x.max()) for curve in curves)
    shown = [d for d in (0, 0.5, 0.9, 0.99, 0.999, 0.9999) if d <= most + 1e-9]
    axis.set_xscale("log")
    axis.set_xlim(1.25, (1 - most) / 1.25)
    axis.xaxis.set_major_locator(FixedLocator([1 - d for d in shown]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{1 - x:.4g}"))
    axis.xaxis.set_minor_locator(FixedLocator([]))
    axis.set_xlabel("δ")


def _label_ends(
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


def _bins(diagram: Diagram) -> tuple[np.ndarray, np.ndarray]:
    held = diagram.seen > 0
    seen = diagram.seen[held]
    return 100 * diagram.conf[held] / seen, 100 * diagram.right[held] / seen
