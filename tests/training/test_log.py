"""The log of a run: what a resumed run keeps of it, and where it writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lt_jax.errors import InputError
from lt_jax.training.log import Logger

LINES = [
    b'{"run": "stage1/0", "step": 5}',
    b"not JSON",
    b"\xff\xfe",
    b"[" * 1500,
    b'["run", "step"]',
    b'{"run": 1, "step": 5}',
    b'{"run": "stage1/0", "step": "5"}',
    b'{"run": "stage1/0", "step": 7}',
    b'{"run": "ce/0.0", "step": 7, "loss": null}',
    b'{"run": "stage1/0", "st',
]


def test_a_resumed_run_keeps_what_is_valid(tmp_path: Path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join(LINES))
    log = Logger(tmp_path)
    log.rewind("stage1/0", 5)
    assert "metrics.jsonl: removed 7 invalid line(s)" in capsys.readouterr().out
    log.record(run="stage1/0", step=6, loss=float("nan"))
    assert file.read_bytes().splitlines() == [
        LINES[0],
        LINES[8],
        b'{"run": "stage1/0", "step": 6, "loss": null}',
    ]


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_links_and_pipes_are_not_written_to(tmp_path: Path, name: str):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "w").mkdir()
    place, log = tmp_path / "w" / name, Logger(tmp_path / "w")
    for make in (lambda: place.symlink_to(victim), lambda: os.mkfifo(place)):
        make()
        with pytest.raises(InputError, match=f"{name} is a link or a pipe"):
            log.record(run="a", step=1) if name == "metrics.jsonl" else log.detail("x")
        place.unlink()
    assert victim.read_text() == "precious"
