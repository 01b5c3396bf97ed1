"""The final table on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lt_jax.experiment import tables


def entry(accuracy: float | None, ece: float) -> dict:
    """The metrics of a method as in ``result.json``."""
    metrics = {c.metric.removesuffix("_spread") for c in tables.COLUMNS}
    found = {name: {"mean": accuracy, "std": None} for name in metrics}
    found["ece"] = {"mean": ece, "std": 0.01}
    for name in ("loma_row", "loma_col"):
        found[name] = {**found[name], "spread": {"mean": 1.0, "std": None}}
    return found


METHODS = {"none": entry(0.5, 0.1), "ce": entry(0.45, 0.2), "los": entry(0.6, 0.3)}
RESULT = {
    "dataset": {"name": "digits", "split_hash": "abc"},
    "protocol": {
        "seeds": [[0, 0]], "select": "last", "flip": False, "features": "online",
        "group_limits": {"many": 9, "few": 2}, "batch_norm": "frozen",
    },
    "methods": METHODS,
}  # fmt: skip


def drawn(width: int, **options) -> str:
    options = {"force_terminal": True, "color_system": "standard", **options}
    options["highlight"] = False
    console = Console(file=(file := io.StringIO()), width=width, **options)
    console.print(tables.drawing(RESULT, width))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_columns_that_do_not_fit_are_left_out(width: int):
    lines = drawn(width, color_system=None).splitlines()
    rows = [line for line in lines if line.strip()][-4:]
    assert all(len(row.rstrip()) <= width for row in rows)
    titles = rows[0].split()
    assert titles[:4] == ["method", "balanced", "vs", "none"]
    assert ("ECE" in titles) == (width > 60)


def test_the_best_is_bold_and_a_difference_has_a_colour():
    text = drawn(140)
    los = next(line for line in text.splitlines() if line.startswith("los"))
    ce = next(line for line in text.splitlines() if line.startswith("ce"))
    assert "\x1b[1m60.0\x1b[0m" in los
    assert "\x1b[32m  +10.0\x1b[0m" in los
    assert "\x1b[31m   \N{MINUS SIGN}5.0\x1b[0m" in ce
    assert (
        "\x1b[1m30.0 ± 1.0" not in los
    )  # of the calibration error, the lowest is best
    none = next(line for line in text.splitlines() if line.startswith("none"))
    assert "\x1b[1m10.0 ± 1.0\x1b[0m" in none


def test_a_network_without_result():
    missing = {**RESULT, "methods": {"none": entry(None, 0.1), "ce": METHODS["ce"]}}
    console = Console(file=(file := io.StringIO()), width=80)
    console.print(tables.drawing(missing, 80))
    assert "nan" in file.getvalue()


@pytest.mark.parametrize(("sure", "separate"), [(0.5, False), (0.9, True)])
def test_a_recommendation_says_whether_validation_separates_methods(
    sure: float, separate: bool
):
    found = {"method": "los", "by": "balanced", "score": 0.9, "error": 0.02}
    found |= {"runner_up": "ce", "sure": sure, "warning": None}
    text = tables.recommendation(found)
    assert text.startswith("Recommended: los (validation balanced 90.0 ± 2.0, ")
    assert text.endswith("hardly separates them") != separate
