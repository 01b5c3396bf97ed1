"""The figures of a report: which numbers of a workdir each draws."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from lt_jax.experiment import workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.workdirs import Run
from lt_jax.losses import smoothing_gap
from lt_jax.metrics import GROUPS, RSD
from lt_jax.report import plots, style
from lt_jax.report.page import Part, Table
from lt_jax.report.tables import ACCURACIES, LOS, cell, listed
from lt_jax.retraining import selection
from lt_jax.retraining.selection import number, spread

SPLITS = {"valid": "validation", "test": "test"}
# What accuracy is held against, by its name on the axis.
BALANCE = {
    "LoMa row, spread over classes": "loma_row_spread",
    "LoMa col, spread over classes": "loma_col_spread",
    "weight norm, spread over classes": "weight_norm_spread",
    "LoMa row, mean (nats)": "loma_row",
    "LoMa col, mean (nats)": "loma_col",
    **{f"RSD {part.replace('_', ' ')}": f"rsd_{part}" for part in RSD},
}
PANELS = (
    "A panel for each method: points are classes (mean over seeds), lines the medians "
    "of classes of similar count (where classes are too many for points, bands hold "
    "the middle half of them); grey is the stage-1 head, none."
)


def groups(run: Run) -> Part:
    columns = {
        key: tuple(
            100 * np.array([workdirs.over(fits, key) for fits in run.fits.values()]).T
        )
        for key in ACCURACIES
    }
    numbers = [
        [name, len(fits), *(float(a[i]) for pair in columns.values() for a in pair)]
        for i, (name, fits) in enumerate(run.fits.items())
    ]
    limits = run.result["protocol"]["group_limits"]
    figure = plots.bars(list(run.fits), columns, "none", LOS)
    return Part(
        "groups",
        "Many, medium, few",
        f"Accuracy over all test images and over those of the many- (more than "
        f"{limits['many']} training images), medium- and few-shot (fewer than "
        f"{limits['few']}) classes; whiskers: standard deviation over seeds; dashed: "
        "the stage-1 head.",
        picture=style.render(figure),
        alt=f"Bars of the accuracy of {listed(run.fits)}, over all and by group.",
        numbers=Table(
            ["method", "seeds", *(f"{k}{e}" for k in ACCURACIES for e in ("", "_std"))],
            numbers,
        ),
    )


def per_class(
    run: Run,
    name: str,
    title: str,
    ylabel: str,
    keys: Mapping[str, str],
    factor: float = 1,
    words: str = "",
    log: bool = False,
) -> Part:
    first = next(iter(run.fits.values()))[0]["per_class"]
    counts = np.array(first["train_count"], np.float64)
    lines: dict[str, dict[str, np.ndarray]] = {}
    numbers = []
    for method, fits in run.fits.items():
        columns = []
        lines[method] = {}
        for label, key in keys.items():
            runs = np.array([_column(fit, key) for fit in fits])
            mean = factor * runs.mean(axis=0)
            some = np.full_like(mean, np.nan)
            std = factor * runs.std(axis=0, ddof=1) if len(runs) > 1 else some
            lines[method][label] = mean
            columns += [mean.tolist(), std.tolist()]
        rest = zip(first["class"], first["train_count"], *columns, strict=True)
        numbers += [[method, *row] for row in rest]
    panels = {m: of for m, of in lines.items() if m != "none"} or lines
    reference = lines.get("none", {}) if "none" not in panels else {}
    figure = plots.per_class(counts, panels, reference, ylabel, log)
    both = [f"{key}{end}" for key in keys.values() for end in ("", "_std")]
    return Part(
        name,
        title,
        words + PANELS,
        picture=style.render(figure),
        alt=f"{title}, a panel for each of {listed(panels)}; none in grey.",
        numbers=Table(["method", "class", "train_count", *both], numbers),
    )


def delta(run: Run) -> Part:
    part = Part("delta", "How much smoothing", "")
    tried = [
        # Plain cross-entropy is the curve's beginning.
        s._replace(hyper={**s.hyper, "delta": 0.0}) if s.method == "ce" else s
        for s in selection.settings(run.rows)
        if s.method in ("ce", LOS)
    ]
    if len({s.hyper["delta"] for s in tried}) < 2:
        return part._replace(
            missing="The workdir holds no sweep of LOS over two values of delta or "
            "more (lt-jax sweep with several in method.los.grid.delta)."
        )
    usual = workdirs.hyper(run, LOS, run.fixed.get(LOS, []))
    free = ("lr", "delta")
    rest = {k: v for k, v in usual.items() if k not in free}
    alike = [
        s for s in tried if {k: v for k, v in s.hyper.items() if k not in free} == rest
    ]
    tried = alike or tried
    split = _split(run)
    keys = (
        "all",
        "balanced",
        *GROUPS,
        "loma_row",
        "loma_col",
        *(f"rsd_{p}" for p in RSD),
    )
    curves, numbers = [], []
    lines = {"best learning rate on validation": tried}
    if any(s.hyper["lr"] == usual.get("lr") for s in tried):
        same = [s for s in tried if s.hyper["lr"] == usual["lr"]]
        lines[f"the config's learning rate, {usual['lr']:g}"] = same
    num_classes = run.result["dataset"]["num_classes"]
    for label, among in lines.items():
        deltas = sorted({s.hyper["delta"] for s in among})
        at = [[s for s in among if s.hyper["delta"] == delta] for delta in deltas]
        found = [best for some in at if (best := selection.best(some, run.choose))]
        x = np.array([s.hyper["delta"] for s in found], np.float64)
        lr = np.array([s.hyper["lr"] for s in found], np.float64)
        over = {
            k: np.array([s.over(split, k) for s in found]).reshape(-1, 2).T
            for k in keys
        }
        if len(found):
            curves.append(
                plots.Curve(label, x, lr, {k: (o[0], o[1]) for k, o in over.items()})
            )
        asked = smoothing_gap(num_classes, x)
        for i in range(len(found)):
            both = [float(v) for k in keys for v in over[k][:, i]]
            numbers.append([label, x[i], lr[i], asked[i], len(found[i].rows), *both])
    if not curves:
        return part._replace(missing="Every LOS head of the sweep has diverged.")
    both = [f"{key}{end}" for key in keys for end in ("", "_std")]
    return part._replace(
        read=f"LOS by its delta, on the {SPLITS[split]} split; the axis is logarithmic "
        "in 1-δ. Filled and solid: at each delta the learning rate that is best on "
        f"validation ({run.choose}); open and dashed: the config's. Bands: standard "
        "deviation over seeds. Fifth panel: the gap between the logits that a perfect "
        "fit has against LoMa (δ = 0 asks for an infinite one and is not in it).",
        picture=style.render(plots.smoothing(curves, num_classes, SPLITS[split])),
        alt="Accuracy, Logits Magnitude, RSD, gap and learning rate of LOS against "
        f"delta from {curves[0].x.min():g} to {curves[0].x.max():g}.",
        numbers=Table(["line", "delta", "lr", "gap_asked", "seeds", *both], numbers),
    )


def rates(run: Run) -> Part:
    part = Part("learning_rate", "Method and learning rate", "")
    tried = [s for s in selection.settings(run.rows) if s.hyper.get("lr", 0) > 0]
    rates = sorted({s.hyper["lr"] for s in tried})
    if len(rates) < 2:
        return part._replace(
            missing="The workdir holds no sweep over two learning rates or more "
            "(lt-jax sweep)."
        )
    held = {s.method for s in tried}
    names = [name for name in dict.fromkeys([*run.fits, *sorted(held)]) if name in held]
    split = _split(run)
    values, numbers = np.full((len(names), len(rates)), np.nan), []
    for i, name in enumerate(names):
        for j, rate in enumerate(rates):
            some = [s for s in tried if s.method == name and s.hyper["lr"] == rate]
            best = selection.best(some, run.choose)
            if best is None:
                if some:
                    numbers.append([name, rate, None, None, "diverged"])
                continue
            mean, std = (100 * v for v in best.over(split, "all"))
            values[i, j] = mean
            numbers.append([name, rate, mean, std, json.dumps(best.hyper)])
    chosen, fixed = (
        {n: workdirs.hyper(run, n, of[n]).get("lr", 0.0) for n in names if n in of}
        for of in (run.fits, run.fixed)
    )
    figure = plots.heat(names, rates, values, chosen, fixed)
    return part._replace(
        read=f"Accuracy over all classes on the {SPLITS[split]} split, mean over "
        "seeds; at each learning rate the other hyper-parameters are those that are "
        f"best on validation ({run.choose}). Frame: chosen; dot: the config's; empty: "
        "not tried, or diverged.",
        picture=style.render(figure),
        alt=f"Heat map of accuracy for {len(names)} methods and {len(rates)} learning "
        "rates.",
        numbers=Table(["method", "lr", "all", "all_std", "hyper"], numbers),
    )


def correlation(run: Run) -> Part:
    part = Part("correlation", "What goes with accuracy", "")
    split = _split(run)
    heads = [
        {
            "method": row["method"],
            "seeds": row["seeds"],
            **{k: selection.value(row, split, k) for k in ("all", *BALANCE.values())},
        }
        for row in run.rows
    ] or [
        {
            "method": name,
            "seeds": fit["seeds"],
            **{k: number(fit["metrics"].get(k)) for k in ("all", *BALANCE.values())},
        }
        for name, fits in run.fits.items()
        for fit in fits
    ]
    heads = [head for head in heads if np.isfinite(head["all"])]
    if len(heads) < 3:
        return part._replace(
            missing="Fewer than three heads have a finite accuracy: too few for a "
            "correlation."
        )
    accuracy = 100 * np.array([head["all"] for head in heads])
    ours = np.array([head["method"] == LOS for head in heads])
    panels, shown = {}, []
    for name, key in BALANCE.items():
        values = np.array([head[key] for head in heads])
        rho = spearman(values, accuracy)
        panels[name] = values, rho
        own = spearman(values[ours], accuracy[ours])
        size = str(int(np.isfinite(values).sum()))
        shown.append([name, _signed(rho), _signed(own), size])
    split = split if run.rows else "test"
    return part._replace(
        read=f"Each point is a head, {len(heads):,} in all, on the {SPLITS[split]} "
        "split. ρ is Spearman's rank correlation with accuracy: +1 and -1 are the same "
        "and the opposite order. Heads of one method resemble each other, so it "
        "describes these heads and tests nothing.",
        picture=style.render(
            plots.correlation(panels, accuracy, ours, LOS if ours.any() else "")
        ),
        alt="Scatter of accuracy against LoMa, its balance over classes, RSD and the "
        "balance of weight norms: "
        + "; ".join(f"{name} rho {rho}" for name, rho, *_ in shown),
        table=Table(
            ["held against accuracy", "ρ, all heads", "ρ, LOS", "heads"], shown
        ),
        numbers=Table(
            ["method", "seeds", "all", *BALANCE.values()],
            [
                [h["method"], ".".join(map(str, h["seeds"])), 100 * h["all"]]
                + [h[k] for k in BALANCE.values()]
                for h in heads
            ],
        ),
    )


def reliability(run: Run) -> Part:
    part = Part("reliability", "Reliability, before and after a temperature", "")
    held = _analysed(run, "reliability")
    if not held:
        return part._replace(missing=_no_analysis("reliability"))
    panels, shown, numbers = {}, [], []
    for name, fits in held.items():
        bins = [fit["analysis"]["reliability"] for fit in fits]
        before = _diagram([b["before"] for b in bins])
        after = (
            _diagram([b["after"] for b in bins])
            if all(b["after"] for b in bins)
            else None
        )
        analyses = [fit["analysis"] for fit in fits]
        heat = spread(a.get("temperature") for a in analyses)
        raw = workdirs.over(fits, "ece")
        ece = spread((a.get("calibrated") or {}).get("ece") for a in analyses)
        warm = np.isfinite(heat[0])
        note = f"T {heat[0]:.2f}\n" if warm else ""
        note += f"ECE {100 * raw[0]:.1f}" + (f" → {100 * ece[0]:.1f}" if warm else "")
        panels[name] = before, after, note
        shown.append([name, cell(*heat, 1, 2), cell(*raw, 100, 1), cell(*ece, 100, 1)])
        for label, diagram in (("before", before), ("after", after)):
            if diagram is not None:
                numbers += [
                    [name, label, i, int(seen), int(right), float(conf)]
                    for i, (seen, right, conf) in enumerate(zip(*diagram, strict=True))
                ]
    stage1 = panels["none"][0] if "none" in panels and len(panels) > 1 else None
    absent = [name for name in run.fits if name not in held]
    return part._replace(
        read="On the diagonal a head is as often right as it is confident; below it, "
        "it is too sure. Logits are divided by T, which minimises NLL on validation; "
        "test examples of all seeds in 15 bins of confidence."
        + (f" Not measured for {listed(absent)}." if absent else ""),
        picture=style.render(plots.reliability(panels, stage1)),
        alt=f"Reliability diagrams of {listed(panels)}; temperatures and ECE stand in "
        "the table.",
        table=Table(["method", "T", "ECE before", "ECE after"], shown),
        numbers=Table(["method", "when", "bin", "seen", "right", "conf"], numbers),
    )


def confusion(run: Run) -> Part:
    part = Part("confusion", "Where head and tail are taken for each other", "")
    held = _analysed(run, "confusion")
    if not held:
        return part._replace(missing=_no_analysis("confusion of the groups"))
    shares, numbers = [], []
    for name, fits in held.items():
        lines = [fit["analysis"]["confusion"]["counts"] for fit in fits]
        counts = np.sum(np.array(lines, np.int64), axis=0)
        with np.errstate(invalid="ignore"):
            share = 100 * counts / np.sum(counts, axis=1, keepdims=True)
        shares.append(share)
        for group, line, percent in zip(GROUPS, counts, share, strict=True):
            numbers.append([name, group, *map(int, line), *map(float, percent)])
    columns = ["right", *(f"wrong_to_{group}" for group in GROUPS)]
    absent = [name for name in run.fits if name not in held]
    figure = plots.confusion(list(held), GROUPS, np.array(shares))
    return part._replace(
        read="For the test examples of each group: predicted right (the number), or "
        "wrong, by the group of the class they were taken for; all seeds together."
        + (f" Not measured for {listed(absent)}." if absent else ""),
        picture=style.render(figure),
        alt=f"Stacked bars for {listed(held)}: right, and wrong by the group of the "
        "predicted class, for each true group.",
        numbers=Table(
            ["method", "true_group", *columns, *(f"{c}_percent" for c in columns)],
            numbers,
        ),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of the finite pairs; nan for fewer than three.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0]))
    0.5
    """
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3:
        return float("nan")
    a, b = (_ranks(v[known]) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _column(fit: Outcome, key: str) -> list[float]:
    return [number(v) for v in fit["per_class"][key]]


def _split(run: Run) -> str:
    """Where every head of the sweep was measured."""
    tested = all("test" in row["metrics"] for row in run.rows)
    return "test" if tested else "valid"


def _analysed(run: Run, what: str) -> dict[str, list[Outcome]]:
    """The methods of which every fit holds this."""
    return {
        name: fits
        for name, fits in run.fits.items()
        if all((fit.get("analysis") or {}).get(what) for fit in fits)
    }


def _no_analysis(what: str) -> str:
    return (
        f"The fits of this workdir hold no {what}: it is measured on cached features "
        "(method.features=cached, or lt-jax sweep)."
    )


def _diagram(bins: list[dict[str, list[float]]]) -> plots.Diagram:
    sums = (np.sum([b[k] for b in bins], axis=0) for k in ("seen", "right", "conf"))
    return plots.Diagram(*(np.asarray(s, np.float64) for s in sums))


def _signed(rho: float) -> str:
    return cell(rho, np.nan, 1, 2, sign="+")
