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
from lt_jax.report.charts import Panel, Part, Series, Table
from lt_jax.retraining import selection
from lt_jax.retraining.selection import number, spread

LOS = "los"
Looks = Mapping[str, int]  # of every method
MARKS = {"all": "bar", "many": "circle", "medium": "square", "few": "triangle"}
POINTS = 30  # of a learning curve
UNCACHED = "This is measured on cached features (method.features=cached or a sweep)."
CURVES = {  # of a fit, by metric: title, factor
    "loss": ("training loss", 1),
    "rate": ("learning rate", 1),
    "balanced": ("balanced accuracy (%)", 100),
    **{group: (f"{group}-shot accuracy (%)", 100) for group in GROUPS},
}
CLASS_METRICS = {  # by metric: title, factor
    "accuracy": ("accuracy (%)", 100),
    "loma_row": ("Logits Magnitude, row (nats)", 1),
    "loma_col": ("Logits Magnitude, column (nats)", 1),
    "weight_norm": ("weight norm", 1),
}
CORRELATES = {  # of accuracy, by title
    "LoMa row, spread over classes": "loma_row_spread",
    "LoMa col, spread over classes": "loma_col_spread",
    "weight norm, spread over classes": "weight_norm_spread",
    "LoMa row, mean (nats)": "loma_row",
    "LoMa col, mean (nats)": "loma_col",
    **{f"RSD {part.replace('_', ' ')}": f"rsd_{part}" for part in RSD},
}


def groups(run: Run, looks: Looks) -> Part:
    """Accuracy by group of classes, a row for each method."""
    series = []
    for row, (name, fits) in enumerate(run.fits.items()):
        for key, marker in MARKS.items():
            mean, std = (100 * value for value in workdirs.over(fits, key))
            title = f"{name}, {key}"
            place = [mean], [row], looks[name], name, [std]
            series.append(Series(title, *place, marker, line=False))
    limit = run.result["protocol"]["group_limits"]
    return Part(
        "groups",
        "Accuracy by group",
        "Accuracy on all test images (bar), and of the many-shot (circle, more than "
        f"{limit['many']} training images), medium-shot (square) and few-shot "
        f"(triangle, fewer than {limit['few']}) classes, as the mean over "
        f"{group_average(run.result['protocol'])}. Lines: standard deviation over "
        "seeds.",
        panels=[Panel("accuracy (%)", "", series, rows=list(run.fits))],
    )


def curves(run: Run, looks: Looks, stage: int) -> Part:
    """Loss, learning rate and accuracy by group of every fit of a stage."""
    records = workdirs.curves(run.path)
    titles = [t for t in records if t.startswith("stage1/") == (stage == 1)]
    panels = []
    for metric, (label, factor) in CURVES.items():
        lines = []
        for title in titles:
            method = title.split("/")[0].replace("stage1", "none")
            epochs, values = (np.array(records[title][k]) for k in ("epoch", metric))
            at = np.flatnonzero(np.isfinite(values))
            at = at[:: max(1, round(len(at) / POINTS))]
            place = epochs[at], factor * values[at], looks.get(method, 0), method
            lines.append(Series(title, *place, marker=""))
        panels.append(Panel("epoch", label, [line for line in lines if len(line.x)]))
    select = run.result["protocol"]["select"]
    return Part(
        f"curves_stage{stage}",
        f"Learning curves of stage {stage}",
        "One line per fit. Accuracy is measured on "
        f"{'the test set' if select == 'test' else 'validation'}.",
        ""
        if titles
        else "No fit of this stage recorded evaluations in metrics.jsonl; "
        "heads on cached features record none.",
        panels=[panel for panel in panels if panel.series],
    )


def per_class(run: Run, looks: Looks) -> Part:
    """Metrics of classes against their training counts, a line for each method."""
    first = next(iter(run.fits.values()))[0]["per_class"]
    counts = np.array(first["train_count"], float)
    order, each = np.argsort(counts, kind="stable"), len(counts) <= 12
    # A point is a class, or else the median of some with similar counts.
    parts = np.array_split(order, min(12, len(order)))
    x = [float(np.median(counts[part])) for part in parts]
    labels = [first["class"][part[0]] for part in parts] if each else ()
    panels = []
    for metric, (title, factor) in CLASS_METRICS.items():
        series = []
        for name, fits in run.fits.items():
            values = [fit["per_class"][metric] for fit in fits]
            mean = factor * np.mean(np.array(values, float), axis=0)
            y = [float(np.median(mean[part])) for part in parts]
            series.append(Series(name, x, y, looks[name], name, labels=labels))
        label = "training examples of the class"
        panels.append(Panel(label, title, series, xlog=counts.min() > 0))
    points = "classes" if each else "medians of classes with similar counts"
    return Part(
        "per_class",
        "Classes by training count",
        f"Points are {points}, mean over seeds. A balanced head has a flat Logits "
        "Magnitude.",
        panels=panels,
    )


def delta(run: Run) -> Part:
    """Metrics of LOS by the amount of label smoothing, from a sweep."""
    part = Part("delta", "Amount of label smoothing")
    tried = [
        # Plain cross-entropy is LOS without smoothing.
        s._replace(hyper={**s.hyper, "delta": 0.0}) if s.method == "ce" else s
        for s in selection.settings(run.rows)
        if s.method in ("ce", LOS)
    ]
    tried = [s for s in tried if {"lr", "delta"} <= s.hyper.keys()]
    if len({s.hyper["delta"] for s in tried}) < 2:
        return part._replace(
            missing="This needs a sweep of LOS with two or more values of delta "
            "(lt-jax sweep with several values in method.los.grid.delta)."
        )
    split, deltas = _split(run), sorted({s.hyper["delta"] for s in tried})
    same = ([s for s in tried if s.hyper["delta"] == delta] for delta in deltas)
    best = [s for each in same if (s := selection.best(each, run.choose))]
    if not best:
        return part._replace(missing="All LOS heads of the sweep diverged.")
    deltas = np.array([s.hyper["delta"] for s in best])
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
    label = "gap of a perfect fit, ln(1 + K(1-δ)/δ)"
    gap = Panel(label, "LoMa row", lines(["loma_row"], x=gaps), diagonal=True)
    return part._replace(
        caption=f"LOS by delta on the {split} split; the axis is that of 1/(1-δ). "
        "Each delta takes the learning rate with the best validation score "
        f"({run.choose}). Lines at points: standard deviation over seeds. At δ = 0 the "
        "gap is infinite and not drawn.",
        panels=[
            *(
                Panel("δ", title, series, xlog=True, ylog="rate" in title, xticks=ticks)
                for title, series in panels.items()
            ),
            gap,
        ],
    )


def learning_rate(run: Run) -> Part:
    """Accuracy by method and learning rate, from a sweep."""
    part = Part("learning_rate", "Accuracy by method and learning rate")
    tried = [s for s in selection.settings(run.rows) if s.hyper.get("lr", 0) > 0]
    rates = sorted({s.hyper["lr"] for s in tried})
    if len(rates) < 2:
        return part._replace(
            missing="This needs a sweep with two or more learning rates (lt-jax sweep)."
        )
    split, metric, rows = _split(run), _accuracy(run), []
    for name in dict.fromkeys(s.method for s in tried):
        rows.append([name])
        for rate in rates:
            same = [s for s in tried if (s.method, s.hyper["lr"]) == (name, rate)]
            best = selection.best(same, run.choose)
            rows[-1].append(100 * best.over(split, metric)[0] if best else math.nan)
    framed, dotted = (
        {
            name: 1 + rates.index(workdirs.hyper(fits)["lr"])
            for name, fits in of_methods.items()
            if workdirs.hyper(fits).get("lr") in rates
        }
        for of_methods in (run.fits, run.fixed)
    )
    header = ["method", *(f"lr {rate:g}" for rate in rates)]
    return part._replace(
        caption=f"Accuracy ({metric}) on the {split} split, mean over seeds. Each cell "
        "takes the other hyperparameters with the best validation score "
        f"({run.choose}). Frame: chosen; dot: the config's; empty: not tried, or "
        "diverged.",
        table=Table(header, rows, True, framed, dotted),
    )


def correlation(run: Run, looks: Looks) -> Part:
    """Rank correlation of accuracy with the balance and scale of the logits."""
    part = Part("correlation", "Correlates of accuracy")
    metrics = [_accuracy(run), *CORRELATES.values()]
    split = _split(run) if run.rows else "test"
    heads = [
        (row["method"], [selection.value(row, split, k) for k in metrics])
        for row in run.rows
    ] or [
        (name, [number(fit["metrics"].get(k)) for k in metrics])
        for name, fits in run.fits.items()
        for fit in fits
    ]
    heads = [head for head in heads if math.isfinite(head[1][0])]
    if len(heads) < 3:
        return part._replace(
            missing="This needs at least three heads with a finite accuracy."
        )
    names = np.array([name for name, _ in heads])
    y, *columns = np.array([values for _, values in heads]).T
    panels = []
    for title, x in zip(CORRELATES, columns, strict=True):
        series = []
        for name in dict.fromkeys(names.tolist()):
            place = x[names == name], 100 * y[names == name], looks[name], name
            series.append(Series(name, *place, line=False))
        # A rank correlation is the same on every increasing axis.
        log = bool(np.nanmin(x) > 0 and np.nanmax(x) > 20 * np.nanmin(x))
        rho, ours = (
            cell(spearman(x[who], y[who]), None, 1, 2, sign="+")
            for who in (slice(None), names == LOS)
        )
        panels.append(Panel(title, "accuracy (%)", series, f"ρ {rho}, LOS {ours}", log))
    return part._replace(
        caption=f"Each point is one of {len(heads):,} heads on the {split} split, with "
        f"its accuracy ({metrics[0]}). ρ is Spearman's rank correlation, of all heads "
        "and of those of LOS. Heads of one method are not independent, so this "
        "describes these heads and is not a test.",
        panels=panels,
    )


def reliability(run: Run, looks: Looks) -> Part:
    """Confidence against accuracy, before and after temperature scaling."""
    part = Part("reliability", "Reliability before and after temperature scaling")
    analysed, note = _analysed(run, "reliability")
    if not analysed:
        return part._replace(missing=note)
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
    return part._replace(
        caption="Points on the diagonal are as often right as they are confident; "
        "below it, the head is overconfident. Logits are divided by T, which minimises "
        "NLL on validation. Test examples of all seeds, in 15 bins of confidence."
        + note,
        panels=[
            Panel("confidence (%)", "accuracy (%)", lines, when, diagonal=True)
            for when, lines in series.items()
            if lines
        ],
        table=Table(["method", "T", "ECE before", "ECE after"], shown),
    )


def confusion(run: Run) -> Part:
    """Predictions by group of the true and of the predicted class."""
    part = Part("confusion", "Head/tail confusion")
    analysed, note = _analysed(run, "confusion")
    if not analysed:
        return part._replace(missing=note)
    rows = []
    for name, fits in analysed.items():
        tables = [fit["analysis"]["confusion"]["counts"] for fit in fits]
        counts = np.sum(np.array(tables, float), axis=0)
        with np.errstate(invalid="ignore"):
            shares = 100 * counts / np.sum(counts, axis=1, keepdims=True)
        rows.append([name, *shares.ravel().tolist()])
    ends = ("right", *(f"as {group}" for group in GROUPS))
    header = ["method", *(f"{group}: {end}" for group in GROUPS for end in ends)]
    return part._replace(
        caption="Test examples of each group in per cent: predicted right, or wrong, "
        "by the group of the predicted class. Sums over all seeds." + note,
        table=Table(header, rows, heat=True),
    )


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
    absent = ", ".join(name for name in run.fits if name not in fits)
    return fits, (absent and f" Not measured for {absent}.") if fits else UNCACHED
