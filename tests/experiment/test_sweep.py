"""A grid on one stage 1: validation chooses, and nothing is fitted twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_digits

from lt_jax.cli import main
from lt_jax.errors import InputError, Interrupted
from lt_jax.experiment import (
    cached,
    evaluation,
    result_json,
    results,
    stages,
    stored,
    sweep,
)
from lt_jax.experiment.config import resolve
from lt_jax.files import jsonable
from lt_jax.retraining import engine
from lt_jax.training import checkpoint
from lt_jax.types import Weights

NAMES = ("ce", "los", "ldam", "weight_balancing", "tau_norm", "ncm")
GRIDS = {
    "method__names": NAMES,
    "method__repeats": 2,
    "method__ce__grid": {"lr": (5e-4, 5e-2)},
    "method__los__grid": {"lr": (5e-3, 5e-2), "delta": (0.5, 0.83)},
    "method__ldam__grid": {"lr": (5e-2,), "scale": (10.0, 30.0)},
    "method__ldam__epochs": 2,
    "method__weight_balancing__grid": {"lr": (5e-4,), "every": ("step", "epoch")},
    "method__weight_balancing__epochs": 2,
    "method__tau_norm__grid": {"tau": (0.0, 0.5, 1.0)},
    "eval__curves": "test",
    "eval__margin": 0.0,
}
ROWS = {"ce": 2, "los": 4, "ldam": 2, "weight_balancing": 3, "tau_norm": 3, "ncm": 3}


def config(**changes):
    from ml_collections import ConfigDict

    made = {**GRIDS, **changes}
    grids = {key: made.pop(key) for key in [*made] if key.endswith("__grid")}
    c = tiny_digits.config(**made)
    with c.unlocked():
        for key, grid in grids.items():
            c.method[key.split("__")[1]].grid = ConfigDict(grid)
    return c.lock()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    stages.train(config(), workdir)
    return workdir, stages.sweep(config(), workdir)


def test_every_row_of_the_grids_is_kept(swept):
    workdir, result = swept
    rows = results.rows(workdir)
    assert len(rows) == result["sweep"]["heads"] == 2 * sum(ROWS.values())
    for name, number in ROWS.items():
        own = [row for row in rows if row["method"] == name]
        assert len(own) == 2 * number
        assert {tuple(row["seeds"]) for row in own} == {(0, 0), (0, 1)}
    assert all(set(row["metrics"]) == {"valid", "test"} for row in rows)


def test_the_choice_is_the_best_on_validation(swept):
    workdir, result = swept
    rows = results.rows(workdir)
    for name in NAMES:
        means = {}
        for row in rows:
            if row["method"] == name:
                means.setdefault(json.dumps(row["hyper"]), []).append(
                    row["metrics"]["valid"]["balanced"]
                )
        best = max(np.mean(values) for values in means.values())
        hyper = result["methods"][name]["hyper"]
        assert np.mean(means[json.dumps(hyper)]) == best
        assert result["sweep"]["valid"][name]["mean"] == pytest.approx(best)


def test_the_result_recommends_the_method_with_the_best_chosen_setting(swept):
    workdir, result = swept
    found = result["recommended"]
    means = {name: v["mean"] for name, v in result["sweep"]["valid"].items()}
    (none,) = results.outcomes(workdir, "stage1")
    means["none"] = none["valid"]["balanced"]
    assert found["score"] == pytest.approx(max(means.values()))
    assert means[found["method"]] == pytest.approx(found["score"])
    assert found["untouched"] == none["valid"]["all"]
    assert (workdir / "checkpoints" / found["fit"] / "outcome.json").is_file()
    assert result_json.recommended(workdir)["fit"] == found["fit"]
    assert "Recommended: " in (workdir / "report/table.md").read_text("utf-8")
    assert found["hyper"] == swept[1]["methods"][found["method"]]["hyper"]
    assert 0 < found["untouched"] < 1


def test_the_table_is_the_chosen_heads_on_test(swept):
    workdir, result = swept
    rows = results.rows(workdir)
    fixed = cached.own_values(resolve(config()))
    for part, own in (("methods", None), ("fixed", fixed)):
        for name in NAMES:
            entry = result[part][name]
            hyper = entry["hyper"] if own is None else own[name]
            assert entry["hyper"] == hyper
            values = [
                row["metrics"]["test"]["all"]
                for row in sorted(rows, key=lambda row: row["seeds"])
                if row["method"] == name and row["hyper"] == hyper
            ]
            assert entry["all"]["values"] == pytest.approx(values)
    assert "none" in result["methods"]
    assert result["protocol"]["features"] == "cached"
    text = (workdir / "report/table.md").read_text()
    assert "Chosen on validation" in text
    assert "At the config's own values" in text


def test_fixed_rows_are_what_retrain_fits(swept, tmp_path):
    workdir, result = swept
    c = config(method__features="cached", init__path=str(workdir))
    found = stages.retrain(c, tmp_path)
    for name in NAMES:
        one, other = found["methods"][name], result["fixed"][name]
        assert one["all"]["values"] == other["all"]["values"]
        assert one["nll"]["values"] == pytest.approx(other["nll"]["values"], rel=1e-4)
        assert one["hyper"] == other["hyper"]


def test_stored_heads_and_outcomes_evaluate_again(swept):
    workdir, result = swept
    found = evaluation.evaluate_all(config(), workdir, "test")
    for name in NAMES:
        for folder, part in (("chosen", "methods"), ("fixed", "fixed")):
            for i, seed in enumerate((0, 1)):
                run = f"{folder}/{name}/0.{seed}"
                assert found[run]["all"] == result[part][name]["all"]["values"][i]
    some = evaluation.evaluate_all(config(), workdir, "test", heads="los .*delta=0.5 ")
    stored = {sweep._row(row).name: row for row in results.rows(workdir)}
    assert len(some) == 4
    for name, values in some.items():
        expected = stored[name]["metrics"]["test"]
        assert values["all"] == expected["all"]
        assert values["nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_a_chunk_is_read_once_for_all_of_its_heads(swept, monkeypatch):
    workdir, _ = swept
    read, folders = checkpoint.load_leaves, []
    monkeypatch.setattr(
        sweep.checkpoint, "load_leaves", lambda step: folders.append(step) or read(step)
    )
    found = evaluation.evaluate_all(config(), workdir, "test", heads=".*")
    of_chunks = [folder for folder in folders if "sweep" in folder.parts]
    rows = results.rows(workdir)
    assert len(found) == len(rows) == 34
    assert sorted(of_chunks) == sorted({Path(row["folder"]) / "0" for row in rows})


def test_an_interrupted_repeat_keeps_the_result(swept, tmp_path, monkeypatch):
    workdir, result = swept
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    larger = config(method__los__grid={"lr": (5e-3, 5e-2), "delta": (0.5, 0.7, 0.83)})

    def stopped(*_):
        raise Interrupted("a repeat", "SIGINT")

    monkeypatch.setattr(cached, "fit_rows", stopped)
    for again in (stages.sweep, stages.retrain):
        monkeypatch.setattr(stages, "_stage2", stopped)
        with pytest.raises(Interrupted):
            again(larger, copy)
        kept = json.loads((copy / "result.json").read_text())
        for part in ("methods", "fixed", "sweep"):
            assert kept[part] == jsonable(result[part])


def test_analysis_stands_in_every_outcome(swept):
    workdir, result = swept
    for name in ("stage1", "chosen/los", "fixed/ncm"):
        for outcome in results.outcomes(workdir, name):
            analysis = outcome["analysis"]
            confusion = np.array(analysis["confusion"]["counts"])
            assert confusion.sum() == result["dataset"]["num_test"]
            accuracy = confusion[:, 0].sum() / confusion.sum()
            assert accuracy == pytest.approx(outcome["metrics"]["all"])
            assert analysis["temperature"] > 0


def test_again_fits_nothing_and_gives_the_same(swept, monkeypatch):
    workdir, result = swept
    monkeypatch.setattr(engine, "fit_heads", None)  # would fail if anything were fitted
    again = stages.sweep(config(), workdir)
    for part in ("methods", "fixed", "sweep"):
        assert again[part] == result[part]


def test_a_killed_sweep_goes_on_with_its_finished_chunks(swept, tmp_path, monkeypatch):
    workdir, result = swept
    shutil.copytree(workdir / "checkpoints/stage1", tmp_path / "checkpoints/stage1")
    keep, kept = sweep._save_chunk, []

    def killed(*args):
        if len(kept) == 3:
            raise Interrupted("killed", "SIGINT")
        kept.append(keep(*args))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_save_chunk", killed)
        with pytest.raises(Interrupted):
            stages.sweep(config(), tmp_path)
    before = {row["folder"] for row in results.rows(tmp_path)}
    assert len(before) == 3
    again = stages.sweep(config(), tmp_path)
    assert len(results.rows(tmp_path)) == result["sweep"]["heads"]
    for name in NAMES:
        one, other = again["methods"][name], result["methods"][name]
        assert one["hyper"] == other["hyper"]
        assert one["all"]["values"] == other["all"]["values"]


def test_a_sweep_by_likelihood_measures_it(swept, tmp_path, capsys):
    workdir, _ = swept
    shutil.copytree(workdir, tmp_path / "copy")
    few = {"eval__choose": "balanced_nll", "method__names": ("ce", "ncm")}
    result = stages.sweep(config(**few), tmp_path / "copy")
    assert result["sweep"]["choose"] == "balanced_nll"
    assert result["recommended"]["by"] == "balanced"
    rows = [r for r in results.rows(tmp_path / "copy") if r["method"] == "ce"]
    means = {}
    for row in rows:
        found = means.setdefault(json.dumps(row["hyper"]), [])
        found.append(row["metrics"]["valid"]["balanced_nll"])
    best = min(means, key=lambda hyper: np.mean(means[hyper]))
    assert len(rows) == 4
    assert result["methods"]["ce"]["hyper"] == json.loads(best)
    stages.sweep(config(**few), tmp_path / "copy")
    assert "10 of 10 heads are already fitted" in capsys.readouterr().out


def test_edited_rows_are_fitted_again(swept, tmp_path):
    shutil.copytree(swept[0] / "sweep", tmp_path / "sweep")
    edited = next((tmp_path / "sweep").glob("*/*/rows.json"))
    content, lines = json.loads(edited.read_text()), list[str]()
    content["rows"][0]["metrics"]["valid"]["all"] = 1.0
    edited.write_text(json.dumps(content))
    found = results.rows(tmp_path, lines.append)
    assert len(found) == len(results.rows(swept[0])) - len(content["rows"])
    (line,) = lines
    assert line == f"{edited} has changed since it was written. Computing it again"
    with pytest.raises(InputError, match=r"rows\.json has changed since"):
        results.rows(tmp_path)


def test_a_larger_grid_fits_only_what_is_new(swept, tmp_path, monkeypatch, capsys):
    workdir, result = swept
    shutil.copytree(workdir, tmp_path / "copy")
    larger = config(method__los__grid={"lr": (5e-3, 5e-2), "delta": (0.5, 0.7, 0.83)})
    again = stages.sweep(larger, tmp_path / "copy")
    assert "34 of 38 heads are already fitted" in capsys.readouterr().out
    assert again["sweep"]["heads"] == result["sweep"]["heads"] + 4


def test_little_memory_is_reported_and_changes_nothing(swept, tmp_path, capsys):
    workdir, result = swept
    c = config(init__path=str(workdir), method__memory=1e-6)
    found = stages.sweep(c, tmp_path)
    output = capsys.readouterr().out
    assert "they are read piece by piece" in output
    assert "(method.memory 1e-06 GiB)" in output
    for name in NAMES:
        one, other = found["methods"][name], result["methods"][name]
        assert one["hyper"] == other["hyper"]
        assert one["all"]["values"] == other["all"]["values"]


def test_views_of_crops(swept, tmp_path):
    """Crops change what trained heads come out as, and not what is measured."""
    workdir, result = swept
    c = config(init__path=str(workdir), method__views=3, data__pad=1)
    found = stages.sweep(c, tmp_path)
    assert found["methods"]["none"]["nll"] == result["methods"]["none"]["nll"]
    assert found["fixed"]["los"]["nll"] != result["fixed"]["los"]["nll"]


def test_a_diverging_row_is_reported_and_not_chosen(swept, tmp_path):
    workdir, _ = swept
    c = config(
        init__path=str(workdir),
        method__names=("los",),
        method__los__grid={"lr": (5e-3, 1e38)},
    )
    result = stages.sweep(c, tmp_path)
    assert result["sweep"]["diverged"] == 2
    assert result["methods"]["los"]["hyper"]["lr"] == 5e-3


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"method__los__grid": {"detla": (0.5,)}}, r"grid has an unknown key 'detla'"),
        (
            {"method__los__grid": {"delta": (0.5, 1.0)}},
            r"grid\.delta must be in \[0, 1",
        ),
        ({"method__names": ("loss",)}, "no entry of that name"),
        ({"data__valid": 0.0}, "chooses on validation images"),
        ({"eval__select": "validation"}, "need a frozen backbone"),
        ({"method__memory": 0.0}, "method.memory"),
        ({"method__views": 0}, "method.views"),
        ({"method__feature_dtype": "float16"}, "feature_dtype"),
        ({"eval__curves": "train"}, "eval.curves"),
        ({"eval__choose": "accuracy"}, "eval.choose"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(tmp_path, changes, output):
    with pytest.raises(InputError, match=output):
        stages.sweep(config(**changes), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_without_stage_1(tmp_path):
    with pytest.raises(InputError, match="no finished stage 1"):
        stages.sweep(config(), tmp_path)


def test_a_lost_backbone_is_reported(swept, tmp_path):
    workdir, _ = swept
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints/stage1/0")
    outcome = results.outcome(copy / "checkpoints/chosen/los/0.0")
    assert outcome is not None
    source = stored.Source(copy / "checkpoints/chosen/los/0.0", outcome)
    with pytest.raises(InputError, match="its backbone, is gone"):
        stored.load(source, Weights({}, {}), "")


def test_the_workdir_has_the_config(swept, capsys):
    workdir, result = swept
    assert main.main(["sweep", "--workdir", str(workdir)]) == 0
    assert "heads are already fitted" in capsys.readouterr().out
    again = json.loads((workdir / "result.json").read_text())
    assert again["recommended"] == jsonable(result["recommended"])
