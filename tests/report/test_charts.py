"""Axis limits, and the pixels of a panel."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax.report import charts
from lt_jax.report.charts import Axis, Series


def test_limits_skip_and_count_outliers():
    values = np.append(np.linspace(0, 1, 200), [1e6, np.nan])
    low, high, outside = charts.limits(values)
    assert -0.1 < low < 0.01
    assert 1.0 < high < 1.6
    assert outside == 1
    assert charts.limits(np.array([-1.0, 1.0, 10.0]), log=True)[2] == 1
    assert charts.limits(np.array([np.nan])) == (0.0, 1.0, 0)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-322, 1e16, 1e300])
def test_extreme_numbers_have_an_axis(value: float, log: bool):
    low, high, _ = charts.limits(np.array([value, value]), log)
    axis = Axis(low, high, log, 0, 100)
    assert isinstance(axis.ticks(), dict)
    assert not axis.shows(value) or np.isfinite(axis.at(value))


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 100.0, False, ["0", "20", "40", "60", "80", "100"]),
        (-0.013, 0.011, False, ["−0.01", "−0.005", "0", "0.005", "0.01"]),
        (499.0, 501.0, True, ["499", "499.5", "500", "500.5", "501"]),
        (1e-5, 2.0, True, ["1e−05", "0.0001", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, expected: list[str]):
    found = Axis(low, high, log, 0, 1).ticks()
    assert [*found.values()] == expected
    assert all(low <= value <= high for value in found)


def test_lines_have_gaps_where_values_are_missing():
    series = Series(
        "a", [1, 2, 3, 4], [5.0, np.nan, 6.0, 7.0], spread=[1, 1, 0, np.nan]
    )
    x, y = Axis(0, 5, False, 0, 100), Axis(1, 10, True, 100, 0)
    drawn = charts.paths(series, x, y, across=False)
    assert drawn["line"].count("M") == 2
    assert drawn["line"].count("L") == 1
    assert drawn["data"] == "1 5 3 6 4 7"
    assert drawn["whiskers"].count("V") == 1


def test_every_method_has_its_own_colour_and_dash():
    looks = charts.looks(["none", "los", *(f"m{i}" for i in range(30))])
    assert len({charts.paint(look) for look in looks.values()}) == 32
    assert charts.paint(looks["none"]) == (0, "")
    assert charts.paint(looks["los"]) == (1, "")
