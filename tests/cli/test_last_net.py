"""Whatever happens in a command, the user sees one line and a documented exit code."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_digits
from float64 import enable_x64

from lt_jax.cli import commands, main
from lt_jax.distributed import cluster
from lt_jax.errors import Stream
from lt_jax.experiment import stages, tables
from lt_jax.training.log import Logger

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")
COMPUTING = f"--config {DIGITS} --workdir W --config.seed=3"
# The function of each command, and a command line.
COMMANDS = {
    "fit": ["fit PHOTOS"],
    "work": [f"{name} {COMPUTING}" for name in ("run", "train", "retrain", "sweep")],
    "evaluate": [f"evaluate {COMPUTING}"],
    "benchmark": [f"benchmark --config {DIGITS}"],
    "config": [f"config --config {DIGITS}"],
    "report": ["report W"],
    "convert": ["convert IN OUT"],
    "predict": ["predict --workdir W INPUT"],
    "data_info": [f"data info --config {DIGITS}"],
    "data_prepare": ["data prepare cifar10 --from=F"],
    "list_names": ["list methods"],
}


def fails_with(monkeypatch, error: BaseException, name: str = "list_names") -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(commands, name, fail)


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch) -> Path:
    """Where reports go if there is no workdir."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(cluster, "enable_compilation_cache", lambda: None)
    return folder


@pytest.mark.parametrize(
    ("name", "line"), [(n, line) for n, lines in COMMANDS.items() for line in lines]
)
def test_a_bug_is_one_line_and_a_report(
    name, line, temporary_folder, capsys, monkeypatch
):
    fails_with(monkeypatch, KeyError("odd"), name)
    assert main.main(line.split()) == 70
    out, err = capsys.readouterr()
    (file,) = temporary_folder.iterdir()
    expected = f"internal error: KeyError: 'odd'; please report it with {file}"
    assert (out, err) == ("", f"lt-jax: {expected}\n")
    text = file.read_text()
    assert text.startswith(f"lt-jax {line}\n")
    assert f"\njax {jax.__version__}\n" in text
    assert "in fail\n    raise error\nKeyError: 'odd'" in text
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_report_is_in_the_workdir(tmp_path, temporary_folder, capsys, monkeypatch):
    fails_with(monkeypatch, RecursionError("deep"), "predict")
    workdir = tmp_path / "w"
    workdir.mkdir()
    assert main.main(["predict", "--workdir", str(workdir), "x.png"]) == 70
    (file,) = workdir.iterdir()
    assert f"RecursionError: deep; please report it with {file}" in (
        capsys.readouterr().err
    )
    assert not any(temporary_folder.iterdir())


def test_debug_shows_the_traceback(capsys, monkeypatch):
    fails_with(monkeypatch, KeyError("odd"))
    assert main.main(["list", "methods", "--debug"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("lt-jax: internal error: KeyError: 'odd'")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB\nfor an array"),
        RuntimeError("RESOURCE_EXHAUSTED: Unable to allocate 9 GiB"),
    ],
    ids=["host", "device"],
)
def test_out_of_memory_names_what_to_reduce(error, capsys, monkeypatch):
    fails_with(monkeypatch, error)
    assert main.main(["list", "methods"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory (" in line
    assert "allocate 9 GiB): lower optim.batch or raise optim.accumulate" in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict x.png --workdir=", "argument --workdir: expected a path, got ''"),
        ("predict --workdir x a\0b", r"argument INPUT: expected a path, got 'a\x00b'"),
        ("report runs --out=", "argument --out: expected a path, got ''"),
        (
            f"data info --config {DIGITS} --png /nope/x.png",
            "file in an existing folder",
        ),
        (f"data info --config {DIGITS} --png {ROOT}", "file in an existing folder"),
        (f"data info --config {DIGITS} --png {DIGITS}", "--png must end in .png"),
        (f"report {'x' * 5000}", " ... "),
        ("nonsense", "unknown command 'nonsense'"),
        ("list", "the following arguments are required: what; see lt-jax list --help"),
    ],
)
def test_a_bad_argument_is_one_line(line, message, capsys):
    assert main.main(line.split(" ")) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith("lt-jax: ")
    assert message in found


# What JAX reads from the environment.


def test_jax_without_a_device(monkeypatch, capsys):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore")

    monkeypatch.setattr("jax.local_devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main.main(["convert", "a", "b"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finds no device with JAX_PLATFORMS=cuda: Unable to" in line
    assert "Unset JAX_PLATFORMS, or set it to cpu" in line


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (enable_x64, "JAX_ENABLE_X64 is set, but lt_jax computes in float32"),
        (jax.disable_jit, "JAX_DISABLE_JIT is set, but lt_jax runs compiled"),
    ],
)
def test_modes_of_jax_that_are_refused(context, message, capsys):
    with context(True):
        assert main.main(["list", "methods"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JAX_PLATFORMS=cuda", "JAX finds no device with JAX_PLATFORMS=cuda"),
        ("JAX_PLATFORMS=nonsense", "JAX finds no device with JAX_PLATFORMS=nonsense"),
        ("JAX_ENABLE_X64=1", "JAX_ENABLE_X64 is set"),
        ("JAX_ENABLE_X64=maybe", "JAX does not start: invalid truth value 'maybe'"),
        ("JAX_DISABLE_JIT=1", "JAX_DISABLE_JIT is set"),
    ],
)
def test_variables_of_jax_in_a_real_process(variable, message):
    name, _, value = variable.partition("=")
    done = run_python("-m", "lt_jax", "convert", "a", "b", env={name: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line


def run_python(
    *arguments: str, env: dict[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("module", ["lt_jax.cli.main", "numpy.linalg"])
def test_ctrl_c_during_imports(module):
    """C code that imports a module would print or lose a KeyboardInterrupt."""
    code = f"""
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[1:] = ["list", "methods"]
runpy.run_module("lt_jax", run_name="__main__")
"""
    done = run_python("-c", code, env={})
    assert "Traceback" not in done.stderr
    assert done.returncode in (130, -signal.SIGINT)  # a shell reports 130 for both


def test_an_ignored_ctrl_c_stays_ignored(monkeypatch):
    """As in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            commands, "list_names", lambda _: os.kill(os.getpid(), signal.SIGINT)
        )
        assert main.main(["list", "methods"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


# Damaged checkpoints: Orbax's threads print what they find after the first error, some
# when the command has ended.

DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "flipped": lambda content: bytes(byte ^ 255 for byte in content),
    "gone": None,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    stages.train(tiny_digits.config(optim__epochs=1), workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("command", ["convert W o.pth", "predict --workdir W x"])
def test_a_damaged_checkpoint_is_one_line(trained, tmp_path, kind, command):
    shutil.copytree(trained, tmp_path / "W")
    for file in (tmp_path / "W").glob("checkpoints/stage1/0/*/state/**/d/*"):
        change = DAMAGES[kind]
        file.write_bytes(change(file.read_bytes())) if change else file.unlink()
    done = run_python("-m", "lt_jax", *command.split(), env={}, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "is damaged (" in line


# Names on the terminal.

ESC = "\x1b]0;title\x07"


def test_names_do_not_reach_the_terminal_raw(capsys, monkeypatch):
    monkeypatch.setattr(commands, "list_names", lambda _: print(f"{ESC}\udce4\u202e"))
    assert main.main(["list", "methods"]) == 0
    assert capsys.readouterr().out == "\\x1b]0;title\\x07\\udce4\\u202e\n"
    assert main.main(["convert", f"{ESC}.pt", "b"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_closed_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(["list", "networks"]) == 0
    assert main.main(["list", "nothing"]) == 2


def test_an_encoding_without_a_character(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        print("ä", file=Stream(file))
    assert (tmp_path / "out").read_text() == "\\xe4\n"


def test_names_do_not_reach_the_log_raw(tmp_path, capsys):
    Logger(tmp_path).info(f"class {ESC}")
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert re.fullmatch(r"[-\d: ]+ class \\x1b\]0;title\\x07\n", text)


@pytest.mark.parametrize("cell", ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "-1-1"])
def test_formulas_are_text(cell):
    assert f"'{cell}" in tables.csv_text([[cell]])


@pytest.mark.parametrize("cell", [-1.5, "-1.5", "+2e-05", "a=1", "", None])
def test_numbers_stay_numbers(cell):
    assert "'" not in tables.csv_text([[cell, 0]])
