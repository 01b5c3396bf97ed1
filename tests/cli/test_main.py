"""The command line as a user meets it: exit codes, messages, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tiny_digits

from lt_jax.cli import config_flags, main
from lt_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")
SMALL = [
    "--config.model.width=4",
    "--config.optim.repeats=1",
    "--config.optim.epochs=2",
    "--config.method.ce.epochs=1",
    "--config.method.los.epochs=1",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lt_jax", *arguments]


def test_help_is_light():
    """No JAX, Flax or TFDS for --help: the answer comes at once."""
    code = (
        "import sys; from lt_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow_datasets', 'orbax', 'torch',"
        " 'matplotlib', 'tensorflow'}\n"
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "COMMAND" in done.stdout
    for name in ("run", "train", "retrain", "evaluate", "benchmark", "data"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "lt_jax",
            {"PIL", "cv2", "jax", "flax", "numpy", "optax", "orbax", "tqdm", "absl"},
        ),
        # What a training command imports before it reads its data.
        ("lt_jax.experiment.stages", set()),
    ],
)
def test_imports_are_light(module, absent):
    """What only some data, a report or a conversion takes is imported there."""
    absent = absent | {
        "tensorflow", "tensorflow_datasets", "torch", "matplotlib", "pyarrow",
        "pandas", "sklearn", "grain", "array_record", "safetensors",
    }  # fmt: skip
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = set(done.stdout.split())
    assert "lt_jax" in found, done.stderr
    assert not absent & found


def test_no_command(capsys):
    assert main.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["--config=", "--config "])
def test_data_info(capsys, spelling):
    arguments = f"data info --json {spelling}{DIGITS}".split()
    assert main.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "name", "split_hash", "num_train", "num_valid", "num_test", "num_classes",
        "counts_max", "counts_min", "groups",
    }  # fmt: skip
    assert main.main(["data", "info", "--config", DIGITS]) == 0
    text = capsys.readouterr().out
    assert found["split_hash"] in text
    assert "many 3, medium 4, few 3" in text


def test_run_and_evaluate(tmp_path, capsys):
    arguments = ["--config", DIGITS, "--workdir", str(tmp_path), *SMALL]
    assert main.main(["train", *arguments]) == 0
    assert main.main(["retrain", *arguments]) == 0
    table = capsys.readouterr().out
    for word in ("none", "ce", "los", "many", "medium", "few", "worst", "ECE", "LoMa"):
        assert word in table
    assert f"report: {tmp_path}/report" in table
    assert re.search(r"parameters: backbone [\d,]+ trained, head [\d,]+ trained", table)
    assert "stem_conv/kernel" not in table
    assert "stem_conv/kernel" in (tmp_path / "log.txt").read_text()
    assert "stage1/0: 2 epochs of 10 steps" in table
    assert main.main(["run", *arguments]) == 0  # finds everything done
    capsys.readouterr()
    assert main.main(["evaluate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert found["los/0.0"]["all"] == stored["methods"]["los"]["all"]["mean"]
    assert main.main(["evaluate", *arguments, "--split=valid"]) == 0
    told = capsys.readouterr()
    (row,) = [line for line in told.out.splitlines() if line.startswith("los/0.0")]
    assert re.search(r"\d  \d \d+\.\d, \d \d+\.\d, \d \d+\.\d$", row)
    assert "measuring 3 fits on 76 images" in told.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optim.epoch=3"], "unknown config key 'optim.epoch'; did you mean"),
        (["--config.optim.epochs=many"], "optim.epochs"),
        (["--config.method.los.delta=1.0"], "delta must be in [0, 1)"),
        (["--config.data.imbalance=0.1"], "imbalance"),
        (["--config.eval.flip=perhaps"], "eval.flip"),
    ],
)
def test_bad_values(tmp_path, capsys, flags, message):
    arguments = ["run", "--config", DIGITS, "--workdir", str(tmp_path / "w"), *flags]
    assert main.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("lt-jax: ")
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "w/result.json").exists()


def test_a_config_that_came_with_the_package_is_found(tmp_path, monkeypatch):
    """As a wheel brings it; one in the folder at hand comes first."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "configs", folder / "configs")
    monkeypatch.setattr(config_flags, "__file__", str(folder / "configuring.py"))
    monkeypatch.chdir(tmp_path)
    found = config_flags.read(
        ["--config=configs/cifar100_lt.py:ir=50", "--config.seed=3"]
    )
    assert (found.data.imbalance, found.seed) == (50.0, 3)
    with pytest.raises(InputError, match=r"came configs/cifar100_lt\.py, configs/dig"):
        config_flags.read(["--config=configs/nothing.py"])
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs/cifar100_lt.py"
    own.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'seed': 7})\n"
    )
    assert config_flags.read(["--config=configs/cifar100_lt.py"]).seed == 7


def test_the_wheel_brings_the_configs_along():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = build["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"configs": "lt_jax/configs"}
    assert (ROOT / "lt_jax/py.typed").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --config FILE once"),
        (["--config", "configs/nothing.py"], "no config file 'configs/nothing.py'"),
    ],
)
def test_bad_config_files(tmp_path, capsys, flags, message):
    assert main.main(["data", "info", *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_error_in_the_config_file_is_told_in_a_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def get_config():\n    return nothing\n")
    assert main.main(["data", "info", "--config", str(tmp_path / "mine.py")]) == 2
    told = capsys.readouterr().err
    assert told.strip().endswith("mine.py: NameError: name 'nothing' is not defined")


def test_data_that_is_not_prepared(tmp_path, capsys):
    config = str(tiny_digits.CONFIGS / "cifar100_lt.py:ir=100")
    flags = ["--config", config, f"--config.data.dir={tmp_path}"]
    assert main.main(["data", "info", *flags]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path) in told
    assert "tfds build cifar100 --file_format=array_record" in told


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--config", DIGITS, "--workdir", str(tmp_path / "file/run"), *SMALL]
    assert main.main(["train", *arguments]) == 2
    told = capsys.readouterr().err
    assert "Not a directory" in told
    assert str(tmp_path / "file") in told


def test_divergence(tmp_path, capsys):
    flags = [*SMALL, "--config.optim.lr=1e18", "--config.optim.warmup=1.0"]
    arguments = ["train", "--config", DIGITS, "--workdir", str(tmp_path), *flags]
    assert main.main(arguments) == 1
    told = capsys.readouterr().err
    assert "stage1/0: step" in told
    assert "learning rate" in told


def test_ctrl_c_in_a_real_process_and_resume(tmp_path):
    """SIGINT: a checkpoint, result.json, exit code 130; the same command goes on."""
    flags = ["--config", DIGITS, "--workdir", str(tmp_path), *SMALL]
    flags += ["--config.optim.epochs=400", "--config.log.seconds=0.2"]
    flags += ["--config.eval.every=400", "--config.save.every=400"]
    process = subprocess.Popen(
        command("train", *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    log = tmp_path / "log.txt"
    limit = time.monotonic() + 120
    while not (log.exists() and "img/s" in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "no fit has ended so far" in out
    assert "| method |" not in out
    assert "stopped and saved at stage1/0: step" in err
    assert "Traceback" not in err
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["protocol"]["interrupted"] is True
    assert stored["methods"]["none"]["all"] == {
        "mean": None, "std": None, "values": [],
    }  # fmt: skip
    (saved,) = [p.name for p in (tmp_path / "checkpoints/stage1/0").iterdir()]
    with subprocess.Popen(
        command("train", *flags), stdout=subprocess.PIPE, text=True
    ) as again:
        assert again.stdout is not None
        told = f"goes on from step {int(saved):,}"
        found = any(told in line for line in again.stdout)
        again.kill()
    assert found


def test_late_answers_of_a_failed_read_are_not_printed(monkeypatch):
    """Other faults of the same sort are, and the hook of before comes back."""

    class Late:
        def __init__(self, text):
            self.text = text

        def __del__(self):
            raise RuntimeError(self.text)

    heard = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda told: heard.append(told.exc_value)
    )
    before = sys.unraisablehook
    with main._without_late_answers():
        Late("Event loop is closed")
        Late("another fault")
    assert [str(error) for error in heard] == ["another fault"]
    assert sys.unraisablehook is before
