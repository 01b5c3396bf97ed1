"""Golden values: every value of every config, and the figures of the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

import make_configs  # noqa: E402
import make_digits  # noqa: E402

CONFIGS = json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8"))
DIGITS = json.loads((GOLDEN / "digits.json").read_text(encoding="utf-8"))


def test_every_config_is_covered():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert files == set(CONFIGS) == set(make_configs.VARIED)


@pytest.mark.parametrize("name", CONFIGS)
def test_resolved_values_of_every_config(name: str):
    assert make_configs.resolved(name) == CONFIGS[name]


def close(found: Any, expected: Any, where: str = "result") -> None:
    """Compare up to rounding, because compilers add numbers in different orders."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            close(*pair, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=0.2, abs=0.03), where
    else:
        assert found == expected, where


@pytest.mark.slow
def test_the_figures_of_the_demo(tmp_path: Path):
    """One CPU device and the default compiler flags, as for a user."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    command = ["run", "--config", "configs/digits_lt.py", "--workdir", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "lt_jax", *command],
        cwd=ROOT,
        env=env,
        check=True,
        timeout=280,
        capture_output=True,
    )
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found = make_digits.golden(result)
    if found["machine"] == DIGITS["machine"]:
        assert found["result"] == DIGITS["result"]
    else:
        close(found["result"], DIGITS["result"])
