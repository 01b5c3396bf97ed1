"""The tables of a report: every method, LOS against each, protocols compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.experiment import workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.tables import COLUMNS, cell
from lt_jax.experiment.workdirs import Run
from lt_jax.metrics import GROUPS
from lt_jax.report.page import Part, Table
from lt_jax.retraining.selection import number, spread

LOS = "los"
ACCURACIES = ("all", *GROUPS)


def main(run: Run) -> Part:
    settings = (("chosen", run.fits), ("fixed", run.fixed))
    shown, numbers = [], []
    for name in dict.fromkeys([*run.fits, *run.fixed]):
        for setting, held in settings:
            if not (fits := held.get(name)):
                continue
            label = setting if run.swept and name != "none" else ""
            used = workdirs.hyper(run, name, fits)
            over = [
                (*workdirs.over(fits, c.metric), c.factor, c.decimals) for c in COLUMNS
            ]
            shown.append([name, label, *(cell(*o) for o in over)])
            both = [f * x for mean, std, f, _ in over for x in (mean, std)]
            numbers.append([name, label, len(fits), *both, json.dumps(used)])
    titles = [column.title for column in COLUMNS]
    both = [f"{c.metric}{end}" for c in COLUMNS for end in ("", "_std")]
    header = ["method", "values", *titles]
    if not run.swept:
        for row in (header, *shown):
            del row[1]
    return Part(
        "main",
        "Every method",
        "chosen: the hyper-parameters that are best on validation; fixed: those of the "
        "config, published where something is."
        if run.swept
        else "Each method at the one setting of the config: this ranks the settings "
        "as much as the methods.",
        table=Table(header, shown),
        text=(0, 1) if run.swept else (0,),
        numbers=Table(["method", "values", "seeds", *both, "hyper"], numbers),
    )


def hyper(run: Run) -> Part:
    part = Part("hyper", "Hyper-parameters", "")
    rows = []
    for name in (n for n in dict.fromkeys([*run.fits, *run.fixed]) if n != "none"):
        chosen, fixed = (
            workdirs.hyper(run, name, held.get(name, []))
            for held in (run.fits, run.fixed)
        )
        moved = {k: v for k, v in chosen.items() if k in fixed and fixed[k] != v}
        rows.append([name, words(chosen), words(moved) or "as in the config"])
    if not rows:
        return part._replace(missing="No method of stage 2 has finished here.")
    header = ["method", "values", "not as in the config"]
    if not run.swept:
        header, rows = header[:2], [row[:2] for row in rows]
    return part._replace(
        read=f"Chosen on validation ({run.choose}), and which of them the config has "
        "otherwise."
        if run.swept
        else "As in the config.",
        table=Table(header, rows),
        text=range(len(header)),
        numbers=Table(header, rows),
    )


def versus(run: Run) -> Part:
    part = Part("versus", "Does LOS beat each baseline?", "")
    others = [name for name in run.fits if name != LOS]
    if LOS not in run.fits or not others:
        return part._replace(missing="No other method to hold LOS against, or no LOS.")
    keys = (*ACCURACIES, "balanced")
    shown, numbers, verdicts = [], [], []
    for name in others:
        found = {k: paired(run.fits[name], run.fits[LOS], k) for k in keys}
        mean, std = spread(found["all"])
        pairs = len(found["all"])
        verdicts.append(verdict(name, mean, std, pairs))
        over = [spread(found[k]) for k in keys]
        cells = [cell(*o, 100, 1, sign="+") for o in over]
        shown.append([name, *cells, str(pairs), verdicts[-1]])
        both = [100 * x for o in over for x in o]
        numbers.append([name, pairs, *both, verdicts[-1]])
    count = {
        "ahead of": verdicts.count(f"{LOS} ahead"),
        "behind": sum(f"{n} ahead" == v for n, v in zip(others, verdicts, strict=True)),
        "within the spread of": verdicts.count("within the spread"),
    }
    count["without a verdict on"] = len(verdicts) - sum(count.values())
    told = ", ".join(f"{where} {size}" for where, size in count.items() if size)
    both = [f"{key}{end}" for key in keys for end in ("", "_std")]
    tuned = "chosen" if run.swept else "as configured, not tuned"
    return part._replace(
        read=f"Accuracy of each method minus that of LOS ({tuned}), in points, paired "
        f"by seeds: mean ± standard deviation of the differences. LOS is {told} of "
        f"{len(others)}. A difference no larger than its deviation is called within "
        "the spread; pairs that share one representation say nothing about another.",
        table=Table(["method", *keys, "pairs", "over all"], shown),
        text=(0, len(keys) + 2),
        numbers=Table(["method", "pairs", *both, "verdict"], numbers),
    )


def protocol(runs: Sequence[Run]) -> Part:
    first, *others = runs
    shown, numbers = [], []
    for other in others:
        for name in (n for n in first.fits if n in other.fits):
            changed = workdirs.differences(first, other, name)
            lines = [f"{k}: {word(a)} → {word(b)}" for k, (a, b) in changed.items()]
            told = "; ".join(lines) or "nothing: a repetition"
            if len(lines) > 1:
                told = f"{len(lines)} choices: {told}"
            new, old = other.fits[name], first.fits[name]
            found = {k: paired(new, old, k) for k in ACCURACIES}
            pairs = len(found["all"])
            over = [spread(found[k]) for k in ACCURACIES]
            if not pairs:  # then there is no spread of a difference
                means = (
                    [workdirs.over(f, k)[0] for k in ACCURACIES] for f in (new, old)
                )
                over = [(a - b, np.nan) for a, b in zip(*means, strict=True)]
            cells = [cell(*o, 100, 1, sign="+") for o in over]
            shown.append([other.label, name, *cells, str(pairs), told])
            both = [100 * x for o in over for x in o]
            numbers.append([other.label, name, pairs, *both, len(lines), told])
    if not shown:
        return Part(
            "protocol",
            f"Against {first.label}",
            "",
            missing=f"No other workdir holds a method of {first.label}.",
        )
    both = [f"{key}{end}" for key in ACCURACIES for end in ("", "_std")]
    return Part(
        "protocol",
        f"Against {first.label}",
        f"Accuracy in each workdir minus that in {first.label}, in points: mean ± "
        "standard deviation of the differences between fits of the same seeds; with 0 "
        "pairs, the difference of the means. A difference is the effect of a choice "
        "only where that choice alone differs.",
        table=Table(["workdir", "method", *ACCURACIES, "pairs", "what differs"], shown),
        text=(0, 1, len(ACCURACIES) + 3),
        numbers=Table(
            ["workdir", "method", "pairs", *both, "choices", "what_differs"], numbers
        ),
    )


def paired(one: list[Outcome], other: list[Outcome], key: str) -> list[float]:
    """Differences of a metric between fits of the same seeds.

    A stage-1 head has one seed and goes with every fit on its representation.
    """
    pairs = []
    for a in one:
        for b in other:
            size = min(len(a["seeds"]), len(b["seeds"]))
            if a["seeds"][:size] == b["seeds"][:size]:
                pairs.append(
                    number(a["metrics"].get(key)) - number(b["metrics"].get(key))
                )
    return pairs


def verdict(name: str, mean: float, std: float, pairs: int) -> str:
    if not pairs or not np.isfinite(mean):
        return "no seeds in common"
    ahead = f"{name if mean > 0 else LOS} ahead"
    if mean == 0 and not std > 0:
        return "equal"
    if pairs == 1:
        return f"{ahead}, spread unknown"
    return "within the spread" if abs(mean) <= std else ahead


def words(hyper: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {word(value)}" for key, value in hyper.items())


def word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
