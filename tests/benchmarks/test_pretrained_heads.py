"""All methods on given features: settings, table, and a run at small size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pretrained_heads
import pytest

from lt_jax import recipes

STORED = Path(__file__).parents[2] / "benchmarks/pretrained_heads.json"


def test_the_values_of_a_recipe_are_the_first_of_the_few():
    case = recipes.Case(recipes.smoothing(10))
    for name, recipe in recipes.RECIPES.items():
        few = pretrained_heads.thinned(name, case, 3)
        assert few[0] == recipes.own(recipe(case))
        assert len(few) == min(3, len(recipes.expand(recipe(case))))
        assert all(row in recipes.expand(recipe(case)) for row in few)


def test_the_table_of_the_page_is_that_of_the_stored_result():
    page = STORED.parents[1] / "docs/benchmarks/choice.md"
    table = pretrained_heads.table(json.loads(STORED.read_text()))
    assert table in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for part, size in (("train", 100), ("test", 5)):
        labels = np.repeat(np.arange(10), size)
        features = random.normal(size=(len(labels), 12)) + labels[:, None] / 3
        np.savez(tmp_path / f"{part}.npz", features=features, labels=labels)
    flags = ["--quick", "--features", str(tmp_path), "--json", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["pretrained_heads.py", *flags])
    pretrained_heads.main()
    assert "| **recommended** |" in capsys.readouterr().out
