"""Logistic regression against scikit-learn's and against its own gradient."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax import methods

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [60, 20, 7]).astype(np.int32)
FEATURES = (RNG.normal(size=(3, 5))[LABELS] + RNG.normal(size=(87, 5)) + 3).astype("f4")
COUNTS = np.bincount(LABELS)


def fit(features=FEATURES, rows=30, **hyper):
    method = methods.make("logistic", COUNTS, hyper)
    blocks = lambda: (features[i : i + rows] for i in range(0, 87, rows))  # noqa: E731
    start = {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)}
    return method.correct(start, blocks, LABELS)


def test_balanced_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    found = fit(power=1.0, tau=0.0, penalty=0.87)
    # The sum of the weights is N; the norm is that of the features as they are.
    centred = FEATURES - FEATURES.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=1).mean())
    strength = 1 / (0.87 * scale**2)
    model = linear_model.LogisticRegression(
        C=strength, class_weight="balanced", tol=1e-8, max_iter=2000
    ).fit(FEATURES, LABELS)
    expected = model.decision_function(FEATURES)
    logits = FEATURES @ found["kernel"] + found["bias"]
    logits -= logits.mean(axis=1, keepdims=True)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_adjusted_is_a_minimum():
    found = fit(power=0.0, tau=1.0, penalty=0.87)
    centre = FEATURES.mean(axis=0)
    scale = np.sqrt(((FEATURES - centre) ** 2).sum(axis=1).mean())
    z = FEATURES @ found["kernel"] + found["bias"] + np.log(COUNTS / COUNTS.sum())
    p = np.exp(z - z.max(axis=1, keepdims=True))
    residual = p / p.sum(axis=1, keepdims=True) - np.eye(3)[LABELS]
    grad = ((FEATURES - centre) / scale).T @ residual / len(LABELS)
    np.testing.assert_allclose(grad + 0.01 * scale * found["kernel"], 0, atol=1e-3)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-3)


def test_the_norm_and_the_blocks_of_the_features_do_not_matter():
    one = fit(power=0.0, tau=1.0, penalty=0.087)
    other = fit(FEATURES * 40, rows=87, power=0.0, tau=1.0, penalty=0.087)
    logits = FEATURES @ one["kernel"] + one["bias"]
    again = 40 * FEATURES @ other["kernel"] + other["bias"]
    np.testing.assert_allclose(logits, again, atol=0.1)
