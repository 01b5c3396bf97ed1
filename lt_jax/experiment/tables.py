"""Tables of results: Markdown text for the terminal and ``report/table.md``; CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lt_jax.retraining.selection import number

# How a formula begins in a spreadsheet, unless it is a number.
FORMULA = re.compile(r"(?![+-]?[\d.]+(e[+-]?\d+)?$)[=+\-@\t\r]")


class Column(NamedTuple):
    """A metric as tables show it."""

    title: str
    metric: str  # as in an outcome, for example loma_col_spread
    factor: int = 100
    decimals: int = 1
    in_text: bool = True  # False: only in the report, as terminals are narrow
    better: int = 1  # the sign of an improvement; 0: neither


COLUMNS = (
    Column("balanced", "balanced"),
    Column("all", "all"),
    Column("many", "many"),
    Column("medium", "medium"),
    Column("few", "few"),
    Column("worst", "worst"),
    Column("ECE", "ece", better=-1),
    Column("LoMa row", "loma_row", 1, 2, in_text=False, better=0),
    Column("LoMa col", "loma_col", 1, 2, in_text=False, better=0),
    Column("spread row", "loma_row_spread", 1, 2, in_text=False, better=0),
    Column("spread col", "loma_col_spread", 1, 2, in_text=False, better=0),
)
IN_TEXT = [column for column in COLUMNS if column.in_text]


def text(result: dict[str, Any]) -> str:
    """Format the tables of a result below their caption, as Markdown."""
    return "\n\n".join(_parts(result, table))


def drawing(result: dict[str, Any], width: int) -> Any:
    """Make what rich prints in place of ``text``, for a terminal of this width."""
    from rich.console import Group

    parts = _parts(result, lambda methods: _drawn(methods, width))
    return Group(*(line for part in parts for line in (part, "")))


def _parts(result: dict[str, Any], table: Callable[[dict[str, Any]], Any]) -> list[Any]:
    parts = [caption(result)]
    if "sweep" in result:
        s, best = result["sweep"], result.get("recommended") or {}
        every = "; each was fitted on all training examples" * bool(best.get("folds"))
        parts.append(
            f"Chosen on {judge(best)} by the mean {s['choose']} over seeds, from "
            f"{s['heads']:,} heads{every}:"
        )
    parts.append(table(result["methods"]))
    if "fixed" in result:
        parts += ["At the config's own values:", table(result["fixed"])]
    if best := result.get("recommended"):
        parts.append(recommendation(best))
    return parts


def judge(found: dict[str, Any]) -> str:
    """Describe which examples a recommendation was made on."""
    return f"{found['folds']}-fold validation" if found.get("folds") else "validation"


def final(found: dict[str, Any]) -> str:
    """Describe the recommended head after its last fit; "" if there was none."""
    if not found.get("refit") or "test" not in found:
        return ""
    balanced, overall = (100 * number(found["test"][k]) for k in ("balanced", "all"))
    return (
        f"fitted again on all examples for `predict`, {found['method']} has balanced "
        f"{balanced:.1f}, all {overall:.1f} on test"
    )


def recommendation(found: dict[str, Any]) -> str:
    """Describe the recommended method, how sure the choice is, and its price."""
    against = ""
    if found["runner_up"]:
        against = f", {found['sure']:.0%} sure against {found['runner_up']}"
    text = (
        f"Recommended: {found['method']} ({judge(found)} {found['by']} "
        f"{100 * found['score']:.1f} ± {100 * found['error']:.1f}{against})"
    )
    if found["sure"] < 2 / 3:
        text += "; validation hardly separates them"
    if last := final(found):
        text += f"\n{last[0].upper()}{last[1:]}; the table has the head before that fit"
    return f"{text}\nWARNING: {found['warning']}" if found["warning"] else text


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
        f"{d['name']}, split {d['split_hash']}, test set; accuracies and ECE in per "
        f"cent; {runs}"
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
    columns = [["method", *methods]]
    columns += [[c.title, *_cells(c, methods)] for c in IN_TEXT]
    padded = []
    for column in columns:
        width, pad, end = max(map(len, column)), str.rjust, ":"
        if not padded:  # the names are at the left
            pad, end = str.ljust, "-"
        title, *cells = (pad(cell, width) for cell in column)
        padded.append([title, "-" * (width - 1) + end, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*padded, strict=True))


def _cells(column: Column, methods: dict[str, Any]) -> list[str]:
    entries = (entry[column.metric] for entry in methods.values())
    form = column.factor, column.decimals
    return [cell(entry["mean"], entry["std"], *form) for entry in entries]


def _drawn(methods: dict[str, Any], width: int) -> Any:
    """Draw a table with the best in bold and the difference to ``none`` in colour.

    Columns that do not fit are left out.
    """
    from rich.table import Table
    from rich.text import Text

    columns: list[tuple[str, list[Text]]] = []
    base = methods["none"]["balanced"]["mean"] or math.nan
    for c in IN_TEXT:
        means = [number(entry[c.metric]["mean"]) for entry in methods.values()]
        best = max((c.better * m for m in means if m == m), default=math.nan)
        cells = [*map(Text, _cells(c, methods))]
        for text, mean in zip(cells, means, strict=True):
            if c.better and c.better * mean == best:
                text.stylize("bold")
        columns.append((c.title, cells))
        if c.metric == "balanced":
            gains = [
                cell(mean - base, None, c.factor, c.decimals, "+") for mean in means
            ]
            styles = ["red" if mean < base else "green" for mean in means]
            pairs = zip(gains[1:], styles[1:], strict=True)
            columns.append(("vs none", [Text(), *(Text(*pair) for pair in pairs)]))
    drawn, left, shown = Table(box=None, pad_edge=False, header_style="dim"), width, []
    for title, cells in [("method", [Text(name) for name in methods]), *columns]:
        left -= 2 + max(len(title), *map(len, cells))
        if left >= -2:
            shown.append(cells)
            side = "left" if title == "method" else "right"
            drawn.add_column(title, no_wrap=True, justify=side)
    for row in zip(*shown, strict=True):
        drawn.add_row(*row)
    return drawn


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
