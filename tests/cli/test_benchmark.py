"""``lt-jax benchmark``: one run of all parts on the digits, and invalid input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_digits

from lt_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")


def test_all_parts(tmp_path, capsys, monkeypatch):
    """The text and the file have the same speeds; no other files are left."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    file = tmp_path / "speed.json"
    flags = ["--config.model.name=none", "--config.optim.accumulate=2"]
    arguments = ["--seconds=0.05", f"--json={file}", f"--config={DIGITS}", *flags]
    assert main.main(["benchmark", *arguments]) == 0
    text = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert set(found) == documented()
    assert found["batch"] == 32
    for part in ("loader", "training_step", "evaluation"):
        assert found[part] > 0
        assert f"{part:14s}{found[part]:,.0f} img/s" in text
    assert list((tmp_path / "current").iterdir()) == []


def documented() -> set[str]:
    """Return the documented keys of the file."""
    text = (ROOT / "docs/howto/measure_speed.md").read_text(encoding="utf-8")
    lines = text.partition("Keys of `--json`")[2].split("```")[1].splitlines()
    return {key for line in lines for key in line.split("  ")[0].split(", ")} - {
        "text",
        "",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seconds=0"], "--seconds must be in (0, 3600], got 0"),
        (["--seconds=nan"], "--seconds must be in (0, 3600], got nan"),
        (["--seconds=1e300"], "--seconds must be in (0, 3600], got 1e+300"),
        (
            ["--json=missing/speed.json"],
            "--json: expected a file in an existing folder",
        ),
        (["--config.optim.batch=0"], "optim.batch"),
        (["--config.optim.bach=1"], "did you mean"),
    ],
)
def test_invalid_flags(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main.main(["benchmark", f"--config={DIGITS}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
