"""Both stages end to end on real images, stopping, resuming, refusing."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_cifar
import tiny_digits

from lt_jax.cli import main
from lt_jax.data import catalogue
from lt_jax.errors import Diverged, InputError, Interrupted
from lt_jax.experiment import evaluation, results, stages, stored
from lt_jax.training import checkpoint
from lt_jax.training.progress import Meter

STEPS = 10  # of an epoch of the digits: 307 examples in batches of 32


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that the tests only read."""
    workdir = tmp_path_factory.mktemp("finished")
    result = stages.run(tiny_digits.config(), workdir)
    return workdir, result


def arrays(workdir: Path, run: str) -> dict[str, np.ndarray]:
    directory = workdir / "checkpoints" / run
    outcome = results.outcome(directory)
    assert outcome is not None
    return checkpoint.load_leaves(stored.Source(directory, outcome).step)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def press_ctrl_c(monkeypatch, title: str, at: int) -> None:
    """Sends the signal of Ctrl-C after this step of this fit."""
    add = Meter.add

    def pressing(self, step, *measured):
        add(self, step, *measured)
        if self._title == title and step == at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Meter, "add", pressing)


def test_the_files_of_the_contract(finished):
    workdir, result = finished
    for name in (
        "config.json",
        "metrics.jsonl",
        "log.txt",
        "result.json",
        "checkpoints",
        "report/table.md",
        "report/per_class.csv",
    ):
        assert (workdir / name).exists(), name
    stored = json.loads((workdir / "result.json").read_text())
    assert set(stored) == {
        "dataset", "protocol", "stage1", "methods", "versions", "device", "digest",
        "recommended",
    }  # fmt: skip
    assert stored["dataset"] == {
        "name": "digits",
        "split_hash": result["dataset"]["split_hash"],
        "num_train": 383,
        "num_valid": 76,
        "num_test": 600,
        "num_classes": 10,
        "counts_max": 114,
        "counts_min": 5,
        "groups": {"many": 3, "medium": 4, "few": 3},
    }
    assert stored["protocol"]["select"] == "last"
    assert stored["protocol"]["features"] == "online"
    assert list(stored["methods"]) == ["none", "ce", "los"]
    los = stored["methods"]["los"]
    assert los["hyper"]["delta"] == 0.83
    for metric in ("all", "many", "medium", "few", "balanced", "worst", "ece", "nll"):
        assert set(los[metric]) == {"mean", "std", "values"}
        assert len(los[metric]["values"]) == 1
        assert los[metric]["std"] is None  # one seed has no spread
    assert 0 < los["all"]["mean"] <= 1
    assert {"mean", "many", "medium", "few", "spread"} <= set(los["loma_row"])
    assert set(los["rsd"]) == {"row_true", "row_false", "col_true", "col_false"}


def test_the_metrics_are_those_of_the_stored_classes(finished):
    """The table's figures follow from the per-class file and the test set's sizes."""
    workdir, result = finished
    with (workdir / "report/per_class.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "los"]
    accuracy = np.array([float(row["accuracy"]) for row in rows])
    counts = np.array([int(row["train_count"]) for row in rows])
    los = result["methods"]["los"]
    assert los["all"]["mean"] == pytest.approx(accuracy.mean())  # 60 a class
    assert los["few"]["mean"] == pytest.approx(accuracy[counts < 15].mean())
    assert los["worst"]["mean"] == pytest.approx(accuracy.min())


def test_it_learns(finished):
    _, result = finished
    assert (
        result["methods"]["none"]["all"]["mean"] > 0.16
    )  # chance is 0.1, and its spread 0.012


def test_metrics_lines(finished):
    workdir, _ = finished
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    stage1 = [line for line in lines if line["run"] == "stage1/0"]
    assert [line["step"] for line in stage1] == [2 * STEPS, 4 * STEPS]
    assert stage1[-1]["loss"] < stage1[0]["loss"]
    assert {"balanced", "loma_row", "rsd_col_false", "rate"} <= set(stage1[0])


CORRECTED = ("tau_norm", "ncm", "logit_adjust_posthoc", "los_tau_norm")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Methods of every sort: other heads, other losses, projected, corrected."""
    workdir = tmp_path_factory.mktemp("several")
    names = ("lws", "disalign", "ldam", "lade", "weight_balancing", *CORRECTED)
    trained = set(names) - {"tau_norm", "ncm", "logit_adjust_posthoc"}
    config = tiny_digits.config(
        method__names=names, **{f"method__{name}__epochs": 2 for name in trained}
    )
    return config, workdir, stages.run(config, workdir)


def test_several_methods(several):
    config, workdir, result = several
    assert list(result["methods"]) == ["none", *config.method.names]
    found = evaluation.evaluate_all(config, workdir, "test")
    start = arrays(workdir, "stage1/0")
    for name in config.method.names:
        method = result["methods"][name]
        assert np.isfinite(method["nll"]["mean"]), name
        assert method["nll"]["mean"] != result["methods"]["none"]["nll"]["mean"], name
        # What was corrected is what is kept and evaluated again.
        assert found[f"{name}/0.0"]["nll"] == method["nll"]["mean"], name
        kept = arrays(workdir, f"{name}/0.0")
        for leaf in start:
            if leaf.startswith(("params/backbone/", "batch_stats/")):
                np.testing.assert_array_equal(kept[leaf], start[leaf], err_msg=leaf)
    for name in ("lws", "disalign"):  # train other leaves than these
        kept = arrays(workdir, f"{name}/0.0")
        for leaf in ("params/head/kernel", "params/head/bias"):
            np.testing.assert_array_equal(kept[leaf], start[leaf], err_msg=name)


def test_corrections_are_those_of_the_heads(several):
    _, workdir, _ = several

    def head(run):
        found = arrays(workdir, run)
        prefix = "params/head/"
        return {k.removeprefix(prefix): v for k, v in found.items() if prefix in k}

    start = head("stage1/0")
    norms = np.linalg.norm(start["kernel"], axis=0)
    tau = head("tau_norm/0.0")
    np.testing.assert_allclose(tau["kernel"], start["kernel"] / norms, rtol=1e-5)
    np.testing.assert_array_equal(tau["bias"], 0)
    shift = head("logit_adjust_posthoc/0.0")["bias"] - start["bias"]
    assert (np.diff(shift) >= -1e-6).all()  # the counts of the digits fall
    assert shift[-1] - shift[0] > 2
    np.testing.assert_allclose(
        np.linalg.norm(head("los_tau_norm/0.0")["kernel"], axis=0), 1, rtol=1e-5
    )
    radius = norms.min() + 0.1 * (norms.max() - norms.min())
    held = np.linalg.norm(head("weight_balancing/0.0")["kernel"], axis=0)
    assert held.max() <= radius * 1.00001


def test_a_correction_is_made_once(several, tmp_path):
    """Stopped between training and its end: corrected from what was trained."""
    config, workdir, result = several
    shutil.copytree(workdir, tmp_path / "again")
    for name in CORRECTED:
        (tmp_path / "again/checkpoints" / name / "0.0/outcome.json").unlink()
    again = stages.run(config, tmp_path / "again")
    for name in CORRECTED:
        one, other = again["methods"][name], result["methods"][name]
        assert one["nll"]["values"] == other["nll"]["values"], name


def test_deferred_weights_take_over(tmp_path, several):
    """defer 1 is LDAM without, 0 with weights from the start; between, between."""
    _, workdir, _ = several
    heads = {}
    for defer in (0.0, 0.5, 1.0):
        changed = tiny_digits.config(
            method__names=("ldam",), method__ldam__epochs=2,
            method__ldam__defer=defer, init__path=str(workdir),
        )  # fmt: skip
        stages.retrain(changed, tmp_path / str(defer))
        heads[defer] = arrays(tmp_path / str(defer), "ldam/0.0")["params/head/kernel"]
    assert not np.array_equal(heads[0.0], heads[0.5])
    assert not np.array_equal(heads[0.5], heads[1.0])
    assert not np.array_equal(heads[0.0], heads[1.0])


def test_again_does_nothing_twice(finished, monkeypatch):
    workdir, result = finished
    monkeypatch.setattr(stages, "fit", None)  # would fail if anything were fitted
    assert stages.run(tiny_digits.config(), workdir)["methods"] == result["methods"]


def test_evaluate_repeats_the_figures(finished):
    workdir, result = finished
    found = evaluation.evaluate_all(tiny_digits.config(), workdir, "test")
    assert list(found) == ["stage1/0", "ce/0.0", "los/0.0"]
    for method, run in (("none", "stage1/0"), ("los", "los/0.0")):
        assert found[run]["few"] == result["methods"][method]["few"]["mean"]
    assert evaluation.evaluate_all(tiny_digits.config(), workdir, "valid").keys() == (
        found.keys()
    )


@pytest.mark.parametrize(
    ("title", "at"),
    [("stage1/0", 13), ("stage1/0", 2 * STEPS), ("los/0.0", 7)],
    ids=["within an epoch", "between epochs", "stage 2"],
)
def test_stopped_and_resumed_is_uninterrupted(
    finished, tmp_path, monkeypatch, title, at
):
    """Bitwise: parameters, optimiser, batch statistics; and the same result."""
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, title, at)
        with pytest.raises(Interrupted, match=f"{title}: step {at} of"):
            stages.run(tiny_digits.config(), tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["protocol"]["interrupted"] is True
    assert "none" in stored["methods"]

    result = stages.run(tiny_digits.config(), tmp_path)
    assert result["protocol"]["interrupted"] is False
    for run in ("stage1/0", "ce/0.0", "los/0.0"):
        assert_same(arrays(tmp_path, run), arrays(finished[0], run))
    for name, method in finished[1]["methods"].items():
        for metric in ("all", "few", "nll", "loma_col"):
            assert result["methods"][name][metric]["values"] == method[metric]["values"]


def test_another_config_is_refused(finished):
    changed = tiny_digits.config(optim__lr=0.9, eval__batch=7, log__seconds=1.0)
    with pytest.raises(InputError) as error:
        stages.run(changed, finished[0])
    text = str(error.value)
    assert "optim.lr: 0.05 there, 0.9 now" in text
    assert "eval.batch" not in text  # may change: no result depends on it
    assert "log." not in text


def test_retrain_on_the_stage_1_of_another_workdir(finished, tmp_path):
    source, result = finished
    config = tiny_digits.config(init__path=str(source), method__los__delta=0.5)
    found = stages.retrain(config, tmp_path)
    assert found["methods"]["none"]["all"] == result["methods"]["none"]["all"]
    assert found["methods"]["ce"]["nll"] == result["methods"]["ce"]["nll"]
    assert found["methods"]["los"]["nll"] != result["methods"]["los"]["nll"]
    one, other = arrays(tmp_path, "los/0.0"), arrays(source, "stage1/0")
    for name, leaf in other.items():
        if name.startswith(("params/backbone/", "batch_stats/")):
            np.testing.assert_array_equal(leaf, one[name], err_msg=name)


def test_retrain_notes_a_stage_1_fitted_on_other_examples(finished, tmp_path, capsys):
    config = tiny_digits.config(init__path=str(finished[0]), data__valid_seed=1)
    stages.retrain(config, tmp_path)
    assert "may overlap this validation split" in capsys.readouterr().out


def test_a_command_that_cannot_start_writes_nothing(finished, tmp_path):
    """The corrected command is therefore not refused."""
    workdir, path = tmp_path / "run", str(finished[0])
    for command, message, changes in (
        (stages.retrain, r"no finished stage 1 in .*lt-jax train", {}),
        (stages.retrain, "no finished stage 1 in .*x", {"init__path": path + "x"}),
        (stages.train, "no finished stage 1 in .*x", {"init__path": path + "x"}),
        (
            stages.retrain,
            "! params/head/kernel",
            {"init__path": path, "model__width": 8},
        ),
        (
            stages.run,
            r"'fc.\*' matches no parameter.*head/kernel",
            {"init__path": path, "init__skip": "fc.*"},
        ),
    ):
        with pytest.raises(InputError, match=message):
            command(tiny_digits.config(**changes), workdir)
        assert not workdir.exists()


def test_a_workdir_deleted_under_a_job(finished, tmp_path, monkeypatch):
    """The job ends, and the same command starts again whatever is left."""
    add, workdir = Meter.add, tmp_path / "run"

    def deleting(self, step, *measured):
        add(self, step, *measured)
        if (self._title, step) == ("ce/0.0", STEPS + 2):
            shutil.rmtree(workdir, ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add", deleting)
        with pytest.raises(InputError, match=r"run.* was deleted or moved while this"):
            stages.run(tiny_digits.config(), workdir)
    assert not (workdir / "result.json").exists()
    (workdir / "checkpoints/los/0.0/10").mkdir(parents=True)  # of a late write
    again = stages.run(tiny_digits.config(), workdir)
    for name, found in finished[1]["methods"].items():
        assert again["methods"][name]["nll"] == found["nll"]


def test_stage_1_from_given_weights(finished, tmp_path):
    """init.path in train, but for the head, which init.skip leaves fresh."""
    config = tiny_digits.config(
        init__path=str(finished[0]), init__skip="head/.*", optim__epochs=1,
        optim__trains="head/.*", optim__batch_norm="frozen",
    )  # fmt: skip
    stages.train(config, tmp_path)
    one, other = arrays(tmp_path, "stage1/0"), arrays(finished[0], "stage1/0")
    for name in other:
        if name.startswith(("params/backbone/", "batch_stats/")):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert not np.array_equal(one["params/head/kernel"], other["params/head/kernel"])


def test_several_representations_and_seeds(tmp_path):
    config = tiny_digits.config(
        optim__repeats=2, method__repeats=2, optim__epochs=1, method__names=("los",),
        method__los__epochs=1, eval__every=1,
    )  # fmt: skip
    result = stages.run(config, tmp_path)
    assert result["protocol"]["seeds"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    los = result["methods"]["los"]
    values = los["nll"]["values"]
    assert len(set(values)) == 4
    assert los["nll"]["mean"] == pytest.approx(np.mean(values))
    assert los["nll"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert len(result["methods"]["none"]["nll"]["values"]) == 2


@pytest.mark.parametrize("select", ["validation", "test"])
def test_the_best_checkpoint_is_kept(tmp_path, select):
    config = tiny_digits.config(eval__select=select, eval__every=1, optim__epochs=6)
    result = stages.train(config, tmp_path)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    score = "all" if select == "test" else "balanced"
    best = max(line[score] for line in lines)
    outcome = results.outcome(tmp_path / "checkpoints/stage1/0")
    assert outcome is not None
    chosen = next(line for line in lines if line["step"] == outcome["step"])
    assert chosen[score] == best
    if select == "test":  # what chose is what is reported, as the authors do it
        assert result["methods"]["none"]["all"]["mean"] == best
        assert "THE TEST SET PICKS" in (tmp_path / "log.txt").read_text()


def test_a_diverging_run_stops_and_names_the_step(tmp_path):
    config = tiny_digits.config(optim__lr=1e18, optim__warmup=2.0, optim__epochs=4)
    # The warm-up reaches such a rate after the first step already.
    with pytest.raises(Diverged, match=r"stage1/0: .*step \d+"):
        stages.train(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert results.outcome(tmp_path / "checkpoints/stage1/0") is None


def test_the_last_batch_of_an_epoch_may_be_left_out(tmp_path):
    """307 examples in batches of 32 are 10 steps, or 9 full ones."""
    config = tiny_digits.config(optim__drop_last=True, optim__epochs=2)
    stages.train(config, tmp_path)
    outcome = results.outcome(tmp_path / "checkpoints/stage1/0")
    assert outcome is not None
    assert outcome["step"] == 2 * (STEPS - 1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2 * (STEPS - 1)]


def test_a_bad_last_update_behind_a_good_loss_is_not_a_result(tmp_path):
    """The loss of a step is of the parameters before it."""
    config = tiny_digits.config(
        optim__lr=1e38, optim__epochs=1, optim__batch=400, optim__lr_batch=400
    )
    with pytest.raises(Diverged, match="the network has diverged: logits"):
        stages.train(config, tmp_path)
    assert not list((tmp_path / "checkpoints/stage1/0").glob("*"))


def test_a_poisoned_step_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    add = Meter.add

    def poison(self, step, measured, *count):
        if step == 2 * STEPS + 3:
            measured = {**measured, "loss_sum": np.float32(np.nan)}
        add(self, step, measured, *count)

    monkeypatch.setattr(Meter, "add", poison)
    monkeypatch.setattr(
        jax, "transfer_guard", lambda _: __import__("contextlib").nullcontext()
    )
    with pytest.raises(Diverged, match=f"nan at step {2 * STEPS + 3}"):
        stages.train(tiny_digits.config(), tmp_path)
    kept = {p.name for p in (tmp_path / "checkpoints/stage1/0").iterdir()}
    assert kept == {str(STEPS), str(2 * STEPS)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method__los__delta": 1.0}, r"delta must be in \[0, 1\)"),
        ({"method__los__delta": -0.1}, r"delta must be in \[0, 1\)"),
        ({"data__imbalance": 0.5}, r"imbalance must be in \[1, 1e9\], got 0.5"),
        ({"data__imbalance": 1000.0}, "class"),
        ({"data__name": "digit"}, "digits"),
        ({"data__valid": 0.0, "eval__select": "validation"}, "data.valid is 0"),
        ({"eval__select": "lst"}, "did you mean 'last'"),
        ({"method__names": ("ce", "loss")}, "has 'loss', .*expected some of .*los"),
        ({"method__batch_norm": "freeze"}, "did you mean 'frozen'"),
        ({"data__few": 60}, "data.few must be at most data.many, got 60 and 50"),
        ({"model__name": "resnet33"}, "resnet32"),
        ({"optim__lr": 0.0}, r"optim.lr must be in \(0, 1e38\], got 0.0"),
        ({"optim__decay_on": "nothing"}, "acts on nothing"),
        ({"optim__trains": "heads/.*"}, "no parameter matches"),
        ({"optim__sampler": "balanced"}, "unknown optim.sampler"),
        (
            {"optim__drop_last": True, "optim__batch": 400},
            "optim.drop_last leaves none of 307 training images in batches of 400",
        ),
        ({"optim__schedule": "linear"}, "unknown optim.schedule"),
        ({"optim__warmup": 4.0}, "optim.epochs: warmup must be below 4 epochs, got 4"),
        ({"method__los__lr": 0.0}, "method.los: the learning rate must be in"),
        ({"method__los__epochs": -1}, r"method.los.epochs must be in \[0, 1e6\]"),
        ({"method__los__decay": 0.1, "method__decay_on": "no"}, "acts on nothing"),
        ({"method__names": ("momentum",)}, "expected some of .*ce"),
        ({"method__names": ("ce,los",)}, "method.names=ce,los"),
        ({"method__repeats": 0}, "method.repeats must be in .1, 10000., got 0"),
        ({"optim__repeats": 0}, "optim.repeats must be in"),
        ({"optim__epochs": 0}, "optim.epochs must be"),
        ({"optim__batch": 0}, "optim.batch must be"),
        ({"eval__batch": 0}, "eval.batch must be"),
        ({"eval__every": 0}, "eval.every must be"),
        ({"save__every": 0}, "save.every must be"),
        ({"seed": -1}, "seed must be in .0, 4294967295., got -1"),
        ({"optim__momentum": float("nan")}, "optim.momentum must be"),
        ({"optim__trains": "["}, "optim.trains must be a regular expression"),
        ({"data__mean": (0.5, 0.5, 0.5)}, "each of the 1 channels of digits"),
        ({"data__std": (0.0,)}, "data.std must be in .1e-6, 1e6."),
        ({"data__jitter": (0.4, 0.0, 0.0, 0.0)}, "randaugment need 3 channels"),
        ({"data__valid_seed": -1}, "data.valid_seed must be in .*, got -1"),
        ({"data__valid": 1.0}, r"data.valid must be in \[0, 1\), got 1.0"),
        ({"model__dtype": "float16"}, "unknown model.dtype"),
    ],
)  # fmt: skip
def test_invalid_values_raise(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        stages.run(tiny_digits.config(**changes), tmp_path)
    # Nothing was written: the corrected command may use the same workdir.
    assert not list(tmp_path.iterdir())


def test_one_class(tmp_path, monkeypatch):
    full, test = catalogue.SOURCES["digits"]("")

    def alone(part):
        of_one = part.take(np.flatnonzero(part.labels == 0))
        return dataclasses.replace(of_one, classes=("0",))

    monkeypatch.setitem(
        catalogue.SOURCES, "digits", lambda _: (alone(full), alone(test))
    )
    with pytest.raises(InputError, match="class"):
        stages.run(tiny_digits.config(data__imbalance=1.0), tmp_path)


def test_data_that_change_under_a_workdir(tmp_path, monkeypatch):
    """data.dir may change, the examples may not."""
    config = tiny_digits.config(optim__epochs=1)
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, "stage1/0", 3)
        with pytest.raises(Interrupted):
            stages.train(config, tmp_path)
    full, test = catalogue.SOURCES["digits"]("")
    turned = full.take(np.arange(len(full))[::-1])
    turned = dataclasses.replace(turned, ids=np.char.add("other_", turned.ids))
    with monkeypatch.context() as patch:
        patch.setitem(catalogue.SOURCES, "digits", lambda _: (turned, test))
        with pytest.raises(InputError, match="trained on other examples"):
            stages.train(config, tmp_path)
    stages.train(config, tmp_path)
    monkeypatch.setitem(catalogue.SOURCES, "digits", lambda _: (turned, test))
    with pytest.raises(InputError, match="fitted on other training examples"):
        stages.train(config, tmp_path)


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path):
    """30 rows over the 4 devices of the tests: padded, and every example counted."""
    config = tiny_digits.config(
        optim__batch=30, optim__epochs=1, eval__batch=77, eval__every=1
    )
    result = stages.train(config, tmp_path)
    assert jax.device_count() == 4
    assert len(result["methods"]["none"]["all"]["values"]) == 1
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 11  # 307 examples in batches of 30


def test_pretrained_weights_do_not_leak_into_stage_2(finished, tmp_path):
    """init.path and init.skip initialise stage 1 only; stage 2 starts from stage 1."""
    config = tiny_digits.config(
        init__path=str(finished[0]), init__skip="head/.*", optim__epochs=1,
        method__ce__epochs=1, method__ce__lr=1e-12, method__names=("ce",),
    )  # fmt: skip
    stages.train(config, tmp_path)
    result = stages.retrain(config, tmp_path)
    none, ce = (result["methods"][name]["nll"]["mean"] for name in ("none", "ce"))
    assert ce == pytest.approx(none, rel=1e-5)
    assert none != finished[1]["methods"]["none"]["nll"]["mean"]


def test_an_adopted_stage_1_keeps_what_was_drawn_for_it(tmp_path):
    """What init.skip leaves fresh is evaluated and exported as it was fitted on."""
    source, workdir = tmp_path / "source", tmp_path / "work"
    stages.train(tiny_digits.config(optim__epochs=1, seed=3), source)
    config = tiny_digits.config(
        init__path=str(source), init__skip="head/.*|backbone/stem_conv/kernel",
        method__features="cached", method__names=("ce",), seed=5,
    )  # fmt: skip
    result = stages.retrain(config, workdir)
    found = evaluation.evaluate_all(config, workdir, "test")
    for run, name in (("stage1/3", "none"), ("ce/3.5", "ce")):
        assert found[run]["all"] == result["methods"][name]["all"]["values"][0]
        nll = result["methods"][name]["nll"]["values"][0]
        assert found[run]["nll"] == pytest.approx(nll, rel=1e-5)
    (one,), (other,) = stored.stage1(source), stored.stage1(workdir)
    one, other = stored.load_leaves(one), stored.load_leaves(other)
    skipped = {"params/head/kernel", "params/head/bias"}
    skipped |= {"params/backbone/stem_conv/kernel"}
    differ = {name for name in one if not np.array_equal(one[name], other[name])}
    assert differ == skipped


def test_the_finished_are_those_that_process_0_sees(tmp_path, monkeypatch):
    """A shared file system may show the others an older state."""
    sees = [
        ["elsewhere/stage1/1", {"seeds": [1]}],
        ["elsewhere/stage1/2", None],
        ["elsewhere/stage1/0", {"seeds": [0]}],
    ]
    monkeypatch.setattr(
        "lt_jax.distributed.processes.from_process_zero", lambda find: (find(), sees)[1]
    )
    found = stored.stage1(tmp_path)
    assert [source.outcome["seeds"] for source in found] == [[0], [1]]
    assert found[0].directory == Path("elsewhere/stage1/0")


def test_what_corrects_no_features_makes_none(several, tmp_path, monkeypatch):
    """tau-normalisation looks at the head alone: no pass over the images for it."""
    config, workdir, _ = several
    shutil.copytree(workdir, tmp_path / "again")
    monkeypatch.setattr(stages, "plain_features", None)  # would fail if it were called
    for name in ("tau_norm", "logit_adjust_posthoc", "los_tau_norm"):
        (tmp_path / "again/checkpoints" / name / "0.0/outcome.json").unlink()
    stages.run(config, tmp_path / "again")


def test_an_edited_outcome_is_measured_again(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    edits = {"ce/0.0": {"metrics": {"all": 0.987}}, "los/0.0": {"step": 10}}
    for title, edit in edits.items():
        file = workdir / "checkpoints" / title / "outcome.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | edit))
        for command in (
            ["convert", str(workdir), str(tmp_path / "x.pth"), "--method", title],
            ["predict", "--workdir", str(workdir), "--method", title, "image.png"],
            ["report", str(workdir)],
        ):
            assert main.main(command) == 2
            assert "outcome.json" in capsys.readouterr().err
    result = stages.run(tiny_digits.config(), workdir)
    assert capsys.readouterr().out.count("Computing it again") == 2
    for name, found in finished[1]["methods"].items():
        assert result["methods"][name]["all"] == found["all"]


def test_evaluate_writes_nothing(finished):
    workdir = finished[0]
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    evaluation.evaluate_all(tiny_digits.config(), workdir, "test")
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_an_adopted_stage_1_outlives_its_source(finished, tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(finished[0], source)
    config = tiny_digits.config(init__path=str(source), method__names=("ce",))
    result = stages.retrain(config, workdir)
    shutil.rmtree(source)
    found = evaluation.evaluate_all(config, workdir, "test")
    assert found["ce/0.0"]["all"] == result["methods"]["ce"]["all"]["mean"]
    shutil.rmtree(workdir / "checkpoints/stage1/0/final")
    with pytest.raises(InputError, match="no longer in"):
        evaluation.evaluate_all(config, workdir, "test")


def test_weights_of_version_0_1_in_another_workdir(finished, tmp_path):
    """It named an adopted stage 1 by its path, which is still read."""
    source = finished[0] / "checkpoints/stage1/0"
    outcome = json.loads((source / "outcome.json").read_text())
    outcome.pop("digest")
    outcome |= {"weights": str(source), "adopted_for": outcome["fitted_on"]}
    _write_outcome(tmp_path / "checkpoints/stage1/0", outcome)
    found = evaluation.evaluate_all(tiny_digits.config(), tmp_path, "test")
    assert found["stage1/0"]["all"] == outcome["metrics"]["all"]


def _write_outcome(directory: Path, outcome: dict) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "outcome.json").write_text(json.dumps(outcome))


def _tree(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("skip", "absolute"), [("", False), ("head/.*", True)])
def test_an_adopted_workdir_cannot_name_where_to_write(
    finished, tmp_path, skip, absolute
):
    """The folder of an adopted fit is derived from its seed, not from ``run``."""
    evil, victim, workdir = (tmp_path / name for name in ("evil", "victim", "run"))
    shutil.copytree(finished[0], evil)
    outcome = json.loads((evil / "checkpoints/stage1/0/outcome.json").read_text())
    outcome.pop("digest")
    run = str(victim) if absolute else "../../victim"
    _write_outcome(evil / "checkpoints/stage1/0", outcome | {"run": run})
    state = victim / "final" / str(outcome["step"]) / "state"
    state.mkdir(parents=True)
    (state / "precious").write_text("data")
    before = _tree(victim), _tree(evil)
    config = tiny_digits.config(
        init__path=str(evil), init__skip=skip, method__names=("ce",)
    )
    stages.retrain(config, workdir)
    assert (_tree(victim), _tree(evil)) == before
    assert (workdir / "checkpoints/stage1/0/outcome.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "../../../victim"}, "weights must be '' or 'final'"),
        ({"weights": "/victim"}, "weights must be '' or 'final'"),
        ({"step": "../0"}, "step must be an integer of at least 0, got '../0'"),
        ({"step": -1}, "step must be an integer of at least 0, got -1"),
        ({"seeds": ["../0"]}, r"seeds\[0\] must be an integer of at least 0"),
        ({"seeds": []}, "seeds must be a list of at least 1"),
    ],
)
def test_what_is_used_in_a_path_is_checked(finished, tmp_path, changes, message):
    source = finished[0] / "checkpoints/stage1/0/outcome.json"
    outcome = json.loads(source.read_text())
    outcome.pop("digest")
    _write_outcome(tmp_path / "checkpoints/stage1/0", outcome | changes)
    with pytest.raises(InputError, match=message):
        stored.load_leaves(stored.find(tmp_path, ["stage1"]))


def test_a_fit_is_not_named_out_of_its_workdir(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "a")
    with pytest.raises(InputError, match=r"victim' is not the name of a fit"):
        stored.find(tmp_path / "a", ["../../../victim"])


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A miniature CIFAR-100 in the form TFDS writes."""
    folder = tmp_path_factory.mktemp("cifar")
    tiny_cifar.write(folder, per_class=20, test_per_class=2)
    return folder


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_cifar_through_tfds(cifar, tmp_path, protocol):
    """The config of CIFAR100-LT on a miniature set."""
    config = tiny_digits.load("cifar100_lt", f"ir=10,net=resnet32,protocol={protocol}")
    config.data.dir = str(cifar)
    config.model.name, config.model.width = "resnet8", 4
    config.optim.epochs = config.method.los.epochs = 1
    config.method.names, config.method.repeats = ("los",), 1
    config.eval.batch = 64
    result = stages.run(config.lock(), tmp_path / "run")
    assert result["dataset"]["counts_max"] == 20
    assert result["dataset"]["counts_min"] == 2
    paper = protocol == "paper"
    assert result["protocol"]["select"] == ("test" if paper else "last")
    assert result["protocol"]["batch_norm"] == ("drift" if paper else "frozen")
    assert result["protocol"]["flip"] is paper
    assert (result["dataset"]["num_valid"] == 0) is paper
    # No class has more than 100 images: nan here, null in the file, and never 0.
    assert np.isnan(result["methods"]["los"]["many"]["values"]).all()
    stored = json.loads((tmp_path / "run/result.json").read_text())
    assert stored["methods"]["los"]["many"]["values"] == [None]
    assert "nan" in (tmp_path / "run/report/table.md").read_text()
    before = arrays(tmp_path / "run", "stage1/0")
    after = arrays(tmp_path / "run", "los/0.0")
    stats = [name for name in before if name.startswith("batch_stats/")]
    same = all(np.array_equal(before[name], after[name]) for name in stats)
    assert same is not paper  # the authors' statistics drift in stage 2


def test_a_workdir_may_move(finished, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished[0], moved)
    found = evaluation.evaluate_all(tiny_digits.config(), moved, "test")
    assert found["los/0.0"]["all"] == finished[1]["methods"]["los"]["all"]["mean"]
