"""The GPU kit: parts resume, wheels cover what is missing, a rehearsal on the CPU."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks/gpu/kit.py"


@pytest.fixture
def kit(monkeypatch):
    module = runpy.run_path(str(KIT))
    # Asking for the device imports JAX in a process of its own.
    monkeypatch.setitem(module["do_missing"].__globals__, "machine", lambda: {})
    return module


def test_a_second_call_does_the_missing_parts_only(kit, tmp_path, capsys):
    def part(name, code):
        return kit["Part"](name, [sys.executable, "-c", code], len)

    fails = part("second", "raise SystemExit(3)")
    parts = [part("first", "print('abc')"), fails, part("third", "print()")]
    assert kit["do_missing"]("check", parts, tmp_path, 5) == 1
    assert "second: exit code 3" in capsys.readouterr().out
    found = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert {name: part["found"] for name, part in found.items()} == {
        "first": 4,
        "third": 1,
    }

    parts = [part("first", "raise SystemExit(3)"), part("second", "print('ab')")]
    assert kit["do_missing"]("check", parts, tmp_path, 5) == 0
    assert list(json.loads((tmp_path / "check.json").read_text())["parts"]) == [
        *("first", "third", "second")
    ]


def test_a_part_that_takes_too_long_is_stopped_and_stays_missing(kit, tmp_path):
    loop = "import time\nwhile True: time.sleep(0.1)"
    part = kit["Part"]("slow", [sys.executable, "-c", loop], len)
    code, _ = kit["run"](part, tmp_path, 0.5)
    assert code < 0  # ended by the signal
    assert kit["do_missing"]("check", [part], tmp_path, minutes=0) == 1
    assert not (tmp_path / "check.json").exists()


def test_failed_tests_are_counted(kit, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" skipped="1"><testcase classname="a" '
        'name="b"><failure/></testcase><testcase classname="a" name="c"/>'
        '<testcase classname="a" name="d"><skipped/></testcase></testsuite>'
        "</testsuites>"
    )
    expected = {"tests": 3, "skipped": 1, "failed": ["a.b"]}
    assert kit["counts"](report) == expected


def test_wheels_cover_what_a_jax_image_lacks():
    def closure(names):
        todo, seen = [canonicalize_name(name) for name in names], set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                required = map(Requirement, importlib.metadata.requires(name) or [])
                plain = [r for r in required if not r.marker or r.marker.evaluate()]
                todo += [canonicalize_name(r.name) for r in plain]
        return seen

    text = (ROOT / "benchmarks/gpu/wheels.sh").read_text()
    there = re.search(r"\(jax, .*?and what", text, re.DOTALL)[0]
    there = [n for n in re.findall(r"[\w-]+", there) if n not in ("and", "what")]
    carried = re.search(r"set -- (.*?)\nfi", text, re.DOTALL)[1]
    carried = set(map(canonicalize_name, carried.replace("\\", " ").split()))
    missing = closure(["lt_jax"]) - closure(there) - {"lt-jax"}
    assert carried == missing


def test_the_page_shows_what_was_measured_and_what_is_missing(tmp_path):
    page = runpy.run_path(str(ROOT / "docs/generate.py"))["gpu"]
    page.__globals__["GPU_RESULTS"] = tmp_path
    assert page().count("not measured") == len(page.__globals__["GPU"])

    def spread(mean):
        return {"mean": mean}

    method = {"all": 0.5, "many": 0.7, "medium": 0.5, "few": 0.3}
    run = {
        "stage1": {"seconds": 9.0, "images_per_second": 12345.6},
        "result": {"methods": {"los": {k: spread(v) for k, v in method.items()}}},
    }
    where = {"device": "1 x H100", "commit": "abc", "date": "2026-01-02"}
    parts = {"clean": {"seconds": 1.0, "found": run}}
    (tmp_path / "train.json").write_text(json.dumps({**where, "parts": parts}))
    (row,) = [line for line in page().splitlines() if "clean" in line]
    assert "12,346 images/s; los 50.0 / 70.0 / 50.0 / 30.0" in row
    assert "1 x H100, abc, 2026-01-02" in row


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["check", "train", "speed"])
def test_rehearsal(command, tmp_path):
    done = subprocess.run(
        [sys.executable, str(KIT), command, "--out", str(tmp_path), "--toy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / f"{command}.json").read_text())
    assert {"device", "versions", "commit", "date", "parts"} <= set(found)
    for part in found["parts"].values():
        assert part["found"]
        assert part["seconds"] > 0
    if command == "check":
        assert found["parts"]["test_laws.py"]["found"]["failed"] == []
