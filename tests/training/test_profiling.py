"""Profiling, and the share of time that a run waits for data."""

from __future__ import annotations

import pytest
import tiny_digits

from lt_jax.experiment import stages
from lt_jax.training import profiling, progress
from lt_jax.training.log import Logger


def event(name: str, begin: float, last: float, thread: int = 1) -> dict:
    """Build a trace event for an operation, with times in microseconds."""
    arguments = {"hlo_op": name, "hlo_module": "jit_step"}
    return {
        "ph": "X", "pid": 7, "tid": thread, "ts": begin, "dur": last,
        "name": name, "args": arguments,
    }  # fmt: skip


def test_own_time_of_operations():
    """Nested operations count once, threads are separate, numbers are stripped."""
    events = [
        {"ph": "M", "pid": 7, "name": "process_name", "args": {"name": "host"}},
        {"ph": "X", "pid": 7, "tid": 1, "ts": 0, "dur": 9e6, "name": "python"},
        event("while.2", 0, 100),
        event("dot.1", 10, 30),
        event("dot.22", 50, 20),
        event("ffi_call.4__target", 100, 5),
        event("dot.1", 20, 40, thread=2),
        event("ffi_call.clone.3__target", 60, 5, thread=2),
    ]
    found = profiling.slowest(events)
    assert found == [
        ("dot", 3, pytest.approx(90e-6)),
        ("while", 1, pytest.approx(50e-6)),
        ("ffi_call__target", 2, pytest.approx(10e-6)),
    ]
    first = profiling.table(found).splitlines()[0]
    assert first.split() == ["60.0%", "0.1", "ms", "3", "x", "dot"]
    assert "no operation" in profiling.table([])


def test_a_fit_is_traced_where_the_config_asks(tmp_path, capsys):
    config = tiny_digits.config(optim__epochs=1, log__profile=str(tmp_path / "traces"))
    stages.train(config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("profile of steps"))
    assert lines[at].startswith("profile of steps 6 to 10, ")
    shares = [float(line.split("%")[0]) for line in lines[at + 1 : at + 11]]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5
    (file,) = (tmp_path / "traces/stage1/0").rglob("*.trace.json.gz")
    assert str(file) in lines[at]
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

    with profiling.Profile(tmp_path, steps, Logger(tmp_path)) as profile:
        for now in range(1, steps + 1):
            profile.step(now + 40, ())  # of a fit resumed at step 40
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
    first = progress.Meter("stage1/0", 5)
    for step, _ in enumerate(first.time_waits(batches()), start=1):
        now += 1.0
        first.add(step, measured)
        if step == 1:  # the speed is unknown
            assert first.line(1).endswith("| train 100.0%")
    # Four times three seconds of waiting and one of work; the first step compiles.
    assert "| data 75% |" in first.line(5)
    again = progress.Meter("stage1/0", 5)
    again.resume(first.notes())
    assert again.data_share() == 0.75
