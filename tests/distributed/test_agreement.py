"""Processes of one job that differ end together, before the first step."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_digits

from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment import session

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(tiny_digits.CONFIGS / "digits_lt.py")


def run_job(workdir: Path, *flags: list[str], env=({},)) -> list[tuple[int, str]]:
    """Run a process per list of flags; return exit codes and stderr."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    fixed = ["train", "--config", DIGITS, "--workdir", str(workdir)]
    fixed += [f"--coordinator={address}", f"--num_processes={len(flags)}"]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "lt_jax", *fixed, f"--process_id={i}", *own],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env[i % len(env)]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, own in enumerate(flags)
    ]
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            texts = [pool.submit(job.communicate, timeout=120) for job in jobs]
            errors = [text.result()[1] for text in texts]
        return [(j.returncode, text) for j, text in zip(jobs, errors, strict=True)]
    finally:
        for job in jobs:
            job.kill()


def last_line(text: str) -> str:
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def test_other_values_end_both_processes(tmp_path):
    """A different batch used to hang; different seeds gave other numbers."""
    other = ["--config.optim.batch=16", "--config.seed=3"]
    found = run_job(tmp_path / "w", [], other)
    assert [code for code, _ in found] == [2, 2], found
    for _, text in found:
        assert last_line(text) == (
            "lt-jax: process 1 differs from process 0: optim.batch is 16, not 32, seed "
            "is 3, not 0. Start all processes with the same command and code"
        )
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            ["--config.optim.lr=0.01"],
            "process 2 differs from process 0: optim.lr is 0.01",
        ),
        (["--config.optim.lr=-1"], "optim.lr"),
        (["--config.optim.nothing=1"], "unknown config key 'optim.nothing'"),
        (
            ["--workdir=elsewhere"],
            "process 2 differs from process 0: workdir is 'elsewh",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_of_three_processes_differs(tmp_path, other, expected):
    found = run_job(tmp_path, [], [], other)
    assert [code for code, _ in found] == [2, 2, 2], found
    for _, text in found:
        assert expected in last_line(text)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_other_code_ends_both_processes(tmp_path):
    env = ({}, {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"})
    found = run_job(tmp_path, [], [], env=env)
    assert [code for code, _ in found] == [2, 2], found
    for _, text in found:
        assert "process 1 differs from process 0: jax_default_matm" in last_line(text)


# Without other processes: what each of them raises.


@pytest.fixture
def others(monkeypatch):
    """Let ``together`` see these answers of the other processes, after its own."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    answers: list[str] = []

    def gather(value):
        return np.stack([value, value, value + len(answers)])

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(processes, "_gather", lambda text: [text, text, *answers])
    return answers


def test_work_is_done_if_all_agree(others):
    assert processes.together(lambda: 3, lambda found: {"value": found}) == 3
    with pytest.raises(OSError, match="disk"):
        processes.together(lambda: (_ for _ in ()).throw(OSError("disk")))


def test_every_process_raises_if_one_fails(others):
    others.append('"no such key"')
    with pytest.raises(InputError, match="process 2 failed: no such key"):
        processes.together(lambda: 3)


def test_a_difference_names_process_keys_and_values(others):
    others.append('{"a": 2, "b": null}')
    with pytest.raises(
        InputError, match="process 2 differs from process 0: a is 2, not 1"
    ):
        processes.together(lambda: 0, lambda _: {"a": 1, "b": None})


def test_the_location_of_data_may_differ():
    c = session.resolve(tiny_digits.config())
    assert "seed" in session._shared_values(c)
    assert "data.dir" not in session._shared_values(c)


def test_a_digest_covers_labels_and_order():
    c = session.resolve(tiny_digits.config())
    splits, groups = session.load_splits(c)
    before = session._split_digests((splits, groups))
    assert before.keys() == {"data split train", "data split valid", "data split test"}
    turned = splits.train.take(np.arange(len(splits.train))[::-1])
    assert turned.hash == splits.train.hash
    splits = dataclasses.replace(splits, train=turned)
    after = session._split_digests((splits, groups))
    assert [name for name in before if before[name] != after[name]] == [
        "data split train"
    ]
