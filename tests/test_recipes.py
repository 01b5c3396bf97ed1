"""Recipes, rows of grids, and their checks before a sweep writes anything."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_digits

from lt_jax import losses, methods, metrics, models, recipes
from lt_jax.cli import main
from lt_jax.errors import InputError
from lt_jax.experiment import checks, session
from lt_jax.experiment import config as configs

ENTRY = {"lr": 0.1, "epochs": 20, "delta": 0.9, "start": "stage1"}


def test_the_product_in_the_order_of_the_grid():
    entry = ENTRY | {"grid": {"delta": (0.9, 0.5), "lr": (0.1, 0.2)}}
    found = [(row["delta"], row["lr"]) for row in recipes.expand(entry)]
    assert found == [(0.9, 0.1), (0.9, 0.2), (0.5, 0.1), (0.5, 0.2)]
    for row in recipes.expand(entry):
        assert list(row) == list(ENTRY)
        assert (row["epochs"], row["start"]) == (20, "stage1")


def test_own_values_come_first_unless_in_the_grid():
    rows = recipes.expand(ENTRY | {"grid": {"lr": (0.2, 0.4)}})
    assert [row["lr"] for row in rows] == [0.1, 0.2, 0.4]
    assert rows[0] == ENTRY


def test_duplicates_are_dropped():
    rows = recipes.expand(
        ENTRY | {"grid": {"lr": (0.2, 0.1, 0.2), "epochs": (20, 20.0)}}
    )
    assert [row["lr"] for row in rows] == [0.2, 0.1]


def test_a_grid_without_keys_is_the_entry_itself():
    assert recipes.expand(ENTRY | {"grid": {}}) == [ENTRY]


def test_a_sweep_needs_a_grid():
    with pytest.raises(InputError, match="needs a 'grid'"):
        recipes.expand(ENTRY)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((0.1,), r"method.los.grid must be a group of keys, got \(0.1,\)"),
        ({"dleta": (0.5,)}, "grid has an unknown key 'dleta'.*did you mean 'delta'"),
        ({"grid": (0.5,)}, "unknown key 'grid'"),
        ({"lr": ()}, r"method.los.grid.lr must have at least one value, got \(\)"),
        ({"lr": 0.5}, "method.los.grid.lr must be a tuple, got 0.5"),
        ({"start": "fresh"}, "must be a tuple, got 'fresh'"),
        ({"lr": [0.5]}, r"must be a tuple, got \[0.5\]"),
        ({"delta": (0.5, 1.0)}, r"grid.delta must be in \[0, 1\), got 1.0"),
        ({"decay": (0.5, -1.0)}, r"grid.decay must be in \[0, 1e6\], got -1.0"),
        ({"epochs": (-2,)}, r"grid.epochs must be in \[0, 1e6\], got -2"),
        ({"sampler": ("clas",)}, "unknown method.los.grid.sampler 'clas'.*'class'"),
    ],
)
def test_grids_are_checked_with_the_config(grid, message):
    tree = tiny_digits.config().to_dict()
    tree["method"]["los"]["grid"] = grid
    with pytest.raises(InputError, match=message):
        configs.resolve(tree)


@pytest.fixture(scope="module")
def backbone():
    m = tiny_digits.config().model
    return models.create(
        m.name, stem=m.stem, width=m.width, zero_init=m.zero_init, init=m.init,
        dtype=m.dtype, axis_name="batch",
    )  # fmt: skip


def check_grids(backbone, *names, **changes):
    config = configs.resolve(tiny_digits.config(method__names=names, **changes))
    splits, _ = session.load_splits(config)
    return checks.make_methods(config, splits, backbone, grids=True)


def test_every_row_of_every_method_is_made(backbone, monkeypatch):
    rows, make = [], methods.make
    monkeypatch.setattr(
        methods, "make", lambda *given: rows.append(given) or make(*given)
    )
    made = check_grids(backbone, *methods.METHODS)
    assert made.keys() == methods.METHODS.keys()
    entry = tiny_digits.config().method.los
    deltas = [hyper["delta"] for name, _, hyper in rows if name == "los"]
    expected = [row["delta"] for row in recipes.expand(entry)]
    assert deltas == [entry.delta, *expected]
    np.testing.assert_allclose(made["los"].adjust.smooth, entry.delta)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "los",
            {"method__los__grid__lr": (0.5, 0.0)},
            "^method.los.grid, .*lr=0.0.*: the learning rate must be in .*, got 0",
        ),
        (
            "lws",  # trains the scale alone, so this decay acts on nothing
            {
                "method__lws__decay": 0.0,
                "method__lws__grid__decay": (0.0, 0.1),
                "method__decay_on": "head/kernel",
            },
            "^method.lws.grid, .*decay=0.1.*decay_on: weight decay 0.1 acts on nothing",
        ),
        # The entry's own values are wrong, so it is not the grid.
        (
            "los",
            {"method__los__delta": 1.0},
            r"^method.los.delta must be in \[0, 1\)",
        ),
    ],
)
def test_a_wrong_row_is_named(backbone, name, changes, message):
    with pytest.raises(InputError, match=message):
        check_grids(backbone, name, **changes)


def test_a_row_whose_values_are_valid_only_alone(backbone):
    """0 epochs allow any rate, and 2 the rate of the entry, but not 2 the rate 0."""
    changes = {
        "method__los__epochs": 0,
        "method__los__grid": {"epochs": (0, 2), "lr": (0.0, 0.1)},
    }
    with pytest.raises(InputError, match=r"^method.los.grid, .*epochs=2, lr=0.0"):
        check_grids(backbone, "los", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__valid": 0.0}, "a sweep chooses on validation images.*data.valid is 0"),
        (
            {"eval__choose": "few", "data__few": 1},
            "'few', but no class of that group has a validation image",
        ),
    ],
)
def test_validation_set_unfit_for_choosing(changes, message):
    config = configs.resolve(tiny_digits.config(**changes))
    splits, _ = session.load_splits(config)
    with pytest.raises(InputError, match=message):
        checks.check_sweep(config, splits)


def test_classes_without_a_validation_image_are_named():
    config = configs.resolve(tiny_digits.config())
    splits, _ = session.load_splits(config)
    assert checks.check_sweep(config, splits) == []
    labels = splits.valid.labels
    kept = splits.valid.take(np.flatnonzero((labels != 7) & (labels != 9)))
    cut = type(splits)(
        splits.train, kept, splits.test, splits.full_class_counts, splits.hash
    )
    for choose in ("balanced", "worst"):
        config = configs.resolve(tiny_digits.config(eval__choose=choose))
        (note,) = checks.check_sweep(config, cut)
        assert "2 classes have no validation image" in note
        assert note.endswith("the choice: 7, 9")
    for choose in ("all", "few", "nll", "ece", "top5"):
        config = configs.resolve(tiny_digits.config(eval__choose=choose))
        assert checks.check_sweep(config, cut) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval__choose", "balance", "unknown eval.choose 'balance'.*'balanced'"),
        ("eval__choose", "loma_row", "unknown eval.choose 'loma_row'"),
        ("eval__curves", "train", "unknown eval.curves 'train'"),
        ("method__views", 0, "method.views must be in .1, 10000., got 0"),
        ("method__feature_dtype", "float16", "feature_dtype 'float16'"),
        ("method__memory", 0.0, "method.memory must be in .0, 1e9., got 0.0"),
        ("method__memory", float("nan"), "method.memory must be a number, got nan"),
    ],
)
def test_values_of_a_sweep(key, value, message):
    with pytest.raises(InputError, match=message):
        configs.resolve(tiny_digits.config(**{key: value}))


def test_every_choice_is_a_metric():
    groups = dict.fromkeys(metrics.GROUPS, np.ones(3, bool))
    found = metrics.summary(metrics.empty(3), groups)
    assert metrics.CHOOSE.keys() <= found.keys() | metrics.COMPARED.keys()
    lowest = {k for k, sign in metrics.CHOOSE.items() if sign < 0}
    assert lowest == {"nll", "ece", "balanced_nll"}


def halved(counts: np.ndarray, *, share: float, sampler: str) -> methods.Method:
    """A toy method: cross-entropy at a share of the weight of each class."""
    adjust = losses.cross_entropy(len(counts))
    return methods.Method(adjust._replace(weight=share * adjust.weight), sampler)


def test_a_method_of_your_own(tmp_path, monkeypatch, capsys):
    """A method is one function, one line in METHODS and one recipe: the CLI has it."""
    monkeypatch.setitem(methods.METHODS, "halved", halved)
    monkeypatch.setitem(
        recipes.RECIPES,
        "halved",
        lambda case: {
            **{"lr": case.lr(0.01, 64), "epochs": 2, "decay": 0.0},
            **{"share": 0.5, "sampler": "instance", "grid": {"share": (0.5, 1.0)}},
        },
    )
    flags = ["--config", str(tiny_digits.CONFIGS / "digits_lt.py")]
    flags += ["--config.model.width=4", "--config.optim.repeats=1"]
    flags += ["--config.optim.epochs=2", "--config.method.names=halved,ce"]
    flags += ["--config.method.ce.lr=0.005", "--config.method.ce.epochs=2"]
    assert main.main(["run", *flags, "--workdir", str(tmp_path / "run")]) == 0
    assert "| halved |" in capsys.readouterr().out
    result = json.loads((tmp_path / "run/result.json").read_text())
    own, ce = (result["methods"][name] for name in ("halved", "ce"))
    assert own["hyper"]["lr"] == 0.005  # scaled to batch 32
    # Its oracle: a mean over weights does not depend on their scale.
    assert own["nll"]["values"] == pytest.approx(ce["nll"]["values"], rel=1e-5)
    flags.remove("--config.method.names=halved,ce")
    flags += [f"--config.init.path={tmp_path / 'run'}", "--config.method.names=halved"]
    assert main.main(["sweep", *flags, "--workdir", str(tmp_path / "sweep")]) == 0
    result = json.loads((tmp_path / "sweep/result.json").read_text())
    assert result["methods"]["halved"]["hyper"]["share"] in (0.5, 1.0)


def test_thin_grids_keep_inner_rates():
    """The best rate of few is seldom an extreme one."""
    case = recipes.Case(recipes.smoothing(100))
    for rows in (6, 12):
        for name, made in recipes.entries(case).items():
            grid = recipes.thinned(made, rows)
            size = np.prod([len(values) for values in grid.values()])
            assert 1 <= size <= rows, name
            rates = made["grid"].get("lr", ())
            if len(rates) > 2:
                assert {*grid["lr"]} & {*sorted(rates)[1:-1]}, name
    assert recipes.thinned(recipes.entries(case)["reweight"], 12) == {
        "decay": (5e-4,),
        "lr": (5e-3, 5e-2, 0.5),
        "power": (0.5, 1.0),
        "start": ("stage1", "fresh"),
    }
