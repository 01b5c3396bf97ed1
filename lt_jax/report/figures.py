"""Figures of a report: each takes its numbers from a run, draws them and lists them.

Many methods become many small panels, each with the stage-1 head in grey.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator

from lt_jax.experiment import workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.tables import cell, group_average
from lt_jax.experiment.workdirs import Run
from lt_jax.losses import smoothing_gap
from lt_jax.metrics import GROUPS, RSD
from lt_jax.report import style
from lt_jax.report.style import BLUE, GREY, INK, LINES, NOTE, ORANGE, PINK, RED, WIDTH
from lt_jax.report.tables import ACCURACIES, LOS, Part, Table, listed, with_std
from lt_jax.retraining import selection
from lt_jax.retraining.selection import Setting, number, spread

MANY_CLASSES = 1500  # more classes than this are drawn as a band, not as points
MANY_POINTS = 2000  # more points than this are one raster image in a vector figure
Look = dict[str, Any]  # keyword arguments of a drawing function of matplotlib
SPLITS = {"valid": "validation", "test": "test"}
# Metrics on the x axes of the correlation figure.
CORRELATES = {
    "LoMa row, spread over classes": "loma_row_spread",
    "LoMa col, spread over classes": "loma_col_spread",
    "weight norm, spread over classes": "weight_norm_spread",
    "LoMa row, mean (nats)": "loma_row",
    "LoMa col, mean (nats)": "loma_col",
    **{f"RSD {part.replace('_', ' ')}": f"rsd_{part}" for part in RSD},
}
# The first curve of a smoothing panel is solid and filled, the second dashed and open.
CURVES: tuple[Look, ...] = ({"ls": "-"}, {"ls": (0, (3, 2)), "mfc": "white"})


class ClassMetric(NamedTuple):
    """A metric of every class, drawn against the class's training count."""

    name: str  # of the files, and of the metric
    title: str
    ylabel: str
    caption: str = ""
    kinds: Sequence[str] = ("",)  # suffixes of the metric, a line each
    factor: float = 1

    def keys(self) -> dict[str, str]:
        """Return the metrics of ``per_class`` by kind."""
        return {
            kind: f"{self.name}_{kind}" if kind else self.name for kind in self.kinds
        }


READINGS = {  # of the logits, with the definition of Logits Magnitude
    "row": "Mean over the examples of a class: true logit minus the mean of the other "
    "logits.",
    "column": "Mean of logit k over the examples of class k, minus its mean over all "
    "other examples.",
}
CLASS_METRICS = (
    ClassMetric(
        "accuracy",
        "Accuracy per class by training count",
        "accuracy (per cent)",
        factor=100,
    ),
    *(
        ClassMetric(
            f"loma_{name[:3]}",
            f"Logits Magnitude per class, {name} reading",
            f"LoMa {name[:3]} (nats)",
            f"{definition} A balanced head has a horizontal line. ",
        )
        for name, definition in READINGS.items()
    ),
    *(
        ClassMetric(
            f"rsd_{name[:3]}",
            f"RSD per class, {name} reading",
            f"RSD {name[:3]} (log scale)",
            "Standard deviation of a class's logits divided by its LoMa; true: over "
            "its own examples, false: over all others. Lower is more uniform. ",
            kinds=("true", "false"),
        )
        for name in READINGS
    ),
    ClassMetric("weight_norm", "Weight norm per class", "norm of the class vector"),
)


def sorted_counts(counts: np.ndarray, many: int, few: int) -> Figure:
    """Draw training images per class, int[K], largest first, with the group limits."""
    figure = Figure(figsize=(WIDTH, WIDTH / 2.5))
    axis = figure.add_subplot()
    ordered = np.sort(counts)[::-1]
    rank = np.arange(1, len(ordered) + 1)
    axis.fill_between(rank, ordered, step="mid", color=BLUE, alpha=0.25, linewidth=0)
    axis.step(rank, ordered, where="mid", color=BLUE)
    for limit, name in ((many, "many above"), (few, "few below")):
        axis.axhline(limit, color=GREY, linestyle="--", linewidth=0.8)
        note = {"transform": axis.get_yaxis_transform(), **NOTE}
        axis.text(1, limit, f"{name} {limit:,}", va="bottom", **note)
    style.log_axis(axis, "y", max(ordered[-1], 1) * 0.8, ordered[0] * 1.25)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="class, largest first", ylabel="training images")
    return figure


def groups(run: Run) -> Part:
    """Accuracy by group of classes: a bar for each method, whiskers over seeds."""
    names = list(run.fits)
    values = 100 * np.array(
        [[workdirs.over(fits, key) for key in ACCURACIES] for fits in run.fits.values()]
    )  # [methods, columns, mean and deviation]
    figure, axes = _bar_panels(ACCURACIES, names, "accuracy (per cent)")
    colours = [{"none": GREY, LOS: RED}.get(name, BLUE) for name in names]
    hatches = ["////" if name == "none" else "" for name in names]
    rows = np.arange(len(names))
    for axis, (mean, std) in zip(axes, np.moveaxis(values, 0, 2), strict=True):
        reach = np.nan_to_num(mean + np.nan_to_num(std))
        top = max(reach.max(), 1e-9)
        axis.barh(rows, mean, 0.72, color=colours, hatch=hatches, edgecolor="white")
        whiskers: Look = {"ecolor": INK, "elinewidth": 0.8, "capsize": 1.6}
        axis.errorbar(mean, rows, xerr=std, fmt="none", **whiskers)
        for row in np.flatnonzero(np.isfinite(mean)):
            _bar_label(axis, reach[row] + 0.03 * top, row, f"{mean[row]:.1f}")
        if names[0] == "none" and np.isfinite(mean[0]):
            axis.axvline(mean[0], color=INK, lw=0.7, ls=(0, (4, 3)))
        if not np.isfinite(mean).any():
            style.mark_empty(axis)
            axis.set_xticks([])
        axis.set_xlim(0, 1.28 * top)
    group_limits = run.result["protocol"]["group_limits"]
    average = group_average(run.result["protocol"])
    return Part(
        "groups",
        "Accuracy by group",
        "Accuracy on all test images, and of the many-shot (more than "
        f"{group_limits['many']} training images), medium-shot and few-shot (fewer "
        f"than {group_limits['few']}) classes, as the mean over {average}. Whiskers: "
        "standard deviation over seeds. Dashed line: the stage-1 head.",
        picture=style.render(figure),
        alt=f"Bar chart of accuracy, on all classes and by group, for {listed(names)}.",
        numbers=Table(
            ["method", "seeds", *with_std(ACCURACIES)],
            [
                [name, len(run.fits[name]), *row.ravel().tolist()]
                for name, row in zip(names, values, strict=True)
            ],
        ),
    )


def per_class(run: Run, metric: ClassMetric) -> Part:
    """A metric of every class against its training count, a panel for each method."""
    first = next(iter(run.fits.values()))[0]["per_class"]
    lines: dict[str, dict[str, np.ndarray]] = {}
    numbers = []
    for method, fits in run.fits.items():
        columns, lines[method] = [], {}
        for kind, key in metric.keys().items():
            values = zip(*(fit["per_class"][key] for fit in fits), strict=True)
            mean, std = metric.factor * np.array([spread(v) for v in values]).T
            lines[method][kind] = mean
            columns += [mean.tolist(), std.tolist()]
        rows = zip(first["class"], first["train_count"], *columns, strict=True)
        numbers += [[method, *row] for row in rows]
    panels = {m: drawn for m, drawn in lines.items() if m != "none"} or lines
    reference = lines.get("none", {}) if "none" not in panels else {}
    counts = np.array(first["train_count"], np.float64)
    return Part(
        metric.name,
        metric.title,
        metric.caption + "One panel per method. Points are classes (mean over seeds); "
        "lines are medians of classes with similar counts. With too many classes for "
        "points, bands show the middle half. Grey: the stage-1 head (none).",
        picture=style.render(_draw_per_class(counts, panels, reference, metric)),
        alt=f"{metric.title}: one panel each for {listed(panels)}; stage-1 head in "
        "grey.",
        numbers=Table(
            ["method", "class", "train_count", *with_std(metric.keys().values())],
            numbers,
        ),
    )


def _draw_per_class(
    counts: np.ndarray,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    reference: Mapping[str, np.ndarray],
    metric: ClassMetric,
) -> Figure:
    """Draw float[K] lines by method and kind; ``reference`` in every panel."""
    figure, axes, size = style.small_panels(len(panels), 0.85)
    values = [v for lines in (*panels.values(), reference) for v in lines.values()]
    log = "log" in metric.ylabel
    low, high, outside = style.limits(np.concatenate(values), log)
    total = sum(map(len, values))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for (kind, y), (_, _, dash) in zip(reference.items(), LINES, strict=False):
            _draw_classes(axis, counts, y, (GREY, "x", dash), f"none {kind}".strip())
        for (kind, y), look in zip(lines.items(), LINES, strict=False):
            _draw_classes(axis, counts, y, look, kind or "method")
        for points in axis.collections:
            points.set_rasterized(total > MANY_POINTS)
        axis.set_title(title, fontsize=size)
    # The limits come first: the first panel may have no positive values to scale by.
    axes[0].set_ylim(low, high)
    if log:
        style.log_axis(axes[0], "y", low, high)
    style.log_axis(axes[0], "x", counts.min(), counts.max())
    axes[0].set_xlim(counts.min() / 1.25, counts.max() * 1.25)
    figure.supxlabel("training examples of the class (log scale)")
    figure.supylabel(metric.ylabel)
    style.legend(figure, axes[0])
    if outside and len(counts) <= MANY_CLASSES:
        note = f"{outside:,} of {total:,} points are outside the axis limits"
        figure.suptitle(note, x=0.99, **NOTE)
    return figure


def _draw_classes(
    axis: Axes,
    counts: np.ndarray,
    values: np.ndarray,
    kind: tuple[str, str, str],
    name: str,
) -> None:
    """Draw classes as points, or as a band if there are many, with their trend."""
    colour, marker, dash = kind
    grey, few = colour == GREY, len(counts) <= 30  # few points are drawn boldly
    known = np.isfinite(values)
    counts, values = counts[known], values[known]
    x, y = style.trend(counts, values)
    if len(known) > MANY_CLASSES:
        low, high = (
            style.trend(counts, values, quantile)[1] for quantile in (0.25, 0.75)
        )
        axis.fill_between(x, low, high, color=colour, alpha=0.25, lw=0)
    else:
        look: Look = {"s": 16, "alpha": 0.9} if few else {"s": 7, "alpha": 0.45}
        edge = (1 if few else 0.6) if grey else 0
        look |= {"marker": marker, "color": colour, "linewidths": edge}
        axis.scatter(counts, values, zorder=3 if few else 1, **look)
    axis.plot(x, y, dash, color=colour, lw=1 if grey else 1.4)
    axis.plot([], [], dash, color=colour, marker=marker, label=name)  # for the legend


class Curve(NamedTuple):
    """LOS by delta, increasing, for one way to choose the learning rate."""

    label: str
    settings: list[Setting]
    split: str

    def hyper(self, key: str) -> np.ndarray:
        """Return a hyperparameter, float[n]."""
        return np.array([s.hyper[key] for s in self.settings], np.float64)

    def over(self, metric: str) -> np.ndarray:
        """Return the mean and standard deviation of a metric, float[2, n]."""
        return np.array([s.over(self.split, metric) for s in self.settings]).T


def delta(run: Run) -> Part:
    """Metrics of LOS by the amount of label smoothing, from a sweep."""
    part = Part("delta", "Amount of label smoothing")
    tried = [
        # Plain cross-entropy is LOS without smoothing.
        s._replace(hyper={**s.hyper, "delta": 0.0}) if s.method == "ce" else s
        for s in selection.settings(run.rows)
        if s.method in ("ce", LOS)
    ]
    if len({s.hyper["delta"] for s in tried}) < 2:
        return part._replace(
            missing="This needs a sweep of LOS with two or more values of delta "
            "(lt-jax sweep with several values in method.los.grid.delta)."
        )
    split = _split(run)
    curves = _delta_curves(run, tried, split)
    if not curves:
        return part._replace(missing="All LOS heads of the sweep diverged.")
    num_classes = run.result["dataset"]["num_classes"]
    metrics = ("all", "balanced", *GROUPS, "loma_row", "loma_col")
    metrics += tuple(f"rsd_{part}" for part in RSD)
    numbers = []
    for curve in curves:
        deltas = curve.hyper("delta")
        values = np.concatenate([curve.over(metric) for metric in metrics])
        seeds = [len(s.rows) for s in curve.settings]
        gaps = smoothing_gap(num_classes, deltas)
        columns = (deltas, curve.hyper("lr"), gaps, seeds, *values.tolist())
        numbers += [[curve.label, *row] for row in zip(*columns, strict=True)]
    start, end = curves[0].hyper("delta")[[0, -1]]
    header = ["line", "delta", "lr", "gap_asked", "seeds"]
    return part._replace(
        caption=f"LOS by delta on the {SPLITS[split]} split; the axis is logarithmic "
        "in 1-δ. Filled and solid: the learning rate with the best validation score "
        f"({run.choose}) at each delta; open and dashed: that of the config. Bands: "
        "standard deviation over seeds. Fifth panel: the logit gap of a perfect fit "
        "against the measured LoMa; at δ = 0 that gap is infinite and not drawn.",
        picture=style.render(_draw_delta(curves, num_classes, SPLITS[split])),
        alt="Accuracy, Logits Magnitude, RSD, gap and learning rate of LOS for delta "
        f"from {start:g} to {end:g}.",
        numbers=Table([*header, *with_std(metrics)], numbers),
    )


def _delta_curves(run: Run, tried: list[Setting], split: str) -> list[Curve]:
    """Curves at the best and at the config's learning rate; others as in the config."""
    fixed = workdirs.hyper(run.fixed.get(LOS, []))
    free = {"lr": None, "delta": None}
    tried = [s for s in tried if s.hyper | free == fixed | free] or tried
    by_label = {"best learning rate on validation": tried}
    if same := [s for s in tried if s.hyper["lr"] == fixed.get("lr")]:
        by_label[f"the config's learning rate, {fixed['lr']:g}"] = same
    curves = []
    for label, settings in by_label.items():
        deltas = sorted({s.hyper["delta"] for s in settings})
        same = ([s for s in settings if s.hyper["delta"] == d] for d in deltas)
        best = [selection.best(each, run.choose) for each in same]
        curves.append(Curve(label, [s for s in best if s is not None], split))
    return [curve for curve in curves if curve.settings]


def _draw_delta(curves: Sequence[Curve], num_classes: int, split: str) -> Figure:
    """Draw six panels; the first curve is solid and filled, the second dashed."""
    figure = Figure(figsize=(WIDTH, 5.0))
    axes = list(figure.subplots(2, 3).flat)
    panels = (
        ("accuracy (per cent)", 100, {"all": "all", "balanced": "balanced"}),
        ("accuracy (per cent)", 100, {group: group for group in GROUPS}),
        ("Logits Magnitude (nats)", 1, {"loma_row": "row", "loma_col": "column"}),
        ("RSD", 1, {f"rsd_{part}": part.replace("_", " ") for part in RSD}),
    )
    for axis, (ylabel, factor, keys) in zip(axes, panels, strict=False):
        for (key, name), (colour, marker, _) in zip(keys.items(), LINES, strict=False):
            kind: Look = {"color": colour, "marker": marker}
            for i, (curve, look) in enumerate(zip(curves, CURVES, strict=False)):
                x, (mean, std) = 1 - curve.hyper("delta"), factor * curve.over(key)
                axis.plot(x, mean, label="" if i else name, **kind, **look)
                if i == 0:
                    band: Look = {"color": colour, "alpha": 0.15, "lw": 0}
                    axis.fill_between(x, mean - std, mean + std, **band)
        _delta_axis(axis, curves)
        means = [curve.over(key)[0] for curve in curves for key in keys]
        if ylabel == "RSD" and np.min(np.concatenate(means)) > 0:  # < 0 where LoMa is
            style.log_axis(axis, "y", *axis.get_ylim())
            ylabel = "RSD (log scale)"
        axis.set_ylabel(ylabel)
        above: Look = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
        axis.legend(fontsize=6.5, columnspacing=1, **above)
    _draw_gap(axes[4], curves, num_classes)
    for curve, look in zip(curves, CURVES, strict=False):
        x, y = 1 - curve.hyper("delta"), curve.hyper("lr")
        axes[5].plot(x, y, color=BLUE, marker="o", **look)
    _delta_axis(axes[5], curves)
    rates = np.unique(np.concatenate([curve.hyper("lr") for curve in curves]))
    if rates[0] > 0:
        axes[5].set_yscale("log")
        axes[5].yaxis.set_minor_locator(FixedLocator([]))
    axes[5].set_yticks(rates, [f"{rate:g}" for rate in rates])
    axes[5].set_ylabel("learning rate")
    handles = [
        Line2D([], [], color=INK, marker="o", label=curve.label, **look)
        for curve, look in zip(curves, CURVES, strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    figure.suptitle(f"{split} split", x=0.99, **NOTE)
    return figure


def _draw_gap(axis: Axes, curves: Sequence[Curve], num_classes: int) -> None:
    """Draw the measured LoMa against the logit gap of a perfect fit."""
    reached = [0.0]
    for curve, look in zip(curves, CURVES, strict=False):
        x = smoothing_gap(num_classes, curve.hyper("delta"))
        y = curve.over("loma_row")[0]
        shown = np.isfinite(x) & np.isfinite(y)
        axis.plot(x[shown], y[shown], color=BLUE, marker="o", **look)
        reached += [*x[shown], *y[shown]]
    axis.axline((0, 0), slope=1, color=GREY, lw=1)
    edge = 1.06 * max(reached) or 1.0
    axis.set(xlim=(0, edge), ylim=(min(0.0, 1.06 * min(reached)), edge))
    axis.text(0.72 * edge, 0.72 * edge, "perfect fit ", va="bottom", **NOTE)
    axis.set_xlabel("gap of a perfect fit, ln(1 + K(1-δ)/δ) (nats)")
    axis.set_ylabel("measured gap, LoMa row (nats)")


def _delta_axis(axis: Axes, curves: Sequence[Curve]) -> None:
    """Show delta on a scale that is logarithmic in 1 - delta: changes are near 1."""
    most = max(float(curve.hyper("delta").max()) for curve in curves)
    shown = [d for d in (0, 0.5, 0.9, 0.99, 0.999, 0.9999) if d <= most + 1e-9]
    axis.set(xscale="log", xlim=(1.25, (1 - most) / 1.25), xlabel="δ")
    axis.set_xticks([1 - d for d in shown], [f"{d:g}" for d in shown])
    axis.xaxis.set_minor_locator(FixedLocator([]))


def learning_rate(run: Run) -> Part:
    """Accuracy by method and learning rate as a heat map, from a sweep."""
    part = Part("learning_rate", "Accuracy by method and learning rate")
    tried = [s for s in selection.settings(run.rows) if s.hyper.get("lr", 0) > 0]
    rates = sorted({s.hyper["lr"] for s in tried})
    if len(rates) < 2:
        return part._replace(
            missing="This needs a sweep with two or more learning rates (lt-jax sweep)."
        )
    swept = {s.method for s in tried}
    names = [n for n in dict.fromkeys([*run.fits, *sorted(swept)]) if n in swept]
    split = _split(run)
    values, numbers = np.full((len(names), len(rates)), np.nan), []
    for i, name in enumerate(names):
        for j, rate in enumerate(rates):
            same = [s for s in tried if s.method == name and s.hyper["lr"] == rate]
            if best := selection.best(same, run.choose):
                mean, std = (100 * v for v in best.over(split, "all"))
                values[i, j] = mean
                numbers.append([name, rate, mean, std, json.dumps(best.hyper)])
            elif same:
                numbers.append([name, rate, None, None, "diverged"])
    chosen, fixed = (
        {n: workdirs.hyper(fits[n]).get("lr", 0.0) for n in names if n in fits}
        for fits in (run.fits, run.fixed)
    )
    return part._replace(
        caption=f"Accuracy on all classes of the {SPLITS[split]} split, mean over "
        "seeds. Each cell takes the other hyperparameters with the best validation "
        f"score ({run.choose}). Frame: chosen; dot: the config's; empty: not tried, or "
        "diverged.",
        picture=style.render(_draw_rates(names, rates, values, chosen, fixed)),
        alt=f"Heat map of accuracy for {len(names)} methods and {len(rates)} learning "
        "rates.",
        numbers=Table(["method", "lr", "all", "all_std", "hyper"], numbers),
    )


def _draw_rates(
    names: Sequence[str],
    rates: Sequence[float],
    values: np.ndarray,
    chosen: Mapping[str, float],
    fixed: Mapping[str, float],
) -> Figure:
    """Draw float[methods, rates]; nan is an empty cell."""
    size = max(3.4, 1.9 + 0.58 * len(rates)), 0.9 + 0.21 * len(names)
    figure = Figure(figsize=size)
    axis = figure.subplots()
    places = np.arange(len(rates)), np.arange(len(names))
    mesh = axis.pcolormesh(*places, values, ec="white")
    for (i, name), (j, rate) in itertools.product(enumerate(names), enumerate(rates)):
        value = values[i, j]
        if np.isfinite(value):
            light = np.dot(mesh.to_rgba(value)[:3], (0.299, 0.587, 0.114)) > 0.5
            dot = " •" if fixed.get(name) == rate else ""
            look: Look = {"size": 6.5, "color": INK if light else "white"}
            axis.text(j, i, f"{value:.1f}{dot}", ha="center", va="center", **look)
        if chosen.get(name) == rate:
            frame: Look = {"fill": False, "edgecolor": RED, "linewidth": 1.6}
            axis.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, **frame))
    axis.set_xticks(places[0], [f"{rate:g}" for rate in rates])
    axis.set_yticks(places[1], names)
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("learning rate")
    return figure


def correlation(run: Run) -> Part:
    """Rank correlation of accuracy with the balance and scale of the logits."""
    part = Part("correlation", "Correlates of accuracy")
    metrics = ["all", *CORRELATES.values()]
    split = _split(run) if run.rows else "test"
    heads = [
        (row["method"], row["seeds"], [selection.value(row, split, k) for k in metrics])
        for row in run.rows
    ] or [
        (name, fit["seeds"], [number(fit["metrics"].get(k)) for k in metrics])
        for name, fits in run.fits.items()
        for fit in fits
    ]
    heads = [head for head in heads if np.isfinite(head[2][0])]
    if len(heads) < 3:
        return part._replace(
            missing="This needs at least three heads with a finite accuracy."
        )
    accuracy, *columns = np.array([values for *_, values in heads]).T
    accuracy = 100 * accuracy
    ours = np.array([method == LOS for method, *_ in heads])
    correlations, shown = [], []
    for name, values in zip(CORRELATES, columns, strict=True):
        rho = spearman(values, accuracy)
        correlations.append(rho)
        los = spearman(values[ours], accuracy[ours])
        size = str(int(np.isfinite(values).sum()))
        shown.append([name, _signed(rho), _signed(los), size])
    return part._replace(
        caption=f"Each point is one of {len(heads):,} heads on the {SPLITS[split]} "
        "split. ρ is Spearman's rank correlation with accuracy. Heads of one method "
        "are not independent, so this describes these heads and is not a test.",
        picture=style.render(_draw_correlation(columns, correlations, accuracy, ours)),
        alt="Scatter plots of accuracy against LoMa, its balance over classes, RSD and "
        "the balance of weight norms: "
        + "; ".join(f"{name} rho {rho}" for name, rho, *_ in shown),
        table=Table(["metric", "ρ, all heads", "ρ, LOS", "heads"], shown),
        numbers=Table(
            ["method", "seeds", *metrics],
            [
                [method, ".".join(map(str, seeds)), 100 * all_, *rest]
                for method, seeds, (all_, *rest) in heads
            ],
        ),
    )


def _draw_correlation(
    columns: Sequence[np.ndarray],
    correlations: Sequence[float],
    accuracy: np.ndarray,
    ours: np.ndarray,
) -> Figure:
    """Draw accuracy, float[heads], against each column, float[heads]."""
    rows = -(-len(columns) // 3)
    figure = Figure(figsize=(WIDTH, 0.4 + 1.95 * rows))
    axes = list(figure.subplots(rows, 3, sharey=True, squeeze=False).flat)
    look: Look = {"s": 10, "alpha": 0.55, "linewidths": 0}
    look["rasterized"] = len(accuracy) > MANY_POINTS // 4
    for axis, name, x, rho in zip(axes, CORRELATES, columns, correlations, strict=True):
        axis.scatter(x[~ours], accuracy[~ours], c=BLUE, label="other methods", **look)
        if ours.any():
            axis.scatter(x[ours], accuracy[ours], c=RED, marker="^", label=LOS, **look)
        known = x[np.isfinite(x)]
        # A rank correlation is the same on every increasing axis.
        log = bool(len(known)) and known.min() > 0 and known.max() > 20 * known.min()
        low, high, outside = style.limits(known, log)
        if log:
            style.log_axis(axis, "x", low, high)
        axis.set(xlim=(low, high), xlabel=name)
        axis.set_title(f"ρ = {_signed(rho)}")
        if outside:
            axis.set_title(f"{outside} outside the axis", loc="right", size=6.5)
    figure.supylabel("accuracy (per cent)")
    style.legend(figure, axes[0])
    return figure


def reliability(run: Run) -> Part:
    """Confidence against accuracy, before and after temperature scaling."""
    part = Part("reliability", "Reliability before and after temperature scaling")
    analysed, note = _analysed(run, "reliability")
    if not analysed:
        return part._replace(missing=note)
    panels, shown, numbers = {}, [], []
    for name, fits in analysed.items():
        analyses = [fit["analysis"] for fit in fits]
        temperature = spread(a.get("temperature") for a in analyses)
        before = workdirs.over(fits, "ece")
        after = spread((a.get("calibrated") or {}).get("ece") for a in analyses)
        label = f"ECE {100 * before[0]:.1f}"
        if np.isfinite(temperature[0]):
            label = f"T {temperature[0]:.2f}\n{label} → {100 * after[0]:.1f}"
        shown.append([name, cell(*temperature, 1, 2)])
        shown[-1] += [cell(*over, 100, 1) for over in (before, after)]
        diagrams = {}
        for when in ("before", "after"):
            bins = [a["reliability"][when] for a in analyses]
            if not all(bins):
                continue
            sums = [np.sum([b[k] for b in bins], 0) for k in ("seen", "right", "conf")]
            diagrams[when] = sums
            numbers += [
                [name, when, i, int(seen), int(right), float(conf)]
                for i, (seen, right, conf) in enumerate(zip(*sums, strict=True))
            ]
        panels[name] = diagrams, label
    return part._replace(
        caption="Points on the diagonal are as often right as they are confident; "
        "below it, the head is overconfident. Logits are divided by T, which minimises "
        "NLL on validation. Test examples of all seeds, in 15 bins of confidence."
        + note,
        picture=style.render(_draw_reliability(panels)),
        alt=f"Reliability diagrams of {listed(panels)}; the table lists temperatures "
        "and ECE.",
        table=Table(["method", "T", "ECE before", "ECE after"], shown),
        numbers=Table(["method", "when", "bin", "seen", "right", "conf"], numbers),
    )


def _draw_reliability(panels: Mapping[str, tuple[dict[str, Any], str]]) -> Figure:
    """Draw the sums in bins of each method before and after, and its label."""
    figure, axes, size = style.small_panels(len(panels), 1.0)
    grey: Look = {"color": GREY, "lw": 1, "label": "none, before"}
    looks: dict[str, Look] = {
        "before": {"color": RED, "ls": "--", "marker": "^", "mfc": "white"},
        "after": {"color": BLUE, "marker": "o"},
    }
    for axis, (title, (diagrams, label)) in zip(axes, panels.items(), strict=True):
        axis.plot([0, 100], [0, 100], color=INK, lw=0.6, ls=(0, (1, 2)))
        lines = [
            (diagrams[k], {"label": k, **looks[k]}) for k in looks if k in diagrams
        ]
        if "none" in panels and len(panels) > 1:
            lines.insert(0, (panels["none"][0]["before"], grey))
        for (seen, right, conf), look in lines:
            used = seen > 0
            axis.plot(*(100 * v[used] / seen[used] for v in (conf, right)), **look)
        axis.set_title(title, fontsize=size)
        place: Look = {"transform": axis.transAxes, "ha": "right", "size": size - 0.8}
        axis.text(0.96, 0.04, label, **place)
        axis.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    figure.supxlabel("confidence (per cent)")
    figure.supylabel("accuracy (per cent)")
    style.legend(figure, *axes)
    return figure


def confusion(run: Run) -> Part:
    """Predictions by group of the true and of the predicted class, as stacked bars."""
    part = Part("confusion", "Head/tail confusion")
    analysed, note = _analysed(run, "confusion")
    if not analysed:
        return part._replace(missing=note)
    shares, numbers = [], []
    for name, fits in analysed.items():
        tables = [fit["analysis"]["confusion"]["counts"] for fit in fits]
        counts = np.sum(np.array(tables, np.int64), axis=0)
        with np.errstate(invalid="ignore"):
            shares.append(100 * counts / np.sum(counts, axis=1, keepdims=True))
        for group, line, percent in zip(GROUPS, counts, shares[-1], strict=True):
            numbers.append([name, group, *line.tolist(), *percent.tolist()])
    columns = ["right", *(f"wrong_to_{group}" for group in GROUPS)]
    percent = [f"{column}_percent" for column in columns]
    return part._replace(
        caption="Test examples of each group: predicted right (the number), or wrong, "
        "by the group of the predicted class. Sums over all seeds." + note,
        picture=style.render(_draw_confusion(list(analysed), np.array(shares))),
        alt=f"Stacked bars for {listed(analysed)}: right predictions, and wrong ones "
        "by the group of the predicted class, for each true group.",
        numbers=Table(["method", "true_group", *columns, *percent], numbers),
    )


def _draw_confusion(names: Sequence[str], shares: np.ndarray) -> Figure:
    """Draw float[methods, groups, 1 + groups] in per cent; nan for an empty group."""
    titles = [f"true class: {group}" for group in GROUPS]
    xlabel = "share of the group's test examples (per cent)"
    figure, axes = _bar_panels(titles, names, xlabel)
    looks = ((BLUE, ""), (ORANGE, "////"), ("#F3DFA2", "...."), (PINK, "\\\\\\\\"))
    labels = ("right", *(f"wrong, to {group}" for group in GROUPS))
    rows = np.arange(len(names))
    for axis, lines in zip(axes, np.moveaxis(shares, 0, 2), strict=True):
        left = np.zeros(len(names))
        for line, (colour, hatch), label in zip(lines, looks, labels, strict=True):
            look = {"color": colour, "hatch": hatch, "label": label, "linewidth": 0}
            edge = "#00000066" if hatch else "white"
            width = np.nan_to_num(line)
            axis.barh(rows, width, 0.78, left, edgecolor=edge, **look)
            left += width
        right = lines[0]
        for row in np.flatnonzero(np.isfinite(right)):
            inside = bool(right[row] > 14)
            x = 1.5 if inside else right[row] + 1.5
            _bar_label(axis, x, row, f"{right[row]:.0f}", inside)
        if not np.isfinite(right).any():
            style.mark_empty(axis)
        axis.set_xlim(0, 100)
    style.legend(figure, axes[0])
    return figure


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of the finite pairs; nan for fewer than three.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0]))
    0.5
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:  # else SciPy warns
        return float("nan")
    rho: Any = scipy.stats.spearmanr(x, y)[0]  # its stubs lack the type
    return float(rho)


def _bar_panels(
    titles: Sequence[str], names: Sequence[str], xlabel: str
) -> tuple[Figure, list[Axes]]:
    """Panels for horizontal bars: a column per title, a row per name."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.19 * len(names)))
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(np.arange(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)  # the first one on top
    figure.supxlabel(xlabel)
    return figure, axes


def _bar_label(axis: Axes, x: float, row: Any, text: str, inside: bool = False) -> None:
    box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.85}
    look: Look = {"color": "white"} if inside else {"bbox": box}
    axis.text(x, row, text, va="center", size=6.5, zorder=4, **look)


def _signed(rho: float) -> str:
    return cell(rho, np.nan, 1, 2, sign="+")


def _split(run: Run) -> str:
    """The test split if every head of the sweep was measured on it, else validation."""
    tested = all("test" in row["metrics"] for row in run.rows)
    return "test" if tested else "valid"


def _analysed(run: Run, part: str) -> tuple[dict[str, list[Outcome]], str]:
    """The methods whose fits all have this part of the analysis, and a note on others.

    The note is a sentence for the caption, or the reason why there are none.
    """
    fits = {
        name: fits
        for name, fits in run.fits.items()
        if all((fit.get("analysis") or {}).get(part) for fit in fits)
    }
    absent = [name for name in run.fits if name not in fits]
    if fits:
        return fits, f" Not measured for {listed(absent)}." if absent else ""
    what = "confusion of groups" if part == "confusion" else part
    return {}, (
        f"This workdir has no {what}: it is measured on cached features only "
        "(method.features=cached, or lt-jax sweep)."
    )
