"""The report's figures: numbers in, a matplotlib figure out; see ``drawing``.

Many methods become many small panels, each with the same grey reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from lt_jax.losses import smoothing_gap
from lt_jax.report.style import (
    BLUE,
    GREY,
    INK,
    LINES,
    ORANGE,
    PINK,
    RED,
    SOFT,
    WIDTH,
    count_axis,
    label_ends,
    legend,
    limits,
    log_axis,
    name_rows,
    small_panels,
    tell_beyond,
    tell_nobody,
    trend,
)

MANY_CLASSES = 1500  # from here on classes are a band, as points would drown it
QUARTILES = (0.25, 0.75)  # its edges
MANY_POINTS = 2000  # from here on the points of a vector figure are one picture


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
    log_axis(axis, "y", max(ordered[-1], 1) * 0.8, ordered[0] * 1.25)
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
    figure, axes, size = small_panels(len(panels), 0.85)
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
        log_axis(axes[0], "y", low, high)
    count_axis(axes[0], counts)
    figure.supxlabel("training examples of the class (log scale)", fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    figure.legend(
        handles=list(handles.values()), loc="outside upper left", ncols=len(handles)
    )
    tell_beyond(figure, axes[-1], beyond, sum(map(len, everything)))
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
            tell_nobody(axis)
            axis.set_xticks([])  # there is no scale either
        axis.set_title(title)
        axis.set_xlim(0, 1.28 * top)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    name_rows(axes[0], names)
    figure.supxlabel("accuracy (per cent)", fontsize=8)
    return figure


def smoothing(curves: Sequence[Curve], num_classes: int, split: str) -> Figure:
    """What the amount of label smoothing does, in six panels.

    Args:
      curves: one for each choice of learning rate, with every metric that is drawn.
      num_classes: K of the gap that a perfect fit has, see ``smoothing_gap``.
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
    # The first curve is solid and filled, the second dashed and open.
    looks: Any = (("-", True), ((0, (3, 2)), False))
    looked = [(curve, *look) for curve, look in zip(curves, looks, strict=False)]

    def line(
        axis: Axes, x: Any, y: Any, dash: Any, filled: bool, kind: Any = (BLUE, "o")
    ) -> None:
        colour, marker = kind
        face = colour if filled else "white"
        axis.plot(x, y, color=colour, ls=dash, marker=marker, mfc=face)

    for axis, (ylabel, factor, keys) in zip(axes.flat, panels, strict=False):
        ends = []
        for (key, name), (colour, marker, _) in zip(keys.items(), LINES, strict=False):
            for curve, dash, filled in looked:
                mean, std = (factor * a for a in curve.values[key])
                x = 1 - curve.x
                line(axis, x, mean, dash, filled, (colour, marker))
                if filled:
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
            log_axis(axis, "y", *axis.get_ylim())
            axis.set_ylabel("RSD (log scale)")
        label_ends(axis, ends, 118)
    axis = axes.flat[4]
    reached = [0.0]
    for curve, dash, filled in looked:
        mean = curve.values["loma_row"][0]
        x = smoothing_gap(num_classes, curve.x)
        shown = np.isfinite(x) & np.isfinite(mean)
        line(axis, x[shown], mean[shown], dash, filled)
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
        color=SOFT,
        size=7,
    )
    axis.set_xlabel("gap asked for, ln(1 + K(1-δ)/δ) (nats)")
    axis.set_ylabel("gap measured, LoMa row (nats)")
    axis = axes.flat[5]
    for curve, dash, filled in looked:
        line(axis, 1 - curve.x, curve.lr, dash, filled)
    _smoothing_axis(axis, curves)
    rates = np.unique(np.concatenate([curve.lr for curve in curves]))
    if rates[0] > 0:
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(FixedLocator([]))
    axis.set_yticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_ylabel("learning rate")
    handles = [
        Line2D([], [], color=INK, ls=dash, marker="o", mfc=face, label=curve.label)
        for (curve, dash, _), face in zip(looked, (INK, "white"), strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    figure.suptitle(f"{split} split", x=0.99, ha="right", size=7.5, color=SOFT)
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
            log_axis(axis, "x", low, high)
        axis.set_xlim(low, high)
        axis.set_xlabel(name)
        axis.set_title(f"ρ = {rho:+.2f}".replace("-", "\N{MINUS SIGN}"))
        if beyond:
            axis.set_title(f"{beyond} beyond the axis", loc="right", size=6.5)
    figure.supylabel("accuracy (per cent)", fontsize=8)
    legend(figure, axes[0])
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
    figure, axes, size = small_panels(len(panels), 1.0)
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
            tell_nobody(axis)
        axis.set_title(f"true class: {group}")
        axis.set_xlim(0, 100)
        axis.grid(visible=False)
        axis.tick_params(axis="y", length=0)
    name_rows(axes[0], names)
    figure.supxlabel("share of the group's test examples (per cent)", fontsize=8)
    legend(figure, axes[0])
    return figure


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


def _bins(diagram: Diagram) -> tuple[np.ndarray, np.ndarray]:
    held = diagram.seen > 0
    seen = diagram.seen[held]
    return 100 * diagram.conf[held] / seen, 100 * diagram.right[held] / seen
