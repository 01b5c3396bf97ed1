"""Every config is complete and every key of it is commented and read."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_digits
from ml_collections import ConfigDict
from PIL import Image

from lt_jax import methods, metrics, models, recipes
from lt_jax.errors import InputError
from lt_jax.experiment import checks, records, session, stages
from lt_jax.experiment import config as configs

GROUPS = ["seed", "data", "model", "init", "method", "optim", "eval", "save", "log"]
FILES = sorted(path.stem for path in tiny_digits.CONFIGS.glob("*.py"))


# Configs of photographs: number of classes, and additional keys of `data`.
CLASSES = {"inat2018": 8142, "imagenet_lt": 1000, "folder": 100}
PHOTO = {"size", "resize", "scale", "ratio", "broken", "workers"}
MORE = {"inat2018": PHOTO, "imagenet_lt": PHOTO, "folder": PHOTO | {"table", "test"}}


def leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


@pytest.mark.parametrize("name", FILES)
def test_groups(name):
    assert set(tiny_digits.load(name)) == set(GROUPS)


def test_configs_hold_what_differs_only():
    sizes = [
        len((tiny_digits.CONFIGS / f"{name}.py").read_text().splitlines())
        for name in FILES
    ]
    assert max(sizes) <= 80
    assert sum(sizes) <= 450


def entries(config: ConfigDict) -> dict[str, ConfigDict]:
    return {k: v for k, v in config.method.items() if isinstance(v, ConfigDict)}


def test_every_key_has_a_comment():
    """In the line of its field, or in the line before."""
    commented = set()
    for group, record in {"": records.Config, **configs.GROUPS}.items():
        lines = [k for kind in record.__mro__[:-1] for k in source_of(kind)]
        for before, line in zip(["", *lines], lines, strict=False):
            match = re.match(r"    (\w+): .* = ", line)
            if match and ("#" in line or before.strip().startswith("#")):
                commented.add(f"{group}.{match[1]}".strip("."))
    keys = set(leaves(tiny_digits.load("folder")))
    keys = {key for key in keys if key.count(".") < 2}
    assert keys <= commented


def source_of(kind: type) -> list[str]:
    return inspect.getsource(kind).splitlines()


def test_every_key_of_an_entry_is_explained():
    case = recipes.Case(recipes.CIFAR100)
    found = {key for entry in recipes.entries(case).values() for key in entry}
    page = (tiny_digits.CONFIGS.parent / "docs/reference/config.md").read_text(
        encoding="utf-8"
    )
    assert found == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_method_has_a_recipe():
    assert recipes.RECIPES.keys() == methods.METHODS.keys()


@pytest.mark.parametrize("name", FILES)
def test_grids(name):
    """Complete, of a size that a sweep can take, and right in every row."""
    counts = np.arange(1, CLASSES.get(name, 10) + 1)
    c = checks.from_data(configs.resolve(tiny_digits.load(name)), counts)
    found = {key: ConfigDict(entry) for key, entry in c.method.entries.items()}
    total = 0
    for method, entry in found.items():
        rows = recipes.expand(entry)
        assert len(rows) <= 45, method
        total += len(rows)
        assert ("lr" in entry.grid) == (entry.epochs > 0), method
        if entry.epochs:
            assert min(entry.grid.lr) * 100 <= max(entry.grid.lr), method
        for row in rows:
            hyper = {k: v for k, v in row.items() if k not in configs.OPTIMISER}
            methods.make(method, counts, hyper)
    assert 3 * total <= 1500
    los, ce = found["los"].grid, found["ce"].grid
    # The same amounts of smoothing everywhere: of K (1 - delta) / delta.
    if name in (*CLASSES, "features"):
        num_classes = len(counts)
        amounts = [num_classes * (1 - d) / d for d in los.delta]
        cifar = entries(tiny_digits.load("cifar100_lt"))["los"]
        expected = [100 * (1 - d) / d for d in cifar.grid.delta]
        np.testing.assert_allclose(amounts, expected, rtol=1e-2)
        own = found["los"].delta
        assert num_classes * (1 - own) / own == pytest.approx(2 / 0.98, rel=1e-2)
    else:
        assert (min(los.delta), max(los.delta)) == (0.1, 0.999)
    assert los.delta == tuple(sorted(los.delta))
    assert 5e-4 in los.lr
    assert 5e-4 in ce.lr
    assert found["tau_norm"].grid.tau == tuple(i / 10 for i in range(21))


@pytest.mark.parametrize("name", FILES)
def test_all_configs_have_the_same_keys_outside_of_method(name):
    """Configs of photographs have additional keys for reading photographs."""

    def outside(config):
        return {key for key in leaves(config) if not re.match(r"method\.\w+\.", key)}

    more = {f"data.{key}" for key in MORE[name]} if name in MORE else set()
    found = outside(tiny_digits.load(name))
    assert found == outside(tiny_digits.load("digits_lt")) | more


@pytest.mark.parametrize("name", FILES)
def test_methods_of_the_config_exist(name):
    config = tiny_digits.load(name)
    filled = checks.from_data(configs.resolve(config), np.arange(1, 11))
    for method, entry in filled.method.entries.items():
        hyper = {
            k: v for k, v in recipes.own(entry).items() if k not in configs.OPTIMISER
        }
        methods.make(method, np.arange(1, 11), hyper)
        assert {*configs.OPTIMISER, "grid"} <= set(entry)
    assert set(config.method.names) <= set(config.method)


@pytest.fixture
def read(monkeypatch):
    """The keys of resolved configs that are read, as ``optim.lr``."""
    groups = {group: name for name, group in configs.GROUPS.items()}
    found: set[str] = set()
    for group, name in {**groups, configs.Config: ""}.items():

        def noting(self, key, name=name, group=group):
            found.add(f"{name}.{key}".strip("."))
            return object.__getattribute__(self, key)

        monkeypatch.setattr(group, "__getattribute__", noting)
    # Both read everything: what they read is not used.
    monkeypatch.setattr(configs.Config, "__post_init__", lambda self: None)
    monkeypatch.setattr(session, "as_dict", lambda config: {"method": {}})
    return found


def test_every_key_is_read(tmp_path, read):
    """By both stages, online and cached, and by the check of a sweep."""
    config = tiny_digits.config(
        optim__epochs=1,
        method__names=("ce",),
        method__ce__epochs=0,
        method__los__epochs=0,
    )
    stages.run(config, tmp_path)
    config.method.names, config.method.features = ("los",), "cached"
    stages.run(config, tmp_path)
    c = configs.resolve(config)
    checks.check_sweep(c, session.load_splits(c)[0])
    unread = {key for key in leaves(config) if key.count(".") < 2} - read
    # Read when a sweep has fitted its heads (eval.curves), and with init.path.
    assert unread == {"eval.curves", "init.sha256", "init.skip"}


def test_every_key_of_photographs_is_read(tmp_path, read):
    """The keys for reading photographs, and those of the source."""
    for part in ("train", "val", "test"):
        for i, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for j in range(2):
                image = Image.new("RGB", (20, 20), (60 * i, 60 * j, len(part)))
                image.save(tmp_path / part / name / f"{j}.png")
    config = tiny_digits.load("folder", f"path={tmp_path},classes=2,net=resnet10")
    c = configs.resolve(config)
    read.clear()
    splits, groups = session.load_splits(c)
    session.make_task(c, splits, groups)
    assert {f"data.{key}" for key in config.data} <= read


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("", "data.imbalance", 100.0),
        ("ir=50", "data.imbalance", 50.0),
        ("ir=10,split=cao", "data.split", "cao"),
        ("net=resnet32", "model.width", 16),
        ("data=cifar10", "data.name", "cifar10"),
        ("protocol=paper", "eval.select", "test"),
        ("protocol=paper", "method.batch_norm", "drift"),
        ("protocol=paper", "eval.flip", True),
        ("protocol=paper", "data.valid", 0.0),
        ("protocol=clean", "method.batch_norm", "frozen"),
        ("methods=two", "method.names", ("ce", "los")),
    ],
)
def test_arguments_of_cifar100_lt(argument, key, value):
    config = tiny_digits.load("cifar100_lt", argument)
    group, name = key.split(".")
    assert config[group][name] == value


@pytest.mark.parametrize("name", ["cifar100_lt", *CLASSES])
def test_methods_all_are_all_methods(name):
    names = tiny_digits.load(name, "methods=all").method.names
    assert sorted(names) == sorted(methods.METHODS)


@pytest.mark.parametrize(
    ("name", "argument", "key", "value"),
    [
        ("inat2018", "", "data.name", "i_naturalist2018"),
        ("inat2018", "net=resnet152", "model.name", "resnet152"),
        ("inat2018", "epochs=200", "optim.epochs", 200),
        ("inat2018", "protocol=paper", "data.valid", 0.0),
        ("inat2018", "features=online", "method.features", "online"),
        ("imagenet_lt", "", "model.name", "resnext50_32x4d"),
        ("imagenet_lt", "", "data.jitter", (0.0, 0.0, 0.0, 0.0)),
        ("imagenet_lt", "colours=jitter", "data.jitter", (0.4, 0.4, 0.4, 0.0)),
        ("folder", "path=a/b", "data.dir", "a/b"),
        ("folder", "table=c.csv", "data.table", "c.csv"),
    ],
)
def test_arguments_of_photographs(name, argument, key, value):
    config = tiny_digits.load(name, argument)
    group, last = key.split(".")
    assert config[group][last] == value


@pytest.mark.parametrize("file", ["folder", "features"])
def test_delta_and_limits_follow_the_data(file):
    config = configs.resolve(tiny_digits.load(file))
    assert config.method.entries["los"]["delta"] == recipes.FROM_DATA
    for counts in (np.array([40, 8, 3]), np.arange(1000) + 1):
        c = checks.from_data(config, counts)
        assert (c.data.many, c.data.few) == metrics.group_limits(counts)
        case = recipes.Case(recipes.smoothing(len(counts)))
        for name in ("los", "los_balanced_softmax"):
            entry, expected = c.method.entries[name], recipes.RECIPES[name](case)
            assert entry["delta"] == expected["delta"]
            assert entry["grid"]["delta"] == expected["grid"]["delta"]
        assert checks.from_data(c, counts[:2]) == c  # nothing is left to the data


def test_values_that_are_given_stay():
    c = configs.resolve(tiny_digits.load("features", "delta=0.5,limits=30-4"))
    c = checks.from_data(c, np.array([40, 8, 3]))
    assert (c.data.many, c.data.few) == (30, 4)
    assert c.method.entries["los"]["delta"] == 0.5
    c = configs.resolve(tiny_digits.load("folder", "classes=1000"))
    c = checks.from_data(c, np.array([40, 8, 3]))
    assert c.method.entries["los"]["delta"] == recipes.smoothing(1000).delta
    with pytest.raises(InputError, match=r"delta must be in \[0, 1\), got -0.5"):
        configs.resolve(tiny_digits.load("features", "delta=-0.5"))


@pytest.mark.parametrize("name", CLASSES)
def test_recipes_of_photographs(name):
    """The common recipe of ImageNet-LT, iNaturalist and folders."""
    c = tiny_digits.load(name)
    assert (c.data.size, c.data.resize) == (224, 256)
    assert (c.data.scale, c.data.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (c.data.imbalance, c.data.split) == (1.0, "whole")
    limits = (-1, -1) if name == "folder" else (100, 20)
    assert (c.data.many, c.data.few) == limits
    assert c.model.dtype == "bfloat16"
    assert c.model.stem == "imagenet"
    assert (c.optim.batch, c.optim.lr_batch, c.optim.lr) == (256, 256, 0.1)
    # Off in the paper's protocol.
    assert not any(c.data.jitter)
    assert c.data.randaugment[0] == c.optim.mixup == 0
    models.create(
        c.model.name,
        stem=c.model.stem,
        width=c.model.width,
        zero_init=c.model.zero_init,
        init=c.model.init,
        dtype=c.model.dtype,
        axis_name=None,
    )


@pytest.mark.parametrize("argument", ["ir", "net=resnet50", "nt=resnet32", "ir="])
def test_invalid_arguments_of_cifar100_lt(argument):
    with pytest.raises(ValueError, match="expected some of ir=100"):
        tiny_digits.load("cifar100_lt", argument)


def test_docstrings_hold_the_command():
    for name in FILES:
        text = Path(tiny_digits.CONFIGS / f"{name}.py").read_text()
        assert f"lt-jax run --config configs/{name}.py" in text


CLASS_BALANCED = ("class_balanced", "weight_balancing")


def store(workdir: Path, tree: dict[str, Any]) -> Path:
    """Write config.json, as a run does, and return the workdir."""
    (workdir / "config.json").write_text(json.dumps(tree))
    return workdir


def test_config_json_resolves_to_the_same_config(tmp_path):
    config = configs.resolve(tiny_digits.config())
    stored = store(tmp_path, configs.as_dict(config))
    assert configs.workdir_config(stored) == config


def test_config_json_with_former_keys(tmp_path):
    """`at_once` is ignored, and `nesterov` at the only value it ever had."""
    tree = configs.as_dict(configs.resolve(tiny_digits.config()))
    tree["optim"]["at_once"] = 8
    tree["method"]["nesterov"] = tree["optim"]["nesterov"] = False
    found = configs.workdir_config(store(tmp_path, tree))
    assert found == configs.resolve(tiny_digits.config())
    tree["optim"]["nesterov"] = True
    with pytest.raises(InputError, match=r"config\.json: unknown config key 'optim"):
        configs.workdir_config(store(tmp_path, tree))


def test_config_json_without_the_newer_keys(tmp_path):
    """It keeps what its version did, and continues with a config that states so."""
    earlier = {
        "eval__group_average": "examples",
        "method__disalign__form": "segmentation",
    }
    earlier |= {f"method__{m}__mean": "weights" for m in CLASS_BALANCED}
    config = configs.resolve(tiny_digits.config(**earlier))
    tree = configs.as_dict(config)
    del tree["eval"]["group_average"], tree["method"]["disalign"]["form"]
    del tree["model"]["pool"], tree["init"]["sha256"]
    for name in CLASS_BALANCED:
        del tree["method"][name]["mean"]
    found = configs.workdir_config(store(tmp_path, tree))
    assert found.eval.group_average == "examples"
    assert (found.model.pool, found.init.sha256) == ("token", "")
    session._check_same_config(config, tmp_path)
    with pytest.raises(
        InputError, match=r"group_average.*\n.*class_balanced.mean"
    ) as e:
        session._check_same_config(configs.resolve(tiny_digits.config()), tmp_path)
    assert "disalign.form: 'segmentation' there, 'classification' now" in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.lr", "fast", "optim.lr must be a number, got 'fast'"),
        ("optim.lr", True, "optim.lr must be a number, got True"),
        ("optim.epochs", 2.5, "optim.epochs must be an integer, got 2.5"),
        ("eval.flip", 1, "eval.flip must be True or False, got 1"),
        ("method.names", "los", "method.names must be a tuple, got 'los'"),
        ("data.mean", ("0.5",), "each value of data.mean must be a number, got '0.5'"),
        ("optim.epoch", 3, "unknown config key 'optim.epoch'.* did you mean 'epochs'"),
        ("method.ce.lr", None, "method.ce needs a value for 'lr'"),
        ("optim.lr", None, "the config has no optim.lr"),
        ("save", None, "the config has no save.every"),
    ],
)
def test_wrong_types_and_keys(key, value, message):
    tree = tiny_digits.config().to_dict()
    *groups, last = key.split(".")
    inner = functools.reduce(dict.__getitem__, groups, tree)
    inner[last] = value
    if value is None:
        del inner[last]
    with pytest.raises(InputError, match=message):
        configs.resolve(tree)


BAD = [
    *(float("nan"), float("inf"), -float("inf"), -1, 0, 1.5, 1e30, 2**63, -(2**200)),
    *("", "text", "x" * 10_000, "a\0b", "((", None, True, [], {}, {"x": 1}, object()),
    *((), (1, (2,)), ("ce", "ce"), (float("nan"),) * 4, (2**200,) * 2, np.arange(2)),
]


def paths(tree, before=()):
    """Every key of nested groups, the groups included."""
    for key, value in tree.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def some_methods(config):
    """A config as nested dicts, with the entries that have all keys between them."""
    tree = config.to_dict()
    kept = "ce", "los", "ldam", "weight_balancing", "ncm"
    for name in entries(config).keys() - kept:
        del tree["method"][name]
    return tree


DIGITS = some_methods(tiny_digits.config())
PHOTOS = some_methods(tiny_digits.load("folder", "path=x,classes=2"))


def attempt(base, path, value):
    """Resolve a config with one changed value; return it and the message."""
    tree = copy.deepcopy(base)
    functools.reduce(dict.__getitem__, path[:-1], tree)[path[-1]] = value
    try:
        return configs.resolve(tree), ""
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize("base", [DIGITS, PHOTOS], ids=["digits", "folder"])
def test_any_value_of_any_key_resolves_or_is_one_line_with_the_key(base):
    for path in paths(base):
        for value in BAD if base is DIGITS or path[0] == "data" else ():
            found, message = attempt(base, path, value)
            assert found or ".".join(path) in message
            assert "\n" not in message
            assert len(message) < 500


def test_values_that_resolve_are_checked_against_the_data():
    """Nothing but InputError, for values that only the data can judge."""
    splits, groups = session.load_splits(configs.resolve(DIGITS))
    found = [attempt(DIGITS, path, v)[0] for path in paths(DIGITS) for v in BAD]
    resolved = [c for c in found if c and c.data.name == "digits"]
    assert len(resolved) > 80
    for c in resolved[::2]:
        with contextlib.suppress(InputError):
            checks.check_data(c, splits)
            c, _ = checks.cut_batches(c, splits)
            task = session.make_task(c, splits, groups)
            checks.make_methods(c, splits, task.backbone, grids=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**32}, "seed must be in .0, 4294967295., got 4294967296"),
        ({"seed": 2**32 - 2}, "the last seed, .* must be below 2 .. 32"),
        ({"optim__repeats": 1000, "method__repeats": 11}, "at most 10,000 fits of a"),
        ({"optim__epochs": 10**20}, "optim.epochs must be in"),
        ({"optim__momentum": 2.0}, r"optim.momentum must be in \[0, 1\), got 2.0"),
        ({"optim__mixup": 1e29}, "optim.mixup must be in .0, 100., got 1e.29"),
        ({"optim__resident": float("nan")}, "optim.resident must be a number, got nan"),
        ({"data__std": ("a",)}, "each value of data.std must be a number, got 'a'"),
        ({"data__std": (0.0,)}, "data.std must be in .1e-6, 1e6., got 0.0"),
        ({"data__dir": "a\0b"}, r"data.dir must be a string, got 'a\\x00b'"),
        ({"data__name": "folder"}, "data.size, which data.name=folder needs"),
        ({"method__names": ()}, "method.names must hold at least one method"),
        ({"method__names": ("ce", "ce")}, "and none twice"),
        ({"method__los__grid": {"lr": (0.1,) * 20_000}}, "los.grid has 20,000 rows"),
        ({"optim__trains": "(" * 1500 + ")" * 1500}, "must be a .*expression"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        configs.resolve(tiny_digits.config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__pad": 1000}, "data.pad must be smaller than the images, 8 pixels"),
        ({"model__width": 3}, "width must be even for resnet8, got 3"),
        ({"model__width": 100_000}, "at least 32,186.6 GiB per device.*model.width"),
        (
            {"optim__epochs": 10**6, "optim__batch": 1},
            "optim.epochs: 1,000,000 epochs of 307 steps",
        ),
        (
            {"method__ce__epochs": 10**6, "method__batch": 1},
            "method.ce: 1,000,000 epochs of 307",
        ),
        ({"optim__batch": 10**6, "optim__accumulate": 400}, "at most .*, 307, got 400"),
    ],
)
def test_values_that_the_data_or_the_machine_exclude(tmp_path, changes, message):
    with (
        pytest.raises(InputError, match=message),
        session.open_session(tiny_digits.config(**changes), tmp_path / "w"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_batches_larger_than_the_set_are_cut(tmp_path, capsys):
    """The log reports it, and config.json keeps the given values."""
    large = {f"{group}__batch": 10**9 for group in ("optim", "method", "eval")}
    config = tiny_digits.config(**large)
    with session.open_session(config, tmp_path) as opened:
        c = opened.config
    assert (c.optim.batch, c.method.batch, c.eval.batch) == (307, 307, 600)
    printed = capsys.readouterr().out
    assert "optim.batch is 1,000,000,000, but a pass has 307 examples" in printed
    assert configs.workdir_config(tmp_path) == configs.resolve(config)
    with session.open_session(config, tmp_path):  # the same command is accepted again
        pass


def test_integers_are_numbers_and_numpy_scalars_are_python():
    tree = tiny_digits.config().to_dict()
    tree["optim"]["lr"], tree["optim"]["epochs"] = 1, np.int64(3)
    found = configs.resolve(tree).optim
    assert (found.lr, type(found.lr)) == (1.0, float)
    assert (found.epochs, type(found.epochs)) == (3, int)


def test_a_resolved_config_is_frozen():
    config = configs.resolve(tiny_digits.config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]
