"""`lt-jax fit` and scikit-learn get the same three sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fit_command
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict

from lt_jax.data import longtail


def write(folder):
    random = np.random.default_rng(0)
    for part, size in (("train", 60), ("test", 5)):
        labels = np.repeat(np.arange(4), size)
        features = random.normal(size=(len(labels), 9)) + 2 * np.eye(4, 9)[labels]
        np.savez(folder / f"{part}.npz", features=features, labels=labels)
    return folder


def test_a_fifth_of_a_long_tailed_subset_is_held_out(tmp_path):
    sets = fit_command.split(write(tmp_path), 10, 0, 3)
    counts = {name: sorted(np.bincount(labels)) for name, (_, labels) in sets.items()}
    assert counts == {
        "train": [5, 10, 22, 48],
        "val": [1, 2, 5, 12],
        "test": [5, 5, 5, 5],
    }
    assert {values.shape[1] for values, _ in sets.values()} == {3}
    train, _ = sets["train"]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)


def test_scikit_learn_has_equal_data_by_folds(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_command.choice, "STRENGTHS", (1e-3, 1.0, 1e3))
    sets = fit_command.split(write(tmp_path), 10, 0, 3)
    (train, own), (valid, truth), (test, expected) = sets.values()
    both, labels = np.concatenate([train, valid]), np.concatenate([own, truth])
    norm, scores = np.linalg.norm(train, axis=1).mean(), {}
    pairs = longtail.cross_validation(labels, 5, 0, 4)
    assert sum(len(held) for _, held in pairs) == len(labels)
    for strength in (1e-3, 1.0, 1e3):
        given = {"C": strength, "class_weight": "balanced", "max_iter": 300}
        model = LogisticRegression(**given)
        guesses = cross_val_predict(model, both / norm, labels, cv=pairs)
        model.fit(both / norm, labels)
        on_test = balanced_accuracy_score(expected, model.predict(test / norm))
        scores[balanced_accuracy_score(labels, guesses)] = strength, on_test
    found = fit_command.by_scikit(sets)
    assert len(scores) == 3
    assert (found["C, folds"], found["scikit-learn, folds"]) == scores[max(scores)]


@pytest.mark.parametrize("name", ["command", "folds", "folds_200", "folds_500"])
def test_the_table_of_the_page_is_that_of_the_stored_result(name):
    root = Path(__file__).parents[2]
    stored = json.loads((root / f"benchmarks/fit_{name}.json").read_text())
    page = (root / "docs/benchmarks/choice.md").read_text(encoding="utf-8")
    assert fit_command.table(stored) in page


@pytest.mark.slow
def test_a_split(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--features", str(write(tmp_path)), "--out", str(out)]
    flags += ["--ratio", "10", "--seeds", "0", "--axes", "3"]
    flags += ["--", "--config.method.names=ce,logistic", "--config.optim.epochs=2"]
    monkeypatch.setattr(sys, "argv", ["fit_command.py", *flags])
    fit_command.main()
    printed = capsys.readouterr().out
    assert "| method | difference | of all | of folds |\n" in printed
    assert "| 0 |" in printed
    found = json.loads((out / "report.json").read_text())["splits"]["0"]
    assert found["method"] in found["methods"]
    assert all(0 < found[name] <= 1 for name in fit_command.COLUMNS)
