"""A sweep that chooses by folds of all training examples."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest
from test_feature_files import arrays, config, write

from lt_jax import logistic, losses, recipes
from lt_jax.cli import main
from lt_jax.data import longtail
from lt_jax.errors import Diverged, InputError, Interrupted
from lt_jax.experiment import cached, feature_cache, results, stages, sweep
from lt_jax.experiment.config import resolve
from lt_jax.experiment.session import open_session
from lt_jax.experiment.splits import load_splits
from lt_jax.retraining import engine
from lt_jax.retraining.features import Features
from lt_jax.types import Weights

COUNTS = (31, 12, 2, 1)  # one class has fewer examples than folds, one is not validated
TEST = arrays((10,) * 4, seed=4)
CHANGES = {
    "method__names": ("ce", "los", "ncm", "logit_adjust_posthoc"),
    "method__logit_adjust_posthoc__tau": 0.0,  # the head of stage 1
    "method__logit_adjust_posthoc__grid": {"tau": (0.0,)},
    "method__ncm__kind": "raw",
    "method__ncm__grid": {"kind": ("raw",)},
    "method__repeats": 1,
    "method__batch": 16,
    "eval__folds": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    train = arrays(COUNTS, seed=3)
    return write(tmp_path_factory.mktemp("data"), train=train, test=TEST)


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory):
    """A workdir, its result, and the number of compilations by program."""
    workdir, programs, make = tmp_path_factory.mktemp("folds"), [], engine.make_fit
    with pytest.MonkeyPatch.context() as patch:

        def watched(*key):
            program = make(*key)
            if program not in programs:
                program.clear_cache()  # of other tests in this process
                programs.append(program)
            return program

        patch.setattr(engine, "make_fit", watched)
        result = stages.sweep(config(folder, **CHANGES), workdir)
    return workdir, result, [each._cache_size() for each in programs]


def examples(folder):
    """Features and labels of the training set, as the sweep orders them."""
    train = load_splits(resolve(config(folder, **CHANGES)))[0].train
    return train.read(np.arange(len(train)))[:, 0, 0], train.labels


def nearest(means, features):
    return ((features[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)


def test_training_sets_of_folds_have_one_size_and_every_class():
    labels = np.repeat(np.arange(4), COUNTS)
    pairs = longtail.cross_validation(labels, 4, 0, 4)
    assert {len(kept) for kept, _ in pairs} == {46 - 12}
    held = np.concatenate([rows for _, rows in pairs])
    assert sorted(held) == [*range(45)]
    for kept, rows in pairs:
        assert not set(kept) & set(rows)
        assert set(labels[kept]) == {0, 1, 2, 3}
    least = longtail.cross_validation(np.array([0, 0, 0, 1, 1, 2, 2]), 2, 0, 3)
    assert [len(kept) for kept, _ in least] == [3, 3]
    few = longtail.cross_validation(np.array([0, 0, 1]), 5, 0, 2)
    assert [len(rows) for _, rows in few] == [1, 1]  # without the empty folds


def test_heads_are_measured_on_examples_that_they_have_not_seen(swept, folder):
    workdir, result, _ = swept
    right, (x, y) = np.zeros(4), examples(folder)
    for kept, held in longtail.cross_validation(y, 3, 0, 4):
        means = np.stack([x[kept][y[kept] == k].mean(axis=0) for k in range(4)])
        hit = nearest(means, x[held]) == y[held]
        right += np.bincount(y[held][hit], minlength=4)
    (row,) = (r for r in results.rows(workdir) if r["method"] == "ncm")
    expected = np.mean(right[:3] / COUNTS[:3])
    assert row["metrics"]["valid"]["balanced"] == pytest.approx(expected)
    assert row["metrics"]["valid"]["all"] == pytest.approx(right.sum() / 45)
    assert result["sweep"]["valid"]["ncm"]["mean"] == pytest.approx(expected)
    (stage1,) = results.outcomes(workdir, "stage1")
    assert result["recommended"]["untouched"] == stage1["valid"]["all"] < 1
    assert stage1["temperature"] > 0
    (row,) = (r for r in results.rows(workdir) if r["method"] == "logit_adjust_posthoc")
    assert row["metrics"]["valid"]["nll"] == pytest.approx(stage1["valid"]["nll"])


def test_the_table_has_heads_of_all_examples(swept, folder, tmp_path, capsys):
    workdir, result, _ = swept
    x, y = examples(folder)
    means = np.stack([x[y == k].mean(axis=0) for k in range(4)])
    expected = np.mean(nearest(means, TEST[0]) == TEST[1])
    assert result["methods"]["ncm"]["all"]["values"] == [pytest.approx(expected)]
    assert result["dataset"]["num_train"] == 46
    assert result["recommended"]["folds"] == 3
    text = (workdir / "report/table.md").read_text("utf-8")
    assert "Chosen on 3-fold validation by the mean balanced over seeds" in text
    assert "heads; each was fitted on all training examples:" in text

    np.savez(tmp_path / "new.npz", features=TEST[0])
    flags = ["predict", "--workdir", str(workdir), str(tmp_path / "new.npz")]
    assert main.main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recommended"], found["refit"]) == (True, True)
    assert main.main(["evaluate", "--workdir", str(workdir), "--split", "valid"]) == 2
    assert "is empty because eval.folds is not 0" in capsys.readouterr().err
    assert main.main(["report", str(workdir), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page/index.html").read_text()
    assert "3-fold validation recommends" in page
    assert (
        "has 3-fold validation: every head was fitted on all training examples" in page
    )


def test_the_hash_identifies_given_validation_examples(folder, tmp_path):
    """They are trained on with folds, and only measured without."""
    for n in (5, 6):
        shutil.copytree(folder, tmp_path / f"{n}")
        features, labels = arrays((2, 2, 2, 2), seed=n)
        np.savez(tmp_path / f"{n}/val.npz", features=features, labels=labels)
    for folds, hashes in ((3, 2), (0, 1)):
        both = [
            load_splits(
                resolve(config(tmp_path / f"{n}", **{**CHANGES, "eval__folds": folds}))
            )[0]
            for n in (5, 6)
        ]
        assert len({each.hash for each in both}) == hashes
        assert both[0].full_class_counts.sum() == (54 if folds else 46)


def test_folds_share_their_programs(swept):
    """Once each for stage 1 without a fold, for all examples, and without a fold."""
    assert swept[2] == [3]


def test_folds_are_fitted_in_the_chunks_of_all_examples(
    swept, folder, tmp_path, monkeypatch
):
    """By their own sizes, groups of heads could be divided in another way."""
    _, result, _ = swept
    plan, steps = cached.plan_chunks, []

    def other(jobs, *args):
        chunks = plan(jobs, *args)
        steps.append(sum(len(job.rates) for job in jobs))
        single = [c._replace(jobs=(job,)) for c in chunks for job in c.jobs]
        return chunks if steps[-1] == steps[0] else single

    monkeypatch.setattr(cached, "plan_chunks", other)
    again = stages.sweep(config(folder, **CHANGES), tmp_path)
    assert again["recommended"] == result["recommended"]


def test_one_fold_is_in_memory_at_a_time(folder, tmp_path, monkeypatch):
    take, copies, alive = Features.take, [], []

    def watched(self, rows):
        if len(rows) > len(self.labels) / 2:
            alive.append(sum(copy() is not None for copy in copies))
            found = take(self, rows)
            copies.append(weakref.ref(found.values))
            return found
        return take(self, rows)

    monkeypatch.setattr(Features, "take", watched)
    names = {"method__names": ("ce", "ncm", "logistic")}
    stages.sweep(config(folder, **{**CHANGES, **names, "eval__folds": 6}), tmp_path)
    assert max(alive) <= 1  # the runtime may free one a little later


def test_the_bar_counts_the_solver(folder, tmp_path, monkeypatch):
    """Logistic regression trains no epochs."""
    bars = []

    class Watched(cached.Bar):
        def __exit__(self, *error):
            bars.append((self._total, self._done))
            super().__exit__(*error)

    monkeypatch.setattr(cached, "Bar", Watched)
    names = {"method__names": ("logistic",), "method__logistic__penalty": 10.0}
    stages.sweep(config(folder, **{**CHANGES, **names}), tmp_path)
    rows = len(results.rows(tmp_path))
    assert bars == [(4 * rows * logistic.PASSES,) * 2]


def test_a_diverging_stage_1_without_a_fold_is_named(folder, tmp_path, monkeypatch):
    fit = feature_cache.engine.fit_heads

    def diverged(*args, **more):
        for chunk, fits in fit(*args, **more):
            yield chunk, [each._replace(diverged=7) for each in fits]

    monkeypatch.setattr(feature_cache.engine, "fit_heads", diverged)
    with pytest.raises(Diverged, match=r"stage1/0 without a fold diverged.* step 7"):
        stages.sweep(config(folder, **CHANGES), tmp_path)


def test_a_kill_keeps_complete_rows_alone(swept, folder, tmp_path, monkeypatch):
    _, result, _ = swept
    keep, kept = sweep._save_chunk, []

    def killed(*args):
        if kept:
            raise Interrupted("killed", "SIGINT")
        kept.append(keep(*args))
        return kept[0]

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_save_chunk", killed)
        with pytest.raises(Interrupted):
            stages.sweep(config(folder, **CHANGES), tmp_path)
    assert 0 < len(results.rows(tmp_path)) < result["sweep"]["heads"]
    again = stages.sweep(config(folder, **CHANGES), tmp_path)
    for part in ("recommended", "sweep"):
        assert again[part] == result[part]
    for name in ("ce", "los", "ncm"):
        one, other = again["methods"][name], result["methods"][name]
        assert one["hyper"] == other["hyper"]
        assert one["all"]["values"] == other["all"]["values"]


@pytest.mark.parametrize("folds", [0, 4])
def test_other_folds_need_another_workdir(swept, folder, folds):
    """A stage 1 of folds cannot be shared."""
    workdir, _, _ = swept
    with pytest.raises(InputError, match=r"eval\.folds: 3 there") as caught:
        stages.sweep(config(folder, **{**CHANGES, "eval__folds": folds}), workdir)
    assert str(caught.value).endswith("\nUse another --workdir.")


@pytest.mark.parametrize("earlier", [{"folds": 0}, {}], ids=["held_out", "older"])
def test_a_workdir_without_folds_needs_another(swept, folder, tmp_path, earlier):
    shutil.copy(swept[0] / "config.json", tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["eval"] = {**saved["eval"], "folds": None, **earlier}
    saved["eval"] = {k: v for k, v in saved["eval"].items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"eval\.folds: 0 there, 3 now") as caught:
        stages.sweep(config(folder, **CHANGES), tmp_path)
    assert str(caught.value).endswith("\nUse another --workdir.")


def test_rows_of_other_folds_are_fitted_again(swept, folder, tmp_path, monkeypatch):
    """Also if the workdir has lost its config."""
    shutil.copytree(swept[0], tmp_path / "copy")
    (tmp_path / "copy/config.json").unlink()
    monkeypatch.setattr(engine, "fit_heads", None)
    with pytest.raises(TypeError, match="not callable"):
        stages.sweep(config(folder, **{**CHANGES, "eval__folds": 4}), tmp_path / "copy")


def test_a_fold_has_its_own_counts_and_stage_1(folder, tmp_path, monkeypatch):
    def labels_of(fold):
        return fold.features("train").labels

    monkeypatch.setattr(feature_cache, "_stage1_head", labels_of)
    x, y = examples(folder)
    with open_session(config(folder, **CHANGES), tmp_path, writes=False) as session:
        cache = feature_cache.FeatureCache(session, 0, Weights({"head": y}, {}))
        cache._features = dict.fromkeys(("train", "test"), Features(x[None], y))
        hyper = {**session.config.method.entries["logit_adjust"]}
        row = feature_cache.Row("logit_adjust", recipes.own(hyper), (0, 0))
        pairs = longtail.cross_validation(y, 3, 0, 4)
        for fold, (kept, held) in zip(cache.folds, pairs, strict=True):
            expected = losses.logit_adjust(np.bincount(y[kept]), row.hyper["tau"])
            offset = fold.method(row).adjust.offset
            np.testing.assert_array_equal(offset, expected.offset)
            np.testing.assert_array_equal(fold.network.params["head"], y[kept])
            np.testing.assert_array_equal(fold.features("valid").values[0], x[held])


def test_a_resumed_sweep_fits_nothing(swept, folder, tmp_path, monkeypatch):
    workdir, result, _ = swept
    shutil.copytree(workdir, tmp_path / "copy")
    monkeypatch.setattr(engine, "fit_heads", None)  # would fail
    again = stages.sweep(config(folder, **CHANGES), tmp_path / "copy")
    assert again["recommended"] == result["recommended"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval__folds": 1}, r"eval\.folds must be in \[2, 1000\]"),
        ({"optim__mixup": 0.2}, "trains a stage 1 without each fold"),
        ({"init__path": "other"}, "trains a stage 1 without each fold"),
        ({"optim__drop_last": True}, "trains a stage 1 without each fold"),
        ({"optim__trains": "head/bias"}, "trains a stage 1 without each fold"),
        ({"method__features": "online"}, "method.features='cached'"),
        ({"eval__select": "validation"}, "eval.folds needs .* 'validation' and False$"),
        ({"method__batch_norm": "drift"}, "eval.folds needs .* 'drift', 'last' and"),
        ({"method__refit": True}, "method.refit=False"),
        (
            {"eval__choose": "few", "data__few": 2, "data__many": 20},
            "no class of that group has two examples, which eval.folds needs: choose",
        ),
        ({"model__name": "resnet32"}, "are for features, model.name='none'"),
        ({"data__dir": "single"}, "no class has two examples"),
    ],
    ids="1 mixup init last trains online select norm refit choose model single".split(),
)
def test_bad_input(folder, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "single", train=arrays((1, 1)), test=arrays((1, 1), seed=1))
    with pytest.raises(InputError, match=message):
        stages.sweep(config(folder, **{**CHANGES, **changes}), tmp_path / "work")
    assert not (tmp_path / "work").exists()
