"""The estimator, as scikit-learn checks it."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lt_jax import choice
from lt_jax.errors import InputError
from lt_jax.sklearn import LongTailClassifier

RNG = np.random.default_rng(0)
LABELS = np.repeat(["cat", "dog", "owl"], [60, 20, 6])
FEATURES = (
    RNG.normal(size=(86, 4))
    + 4 * np.eye(3, 4)[np.unique(LABELS, return_inverse=True)[1]]
)


@parametrize_with_checks([LongTailClassifier("logistic")])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("method", ["crt", "los", "ncm"])
def test_labels_are_strings(method):
    model = LongTailClassifier(method).fit(FEATURES, LABELS)
    assert list(model.classes_) == ["cat", "dog", "owl"]
    assert model.score(FEATURES, LABELS) > 0.8
    proba = model.predict_proba(FEATURES)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(
        model.classes_[proba.argmax(1)], model.predict(FEATURES)
    )
    assert model.decision_function(FEATURES).shape == (86, 3)


def test_auto_chooses_by_cross_validation():
    model = LongTailClassifier("auto").fit(FEATURES, LABELS)
    assert model.choice_.method in choice.METHODS
    assert 0.8 < model.choice_.score <= 1
    assert model.score(FEATURES, LABELS) > 0.8


def test_pipelines_grids_and_pickles():
    pipeline = make_pipeline(StandardScaler(), LongTailClassifier("logistic"))
    grid = {"longtailclassifier__hyper": [{"penalty": 0.1}, {"penalty": 1e4}]}
    search = GridSearchCV(pipeline, grid, scoring="balanced_accuracy", cv=2)
    search.fit(FEATURES, LABELS)
    assert search.best_params_["longtailclassifier__hyper"] == {"penalty": 0.1}
    joblib.dump(search.best_estimator_, buffer := io.BytesIO())
    buffer.seek(0)
    again = joblib.load(buffer).predict(FEATURES)
    np.testing.assert_array_equal(again, search.predict(FEATURES))


def test_errors():
    with pytest.raises(InputError, match="at least 2 classes in y, got 1 class: cat"):
        LongTailClassifier().fit(FEATURES[:9], LABELS[:9])
    with pytest.raises(InputError, match="method 'crt' has no 'delta'"):
        LongTailClassifier(hyper={"delta": 0.5}).fit(FEATURES, LABELS)
    with pytest.raises(TypeError, match="sample_weight"):
        LongTailClassifier().fit(FEATURES, LABELS, sample_weight=np.ones(86))
