"""Hostile input ends a command with one line, and changes nothing elsewhere.

``workdir_cases`` and ``input_cases`` are the tables, ``fuzz`` changes files at random.
The default suite runs a sample of the quick cases, ``-m slow`` a thousand of all;
``campaign.py`` runs every one.
"""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import harness
import input_cases
import pytest
import workdir_cases

SAMPLED = 20  # of each table, in the default suite
FULL = 1000


def left(cases: list, quick: bool = False) -> list:
    """Leave out the slow cases if ``quick``."""
    return [c for c in cases if c.quick or not quick]


WORKDIRS = list(workdir_cases.whole_files())
QUICK_WORKDIRS = random.Random(0).sample(left(WORKDIRS, quick=True), SAMPLED)
QUICK_INPUTS = random.Random(0).sample(left(input_cases.CASES, quick=True), 3 * SAMPLED)


def test_the_server_forks_one_thread(server: harness.Server):
    assert server.ready["threads"] == 1


def test_healthy_commands_pass(server: harness.Server, made: Path, tmp_path: Path):
    """What the cases damage works as it is."""
    for name in ("predict", "convert"):
        box = harness.Box(tmp_path / name, made)
        guard = harness.Guard(box, writes=False)
        ended = box.run(server, workdir_cases.COMMANDS[name].argv)
        assert ended.code == 0, ended.err
        assert harness.faults(ended) + guard.faults(ended) == []


@pytest.mark.parametrize("case", QUICK_WORKDIRS, ids=lambda case: case.id)
def test_damaged_workdirs(
    case: workdir_cases.Case, server: harness.Server, made: Path, tmp_path: Path
):
    assert workdir_cases.run(case, server, made, tmp_path / "box") == []


@pytest.mark.parametrize("case", QUICK_INPUTS, ids=lambda case: case.id)
def test_hostile_input(
    case: input_cases.Case, server: harness.Server, made: Path, tmp_path: Path
):
    assert input_cases.run(case, server, made, tmp_path / "box") == []


def test_the_harness_finds_faults(server: harness.Server, tmp_path: Path):
    """Tracebacks, hangs, changed files and long messages do not pass."""
    right = harness.Ended(("x",), 2, 0, False, 0.1, "", "lt-jax: wrong. Do this\n")
    assert harness.faults(right) == []
    for wrong in (
        right._replace(code=None, signal=11),
        right._replace(code=1),
        right._replace(timed_out=True),
        right._replace(err=""),
        right._replace(err=right.err + "more\n"),
        right._replace(err=f"lt-jax: {'x' * harness.LONGEST}\n"),
        right._replace(err="lt-jax: \x1b[31m\n"),
        right._replace(err="lt-jax: internal error\n"),
        right._replace(err=f"Traceback (most recent call last)\n{right.err}"),
    ):
        assert len(harness.faults(wrong)) == 1, wrong
    box = harness.Box(tmp_path / "box")
    guard = harness.Guard(box, writes=False)
    (box.victim / "secret.txt").write_text("other")
    (box.cwd / "made").touch()
    (box.out / "half").touch()
    assert len(guard.faults(right)) == 3


@pytest.mark.parametrize("name", fuzz.JSON_READERS)
def test_any_json(name: str, server: harness.Server, box: harness.Box):
    # If a report does not refuse the file, it draws figures, which takes long.
    slow = fuzz.JSON_READERS[name].argv == fuzz.REPORT
    fuzz.fuzz_json(name, 1 if slow else fuzz.QUICK, server, box)


@pytest.mark.parametrize("name", fuzz.BYTE_READERS)
def test_any_bytes(name: str, server: harness.Server, box: harness.Box):
    fuzz.fuzz_bytes(name, fuzz.QUICK, server, box)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_a_thousand_cases(server: harness.Server, made: Path, tmp_path: Path):
    """No traceback, no hang, nothing changed elsewhere, in a thousand cases."""
    inputs = left(input_cases.CASES)
    damaged = left([*WORKDIRS, *workdir_cases.values(made)])
    sample = random.Random(1).sample(damaged, FULL - len(inputs))
    failures = {}
    for module, cases in ((input_cases, inputs), (workdir_cases, sample)):
        for case in cases:
            if wrong := module.run(case, server, made, tmp_path / "box"):
                failures[case.id] = wrong
    assert failures == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", fuzz.JSON_READERS)
def test_much_json(name: str, server: harness.Server, box: harness.Box):
    fuzz.fuzz_json(name, fuzz.FULL, server, box)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", fuzz.BYTE_READERS)
def test_many_bytes(name: str, server: harness.Server, box: harness.Box):
    fuzz.fuzz_bytes(name, fuzz.FULL, server, box)
