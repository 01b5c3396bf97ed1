"""Profiling, and the share of time that a run waits for data."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import tiny_digits

from lt_jax.experiment import stages
from lt_jax.training import profiling, progress
from lt_jax.training.log import Logger


def test_a_fit_is_traced_where_the_config_asks(tmp_path, capsys):
    config = tiny_digits.config(optim__epochs=1, log__profile=str(tmp_path / "traces"))
    stages.train(config, tmp_path / "run")
    out, traces = capsys.readouterr().out, tmp_path / "traces/stage1/0"
    assert re.search(rf"profile of steps 6 to 10, \d+\.\d ms each; open {traces} ", out)
    assert len(list(traces.rglob("*.trace.json.gz"))) == 1
    assert list((tmp_path / "run/checkpoints/stage1/0").iterdir())


@pytest.mark.parametrize(
    ("steps", "traced"), [(100, (10, 15)), (12, (7, 12)), (3, (1, 3)), (1, None)]
)
def test_traced_steps(tmp_path, monkeypatch, steps, traced):
    """The last steps of a short fit, never the first, which compiles."""
    found = []
    profiler = profiling.jax.profiler
    now = 0
    monkeypatch.setattr(profiler, "start_trace", lambda _: found.append(now))
    monkeypatch.setattr(profiler, "stop_trace", lambda: found.append(now))

    fit = profiling.Profile(tmp_path, 40, 40 + steps, Logger(tmp_path))  # resumed
    with contextlib.closing(fit) as profile:
        for now in range(1, steps + 1):
            profile.step(now + 40, ())
    assert tuple(found) == (traced or ())


def test_the_progress_line_shows_the_wait_for_data(monkeypatch):
    """Over the steps after the first one, and after an interruption."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)

    def batches():
        nonlocal now
        for _ in range(5):
            now += 3.0
            yield {}

    measured = {
        "loss_sum": 1.0, "weight_sum": 1.0, "right": 1, "seen": 1, "finite": True,
    }  # fmt: skip
    rates = np.full(5, 0.1, np.float32)
    first = progress.Meter("stage1/0", rates, 5)
    for step, _ in enumerate(first.time_waits(batches()), start=1):
        now += 1.0
        first.add(step, measured)
        if step == 1:  # the speed is unknown
            assert [*first.parts(1)][-1] == "train"
    # Four times three seconds of waiting and one of work; the first step compiles.
    assert first.parts(5)["data"] == "data 75%"
    again = progress.Meter("stage1/0", rates, 5)
    again.resume(first.notes())
    assert again.data_share() == 0.75
