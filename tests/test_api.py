"""The library interface: agreement with the command line, and its error messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_feature_files import arrays, config, write

import lt_jax
from lt_jax import Recipe, api, evaluate, fit_head, fit_heads, methods, recipes
from lt_jax.errors import InputError
from lt_jax.experiment import stages
from lt_jax.export import fits
from lt_jax.retraining.features import standardise

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tutorials/features.md"
USUAL = {"start": "stage1", "sampler": "instance"}


def test_heads_equal_those_of_retrain(tmp_path):
    """Start, order, rates and losses agree: every parameter equals the saved one."""
    folder = write(tmp_path / "f")
    stages.retrain(config(folder, data__valid=0.0), tmp_path / "run")
    kept = {
        name: fits.finished(tmp_path / "run", name, seeds)
        for name, seeds in {"stage1": "", "los": "0.1", "ce": "0.1"}.items()
    }
    features, labels = (
        np.load(f"{folder}/train.npz")[k] for k in ("features", "labels")
    )
    counts, delta = np.bincount(labels), recipes.smoothing(4).delta
    made = {
        "los": Recipe(methods.los(counts, delta=delta, **USUAL), lr=5e-4, epochs=2),
        "ce": Recipe(methods.ce(counts, **USUAL), lr=5e-4, epochs=2),
    }
    start = kept["stage1"].network.params["head"]
    found = fit_heads(features, labels, made, start=start, seed=1)
    for name, head in found.items():
        expected = kept[name].network.params["head"]
        assert head.diverged is None
        for leaf, value in expected.items():
            np.testing.assert_allclose(head.params[leaf], value, rtol=1e-5, atol=1e-6)
        moved = np.abs(expected["kernel"] - start["kernel"]).max()
        assert moved > 1e-4  # otherwise the start head would pass


def test_many_heads_equal_single_ones_and_the_start_is_unchanged():
    features, labels = arrays()
    counts = np.bincount(labels)
    fresh = methods.ce(counts, start="fresh", sampler="instance")
    stage1 = fit_head(features, labels, Recipe(fresh, lr=0.1, epochs=3))
    before = stage1.params["kernel"].copy()
    many = {
        "los": Recipe(methods.los(counts, delta=0.5, **USUAL), lr=0.05, epochs=2),
        "crt": Recipe(methods.crt(counts), lr=0.1, epochs=2),
        "tau": Recipe(methods.tau_norm(counts, tau=1.0), lr=0.0, epochs=0),
        "lws": Recipe(methods.lws(counts), lr=0.1, epochs=1),
    }
    found = fit_heads(features, labels, many, start=stage1)
    assert list(found) == list(many)
    for name, recipe in many.items():
        single = fit_head(features, labels, recipe, start=stage1)
        logits = single.logits(features)
        np.testing.assert_allclose(
            found[name].logits(features), logits, rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(stage1.params["kernel"], before)
    norms = np.linalg.norm(found["tau"].params["kernel"], axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_evaluate_does_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    counts = np.array([200, 50, 20, 5])
    expected = evaluate(logits, labels, counts)
    monkeypatch.setattr("lt_jax.api.ROWS", 16)
    right = logits.argmax(1) == labels
    assert expected["all"] == right.mean()
    medium = [right[labels == 1].mean(), right[labels == 2].mean()]
    assert expected["medium"] == pytest.approx(np.mean(medium))
    over_examples = evaluate(logits, labels, counts, group_average="examples")
    medium = right[(labels == 1) | (labels == 2)].mean()
    assert over_examples["medium"] == pytest.approx(medium)
    assert evaluate(logits, labels, counts) == pytest.approx(expected, rel=1e-5)


COUNTS = np.array([40, 20, 10, 6])
LOS = Recipe(methods.los(COUNTS, delta=0.5, **USUAL), lr=0.05, epochs=2)
START = {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "continues from a trained head"),
        ({"start": {"weight": np.zeros(3)}}, "expected the kernel and bias"),
        ({"start": START | {"kernel": np.zeros((4, 8))}}, "expected \\[8, K\\]"),
        ({"start": {"kernel": np.zeros((8, 3)), "bias": np.zeros(3)}}, "3 classes"),
        ({"labels": np.arange(76) % 5}, "a label is 4"),
        ({"labels": np.zeros(76, int)}, "at least 2 classes, all are 0"),
        ({"labels": np.arange(76) / 2}, r"labels must be integers or .*, got float64"),
        ({"labels": np.full(76, 2**40)}, "labels must be integers from 0, got 1099"),
        ({"labels": np.zeros(3, int)}, "one label per example"),
        ({"features": np.full((76, 8), np.nan)}, "features must be finite"),
        ({"recipe": LOS._replace(lr=0.0)}, "rate must be in .0, inf., got 0.0"),
        ({"recipe": LOS._replace(epochs=-1)}, "epochs must be an integer in"),
        ({"recipe": LOS._replace(epochs=10**9)}, "are more than 20,000,000 steps"),
        ({"recipe": LOS._replace(decay=-1.0)}, "decay must be in"),
        (
            {"recipe": LOS._replace(momentum=2.0)},
            "momentum must be in .*, got 2.0",
        ),
        ({"recipe": LOS._replace(lr="a")}, "rate must be in .*, got 'a'"),
        ({"recipe": LOS._replace(method="los")}, "expected a Recipe with a Method"),
        ({"recipe": None}, "expected a Recipe with a Method, got None"),
        ({"start": START | {"bias": np.full(4, np.nan)}}, "that are not finite"),
        ({"start": [1]}, r"start holds \[1\]; expected the kernel and bias"),
        ({"batch": 0}, "batch must be an integer in"),
        ({"batch": 1.5}, "batch must be an integer in .*, got 1.5"),
        ({"seed": 2**32}, "seed must be an integer in .*, got 4294967296"),
        ({"memory": np.inf}, "memory must be in .*, got inf"),
    ],
)
def test_invalid_input(changes, message):
    features, labels = arrays()
    given = {"features": features, "labels": labels, "recipe": LOS, "start": START}
    with pytest.raises(InputError, match=message):
        fit_head(**given | changes)


def test_errors_name_the_recipe():
    features, labels = arrays()
    bad = {"good": LOS, "bad": LOS._replace(decay=-1.0)}
    with pytest.raises(InputError, match=r"^recipe 'bad': decay must be in"):
        fit_heads(features, labels, bad, start=START)


def test_invalid_logits():
    with pytest.raises(InputError, match="logits have 2 classes"):
        evaluate(np.zeros((3, 2)), np.zeros(3, int), np.ones(3))
    for wrong in (-np.ones(2), ["a", "b"], [1, np.nan]):
        with pytest.raises(InputError, match="counts must be at least 0"):
            evaluate(np.zeros((3, 2)), np.zeros(3, int), wrong)
    head = lt_jax.FittedHead(methods.linear, {"kernel": np.zeros((8, 4))}, None)
    with pytest.raises(InputError, match="expected numbers \\[N, 8\\]"):
        head.logits(np.zeros((2, 3)))


def test_public_names():
    for name in lt_jax.__all__:
        assert getattr(lt_jax, name).__doc__
    with pytest.raises(AttributeError, match="fit_haed"):
        lt_jax.fit_haed  # noqa: B018


def blocks(title: str) -> list[str]:
    section = (
        PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    )
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_readme_example_prints_the_documented_numbers(tmp_path):
    (features,), (example,) = blocks("Features from anywhere"), blocks("As a library")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", features + example],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    (printed,) = re.findall(r"```\n(stage 1: .*?)```", PAGE.read_text(), re.DOTALL)
    expected, found = (re.findall(r"[\d.]+", text) for text in (printed, done.stdout))
    assert len(found) == len(expected) > 8
    np.testing.assert_allclose(
        [float(x) for x in found], [float(x) for x in expected], atol=1.0
    )


def test_a_method_by_name_has_the_published_recipe_and_its_own_stage_1():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 20, 6])
    features = np.eye(3)[labels] + 0.2 * rng.normal(size=(86, 3))
    counts = np.bincount(labels)
    values, *_ = standardise(np.float32(features))
    assert np.linalg.norm(values, axis=1).mean() == pytest.approx(8)
    start = api.fit_head(values, labels, api.stage1(counts))
    recipe = api.published("los", counts)
    assert (recipe.lr, recipe.epochs) == (5e-4, 20)
    delta = float(recipe.method.adjust.smooth[0])
    assert delta == pytest.approx(3 / 5.04)  # K = 3, not 0.98
    expected = api.fit_head(values, labels, recipe, start=start)
    found = api.fit_head(features, labels, method="los")
    np.testing.assert_array_equal(found.logits(features), expected.logits(values))
    far = api.fit_head(features * 64, labels, method="los")
    np.testing.assert_allclose(far.logits(features * 64), found.logits(features), 1e-4)
    np.testing.assert_array_equal(found.params["kernel"], expected.params["kernel"])
    assert api.published("los", counts, delta=0.5).method.adjust.smooth[0] == 0.5


def test_invalid_methods_by_name():
    labels, features = np.array([0, 1]), np.eye(2)
    with pytest.raises(InputError, match=r"unknown method 'lso'.*'los'"):
        api.fit_head(features, labels, method="lso")
    with pytest.raises(InputError, match="a recipe or a method, got both: 'los'"):
        api.fit_head(features, labels, api.stage1([1, 1]), method="los")
    with pytest.raises(InputError, match="method 'crt' has no 'delta'"):
        api.published("crt", [3, 2], delta=0.1)
