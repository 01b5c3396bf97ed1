"""Verdicts on differences between methods."""

from __future__ import annotations

import pytest

from lt_jax.report import leaderboard


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-0.01, 0.01, 0.03], "within the spread"),
        ([0.02, 0.03, 0.04], "ce ahead"),
        ([-0.02, -0.03, -0.04], "los ahead"),
        ([-0.03], "los ahead, spread unknown"),
        ([0.0, 0.0, 0.0], "equal"),
        ([], "no seeds in common"),
    ],
)
def test_verdict(values: list[float], expected: str):
    assert leaderboard.verdict("ce", values) == expected
