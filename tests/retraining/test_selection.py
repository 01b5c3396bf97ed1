"""How a setting is chosen, on rows written by hand."""

from __future__ import annotations

import math

import numpy as np
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


def measured(method, lr, balanced, overall):
    metrics = {"valid": {"balanced": balanced, "all": overall}}
    return {**row(method, lr, 0, 0.0), "metrics": metrics}


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


def test_the_first_of_equal_settings_is_chosen():
    tied = [row("a", 1.0, 0, 0.5), row("a", 2.0, 0, 0.5), row("a", 3.0, 0, 0.4)]
    assert selection.choose(tied, "balanced") == {"a": {"lr": 1.0}}


def test_published_values_are_kept_within_a_standard_error():
    rows = [measured("a", lr, value, 0.8) for lr, value in ((1.0, 0.5), (2.0, 0.6))]
    published = {"a": {"lr": 1.0}}

    def chosen(counts, **how):
        return selection.choose(rows, "balanced", published, np.full(4, counts), **how)

    # The standard errors are 0.25 and 0.079.
    assert chosen(1) == {"a": {"lr": 1.0}}
    assert chosen(10) == {"a": {"lr": 2.0}}
    assert chosen(10, margin=2) == {"a": {"lr": 1.0}}
    assert chosen(1, margin=0) == {"a": {"lr": 2.0}}


def test_published_values_that_diverged_are_not_kept():
    rows = [row("a", 1.0, 0, None, diverged=3), row("a", 2.0, 0, 0.5)]
    published = {"a": {"lr": 1.0}}
    found = selection.choose(rows, "balanced", published, np.ones(4))
    assert found == {"a": {"lr": 2.0}}


def test_values_at_the_edge_of_a_grid():
    grid = {"lr": [0.1, 0.2, 0.3], "start": ["fresh", "stage1"], "tau": [1.0]}
    grid["decay"] = [0.0, 0.1]
    own = {"lr": 0.1, "start": "stage1", "tau": 2.0, "decay": 0.2}

    def keys(lr, decay):
        hyper = {"lr": lr, "start": "fresh", "tau": 1.0, "decay": decay}
        return selection.at_edge(hyper, own, grid)

    assert keys(0.3, 0.1) == ["lr", "decay"]
    assert keys(0.2, 0.0) == []  # a decay cannot be lower
    assert keys(0.1, 0.0) == []  # the method's own rate


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


def test_the_error_of_a_balanced_accuracy_is_pooled_over_classes():
    counts = np.array([100, 4, 1, 0])
    p = (0.3 * 105 + 1) / 107  # with one more right and one more wrong
    by_hand = math.sqrt(p * (1 - p) * (1 / 100 + 1 / 4 + 1)) / 3  # empty: not a class
    assert selection.standard_error(0.3, "balanced", counts) == pytest.approx(by_hand)
    assert selection.standard_error(0.5, "all", counts) == pytest.approx(0.5 / 105**0.5)
    assert selection.standard_error(1.7, "nll", counts) == 0


def test_a_recommendation_names_the_best_method_and_how_sure_it_is():
    rows = [measured("a", 0.1, 0.5, 0.8), measured("b", 0.1, 0.6, 0.7)]
    found = selection.recommend(rows, np.full(10, 10), untouched=0.71)
    assert (found.method, found.runner_up, found.hyper) == ("b", "a", {"lr": 0.1})
    error = math.sqrt(61 / 102 * 41 / 102 / 100)
    assert found.error == pytest.approx(error)
    assert found.sure == pytest.approx(0.5 + math.erf(0.1 / (2 * error)) / 2)
    assert found.warning == ""
    assert selection.recommend(rows[:1], np.ones(2)).runner_up == ""


def test_the_default_method_is_kept_within_a_standard_error():
    rows = [measured("logistic", 1.0, 0.5, 0.8), measured("b", 0.1, 0.6, 0.7)]
    found = selection.recommend(rows, np.full(10, 1))  # of 0.16
    assert (found.method, found.runner_up) == ("logistic", "b")
    assert found.sure < 0.5
    assert selection.recommend(rows, np.full(10, 10)).method == "b"
    assert selection.recommend(rows, np.full(10, 1), margin=0).method == "b"
    assert selection.recommend(rows, np.full(10, 1), default="c").method == "b"


def test_a_recommendation_that_loses_overall_accuracy_is_loud_about_it():
    rows = [measured("a", 0.1, 0.5, 0.8), measured("b", 0.1, 0.6, 0.7)]
    found = selection.recommend(rows, np.full(10, 10), untouched=0.8)
    assert found.method == "b"
    assert "loses 10.0 points of overall accuracy" in found.warning
    assert "within that bound is a, with balanced 0.500 against 0.600" in found.warning
    assert not selection.recommend(
        rows, np.full(10, 10), untouched=0.8, bound=0.2
    ).warning
