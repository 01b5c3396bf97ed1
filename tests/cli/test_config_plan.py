"""``lt-jax config``: resolved values, and the plan of a run."""

from __future__ import annotations

import json

import pytest
import tiny_digits

from lt_jax.cli import main
from lt_jax.experiment.config import as_dict, resolve
from lt_jax.files import jsonable

CONFIG = ["--config", str(tiny_digits.CONFIGS / "digits_lt.py")]


def test_json_has_the_keys_of_the_config(capsys):
    flags = [*CONFIG, "--config.method.los.delta=0.5"]
    assert main.main(["config", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"]["los"].pop("delta") == 0.5
    expected = jsonable(as_dict(resolve(tiny_digits.load("digits_lt"))))
    assert expected["method"]["los"].pop("delta") == 0.83
    assert found == expected


def test_text_has_every_key_and_the_data(capsys):
    assert main.main(["config", *CONFIG]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "optim.lr = 0.05" in lines
    assert "method.names = ('ce', 'los')" in lines
    assert "# dataset.num_classes = 10" in lines
    assert "# optim: 10 steps per epoch" in lines


def test_text_without_the_data(capsys, tmp_path):
    config = str(tiny_digits.CONFIGS / "cifar100_lt.py")
    flags = ["--config", config, f"--config.data.dir={tmp_path}"]
    assert main.main(["config", *flags]) == 0
    printed = capsys.readouterr().out
    assert "data.imbalance = 100.0" in printed
    assert "# the data cannot be loaded: " in printed


def test_plan_counts_what_is_left(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lt_jax.cli.config_plan.SECONDS", 0.05)
    flags = [
        *CONFIG,
        "--config.model.width=4",
        "--config.optim.repeats=2",
        "--config.optim.epochs=3",
    ]
    assert main.main(["config", "--plan", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage1"].pop("seconds") > 0
    assert found["stage1"] == {"fits": 2, "epochs": 6, "steps": 60, "batch": 32}
    assert found["stage2"].pop("seconds") > 0
    assert found["stage2"] == {"fits": 4, "epochs": 80, "steps": 800, "batch": 32}
    assert found["sweep"]["fits"] > 100
    assert not list(tmp_path.iterdir())


def test_the_config_of_a_workdir(capsys, tmp_path):
    assert main.main(["config", "--workdir", str(tmp_path)]) == 2
    assert "or the --workdir of an earlier run" in capsys.readouterr().err
    assert main.main(["config", *CONFIG, "--json"]) == 0
    (tmp_path / "config.json").write_text(given := capsys.readouterr().out)
    assert main.main(["config", "--workdir", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == given


@pytest.mark.parametrize("value", ["-0.1", "0"])
def test_invalid_values_name_the_rule(capsys, value):
    assert main.main(["config", *CONFIG, f"--config.optim.lr={value}"]) == 2
    printed = capsys.readouterr().err
    assert printed == f"lt-jax: optim.lr must be in (0, 1e38], got {float(value)}\n"
