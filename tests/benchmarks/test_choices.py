"""The comparison of rules of choice runs, and its stored tables are readable."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import choice
import numpy as np
import pytest

STORED = Path(__file__).parents[2] / "benchmarks"


def test_rules_choose_from_the_same_scores():
    rows = [("logistic", {"penalty": p}) for p in (1.0, 2.0)] + [("ce", {"lr": 1.0})]
    truth = np.repeat([0, 1], [40, 4])
    right = np.eye(2)[truth]
    wrong = right.copy()
    wrong[[0, 1, 40]] = right[[0, 1, 40], ::-1]  # 0.85 balanced; standard error 0.09
    logits = np.stack([wrong, right, wrong])
    found = choice.choices(rows, {"logistic": 0, "ce": 2}, logits, truth)
    assert found["published"] == ([0, 2], 0)
    assert found["best"] == ([1, 2], 1)
    assert found["one error"] == ([1, 2], 1)  # 1 is more than 0.85 + 0.09
    assert found["likelihood"] == ([1, 2], 1)


@pytest.mark.parametrize("name", ["choice", "feature_norms"])
def test_tables_of_the_page_are_those_of_the_stored_results(name):
    table = choice.table(json.loads((STORED / f"{name}.json").read_text()))
    page = STORED.parent / "docs/benchmarks/choice.md"
    assert table in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    flags = ["--quick", "--data", "digits", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["choice.py", *flags])
    choice.main()
    assert "| one error, folds |" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["data"]["digits"]) == 1
