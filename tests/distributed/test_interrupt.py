"""Signals: the first one is recorded, the second one ends the process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lt_jax.distributed import interrupt
from lt_jax.errors import Interrupted

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120  # seconds


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_is_recorded(name, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.catch_signals("SIGINT", "SIGTERM") as stop_requested:
        assert stop_requested() == ""
        signal.raise_signal(signal.Signals[name])
        assert stop_requested() == name
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) is signal.SIG_DFL
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before
    assert f"\n{name}: saving and stopping (" in capfd.readouterr().err


SCRIPT = """
import sys, time
from lt_jax.distributed import interrupt
_, mode, address, process = sys.argv
import jax
if address:
    jax.distributed.initialize(address, 2, int(process))
with interrupt.catch_signals("SIGINT", "SIGTERM") as stop_requested:
    stop_requested()  # the first collective connects the processes
    print("ready", file=sys.stderr, flush=True)
    while mode == "loop":
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass
    if process == "1":
        time.sleep(600)
    stop_requested()  # waits for process 1
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    running: list[subprocess.Popen] = []

    def run(mode: str, address: str = "", process: int = 0) -> subprocess.Popen:
        part = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, mode, address, str(process)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "NPROC": "16"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(part)
        return part

    yield run
    for part in running:
        part.kill()
        part.communicate()


def wait_for(part: subprocess.Popen, text: str) -> None:
    assert part.stderr is not None
    assert any(text in line for line in part.stderr)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_one_process(start, first, second):
    part = start("loop")
    wait_for(part, "ready")
    part.send_signal(first)
    wait_for(part, f"{first.name}: saving and stopping")
    part.send_signal(second)
    assert part.wait(LIMIT) == -second


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_process_in_a_collective(start, number):
    """The main thread waits in C++ code, where Python runs no handler."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    parts = [start("wait", address, process) for process in (0, 1)]
    for part in parts:
        wait_for(part, "ready")
    time.sleep(1)  # until process 0 waits
    parts[0].send_signal(number)
    time.sleep(1)
    assert parts[0].poll() is None
    parts[0].send_signal(number)
    assert parts[0].wait(LIMIT) == -number


def test_batches_stop_together(monkeypatch):
    """Several processes ask every 16 batches."""
    answers = iter(["", "SIGTERM"])
    monkeypatch.setattr("jax.process_count", lambda: 2)
    batches = interrupt.until_stopped(range(100), lambda: next(answers), "the work")
    assert [next(batches) for _ in range(16)] == [*range(16)]
    with pytest.raises(Interrupted, match="the work") as found:
        next(batches)
    assert found.value.by == "SIGTERM"
    batches = interrupt.until_stopped(range(40), interrupt.never_stop, "")
    assert [*batches] == [*range(40)]
