"""Config files and overrides that are wrong: one message that names the key or file."""

from __future__ import annotations

import pytest
import tiny_digits

from lt_jax.cli import config_flags
from lt_jax.errors import InputError
from lt_jax.experiment.config import resolve

DIGITS = f"--config={tiny_digits.CONFIGS / 'digits_lt.py'}"


def message(*flags: str) -> str:
    with pytest.raises(InputError) as raised:
        resolve(config_flags.read(list(flags)))
    found = str(raised.value)
    assert "\n" not in found
    assert len(found) < 700
    return found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config.eval.flip="], "eval.flip must be of type bool, got ''"),
        (["--config.data.dir"], "--config.data.dir needs a value"),
        (["--config.optim.lr="], "optim.lr must be of type float, got ''"),
        (["--config.seed=" + "9" * 5000], "seed must be of type int, got '999"),
        (["--config.data.mean=" + "(" * 9999], "data.mean must be of type tuple"),
        (["--config.data.mean=" + "-" * 99_999 + "1"], "data.mean must be of type"),
        (["--config.data.mean={[]:1}"], "data.mean must be of type tuple"),
        (["--config.data.mean=nan"], "value of data.mean must be a number, got 'nan'"),
        (["--config.data.dir=a\0b"], "data.dir must be a string, got 'a\\x00b'"),
        (["--config." + "x" * 9999 + "=1"], "unknown config key 'xxxx"),
        (["--config.save=3"], "unknown config key 'save'; did you mean"),
    ],
)
def test_overrides(flags, expected):
    assert expected in message(DIGITS, *flags)


def test_of_two_overrides_of_a_key_the_last_counts():
    flags = ["--config.seed=1", "--config.seed=2"]  # as a script appends them
    assert config_flags.read([DIGITS, *flags]).seed == 2


def test_a_boolean_alone_is_true():
    assert config_flags.read([DIGITS, "--config.eval.flip"]).eval.flip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a config file must define get_config()"),
        (b"\xff\0", "SyntaxError"),
        (b"def get_config(:", "SyntaxError: invalid syntax"),
        (b"import nothing_here", "No module named 'nothing_here'"),
        (b"def get_config(): return None", "must return a ConfigDict, got None"),
        (b"def get_config(): return {1: 2}", "must return a ConfigDict, got {1: 2}"),
        (b"def get_config(): return 'x' * 9999", "must return a ConfigDict, got 'xx"),
        (b"def get_config(): raise OSError('a\\n' * 9999)", "OSError: a a a"),
        (b"def get_config(): return get_config()", "RecursionError: maximum"),
        (b"raise SystemExit(0)", "SystemExit: 0"),
        (b"get_config = 3", "TypeError: 'int' object is not callable"),
    ],
)
def test_config_files(tmp_path, content, expected):
    file = tmp_path / "mine.py"
    file.write_bytes(content)
    found = message(f"--config={file}")
    assert found.startswith(f"{file}: ")
    assert expected in found


def test_values_and_keys_of_a_config_file(tmp_path):
    file = tmp_path / "mine.py"
    for line, expected in (
        ("c.optim.lr = None", "optim.lr must be a number, got None"),
        ("del c.optim", "the config has no optim."),
        ("c.method.los = 3", "unknown config key 'method.los'"),
        ("c.method.los = {'lr': 1}", "method.los needs a value for 'epochs'"),
    ):
        lines = [
            "from lt_jax.experiment.defaults import base_config",
            "def get_config():",
            f"    c = base_config()\n    {line}\n    return c\n",
        ]
        file.write_text("\n".join(lines))
        assert expected in message(f"--config={file}")


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 9999, ":", "/"])
def test_paths_that_are_no_file(path):
    assert "no config file" in message(f"--config={path}")


def test_arguments():
    assert "takes 0 positional arguments" in message(DIGITS + ":x=1")
