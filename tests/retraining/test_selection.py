"""How a setting is chosen, on rows written by hand."""

from __future__ import annotations

import math

import pytest

from lt_jax.errors import Diverged
from lt_jax.retraining import selection


def row(method, lr, seed, value, diverged=None):
    return {
        "method": method,
        "hyper": {"lr": lr},
        "seeds": [0, seed],
        "diverged": diverged,
        "metrics": {"valid": {"balanced": value, "nll": value}},
    }


ROWS = [
    row("a", 0.1, 0, 0.5),
    row("a", 0.1, 1, 0.7),
    row("a", 0.2, 0, 0.9),
    row("a", 0.2, 1, 0.1),
    row("a", 0.3, 0, 0.6),  # the same mean as the first
    row("a", 0.3, 1, 0.6),
    row("a", 0.4, 0, 1.0),
    row("a", 0.4, 1, None, diverged=7),
]


def test_the_best_mean_is_chosen_and_a_lower_nll_is_better():
    assert selection.choose(ROWS, "balanced") == {"a": {"lr": 0.1}}
    assert selection.choose(ROWS[:4], "nll") == {"a": {"lr": 0.2}}


def test_each_method_is_chosen_alone():
    rows = [*ROWS, row("b", 0.9, 0, 0.1)]
    assert selection.choose(rows, "balanced") == {"a": {"lr": 0.1}, "b": {"lr": 0.9}}


def test_the_first_of_equal_settings_is_chosen_and_the_tie_is_described():
    tied = [row("a", 1.0, 0, 0.5), row("a", 2.0, 0, 0.5), row("a", 3.0, 0, 0.4)]
    assert selection.choose(tied, "balanced") == {"a": {"lr": 1.0}}
    assert "the first of 2 of 3 settings" in selection.ties(tied, "a", "balanced")
    assert selection.ties(tied[1:], "a", "balanced") == ""


def test_a_method_whose_settings_all_diverged():
    rows = [*ROWS, row("b", 0.1, 0, None, diverged=1)]
    with pytest.raises(Diverged, match="every setting of b"):
        selection.choose(rows, "balanced")
    assert selection.best(selection.settings(rows[-1:]), "balanced") is None


def test_a_setting_has_its_rows_by_seed_and_the_later_of_two_equal_ones():
    rows = [row("a", 0.1, 1, 0.7), row("a", 0.1, 0, 0.5), row("a", 0.1, 1, 0.9)]
    (setting,) = selection.settings(rows)
    assert [r["seeds"] for r in setting.rows] == [[0, 0], [0, 1]]
    mean, std = setting.over("valid", "nll")
    assert mean == pytest.approx(0.7)
    assert std == pytest.approx(0.4 / math.sqrt(2))


def test_missing_values_are_nan():
    assert math.isnan(selection.value(ROWS[-1], "valid", "nll"))  # diverged
    assert math.isnan(selection.value(ROWS[0], "test", "nll"))  # not measured
    assert math.isnan(selection.number(None))


def test_spread_of_one_value_and_of_none():
    assert selection.spread([2.0])[0] == 2.0
    assert math.isnan(selection.spread([2.0])[1])
    assert all(map(math.isnan, selection.spread([])))
    assert all(map(math.isnan, selection.spread([1.0, None])))
