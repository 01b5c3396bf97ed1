"""Cross-validation over all examples, then a fit on all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lt_jax import api, choice
from lt_jax.data import longtail
from lt_jax.errors import InputError

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2, 3], [40, 12, 4, 1])
FEATURES = np.eye(4, 6)[LABELS] * 4 + RNG.normal(size=(57, 6))


def test_folds_are_stratified_and_keep_the_only_example_of_a_class():
    held = [rows for _, rows in longtail.cross_validation(LABELS, 4, 0, 4)]
    for rows in held:
        np.testing.assert_array_equal(np.bincount(LABELS[rows]), [10, 3, 1])
    again = [rows for _, rows in longtail.cross_validation(LABELS, 4, 1, 4)]
    assert not np.array_equal(held, again)
    again = [rows for _, rows in longtail.cross_validation(LABELS, 4, 0, 4)]
    np.testing.assert_array_equal(held, again)
    uneven = longtail.cross_validation(np.repeat([0, 1], [5, 6]), 4, 0, 2)
    assert sorted(len(rows) for _, rows in uneven) == [2, 3, 3, 3]


def test_scores_are_those_of_heads_that_have_not_seen_the_fold():
    found, head = choice.choose_head(FEATURES, LABELS, ["ncm"], folds=2, margin=0)
    right = np.zeros(57)
    for outside, inside in longtail.cross_validation(LABELS, 2, 0, 4):
        how = {"method": "ncm", "hyper": {"kind": found.hyper["kind"]}}
        fitted = api.fit_head(FEATURES[outside], LABELS[outside], **how)
        logits = fitted.logits(FEATURES[inside])
        right[inside] = logits.argmax(axis=1) == LABELS[inside]
    expected = np.mean([right[LABELS == k].mean() for k in range(3)])
    assert found.score == pytest.approx(expected)
    whole = api.fit_head(FEATURES, LABELS, **how)
    np.testing.assert_array_equal(head.params["kernel"], whole.params["kernel"])


def test_every_fold_trains_on_as_many_examples(monkeypatch):
    """One program fits all of them, and a sweep deals the same folds."""
    fit, sizes = choice._fit, []

    def watched(rows, features, labels, how):
        sizes.append(len(labels))
        return fit(rows, features, labels, how)

    monkeypatch.setattr(choice, "_fit", watched)
    choice.choose_head(FEATURES, LABELS, ["logit_adjust_posthoc"], folds=5)
    kept = [len(rows) for rows, _ in longtail.cross_validation(LABELS, 5, 0, 4)]
    assert sizes == [*kept, 57]
    assert len(set(kept)) == 1


def test_invalid_folds():
    with pytest.raises(InputError, match=r"folds must be an integer in \[2, 57\]"):
        choice.choose_head(FEATURES, LABELS, folds=1)
    with pytest.raises(InputError, match="no class has two examples"):
        choice.choose_head(FEATURES[[0, 50]], [0, 1], folds=2)


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[1] / "docs/tutorials/features.md"
    section = page.read_text(encoding="utf-8").split("## One call\n")[1]
    example = section.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("digits_pca").mkdir()
    for part in ("train", "test"):
        np.savez(f"digits_pca/{part}.npz", features=FEATURES, labels=LABELS)
    scope: dict = {}
    exec(example, scope)
    assert scope["found"].method in choice.METHODS
    assert scope["found"].method in capsys.readouterr().out
    assert scope["los"].logits(FEATURES).shape == (57, 4)
