"""Verdicts on differences between methods."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax.report import tables


@pytest.mark.parametrize(
    ("mean", "std", "pairs", "expected"),
    [
        (0.01, 0.02, 3, "within the spread"),
        (0.03, 0.02, 3, "ce ahead"),
        (-0.03, 0.02, 3, "los ahead"),
        (-0.03, np.nan, 1, "los ahead, spread unknown"),
        (0.0, 0.0, 3, "equal"),
        (np.nan, np.nan, 0, "no seeds in common"),
    ],
)
def test_verdict(mean: float, std: float, pairs: int, expected: str):
    assert tables.verdict("ce", mean, std, pairs) == expected
