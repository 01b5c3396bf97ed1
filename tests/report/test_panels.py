"""Rank correlations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax.report import panels


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Ranks 1 2.5 2.5 4 and 1 3 2 4: cov 4.5, variances 4.5 and 5.
        ([1, 2, 2, 9], [0, 5, 1, 7], 4.5 / np.sqrt(4.5 * 5)),
        ([1, 2, np.nan, 3], [1, 2, 0, 3], 1.0),
        ([1, 1, 1], [1, 2, 3], np.nan),
        ([1, 2], [1, 2], np.nan),
    ],
)
def test_spearman(x: list[float], y: list[float], expected: float):
    rho = panels.spearman(np.array(x, float), np.array(y, float))
    assert rho == pytest.approx(expected, nan_ok=True)
