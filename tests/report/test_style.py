"""Axis limits, trends and logarithmic axes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from lt_jax.report import style


def test_limits_skip_and_count_outliers():
    values = np.append(np.linspace(0, 1, 200), [1e6, np.nan])
    low, high, outside = style.limits(values)
    assert -0.1 < low < 0.01
    assert 1.0 < high < 1.6
    assert outside == 1
    assert style.limits(np.array([-1.0, 1.0, 10.0]), log=True)[2] == 1
    assert style.limits(np.array([np.nan])) == (0.0, 1.0, 0)


def test_trend_of_few_points_passes_through_them():
    x, y = style.trend(np.array([3.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0]))
    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [10, 20, 30])


def test_log_axis_of_a_balanced_set_has_one_number():
    """LogLocator finds no round numbers on a scale whose ends are equal."""
    axis = Figure().subplots()
    style.log_axis(axis, "x", 500, 500)
    axis.set_xlim(400, 625)
    assert [f"{x:g}" for x in axis.get_xticks()] == ["500"]
    style.log_axis(axis, "x", 5, 500)
    axis.set_xlim(4, 625)
    assert {10, 100} <= set(axis.get_xticks())
