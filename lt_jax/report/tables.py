"""Tables of a report: all methods, their differences from LOS, differences of runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_jax.experiment import workdirs
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.tables import COLUMNS, cell, csv_text
from lt_jax.experiment.workdirs import Run
from lt_jax.metrics import GROUPS
from lt_jax.retraining.selection import number, spread

LOS = "los"
ACCURACIES = ("all", *GROUPS)


class Table(NamedTuple):
    """A header and rows of cells; None and nan become empty in the CSV file."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        """Return the table as CSV, floats with eight significant digits."""
        return csv_text([self.header, *([*map(_csv_cell, row)] for row in self.rows)])


class Part(NamedTuple):
    """A section of the page: a caption with a figure, a table, or both."""

    name: str  # of its files and of its anchor
    title: str
    caption: str = ""
    missing: str = ""  # why there is nothing to show; replaces everything else
    picture: Mapping[str, bytes] = {}  # by format, "svg" and "png"
    alt: str = ""
    table: Table | None = None  # shown; repeated cells of its first column are blanked
    text: Collection[int] = (0,)  # columns of the table that are aligned left
    numbers: Table | None = None  # in the CSV file

    @property
    def width(self) -> int:
        """Width of the picture on the page in pixels: its text is 9.5 points high."""
        size = re.search(rb'width="([\d.]+)pt"', self.picture["svg"])
        return round(float(size[1]) * 1.62) if size else 700


def main(run: Run) -> Part:
    """Metrics of every method, chosen by the sweep and at the config's values."""
    shown, numbers = [], []
    for name in _methods(run):
        for setting, of_methods in (("chosen", run.fits), ("fixed", run.fixed)):
            if not (fits := of_methods.get(name)):
                continue
            label = setting if run.swept and name != "none" else ""
            cells, values = [], []
            for column in COLUMNS:
                mean, std = workdirs.over(fits, column.metric)
                cells.append(cell(mean, std, column.factor, column.decimals))
                values += [column.factor * mean, column.factor * std]
            hyper = json.dumps(workdirs.hyper(fits))
            shown.append([name, label, *cells])
            numbers.append([name, label, len(fits), *values, hyper])
    header = ["method", "values", *(column.title for column in COLUMNS)]
    if run.swept:
        caption = (
            "chosen: the hyperparameters with the best validation score; fixed: those "
            "of the config, which are the published ones where they exist."
        )
    else:
        shown = [[row[0], *row[2:]] for row in shown]
        header.remove("values")
        caption = (
            "Each method runs at one setting, that of the config. The ranking compares "
            "these settings as much as the methods."
        )
    columns = with_std(column.metric for column in COLUMNS)
    return Part(
        "main",
        "All methods",
        caption,
        table=Table(header, shown),
        text=range(2 if run.swept else 1),
        numbers=Table(["method", "values", "seeds", *columns, "hyper"], numbers),
    )


def hyper(run: Run) -> Part:
    """Hyperparameters of every method."""
    part = Part("hyper", "Hyperparameters")
    rows = []
    for name in (name for name in _methods(run) if name != "none"):
        chosen = workdirs.hyper(run.fits.get(name, []))
        fixed = workdirs.hyper(run.fixed.get(name, []))
        changed = {k: v for k, v in chosen.items() if k in fixed and fixed[k] != v}
        rows.append([name, _settings(chosen), _settings(changed) or "as in the config"])
    if not rows:
        return part._replace(missing="No method of stage 2 has finished.")
    header = ["method", "values", "not as in the config"]
    caption = f"Chosen on validation ({run.choose})."
    if not run.swept:
        header, rows = header[:2], [row[:2] for row in rows]
        caption = "As in the config."
    table = Table(header, rows)
    return part._replace(caption=caption, table=table, text=(0, 1, 2), numbers=table)


def versus(run: Run) -> Part:
    """Difference of every method from LOS, paired by seeds."""
    part = Part("versus", "Does LOS beat each baseline?")
    others = [name for name in run.fits if name != LOS]
    if LOS not in run.fits or not others:
        return part._replace(missing="This needs LOS and at least one other method.")
    keys = (*ACCURACIES, "balanced")
    shown, numbers, verdicts = [], [], []
    for name in others:
        found = [differences(run.fits[name], run.fits[LOS], key) for key in keys]
        over, pairs = [spread(values) for values in found], len(found[0])
        verdicts.append(verdict(name, *over[0], pairs))
        shown.append([name, *map(_points, over), str(pairs), verdicts[-1]])
        numbers.append([name, pairs, *_flat(over), verdicts[-1]])
    count = {
        "ahead of": verdicts.count(f"{LOS} ahead"),
        "behind": sum(verdicts.count(f"{name} ahead") for name in others),
        "within the spread of": verdicts.count("within the spread"),
    }
    count["without a verdict on"] = len(verdicts) - sum(count.values())
    summary = ", ".join(f"{where} {size}" for where, size in count.items() if size)
    tuned = "chosen" if run.swept else "as configured, not tuned"
    return part._replace(
        caption=f"Accuracy of each method minus that of LOS ({tuned}), in points: mean "
        "± standard deviation of the differences between fits with the same seeds. LOS "
        f"is {summary} of {len(others)}. A difference is within the spread if it is "
        "not larger than its standard deviation. Pairs that share one representation "
        "do not generalise to another.",
        table=Table(["method", *keys, "pairs", "verdict (all)"], shown),
        text=(0, len(keys) + 2),
        numbers=Table(["method", "pairs", *with_std(keys), "verdict"], numbers),
    )


def protocol(runs: Sequence[Run]) -> Part:
    """Difference of every other run from the first, and the choices that differ."""
    first, *others = runs
    part = Part("protocol", f"Compared with {first.label}")
    shown, numbers = [], []
    for other in others:
        for name in (name for name in first.fits if name in other.fits):
            changed = workdirs.differences(first, other, name)
            choices = "; ".join(
                f"{key}: {_value(old)} → {_value(new)}"
                for key, (old, new) in changed.items()
            )
            choices = choices or "nothing: a repetition"
            if len(changed) > 1:
                choices = f"{len(changed)} choices: {choices}"
            new, old = other.fits[name], first.fits[name]
            found = [differences(new, old, key) for key in ACCURACIES]
            over, pairs = [spread(values) for values in found], len(found[0])
            if not pairs:  # then the difference has no standard deviation
                over = [
                    (workdirs.over(new, key)[0] - workdirs.over(old, key)[0], np.nan)
                    for key in ACCURACIES
                ]
            shown.append([other.label, name, *map(_points, over), str(pairs), choices])
            last = len(changed), choices
            numbers.append([other.label, name, pairs, *_flat(over), *last])
    if not shown:
        return part._replace(missing="The other workdirs have no method in common.")
    header = ["workdir", "method", "pairs", *with_std(ACCURACIES)]
    return part._replace(
        caption=f"Accuracy in each workdir minus that in {first.label}, in points: "
        "mean ± standard deviation of the differences between fits with the same "
        "seeds. With 0 pairs it is the difference of the means. It is the effect of a "
        "choice only if nothing else differs.",
        table=Table(["workdir", "method", *ACCURACIES, "pairs", "what differs"], shown),
        text=(0, 1, len(ACCURACIES) + 3),
        numbers=Table([*header, "choices", "what_differs"], numbers),
    )


def differences(one: list[Outcome], other: list[Outcome], key: str) -> list[float]:
    """Differences of a metric between fits of the same seeds.

    A stage-1 head has one seed and is paired with every fit on its representation.
    """
    return [
        number(a["metrics"].get(key)) - number(b["metrics"].get(key))
        for a in one
        for b in other
        if all(x == y for x, y in zip(a["seeds"], b["seeds"], strict=False))
    ]


def verdict(name: str, mean: float, std: float, pairs: int) -> str:
    """Compare a method with LOS, given the mean and deviation of the difference."""
    if not pairs or not np.isfinite(mean):
        return "no seeds in common"
    ahead = f"{name if mean > 0 else LOS} ahead"
    if mean == 0 and not std > 0:
        return "equal"
    if pairs == 1:
        return f"{ahead}, spread unknown"
    return "within the spread" if abs(mean) <= std else ahead


def with_std(keys: Iterable[str]) -> list[str]:
    """Column names for the mean and the standard deviation of each metric."""
    return [f"{key}{end}" for key in keys for end in ("", "_std")]


def listed(names: Iterable[str]) -> str:
    """Join names in a sentence: a, b and c."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _methods(run: Run) -> list[str]:
    return list(dict.fromkeys([*run.fits, *run.fixed]))


def _points(over: tuple[float, float]) -> str:
    return cell(*over, 100, 1, sign="+")


def _flat(over: Sequence[tuple[float, float]]) -> list[float]:
    return [100 * value for pair in over for value in pair]


def _settings(hyper: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in hyper.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, float) and not math.isfinite(cell):
        return ""
    return f"{cell:.8g}" if isinstance(cell, float) else cell
