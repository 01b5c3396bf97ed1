"""Tables of results: Markdown text for the terminal and ``report/table.md``; CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# How a formula begins in a spreadsheet, unless it is a number.
FORMULA = re.compile(r"(?![+-]?[\d.]+(e[+-]?\d+)?$)[=+\-@\t\r]")


class Column(NamedTuple):
    """A metric as tables show it."""

    title: str
    metric: str  # as in an outcome, for example loma_col_spread
    factor: int = 100
    decimals: int = 1
    in_text: bool = True  # False: only in the report, as terminals are narrow


COLUMNS = (
    Column("all", "all"),
    Column("many", "many"),
    Column("medium", "medium"),
    Column("few", "few"),
    Column("balanced", "balanced", in_text=False),
    Column("worst", "worst"),
    Column("ECE", "ece"),
    Column("LoMa row", "loma_row", 1, 2),
    Column("LoMa col", "loma_col", 1, 2),
    Column("spread row", "loma_row_spread", 1, 2, in_text=False),
    Column("spread col", "loma_col_spread", 1, 2),
)


def text(result: dict[str, Any]) -> str:
    """Format the tables of a result below their caption."""
    parts = [caption(result)]
    if "sweep" in result:
        s = result["sweep"]
        parts.append(
            f"Chosen on validation by the mean {s['choose']} over seeds, from "
            f"{s['heads']:,} heads:"
        )
    parts.append(table(result["methods"]))
    if "fixed" in result:
        parts += ["At the config's own values:", table(result["fixed"])]
    return "\n\n".join(parts)


def caption(result: dict[str, Any]) -> str:
    """Describe what the figures of a result mean, in two lines."""
    d, p = result["dataset"], result["protocol"]
    stage1 = len({seeds[0] for seeds in p["seeds"]})
    stage2 = len({seeds[1] for seeds in p["seeds"] if len(seeds) > 1})
    over = [f"{stage1} representations"] if stage1 > 1 else []
    over += [f"{stage2} seeds of stage 2"] if stage2 > 1 else []
    runs = "one run, so no standard deviation"
    if over:
        runs = f"mean ± standard deviation over {' x '.join(over)}"
        runs += " on one representation" if stage1 == 1 else ""
    kept = {
        "last": "last epoch",
        "validation": "best epoch on validation",
        "test": "BEST EPOCH ON THE TEST SET, as in the authors' code",
    }
    views = "averaged over mirror images" if p["flip"] else "each image once"
    limits = p["group_limits"]
    return (
        f"{d['name']}, split {d['split_hash']}, test set; per cent except LoMa; {runs}"
        f"\n{kept[p['select']]}; {views}; stage 2 {p['features']}, batch norm "
        f"{p['batch_norm']}; many > {limits['many']} training images, few < "
        f"{limits['few']}, mean over {group_average(p)}"
    )


def group_average(protocol: dict[str, Any]) -> str:
    """Return what the accuracy of a group averages over; old results lack the key."""
    return protocol.get("group_average", "examples")


def table(methods: dict[str, Any]) -> str:
    """Format the metrics of methods as a Markdown table.

    Args:
      methods: entries of ``methods`` in ``result.json`` by name.
    """
    columns = [column for column in COLUMNS if column.in_text]
    rows = [["method", *(column.title for column in columns)]]
    for name, entry in methods.items():
        values = [_entry(entry, column.metric) for column in columns]
        shown = zip(values, columns, strict=True)
        rows.append(
            [name, *(cell(v["mean"], v["std"], c.factor, c.decimals) for v, c in shown)]
        )
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]

    def line(first: str, *rest: str) -> str:
        padded = [first.ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(*rows[0]), line(*rule), *(line(*row) for row in rows[1:])])


def _entry(values: dict[str, Any], metric: str) -> dict[str, Any]:
    """Find a metric of an outcome in ``result.json``, which nests the spreads."""
    name = metric.removesuffix("_spread")
    return values[name] if name == metric else values[name]["spread"]


def cell(
    mean: float | None,
    std: float | None,
    factor: float,
    decimals: int,
    sign: str = "",
) -> str:
    """Format ``12.3 ± 0.4``; without the deviation where it is nan or None.

    >>> cell(0.1234, None, 100, 1, sign="+")
    '+12.3'
    """
    if mean is None or math.isnan(mean):
        return "nan"
    text = f"{factor * mean:{sign}.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    if std is not None and not math.isnan(std):
        text += f" ± {factor * std:.{decimals}f}"
    return text


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Format rows as CSV; text that could be a formula gets an apostrophe before it.

    >>> csv_text([["=1+1", "-a", "-1.5"]])
    "'=1+1,'-a,-1.5\n"
    """

    def cell(value: Any) -> Any:
        formula = isinstance(value, str) and FORMULA.match(value)
        return f"'{value}" if formula else value

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return file.getvalue()
