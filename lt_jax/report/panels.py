"""The charts of a report: each function takes its numbers from one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from lt_jax.experiment import workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.tables import cell, group_average
from lt_jax.experiment.workdirs import Run
from lt_jax.losses import smoothing_gap
from lt_jax.metrics import GROUPS, RSD
from lt_jax.report.charts import PAGE, Panel, Part, Series, Table, missing, part
from lt_jax.retraining import selection
from lt_jax.retraining.selection import spread

LOS = "los"
Looks = Mapping[str, int]  # of every method
MARKS = {"all": "bar", "many": "circle", "medium": "square", "few": "triangle"}
POINTS = 30  # of a learning curve


def groups(run: Run, looks: Looks) -> Part:
    """Accuracy by group of classes, a row for each method."""
    series = []
    for row, (name, fits) in enumerate(run.fits.items()):
        for key, marker in MARKS.items():
            mean, std = (100 * value for value in workdirs.over(fits, key))
            place = [mean], [row], looks[name], name, [std]
            series.append(Series(f"{name}, {key}", *place, marker, line=False))
    protocol = run.result["protocol"]
    return part(
        "groups",
        panels=[Panel("accuracy (%)", "", series, rows=list(run.fits))],
        limits=protocol["group_limits"],
        average=group_average(protocol),
    )


def curves(run: Run, looks: Looks, stage: int) -> Part:
    """Loss, learning rate and accuracy by group of every fit of a stage."""
    records, panels = workdirs.curves(run.path), []
    titles = [t for t in records if t.startswith("stage1/") == (stage == 1)]
    if not titles:
        return missing(f"curves_stage{stage}", stage=stage)
    for metric, (label, factor) in PAGE["curves_stage"]["metrics"].items():
        lines = []
        for title in titles:
            method = title.split("/")[0].replace("stage1", "none")
            epochs, values = (np.array(records[title][k]) for k in ("epoch", metric))
            at = np.flatnonzero(np.isfinite(values))
            at = at[:: max(1, round(len(at) / POINTS))]
            place = epochs[at], factor * values[at], looks.get(method, 0), method
            lines += [Series(title, *place, marker="")] if len(at) else []
        panels += [Panel("epoch", label, lines)] if lines else []
    split = {"test": "the test set"}.get(run.result["protocol"]["select"], "validation")
    return part(f"curves_stage{stage}", panels=panels, stage=stage, split=split)


def per_class(run: Run, looks: Looks) -> Part:
    """Metrics of classes against their training counts, a line for each method."""
    first = next(iter(run.fits.values()))[0]["per_class"]
    counts = np.array(first["train_count"], float)
    order, each = np.argsort(counts, kind="stable"), len(counts) <= 12
    # Of a point: a class, or some with similar counts.
    bins = np.array_split(order, min(12, len(order)))
    labels = [first["class"][classes[0]] for classes in bins] if each else ()

    def medians(values: np.ndarray) -> list[float]:
        return [float(np.median(values[classes])) for classes in bins]

    panels = []
    for metric, (title, factor) in PAGE["per_class"]["metrics"].items():
        series = []
        for name, fits in run.fits.items():
            y = medians(factor * workdirs.over_classes(fits, metric))
            place = medians(counts), y, looks[name], name
            series.append(Series(name, *place, labels=labels))
        label = "training examples of the class"
        panels.append(Panel(label, title, series, xlog=counts.min() > 0))
    points = "classes" if each else "medians of classes with similar counts"
    return part("per_class", panels=panels, points=points)


def delta(run: Run) -> Part:
    """Metrics of LOS by the amount of label smoothing, from a sweep."""
    tried = [
        # Plain cross-entropy is LOS without smoothing.
        s._replace(hyper={**s.hyper, "delta": 0.0}) if s.method == "ce" else s
        for s in selection.settings(run.rows)
        if s.method in ("ce", LOS)
    ]
    tried = [s for s in tried if {"lr", "delta"} <= s.hyper.keys()]
    found = sorted({s.hyper["delta"] for s in tried})
    if len(found) < 2:
        return missing("delta")
    same = ([s for s in tried if s.hyper["delta"] == delta] for delta in found)
    best = [s for each in same if (s := selection.best(each, run.choose))]
    if not best:
        return missing("delta", "diverged")
    split, deltas = _split(run), np.array([s.hyper["delta"] for s in best])
    names = [f"δ {d:g}" for d in deltas]
    with np.errstate(divide="ignore"):
        gaps = smoothing_gap(run.result["dataset"]["num_classes"], deltas)
        scale = 1 / (1 - deltas)

    def lines(
        metrics: Sequence[str], factor: float = 1, x: Any = scale
    ) -> list[Series]:
        found = []
        for look, metric in enumerate(metrics, 1):
            mean, std = factor * np.array([s.over(split, metric) for s in best]).T
            title, place = metric.replace("_", " "), (mean, look, "", std)
            found.append(Series(title, x, *place, labels=names))
        return found

    rates = [s.hyper["lr"] for s in best]
    panels = {
        "accuracy (%)": lines(("all", "balanced"), 100),
        "accuracy by group (%)": lines(GROUPS, 100),
        "Logits Magnitude (nats)": lines(("loma_row", "loma_col")),
        "RSD": lines([f"rsd_{name}" for name in RSD]),
        "learning rate": [Series("best", scale, rates, 1, labels=names)],
    }
    ticks = {1 / (1 - d): f"{d:g}" for d in (0, 0.5, 0.9, 0.99, 0.999, 0.9999)}
    ticks = {at: text for at, text in ticks.items() if at <= 1.001 * scale.max()}
    drawn = [
        Panel("δ", title, series, xlog=True, ylog="rate" in title, xticks=ticks)
        for title, series in panels.items()
    ]
    label = "gap of a perfect fit, ln(1 + K(1-δ)/δ)"
    gap = Panel(label, "LoMa row", lines(["loma_row"], x=gaps), diagonal=True)
    return part("delta", panels=[*drawn, gap], run=run, split=split)


def learning_rate(run: Run) -> Part:
    """Accuracy by method and learning rate, from a sweep."""
    tried = [s for s in selection.settings(run.rows) if s.hyper.get("lr", 0) > 0]
    rates = sorted({s.hyper["lr"] for s in tried})
    if len(rates) < 2:
        return missing("learning_rate")
    split, metric, rows = _split(run), _accuracy(run), []
    for name in dict.fromkeys(s.method for s in tried):
        rows.append([name])
        for rate in rates:
            same = [s for s in tried if (s.method, s.hyper["lr"]) == (name, rate)]
            best = selection.best(same, run.choose)
            rows[-1].append(100 * best.over(split, metric)[0] if best else math.nan)
    framed, dotted = (
        {
            name: 1 + rates.index(rate)
            for name, fits in of_methods.items()
            if (rate := workdirs.hyper(fits).get("lr")) in rates
        }
        for of_methods in (run.fits, run.fixed)
    )
    header = ["method", *(f"lr {rate:g}" for rate in rates)]
    shown = Table(header, rows, True, framed, dotted)
    return part("learning_rate", table=shown, run=run, split=split, metric=metric)


def correlation(run: Run, looks: Looks) -> Part:
    """Rank correlation of accuracy with the balance and scale of the logits."""
    titles = PAGE["correlation"]["metrics"]
    split, metrics = _split(run), [_accuracy(run), *titles]
    rows = run.rows or [
        {"method": name, "metrics": {split: fit["metrics"]}}
        for name, fits in run.fits.items()
        for fit in fits
    ]
    values = np.array(
        [[selection.value(row, split, k) for k in metrics] for row in rows]
    )
    known = np.isfinite(values[:, 0])
    if known.sum() < 3:
        return missing("correlation")
    names = np.array([row["method"] for row in rows])[known]
    y, *columns = values[known].T
    panels = []
    for title, x in zip(titles.values(), columns, strict=True):
        own = {name: names == name for name in dict.fromkeys(names.tolist())}
        places = {k: (x[at], 100 * y[at], looks[k], k) for k, at in own.items()}
        series = [Series(name, *place, line=False) for name, place in places.items()]
        # A rank correlation is the same on every increasing axis.
        log = bool(np.nanmin(x) > 0 and np.nanmax(x) > 20 * np.nanmin(x))
        rho, ours = (
            cell(spearman(x[who], y[who]), None, 1, 2, sign="+")
            for who in (slice(None), names == LOS)
        )
        panels.append(Panel(title, "accuracy (%)", series, f"ρ {rho}, LOS {ours}", log))
    given = {"heads": len(names), "split": split, "metric": metrics[0]}
    return part("correlation", panels=panels, **given)


def reliability(run: Run, looks: Looks) -> Part:
    """Confidence against accuracy, before and after temperature scaling."""
    analysed, absent = _analysed(run, "reliability")
    if not analysed:
        return missing("reliability", PAGE["uncached"])
    series: dict[str, list[Series]] = {"before": [], "after": []}
    shown = []
    for name, fits in analysed.items():
        analyses = [fit["analysis"] for fit in fits]
        temperature = spread(a.get("temperature") for a in analyses)
        before = workdirs.over(fits, "ece")
        after = spread((a.get("calibrated") or {}).get("ece") for a in analyses)
        ece = (cell(*over, 100, 1) for over in (before, after))
        shown.append([name, cell(*temperature, 1, 2), *ece])
        for when, lines in series.items():
            bins = [a["reliability"][when] for a in analyses]
            if not all(bins):
                continue
            sums = [np.sum([b[k] for b in bins], 0) for k in ("seen", "right", "conf")]
            seen, right, conf = (values[sums[0] > 0] for values in sums)
            labels = [f"{n:,.0f} examples" for n in seen]
            place = 100 * conf / seen, 100 * right / seen, looks[name], name
            lines.append(Series(name, *place, labels=labels))
    panels = [
        Panel("confidence (%)", "accuracy (%)", lines, when, diagonal=True)
        for when, lines in series.items()
        if lines
    ]
    table = Table(["method", "T", "ECE before", "ECE after"], shown)
    return part("reliability", panels=panels, table=table, absent=absent)


def confusion(run: Run) -> Part:
    """Predictions by group of the true and of the predicted class."""
    analysed, absent = _analysed(run, "confusion")
    if not analysed:
        return missing("confusion", PAGE["uncached"])
    rows = []
    for name, fits in analysed.items():
        tables = [fit["analysis"]["confusion"]["counts"] for fit in fits]
        counts = np.sum(np.array(tables, float), axis=0)
        with np.errstate(invalid="ignore"):
            shares = 100 * counts / np.sum(counts, axis=1, keepdims=True)
        rows.append([name, *shares.ravel().tolist()])
    ends = ("right", *(f"as {group}" for group in GROUPS))
    header = ["method", *(f"{group}: {end}" for group in GROUPS for end in ends)]
    return part("confusion", table=Table(header, rows, heat=True), absent=absent)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of the finite pairs; nan for fewer than three.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0]))
    0.5
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:  # else SciPy warns
        return math.nan
    rho: Any = scipy.stats.spearmanr(x, y)[0]  # its stubs lack the type
    return float(rho)


def _accuracy(run: Run) -> str:
    """The metric that chooses if it is an accuracy, else the balanced one."""
    return run.choose if run.choose in ("all", *GROUPS) else "balanced"


def _split(run: Run) -> str:
    """The test split if every head of a sweep was measured on it, else validation."""
    tested = all("test" in row["metrics"] for row in run.rows)
    return "test" if tested else "valid"


def _analysed(run: Run, kind: str) -> tuple[dict[str, list[Outcome]], str]:
    """The methods whose fits all have this analysis, and a sentence on the others."""
    fits = {
        name: fits
        for name, fits in run.fits.items()
        if all((fit.get("analysis") or {}).get(kind) for fit in fits)
    }
    absent = ", ".join(name for name in run.fits if name not in fits)
    return fits, absent and f" Not measured for {absent}."
