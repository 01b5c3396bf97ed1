"""The leaderboard, differences between fits, and hyperparameters."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_jax.experiment import tables, workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.tables import COLUMNS, Column, cell
from lt_jax.experiment.workdirs import Run, interval, paired
from lt_jax.metrics import CHOOSE, GROUPS, RSD
from lt_jax.report.charts import PAGE, Part, Table, missing, part
from lt_jax.report.panels import LOS
from lt_jax.retraining.selection import spread

SHOWN = [
    *sorted(COLUMNS, key=lambda column: column.metric != "balanced"),
    *(Column(f"RSD {part.replace('_', ' ')}", f"rsd_{part}", 1, 2) for part in RSD),
]
TITLES = [SHOWN[0].title, "difference", *(column.title for column in SHOWN[1:])]


class Row(NamedTuple):
    """A method of one run."""

    run: Run
    method: str
    setting: str  # "chosen", "fixed" or ""
    fits: Sequence[Outcome]
    cells: Sequence[tuple[str, str]]  # by TITLES: text, and "best", "close" or ""


def boards(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Rank the methods of runs by balanced accuracy.

    Returns:
      The rows by dataset and stage 1: those of one are on the same representation.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        stage1 = [[one["seeds"], one["metrics"]] for one in run.fits.get("none", [])]
        key = run.dataset, json.dumps(stage1) if stage1 else run.label
        groups.setdefault(key, []).append(run)
    found = {}
    for (data, _), same in groups.items():
        best, rows = _best([run for run in runs if run.dataset == data]), []
        for run in same:
            kinds = {"chosen": run.fits, "fixed": run.fixed, "fitted again": run.refit}
            for setting, of_methods in kinds.items():
                for name, fits in of_methods.items():
                    kind = setting if run.swept else ""
                    kind = "" if (name, kind) == ("none", "chosen") else kind
                    rows.append(Row(run, name, kind, fits, _cells(run, fits, best)))
        title = f"{data}; stage 1 of {', '.join(run.label for run in same)}"
        scores = [workdirs.over(row.fits, "balanced")[0] for row in rows]
        order = np.argsort(-np.nan_to_num(scores, nan=-1), kind="stable")
        found[title] = [rows[i] for i in order]
    return found


def _best(runs: Sequence[Run]) -> dict[str, list[Outcome]]:
    """The fits with the best mean of each accuracy and error."""
    fits = [fits for run in runs for fits in run.fits.values()]
    best = {}
    for column in SHOWN:
        sign = CHOOSE.get(column.metric, 0)
        scores = [sign * workdirs.over(each, column.metric)[0] for each in fits]
        if sign and np.isfinite(scores).any():
            best[column.metric] = fits[int(np.nanargmax(scores))]
    return best


def _cells(
    run: Run, fits: list[Outcome], best: Mapping[str, list[Outcome]]
) -> list[tuple[str, str]]:
    cells = []
    for column in SHOWN:
        mean, std = workdirs.over(fits, column.metric)
        top, kind = best.get(column.metric, []), ""
        if top and mean == workdirs.over(top, column.metric)[0]:
            kind = "best"
        elif top:
            apart, noise = spread(paired(fits, top, column.metric))
            kind = "close" * (abs(apart) <= noise)
        cells.append((cell(mean, std, column.factor, column.decimals), kind))
    base = run.fits[run.baseline]
    apart = spread(paired(fits, base, "balanced"))
    cells.insert(1, ("" if fits is base else cell(*apart, 100, 1, sign="+"), ""))
    return cells


def table(found: Mapping[str, Sequence[Row]]) -> Table:
    """The leaderboard as a table for its CSV file."""
    rows = [
        [title, row.run.label, row.method, row.setting, len(row.fits)]
        + [c.factor * v for c in SHOWN for v in workdirs.over(row.fits, c.metric)]
        for title, rows in found.items()
        for row in rows
    ]
    names = [c.metric + end for c in SHOWN for end in ("", "_std")]
    return Table(["representation", "run", "method", "values", "fits", *names], rows)


def _columns(keys: Iterable[str]) -> list[str]:
    return [name for key in keys for name in (key, f"{key} ± 95 %")]


def versus(run: Run) -> Part:
    """Difference of every method from LOS, paired by seeds."""
    keys, rows = dict.fromkeys((run.compare, "balanced", "all", *GROUPS)), []
    for name, fits in _others(run):
        found = [paired(fits, run.fits[LOS], key) for key in keys]
        cells = [v for values in found for v in interval(values)]
        better = verdict(name, [CHOOSE[run.compare] * value for value in found[0]])
        rows.append([name, better, len(found[0]), *cells])
    if not rows:
        return missing("versus")
    header = ["method", f"verdict ({run.compare})", "pairs", *_columns(keys)]
    chosen = f"chosen on {tables.judge(run.recommended)}"
    tuned = chosen if run.swept else "as configured, not tuned"
    return part("versus", table=Table(header, rows), tuned=tuned)


def _others(run: Run) -> list[tuple[str, list[Outcome]]]:
    """The methods to compare with LOS, none without it."""
    return [(k, v) for k, v in run.fits.items() if k != LOS and LOS in run.fits]


def lead(run: Run) -> str:
    """What validation recommends, and the verdict on LOS by choice and overall."""
    found, others = run.recommended, _others(run)
    parts = [f"{tables.judge(found)} recommends {found['method']}"] if found else []
    parts += [str(part) for part in (tables.final(found), found.get("warning")) if part]
    words = PAGE["versus"]["verdicts"]
    for key in dict.fromkeys((run.compare, "all")) if others else ():
        apart = (paired(fits, run.fits[LOS], key) for _, fits in others)
        signed = ([CHOOSE[key] * value for value in values] for values in apart)
        verdicts = (verdict("it", values).split(",")[0] for values in signed)
        kinds = (words.get(each, words["none"]) for each in verdicts)
        count = collections.Counter(kinds)
        counted = ", ".join(f"{kind} {size}" for kind, size in count.items())
        parts.append(f"by {key}, LOS is {counted} of {len(others)} methods")
    return f"{run.label}: {'; '.join(parts)}." if parts else ""


def verdict(name: str, values: Sequence[float]) -> str:
    """Compare a method with LOS, given differences in favour of the method."""
    mean, std = spread(values)
    if not np.isfinite(mean):
        return "no seeds in common"
    if mean == 0 and not std > 0:
        return "equal"
    if abs(mean) <= std:
        return "within the spread"
    unknown = ", spread unknown" * (len(values) == 1)
    return f"{name if mean > 0 else LOS} ahead{unknown}"


def between(runs: Sequence[Run]) -> Part:
    """Differences between runs of one dataset, and the choices that differ."""
    keys, rows = ("balanced", "all", *GROUPS), []
    both = itertools.combinations(runs, 2)
    if len(runs) > 6:  # else there are too many pairs to read
        both = ((runs[0], other) for other in runs[1:])
    for first, other in both:
        same = first.dataset == other.dataset
        for name in (name for name in first.fits if same and name in other.fits):
            new, old, cells = other.fits[name], first.fits[name], []
            for key in keys:
                apart = workdirs.over(new, key)[0] - workdirs.over(old, key)[0]
                cells += interval(paired(new, old, key) or [apart])
            pairs = len(paired(new, old, "all"))
            changed = workdirs.differences(first, other, name).items()
            what = [f"{key}: {plain(a)} → {plain(b)}" for key, (a, b) in changed]
            cells.append("; ".join(what) or "nothing: a repetition")
            rows.append([other.label, first.label, name, pairs, *cells])
    if not rows:
        return missing("runs")
    header = ["run", "minus", "method", "pairs", *_columns(keys), "what differs"]
    return part("runs", table=Table(header, rows))


def plain(value: Any) -> str:
    """Format a value of a config."""
    return f"{value:g}" if isinstance(value, float) else str(value)
