"""``lt-jax benchmark``: one run of all parts on the digits, and invalid input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny_digits

from lt_jax.cli import benchmark, main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")


def test_all_parts(tmp_path, capsys, monkeypatch):
    """Speeds agree with each other, in the text and in the file; no files are left."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    file = tmp_path / "speed.json"
    flags = ["--config.model.name=none", "--config.optim.accumulate=2"]
    arguments = ["--seconds=0.05", f"--json={file}", f"--config={DIGITS}", *flags]
    assert main.main(["benchmark", *arguments]) == 0
    text = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert set(found) == set(documented("")) | {"peak", "stage1", "stage2", "sweep"} | {
        "memory"
    }
    for part in ("peak", "stage1", "memory"):
        assert set(found[part]) == set(documented(part)), part
    assert set(found["sweep"]) == set(found["stage2"]) >= {"rows", "method", "heads"}

    s = found["stage1"]
    assert s["batch"] == 32
    assert s["synthetic"] == pytest.approx(32 / s["step_seconds"])
    assert s["flops_share"] == pytest.approx(
        s["flops"] / s["step_seconds"] / found["peak"]["flops"]
    )
    # Two matrix products of 64 features and 10 classes per image, plus some more.
    assert 32 * 2 * 2 * 64 * 10 < s["flops"] < 32 * 1e5
    assert s["bytes"] > 0
    assert 0 <= s["waiting"] <= 1
    assert found["evaluation"] > 0
    assert found["extraction"] > 0
    one, eight = found["stage2"], found["sweep"]
    assert (one["heads"], eight["heads"]) == (1, 8)
    assert one["rows"] == eight["rows"]
    per_epoch = -(-one["rows"] // one["batch"])
    for part in (one, eight):
        each = part["head_images_per_second"] / part["heads"]
        assert each == pytest.approx(
            part["steps_per_second"] * part["rows"] / per_epoch
        )
    assert found["memory"]["of"] == "process"
    assert 1e8 < found["memory"]["bytes"] < 1e11
    assert f"{s['synthetic']:,.0f} img/s on the device" in text
    assert f"evaluation   {found['evaluation']:,.0f} img/s" in text
    assert list((tmp_path / "current").iterdir()) == []


def documented(part: str) -> list[str]:
    """Return the documented keys of one part; "" for the top level."""
    found = []
    text = (ROOT / "docs/howto/measure_speed.md").read_text(encoding="utf-8")
    for line in text.partition("Keys of `--json`")[2].split("```")[1].splitlines():
        if match := re.match(r"(\S+(?:, \S+)*)  +\S", line):
            first, *others = match[1].split(", ")
            group, _, key = first.rpartition(".")
            if group == part:
                found += [key, *(other.lstrip(".") for other in others)]
    return found


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


def test_si_prefixes():
    texts = [benchmark._si(n) for n in (0.5, 12, 4_560, 7.9e14, 2e17, None)]
    assert texts == ["0.5 ", "12 ", "4.56 k", "790 T", "200 P", "? "]
