"""Temperature, reliability and confusion against hand-computed numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lt_jax import heads
from lt_jax.retraining import analysis
from lt_jax.retraining.features import Features

GROUPS = {
    "many": np.array([True, False, False, False]),
    "medium": np.array([False, True, True, False]),
    "few": np.array([False, False, False, True]),
}


def identity(views=1):
    """A head whose logits equal the features."""
    return {"kernel": np.eye(4, dtype=np.float32), "bias": np.zeros(4, np.float32)}


def random(n=203, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n).astype(np.int32)
    logits = scale * (np.eye(4)[labels] * 0.7 + rng.normal(size=(n, 4)))
    return Features(logits.astype(np.float32)[None], labels)


def unseen(*parts):
    return [(identity(), part) for part in parts]


def nll(features, temperature):
    scaled = jax.nn.log_softmax(features.values[0].astype(np.float64) / temperature)
    return -np.mean(
        np.asarray(scaled)[np.arange(len(features.labels)), features.labels]
    )


@pytest.mark.parametrize("scale", [0.02, 1.0, 40.0])
def test_temperature_is_the_minimum(scale):
    features = random(scale=scale)
    found = analysis.fit_temperature(heads.linear.apply, unseen(features), 50)
    best = minimize_scalar(
        lambda log: nll(features, np.exp(log)), bounds=(-7, 7), method="bounded"
    )
    assert found == pytest.approx(np.exp(best.x), rel=1e-3)


def test_temperature_undoes_a_scale():
    """Logits ten times larger need a temperature ten times higher."""
    small, large = (random(scale=s) for s in (2.0, 20.0))
    one, other = (
        analysis.fit_temperature(heads.linear.apply, unseen(f), 64)
        for f in (small, large)
    )
    assert other / one == pytest.approx(10, rel=1e-4)


def test_a_balanced_likelihood_at_its_best_temperature():
    labels = np.repeat(np.int32([0, 1, 3]), [60, 7, 1])  # no example of class 2
    features = random()._replace(values=random(68).values, labels=labels)

    def loss(log):
        found = jax.nn.log_softmax(features.values[0].astype(np.float64) / np.exp(log))
        own = -np.asarray(found)[np.arange(68), labels]
        return np.mean([own[labels == k].mean() for k in (0, 1, 3)])

    best = minimize_scalar(loss, bounds=(-7, 7), method="bounded").fun
    given = (
        heads.linear.apply,
        unseen(features.take(slice(30)), features.take(slice(30, 68))),
        50,
    )
    assert analysis.balanced_nll(*given) == pytest.approx(best, rel=1e-4)


def test_confusion_by_groups():
    logits = np.eye(4)[[0, 0, 1, 2, 2, 3, 0]]  # predictions
    labels = np.array([0, 1, 1, 1, 3, 3, 3], np.int32)
    features = Features(logits.astype(np.float32)[None], labels)
    nothing = Features(features.values[:, :0], labels[:0])
    found = analysis.analyse(
        heads.linear, identity(), unseen(nothing), features, GROUPS, 3
    )
    assert found["confusion"]["groups"] == ["many", "medium", "few"]
    assert found["confusion"]["counts"] == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert found["temperature"] is None
    assert found["reliability"]["after"] is None
    # Classes 0 and 2 are never taken for others.
    assert found["taken_for"]["class"] == [0, 2, 2, 2]
    assert found["taken_for"]["share"] == pytest.approx([0, 1 / 3, 0, 1 / 3])
    guesses = [(m["row"], m["predicted"]) for m in found["mistakes"]]
    assert sorted(guesses) == [(1, 0), (3, 2), (4, 2), (6, 0)]
    assert found["mistakes"][0]["confidence"] == pytest.approx(np.e / (np.e + 3))


def test_calibration_improves_and_accuracy_is_unchanged():
    valid, test = random(500, seed=1), random(600, seed=2)
    found = analysis.analyse(heads.linear, identity(), unseen(valid), test, GROUPS, 100)
    before, after = (found["reliability"][k] for k in ("before", "after"))
    assert sum(before["seen"]) == sum(after["seen"]) == 600
    assert sum(before["right"]) == sum(after["right"])
    assert found["calibrated"]["nll"] == pytest.approx(
        nll(test, found["temperature"]), rel=1e-4
    )
    ece = [
        sum(abs(r - c) for r, c in zip(b["right"], b["conf"], strict=True)) / 600
        for b in (before, after)
    ]
    assert found["calibrated"]["ece"] == pytest.approx(ece[1], rel=1e-4)
    assert ece[1] < 0.5 * ece[0]


def test_views_are_averaged():
    one = random(40)
    twice = Features(np.concatenate([one.values * 1.5, one.values * 0.5]), one.labels)
    apply = heads.linear.apply
    assert analysis.fit_temperature(apply, unseen(twice), 16) == pytest.approx(
        analysis.fit_temperature(apply, unseen(one), 16), rel=1e-5
    )


def test_the_head_is_transferred_once(monkeypatch):
    """Not once per batch: a head with 8,142 classes takes 67 MB."""
    seen = []

    def batches(*_):
        for rows in range(2):
            seen.append(rows)
            yield features.values, features.labels, np.ones(len(features.labels))

    features = random()
    monkeypatch.setattr(Features, "batches", batches)
    for name in ("_slope", "_add_batch"):
        step = getattr(analysis, name)

        def watched(apply, params, *rest, step=step):
            assert all(isinstance(leaf, jax.Array) for leaf in params.values())
            return step(apply, params, *rest)

        monkeypatch.setattr(analysis, name, watched)
    analysis.analyse(heads.linear, identity(), unseen(features), features, GROUPS, 50)
    assert len(seen) > 4
