"""The command line: exit codes, messages, Ctrl-C."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tiny_digits
from flax.traverse_util import flatten_dict

from lt_jax import __main__
from lt_jax.cli import config_flags, help, main
from lt_jax.errors import InputError
from lt_jax.experiment.defaults import base_config
from lt_jax.report import build

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
    """--help imports no JAX, Flax or TFDS."""
    code = (
        "import sys; from lt_jax.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow_datasets', 'orbax', 'torch',"
        " 'matplotlib', 'tensorflow', 'rich', 'tensorboardX', 'socket', 'hashlib'}\n"
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "COMMAND" in done.stdout
    for name in ("run", "train", "retrain", "evaluate", "benchmark", "data", "list"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "lt_jax",
            {"PIL", "jax", "flax", "numpy", "optax", "orbax", "rich", "absl"},
        ),
        # The library interface, with fit_heads and evaluate.
        ("lt_jax.api", {"PIL", "simplejpeg", "orbax"}),
        ("lt_jax.cli.data_info", {"orbax", "tensorstore", "scipy"}),
        # Imports of a training command before it reads its data.
        ("lt_jax.experiment.stages", set()),
    ],
)
def test_imports_are_light(module, absent):
    """Packages for some datasets, reports or conversions are imported on use."""
    absent = absent | {
        "tensorflow", "tensorflow_datasets", "torch", "matplotlib", "pyarrow",
        "pandas", "sklearn", "grain", "array_record", "safetensors", "cv2",
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
    assert re.search(r"num_train +383, held-out ones included\n", text)
    assert "many 3 (> 50 images), medium 4, few 3 (< 15)" in text


def write_fails(paths, out):
    raise RuntimeError("no font")


def test_run_and_evaluate(tmp_path, capsys, monkeypatch):
    arguments = ["--config", DIGITS, "--workdir", str(tmp_path), *SMALL]
    assert main.main(["train", *arguments]) == 0
    assert main.main(["retrain", *arguments]) == 0
    table = capsys.readouterr().out
    for word in ("none", "ce", "los", "balanced", "few", "ECE", "Recommended: "):
        assert word in table
    assert "LoMa" not in table  # on the page
    assert f"tables: {tmp_path}/report" in table
    assert re.search(r"parameters: backbone [\d,]+ trained, head [\d,]+ trained", table)
    assert "stem_conv/kernel" not in table
    assert "stem_conv/kernel" in (tmp_path / "log.txt").read_text()
    assert "stage1/0: 2 epochs of 10 steps" in table
    assert "plan: 1 x stage 1 (2 epochs), on" in table
    assert "plan: 2 x stage 2 (2 epochs), on" in table
    assert "nothing was left to do" not in table
    monkeypatch.setattr(build, "write", write_fails)
    assert main.main(["run", *arguments]) == 0  # everything is done already
    out, error = capsys.readouterr()
    assert "nothing was left to do: every fit was finished" in out
    assert "plan:" not in out
    assert (
        f"no report page (RuntimeError: no font); retry: lt-jax report {tmp_path}"
        in error
    )
    monkeypatch.undo()
    assert main.main(["run", *arguments]) == 0
    assert f"page: {tmp_path}/report/index.html" in capsys.readouterr().out
    assert "los" in (tmp_path / "report/index.html").read_text()
    assert main.main(["evaluate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert found["los/0.0"]["all"] == stored["methods"]["los"]["all"]["mean"]
    assert main.main(["evaluate", *arguments, "--split=valid"]) == 0
    printed = capsys.readouterr()
    (row,) = [line for line in printed.out.splitlines() if line.startswith("los/0.0")]
    assert re.search(r"\d  \d \d+\.\d, \d \d+\.\d, \d \d+\.\d$", row)
    assert "evaluating 3 fits on 76 images" in printed.err
    # The workdir has its config, and takes overrides that do not change results.
    flags = ["--workdir", str(tmp_path), "--config.eval.batch=50", "--split=valid"]
    assert main.main(["evaluate", *flags]) == 0
    assert capsys.readouterr().out == printed.out
    assert main.main(["retrain", *flags[:2], "--config.method.los.lr=1.0"]) == 2
    assert "method.los.lr: 0.0005 there, 1.0 now" in capsys.readouterr().err


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
    error = capsys.readouterr().err
    assert error.startswith("lt-jax: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "w/result.json").exists()


def test_shipped_configs_are_found(tmp_path, monkeypatch):
    """A wheel ships configs; a file in the current folder comes first."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "configs", folder / "configs")
    monkeypatch.setattr(config_flags, "__file__", str(folder / "cli/config_flags.py"))
    monkeypatch.chdir(tmp_path)
    found = config_flags.read(
        ["--config=configs/cifar100_lt.py:ir=50", "--config.seed=3"]
    )
    assert (found.data.imbalance, found.seed) == (50.0, 3)
    with pytest.raises(InputError, match=r"has configs/cifar100_lt\.py, configs/dig"):
        config_flags.read(["--config=configs/nothing.py"])
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs/cifar100_lt.py"
    own.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'seed': 7})\n"
    )
    assert config_flags.read(["--config=configs/cifar100_lt.py"]).seed == 7


def test_the_wheel_contains_the_configs():
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


def test_a_workdir_without_a_config_is_named(capsys):
    assert main.main(["evaluate", "--workdir", "gone"]) == 2
    assert "of an earlier run: gone has no config.json\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("[1]", "", "mine.json must be a JSON object, got [1]. Expected what `lt-jax"),
        ("{}", "", "mine.json lacks 'method': it is another file, or of another"),
        ('{"method": {}}', ":x", "mine.json takes no argument, got 'x': change"),
        ('{"method": {}, "optim": 3}', "", "optim must be a JSON object, got 3. Exp"),
    ],
    ids="list empty argument group".split(),
)
def test_bad_json_configs(tmp_path, capsys, text, more, message):
    """The remedy is not that for a damaged workdir."""
    (tmp_path / "mine.json").write_text(text)
    assert main.main(["data", "info", f"--config={tmp_path}/mine.json{more}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--workdir" not in error


def test_a_json_config_is_not_a_workdir(tmp_path, capsys):
    (tmp_path / "mine.json").write_text('{"method": {}}')
    assert main.main(["report", str(tmp_path / "mine.json")]) == 2
    assert "mine.json is not a workdir" in capsys.readouterr().err


def test_an_error_in_a_config_file_is_one_line(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def get_config():\n    return nothing\n")
    assert main.main(["data", "info", "--config", str(tmp_path / "mine.py")]) == 2
    error = capsys.readouterr().err
    assert error.strip().endswith("mine.py: NameError: name 'nothing' is not defined")


def test_data_that_is_not_prepared(tmp_path, capsys):
    config = str(tiny_digits.CONFIGS / "cifar100_lt.py:ir=100")
    flags = ["--config", config, f"--config.data.dir={tmp_path}"]
    assert main.main(["data", "info", *flags]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "lt-jax data prepare cifar100 --from=" in error


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--config", DIGITS, "--workdir", str(tmp_path / "file/run"), *SMALL]
    assert main.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert str(tmp_path / "file") in error


def test_divergence(tmp_path, capsys):
    flags = [*SMALL, "--config.optim.lr=1e18", "--config.optim.warmup=1.0"]
    arguments = ["train", "--config", DIGITS, "--workdir", str(tmp_path), *flags]
    assert main.main(arguments) == 1
    error = capsys.readouterr().err
    assert "stage1/0: step" in error
    assert "Try a lower learning rate" in error


def test_ctrl_c_in_a_real_process_and_resume(tmp_path):
    """SIGINT: a checkpoint, result.json, exit code 130; the same command resumes."""
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
    assert "no finished fits yet" in out
    assert "| method |" not in out
    assert "stopped at stage1/0: step" in err
    assert "checkpoint saved; rerun the same command to resume" in err
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
        found = any(f"from step {int(saved):,}" in line for line in again.stdout)
        again.kill()
    assert found


def test_config_flags_are_refused_where_unused(capsys):
    assert main.main(["list", "methods", "--config=configs/digits_lt.py"]) == 2
    assert "lt-jax: list does not take --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("methods", "los", "Label over-smoothing"),
        ("networks", "resnet34", "3-4-6-3 basic blocks"),
        ("networks", "resnext50_32x4d", "bottleneck blocks of 32 groups"),
        ("data", "cifar100", "CIFAR-100"),
        ("pretrained", "resnet18.tv_in1k", ", pinned"),
        ("configs", "configs/digits_lt.py", "long-tailed"),
    ],
)
def test_list(capsys, monkeypatch, what, name, text):
    monkeypatch.chdir(ROOT)
    assert main.main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[0] == name]
    assert text in line
    assert all(len(line.split()) > 1 for line in lines)


def test_closed_event_loops_are_silenced(monkeypatch):
    """Other unraisable errors are printed."""

    class Late:
        def __init__(self, text):
            self.text = text

        def __del__(self):
            raise RuntimeError(self.text)

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda e: printed.append(e.exc_value))
    __main__.hide_closed_loops()
    Late("Event loop is closed")
    Late("another error")
    assert [str(error) for error in printed] == ["another error"]


def subparsers(parser):
    """Every command of a parser by its words, such as ``data info``."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield inner.prog.removeprefix("lt-jax "), inner
                yield from subparsers(inner)


COMMANDS = dict(subparsers(main.make_parser()))


def test_the_help_is_of_commands_and_flags_that_exist():
    assert help.COMMANDS.keys() == COMMANDS.keys()
    for name, about in help.COMMANDS.items():
        flags = {
            (action.option_strings or [action.dest])[0].lstrip("-")
            for action in COMMANDS[name]._actions
        }
        assert about.get("flags", {}).keys() <= flags, name


def test_every_command_is_in_one_group_of_the_help():
    listed = [name for _, *names in help.HELP["groups"] for name in names]
    assert sorted(listed) == sorted(name for name in COMMANDS if " " not in name)
    text = main.make_parser().format_help()
    for name in listed:
        (line,) = [x for x in text.splitlines() if x.startswith(f"  {name} ")]
        assert line.endswith(".")


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"data"}))
def test_every_command_has_examples_that_parse(name: str):
    assert help.COMMANDS[name]["examples"]
    for example in help.COMMANDS[name]["examples"]:
        program, *words = shlex.split(example)
        flags, rest = config_flags.split(words)
        parsed = main.make_parser().parse_args(rest)
        assert (program, words[: len(name.split())]) == ("lt-jax", name.split())
        assert "keys" in help.COMMANDS[name] or not parsed.configured
        complete = any(flag.startswith("--config=") for flag in flags)
        assert not complete or config_flags.read(flags)


def test_the_config_keys_of_the_help_exist():
    keys = {".".join(key) for key in flatten_dict(base_config().to_dict())}
    for text in (about.get("keys", "") for about in help.COMMANDS.values()):
        for pattern in re.findall(r"[a-z]+\.[a-z*_]+", text):
            assert fnmatch.filter(keys, pattern), pattern


def test_flags_of_version_0_1_have_underscores(tmp_path, capsys):
    workdir = ["--config", DIGITS, "--workdir", str(tmp_path / "x")]
    assert main.main(["train", *workdir, "--num_processes=2"]) == 2
    assert "--num-processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["rnu"], "unknown command 'rnu'"),
        (["rnu"], "did you mean 'run'"),
        (["evaluate", "--split=tst"], "unknown --split 'tst'"),
        (["data", "info", "--config=configs/digit_lt.py"], "'configs/digits_lt.py'?"),
        (["report", "configz"], "configs'?"),
        (["predict", "--workdir=configz", "a.png"], "configs'?"),
    ],
)
def test_near_names(words, near, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main.main(words) == 2
    assert near in capsys.readouterr().err


def test_completion_knows_commands_and_files():
    shtab = pytest.importorskip("shtab", reason="a program of the user, not ours")
    script = shtab.complete(main.make_parser(), shell="bash")
    assert "retrain" in script
    assert "_shtab_lt_jax_run___workdir_COMPGEN=_shtab_compgen_files" in script
