"""Feature files: three formats, invalid input, and every command."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_digits

from lt_jax import trees
from lt_jax.cli import main
from lt_jax.data import catalogue
from lt_jax.data.sources import features as vectors
from lt_jax.errors import InputError
from lt_jax.experiment import evaluation, results
from lt_jax.experiment import stages as train
from lt_jax.experiment.config import resolve
from lt_jax.export import fits, stablehlo
from lt_jax.pretrained import torch_names, weight_files

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tiny_digits.CONFIGS / "features.py"
COUNTS = (40, 20, 10, 6)


def arrays(counts=COUNTS, seed=0, width=8, dtype=np.float32):
    """Features around one centre per class, with labels, in random order."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(len(counts), width))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    noise = rng.normal(size=(len(labels), width))
    return (2 * centres[labels] + noise).astype(dtype), labels


def write(folder, form="npz", train=None, test=None):
    folder.mkdir(exist_ok=True)
    pairs = {"train": train or arrays(), "test": test or arrays((10,) * 4, seed=1)}
    for split, (features, labels) in pairs.items():
        if form == "npz":
            np.savez(folder / f"{split}.npz", features=features, labels=labels)
        elif form == "npy":
            np.save(folder / f"{split}.npy", features)
            np.save(folder / f"{split}_labels.npy", labels)
        else:
            columns = {"features": list(features), "labels": labels}
            if form == "fixed":
                flat = pyarrow.array(features.ravel())
                width = features.shape[1]
                columns["features"] = pyarrow.FixedSizeListArray.from_arrays(
                    flat, width
                )
            table = pyarrow.table(columns)
            file = folder / f"{split}.parquet"
            pyarrow.parquet.write_table(table, file, row_group_size=7)
    return str(folder)


@pytest.mark.parametrize("form", ["npz", "npy", "parquet", "fixed"])
def test_every_format_gives_the_same_datasets(tmp_path, form):
    full, _, test = vectors.load(write(tmp_path, form))
    features, labels = arrays()
    assert full.shape == (1, 1, 8)
    assert full.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(full.labels, labels)
    rows = np.array([5, 0])
    np.testing.assert_array_equal(full.read(rows)[:, 0, 0], features[rows])
    assert full.read(rows).dtype == np.float32
    assert len(test) == 40
    assert full.hash == vectors.load(write(tmp_path / "npz"))[0].hash


def test_the_hash_identifies_the_content(tmp_path):
    features, labels = arrays()
    one, *_ = vectors.load(write(tmp_path / "a"))
    other, *_ = vectors.load(write(tmp_path / "b", train=(features * 1.5, labels)))
    assert one.hash != other.hash


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_other_numbers_become_float32(tmp_path, dtype):
    features, labels = arrays()
    given = np.abs(features).astype(dtype)
    full, *_ = vectors.load(write(tmp_path, train=(given, labels)))
    found = full.read(np.arange(len(full)))[:, 0, 0]
    np.testing.assert_array_equal(found, given.astype(np.float32))


NAMES = np.array(["b", "a", "10", "9"])  # of the classes, numbers last


@pytest.mark.parametrize("form", ["npz", "npy", "parquet"])
def test_labels_are_names(tmp_path, form):
    features, labels = arrays()
    test = arrays((10,) * 4, seed=1)
    pairs = {"train": (features, NAMES[labels]), "test": (test[0], NAMES[test[1]])}
    full, _, test_set = vectors.load(write(tmp_path, form, **pairs))
    assert full.classes == ("a", "b", "9", "10")
    np.testing.assert_array_equal(np.array(full.classes)[full.labels], NAMES[labels])
    np.testing.assert_array_equal(test_set.labels, np.array([1, 0, 3, 2])[test[1]])
    given = {"train": (features, NAMES[labels].astype("S")), "test": pairs["test"]}
    assert vectors.load(write(tmp_path / "bytes", **given))[0].hash == full.hash


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.arange(4), "labels are text in test, but numbers in train: use one kind"),
        (
            np.array(["a", "b", "9", "c"]),
            "1 classes of 'test' have no training example",
        ),
    ],
)
def test_names_that_differ(tmp_path, names, message):
    (features, labels), test = arrays(), arrays((10,) * 4, seed=1)
    pairs = {"train": (features, names[labels]), "test": (test[0], NAMES[test[1]])}
    with pytest.raises(InputError, match=message):
        vectors.load(write(tmp_path, **pairs))


def test_without_a_test_set_a_fifth_of_each_class_is_held_out(tmp_path, capsys):
    (Path(write(tmp_path)) / "test.npz").unlink()
    full, _, test = vectors.load(str(tmp_path))
    assert test.class_counts.tolist() == [8, 4, 2, 1]
    assert (full.class_counts + test.class_counts).tolist() == list(COUNTS)
    assert "no test set (test.npz): 20% of each" in capsys.readouterr().err


def changed(**changes):
    features, labels = arrays()
    given = {"features": features, "labels": labels}
    return tuple(
        changes[name](value) if name in changes else value
        for name, value in given.items()
    )


def with_nan(features):
    features[[3, 7], 2] = np.nan, np.inf
    return features


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (changed(labels=lambda y: y[:-1]), r"76 features and labels of shape \[75\]"),
        (
            changed(features=with_nan),
            r"must be finite; those of example 3 are not \(2 such",
        ),
        (changed(features=lambda f: f.astype(np.float64) * 1e300), "must be finite"),
        (changed(labels=lambda y: y - 1), r"labels must be integers from 0, got -1"),
        (
            changed(labels=lambda y: y.astype(float)),
            r"labels must be integers or names .*, got float64: .*astype\(int\)",
        ),
        (changed(labels=lambda y: y % 3), r"has label 3, expected 0 to 2 \(10 such"),
        (
            changed(features=lambda f: f[:, :0]),
            r"features must be numbers .*, got float32\[76, 0\]",
        ),
        (
            changed(features=lambda f: f[:, None]),
            r"features must be numbers .*, got float32\[76, 1, 8\]",
        ),
        (
            changed(features=lambda f: f.astype(str)),
            r"features must be numbers .*, got <U\d+\[76, 8\]",
        ),
        (
            changed(features=lambda f: f[:, 1:]),
            "got 7 numbers each in train, 8 in test",
        ),
        (
            changed(features=lambda f: f.astype(object)),
            "expected arrays of numbers, written by np.savez",
        ),
    ],
)
def test_invalid_arrays(tmp_path, train, message):
    given = {"imbalance": 1.0, "split": "whole", "valid": 0.0, "seed": 0}
    with pytest.raises(InputError, match=message):
        catalogue.load("features", dir=write(tmp_path, train=train), **given)


def test_invalid_files(tmp_path):
    with pytest.raises(InputError, match=r"no features in .*expected train\.npz or"):
        vectors.load(str(tmp_path))
    with pytest.raises(InputError, match=r"data\.dir must be .* got ''"):
        vectors.load("")
    write(tmp_path, "npy")
    (tmp_path / "train_labels.npy").unlink()
    with pytest.raises(InputError, match=r"train_labels\.npy.*expected arrays"):
        vectors.load(str(tmp_path))
    write(tmp_path)
    np.savez(tmp_path / "train.npz", x=np.ones(3))
    with pytest.raises(InputError, match=r"expected 'features' once .*features=\.\.\."):
        vectors.load(str(tmp_path))
    (tmp_path / "train.npz").write_bytes(b"PK\3\4 and rubbish")
    with pytest.raises(InputError, match="cannot be read"):
        vectors.load(str(tmp_path))


def test_invalid_parquet(tmp_path):
    write(tmp_path, "parquet")
    file = tmp_path / "train.parquet"
    ragged = pyarrow.table({"features": [[1.0, 2.0], [1.0]], "labels": [0, 1]})
    pyarrow.parquet.write_table(ragged, file)
    with pytest.raises(InputError, match="the same D for all"):
        vectors.load(str(tmp_path))
    pyarrow.parquet.write_table(ragged.rename_columns(["x", "labels"]), file)
    with pytest.raises(InputError, match="the columns features"):
        vectors.load(str(tmp_path))
    file.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="cannot be read"):
        vectors.load(str(tmp_path))


MAP = pyarrow.map_(pyarrow.string(), pyarrow.float32())


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ([1.0, 2.0], [0, 1], "features holds double"),
        ([{"a": 1.0}] * 2, [0, 1], "features holds struct"),
        (pyarrow.array([[("a", 1.0)]] * 2, MAP), [0, 1], "features holds map"),
        ([["a"], ["b"]], [0, 1], "features holds list<element: string>"),
        ([[[1.0]], [[2.0]]], [0, 1], "features holds list<element: list"),
        ([[1.0], None], [0, 1], "which lack 1 features and 0 labels"),
        ([[1.0], [None]], [0, 1], "features must be finite"),
        ([[1.0], [2.0]], [0, None], "1 labels"),
        ([[1.0], [2.0]], [0.0, 1.0], "labels holds double, not text or integers"),
        ([[1.0], [2.0]], [{"a": 0}] * 2, "labels holds struct"),
    ],
)
def test_invalid_columns(tmp_path, features, labels, message):
    write(tmp_path, "parquet")
    table = pyarrow.table({"features": features, "labels": labels})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=message):
        vectors.load(str(tmp_path))


def test_an_id_in_place_of_a_label(tmp_path):
    """Counting two thousand million classes would hang."""
    features, labels = arrays()
    labels[3] = 2_000_000_000
    folder = write(tmp_path, train=(features, labels))
    with pytest.raises(InputError, match="has label 2000000000, but only 76 examples"):
        vectors.load(folder)


@pytest.mark.parametrize("name", ["train.npy", "train_labels.npy", "test.npy"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    write(tmp_path, "npy")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is not a regular file"):
        vectors.load(str(tmp_path))


def test_one_class_is_no_task(tmp_path):
    features, labels = arrays()
    folder = write(tmp_path, train=(features, labels * 0), test=(features, labels * 0))
    given = {"imbalance": 1.0, "split": "whole", "valid": 0.2, "seed": 0}
    with pytest.raises(InputError, match=r"one class, '0': expected at least two$"):
        catalogue.load("features", dir=folder, **given)


@pytest.mark.parametrize("command", ["retrain", "sweep"])
def test_invalid_features_end_a_command_with_one_message(tmp_path, capsys, command):
    """Exit code 2, no traceback, no workdir."""
    folder = write(tmp_path / "f", train=changed(features=with_nan))
    arguments = [command, "--config", f"{CONFIG}:path={folder}"]
    assert main.main([*arguments, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lt-jax: ")
    assert "features must be finite; those of example 3 are not" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_features_of_another_width_than_the_head(folder, tmp_path):
    train.retrain(config(folder), tmp_path / "narrow")
    wide = write(
        tmp_path / "wide",
        train=arrays(width=12),
        test=arrays((10,) * 4, seed=1, width=12),
    )
    there = config(wide, init__path=str(tmp_path / "narrow"))
    with pytest.raises(InputError, match=r"params/head/kernel: \(8, 4\).*\(12, 4\)"):
        train.retrain(there, tmp_path / "other")


def test_whole_is_not_cut(tmp_path):
    where = {"dir": write(tmp_path), "valid": 0.2, "seed": 0}
    splits = catalogue.load("features", imbalance=1.0, split="whole", **where)
    assert splits.full_class_counts.tolist() == list(COUNTS)
    cut = catalogue.load("features", imbalance=20, split="first", **where)
    assert cut.full_class_counts.max() == 20 * cut.full_class_counts.min() == 40


def config(folder, **changes):
    c = tiny_digits.load("features", f"path={folder}")
    c.optim.epochs = 5
    c.method.repeats = 2
    for name in ("ce", "los"):
        c.method[name].epochs = 2
        c.method[name].grid = {"lr": (1e-3, 0.1)}
    with c.unlocked():
        c.update_from_flattened_dict(
            {k.replace("__", "."): v for k, v in changes.items()}
        )
    return c.lock()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vectors"))


def test_retrain_without_stage1_cached_and_online(folder, tmp_path):
    """Without stage 1, its head is fitted first. Cached equals online."""
    cached = train.retrain(config(folder), tmp_path / "cached")
    assert cached["methods"]["none"]["all"]["mean"] > 0.7
    online = train.retrain(
        config(folder, method__features="online"), tmp_path / "online"
    )
    for name in ("none", "ce", "los"):
        one, other = (r["methods"][name]["nll"]["values"] for r in (cached, online))
        np.testing.assert_allclose(one, other, rtol=1e-4)
    found = evaluation.evaluate_all(config(folder), tmp_path / "cached", "test")
    assert found["los/0.1"]["all"] == cached["methods"]["los"]["all"]["values"][1]


def test_sweep_without_stage1(folder, tmp_path):
    result = train.sweep(config(folder), tmp_path)
    assert result["sweep"]["heads"] == 2 * 2 * 3  # methods, seeds; the grid and its own
    assert set(result["methods"]) == {"none", "ce", "los"}


def test_features_of_any_norm_are_scaled_on_request(folder, tmp_path, capsys):
    """Heads are those of the scaled features; the workdir has centre and scale."""
    pairs = {"train": arrays(), "test": arrays((10,) * 4, seed=1)}
    pairs = {split: (64 * values + 5, y) for split, (values, y) in pairs.items()}
    far = write(tmp_path / "far", **pairs)
    one, other = (
        train.retrain(config(at, data__norm=8.0), tmp_path / name)["methods"]
        for at, name in ((folder, "one"), (far, "other"))
    )
    assert "published rates suit" not in capsys.readouterr().out
    for name in ("none", "ce", "los"):
        values = (r[name]["nll"]["values"] for r in (one, other))
        np.testing.assert_allclose(*values, rtol=1e-3)
    seen = np.load(tmp_path / "other/features/0/train.npy")[0]
    assert np.linalg.norm(seen, axis=1).mean() == pytest.approx(8, rel=1e-4)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)

    found = evaluation.evaluate_all(
        config(far, data__norm=8.0), tmp_path / "other", "test"
    )
    assert found["los/0.1"]["all"] == other["los"]["all"]["values"][1]
    fit = fits.finished(tmp_path / "other", "los")
    values, labels = pairs["test"]
    compute, _ = stablehlo.program(fit)
    logits = np.asarray(compute(fit.network, values))
    assert np.mean(logits.argmax(axis=1) == labels) == other["los"]["all"]["values"][0]
    torch = torch_names.to_torch(trees.leaves(fit.network._asdict()))
    assert torch.keys() == {"fc.weight", "fc.bias"}
    expected = values @ torch["fc.weight"].T + torch["fc.bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=r"data\.norm, .* are for features"):
        resolve(tiny_digits.config(data__norm=8.0))


def test_a_refit_has_seen_the_validation_examples(folder, tmp_path, capsys):
    changes = {"method__names": ("logistic",), "data__norm": 8.0, "method__repeats": 1}
    c, run = config(folder, method__refit=True, **changes), tmp_path / "run"
    best = train.sweep(c, run)["recommended"]
    assert (best["method"], best["refit"]) == ("logistic", True)
    out = capsys.readouterr().out
    of_refit = results.outcome(run / "refit/checkpoints/logistic/0.0")["metrics"]
    assert best["test"] == {key: of_refit[key] for key in ("balanced", "all")}
    assert f"logistic has balanced {100 * of_refit['balanced']:.1f}, all " in out
    assert "; the table has the head before that fit" in out
    fit = fits.finished(run, "")
    chosen = fits.finished(run, best["fit"])
    assert (fit.title, fit.temperature) == (chosen.title, chosen.temperature)
    without = config(folder, data__valid=0.0, **changes)
    for key, value in best["hyper"].items():
        without.method.logistic[key] = value
    train.retrain(without, tmp_path / "all")
    expected = fits.finished(tmp_path / "all", "logistic")

    def logits(fit):
        compute, _ = stablehlo.program(fit)
        return np.asarray(compute(fit.network, arrays((10,) * 4, seed=1)[0]))

    np.testing.assert_allclose(logits(fit), logits(expected), rtol=1e-2, atol=1e-2)
    assert np.abs(logits(fit) - logits(chosen)).max() > 0.1
    file = tmp_path / "head.safetensors"
    assert main.main(["convert", str(run), str(file), "--method="]) == 0
    expected = torch_names.to_torch(trees.leaves(fit.network._asdict()))["fc.bias"]
    np.testing.assert_array_equal(weight_files.read(file)["fc.bias"], expected)

    found = evaluation.evaluate_all(c, run, "test")["refit/logistic/0.0"]
    right = logits(fit).argmax(axis=1) == arrays((10,) * 4, seed=1)[1]
    assert found["all"] == pytest.approx(np.mean(right))
    assert "refit/logistic/0.0" not in evaluation.evaluate_all(c, run, "valid")

    train.sweep(c, run)
    assert "fitting logistic again" not in capsys.readouterr().out
    directory = run / "refit/checkpoints/logistic/0.0"
    outcome = results.outcome(directory)
    other = {**outcome, "hyper": {**outcome["hyper"], "penalty": 7.0}}
    results.save_outcome(directory, other)  # as if another setting had been chosen
    train.sweep(c, run)
    assert "fitting logistic again on all 76 examples" in capsys.readouterr().out
    assert results.outcome(directory)["hyper"] == best["hyper"]


def test_a_refit_of_stage_1(folder, tmp_path):
    """LOS that changes nothing is no better than the head of stage 1."""
    entry = {"lr": 1e-30, "epochs": 1, "decay": 0.0, "delta": 0.1, "start": "stage1"}
    entry |= {"sampler": "instance", "grid": {"lr": (1e-30,)}}
    changes = {"method__names": ("los",), "method__los": entry, "method__refit": True}
    best = train.sweep(config(folder, **changes), tmp_path)["recommended"]
    assert (best["method"], best["refit"]) == ("none", True)
    fit = fits.finished(tmp_path, "")
    assert fit.title == best["fit"] == "stage1/0"
    kernel = fits.finished(tmp_path, "stage1").network.params["head"]["kernel"]
    assert np.abs(fit.network.params["head"]["kernel"] - kernel).max() > 1e-3


def test_predict_from_features_with_the_recommended_head(folder, tmp_path, capsys):
    result = train.sweep(config(folder), tmp_path / "run")
    best = result["recommended"]
    scores = result["sweep"]["valid"]
    assert best["method"] in ("none", *scores)
    assert best["score"] >= max(v["mean"] for v in scores.values())
    values, labels = arrays((10,) * 4, seed=1)
    np.savez(tmp_path / "new.npz", features=values)
    flags = ["predict", "--workdir", str(tmp_path / "run"), str(tmp_path / "new.npz")]
    capsys.readouterr()
    assert main.main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["head"], found["recommended"]) == (best["fit"], True)
    assert found["images"][3]["path"] == f"{tmp_path / 'new.npz'}[3]"
    guesses = [int(each["top"][0]["class"]) for each in found["images"]]
    method = result["methods"][best["method"]]["all"]["values"][0]
    assert np.mean(guesses == labels) == pytest.approx(method)

    # The temperature is that of the outcome, which minimises the loss on validation.
    outcome = json.loads(
        (tmp_path / "run/checkpoints" / best["fit"] / "outcome.json").read_text()
    )
    fitted = outcome["temperature"]  # at a bound if all validation examples are right
    temperature = fitted if 1 / 1024 < fitted < 1024 else 1.0
    assert found["temperature"] == temperature
    fit = fits.finished(tmp_path / "run", "")
    logits = np.asarray(fit.head.apply(fit.network.params["head"], values))
    expected = jax.nn.softmax(logits / temperature).max(axis=1)
    chances = [each["top"][0]["probability"] for each in found["images"]]
    np.testing.assert_allclose(chances, expected, rtol=1e-5)

    np.save(tmp_path / "wide.npy", np.ones((2, 9)))
    for name, message in (
        ("wide.npy", "has 9 numbers per example, but chosen"),
        ("x.jpg", "takes features, 8 numbers per example: expected files that end in"),
    ):
        assert main.main([*flags[:3], str(tmp_path / name)]) == 2
        assert message.replace("chosen", best["fit"]) in capsys.readouterr().err


def test_other_files_are_not_mistaken_for_the_old_ones(folder, tmp_path):
    train.retrain(config(folder), tmp_path / "work")
    features, labels = arrays()
    other = write(tmp_path / "other", train=(features[::-1].copy(), labels))
    with pytest.raises(InputError, match="was fitted on other training examples"):
        train.retrain(config(other), tmp_path / "work")


@pytest.mark.parametrize("key", ["data__flip", "eval__flip", "data__pad"])
def test_features_are_neither_cropped_nor_mirrored(folder, tmp_path, key):
    with pytest.raises(InputError, match="cannot be cropped or mirrored"):
        train.run(config(folder, **{key: 1 if "pad" in key else True}), tmp_path)


def test_pixels_are_features_too(tmp_path):
    """Without a backbone, the features are the normalised, augmented pixels."""
    result = train.train(tiny_digits.config(model__name="none"), tmp_path)
    assert result["methods"]["none"]["all"]["mean"] > 0.5


def test_the_example_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/tutorials/features.md").read_text(encoding="utf-8")
    section = page.split("## Features from anywhere")[1].split("\n## ")[0]
    (script,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    commands = [line for line in section.splitlines() if line.startswith("lt-jax ")]
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert len(commands) == 2
    for command in commands:
        words = command.replace("configs/", f"{ROOT}/configs/").split()[1:]
        assert main.main([*words, "--config.method.repeats=1"]) == 0
        assert "| los " in capsys.readouterr().out
