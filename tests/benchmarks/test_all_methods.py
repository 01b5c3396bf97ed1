"""All methods on given features: settings, tables, and a run at small size."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import all_methods
import leaderboard
import numpy as np
import pytest

from lt_jax import recipes

ROOT = Path(__file__).parents[2]
MADE = {"device": "a CPU", "versions": {"jax": "0"}, "commit": "abc", "date": "today"}


def test_the_values_of_a_recipe_are_the_first_of_the_few():
    case = recipes.Case(recipes.smoothing(10))
    found = all_methods.rows_of(case, 3)
    for name, recipe in recipes.RECIPES.items():
        few = [row for method, row in found if method == name]
        assert few[0] == recipes.own(recipe(case))
        assert len(few) == min(3, len(recipes.expand(recipe(case))))
        assert all(row in recipes.expand(recipe(case)) for row in few)
    everything = sum(
        len(recipes.expand(make(case))) for make in recipes.RECIPES.values()
    )
    assert len(all_methods.rows_of(case, 0)) == everything


def metrics(all_, **others):
    return {"all": all_, "ece": 0.1, "loma_row": 2.0, "loma_row_spread": 0.5, **others}


def report(folder, name, groups):
    (folder / name).mkdir()
    (folder / name / "heads.json").write_text(
        json.dumps({"groups": groups, "made": MADE})
    )


def cell(seed, los, ce=0.40):
    values = {"los": los, "ce": ce, "none": 0.39, "vs": 0.46, "crt": 0.43}
    made = {n: metrics(v, many=0.6, medium=0.4, few=0.2) for n, v in values.items()}
    for name in ("tau_norm", "lws", "logit_adjust_posthoc", "balanced_softmax"):
        made[name] = made["crt"]
    for name in ("lade", "ldam", "logit_adjust", "label_aware_smoothing"):
        made[name] = made["crt"]
    columns = ("unscaled", "published", "tuned")
    return {
        "seed": seed,
        "none": made.pop("none"),
        "methods": {n: dict.fromkeys(columns, m) for n, m in made.items()},
        "curve": {"0.9": metrics(0.3), "0.98": metrics(los)},
        "others": {"scikit-learn": {"all": 0.25}},
    }


SIZES = {"train": 10847, "valid": 1980, "test": 10000, "heads": 9, "diverged": 1}


def test_tables_hold_means_deviations_and_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "RUNS", tmp_path)
    assert {table() for table in leaderboard.TABLES} == {leaderboard.NOT_MEASURED}
    group = {"data": SIZES, "cells": [cell(0, 0.44), cell(1, 0.42)]}
    report(tmp_path, leaderboard.OWN, {"": group})
    report(tmp_path, leaderboard.FROZEN, {"100": group, "50": group})

    (row,) = (r for r in leaderboard.literature().splitlines() if r[:6] == "| `los")
    assert "| 43.0 ± 1.4 | 60.0 / 40.0 / 20.0 | 10.0 | 0.50 | 43.0 ± 1.4 |" in row
    assert "10,847 training" in leaderboard.literature()

    rows = [r for r in leaderboard.pairs().splitlines() if "`none`" in r]
    assert [r.rsplit("|", 2)[1].strip() for r in rows] == ["no", "yes", "no"]
    assert (
        "| -1.7 |" in rows[0]
    )  # 39.0 against 40.68 ± 0.26, and a point for the subset

    table = leaderboard.pretrained()
    assert "IR 50, 2 splits | IR 100, 2 splits" in table
    assert "| `los` | 43.0 / 43.0 / 43.0 |" in table
    (row,) = (r for r in leaderboard.standing().splitlines() if r.startswith("| 50 "))
    assert "| 43.0, 2 of 12 | 43.0, 2 of 12 | `vs` 46.0 | 3.0 ± 1.4 |" in row
    assert "0.98: 43.0" in row


def test_the_image_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install 'lt_jax[report]'")
    monkeypatch.setattr(leaderboard, "RUNS", tmp_path)
    group = {"data": SIZES, "cells": [cell(0, 0.44)]}
    report(tmp_path, leaderboard.FROZEN, {"100": group})
    leaderboard.draw(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes()[:4] == b"\x89PNG"


def test_the_readme_quotes_the_stored_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Results\n")[1].split("\n## ")[0]
    stored = leaderboard.read(leaderboard.OWN)["groups"][""]["cells"]
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) .*\| ([\d.]*) \|$", section, re.MULTILINE
    )
    assert len(rows) > 5
    for name, *quoted in rows:
        for column, value in zip(("published", "tuned"), quoted, strict=True):
            cells = (leaderboard.of(c, name, column)["all"] for c in stored)
            assert leaderboard.mean(cells).startswith(f"{value} ±")


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for part, size in (("train", 100), ("test", 5)):
        labels = np.repeat(np.arange(10), size)
        features = random.normal(size=(len(labels), 12)) + labels[:, None] / 3
        np.savez(tmp_path / f"{part}.npz", features=features, labels=labels)
    flags = [
        "cut",
        "--quick",
        "--features",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["all_methods.py", *flags])
    all_methods.main()
    (group,) = all_methods.read(tmp_path / "out")["groups"].values()
    (found,) = group["cells"]
    assert set(found["methods"]) == set(recipes.RECIPES)
    assert found["methods"]["los"]["tuned"]["all"] > 0.1
    all_methods.main()  # resumes: nothing is left
    assert len(all_methods.read(tmp_path / "out")["groups"]["500"]["cells"]) == 1
