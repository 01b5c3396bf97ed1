"""The log of a run: what a resumed run keeps of it, and where it writes."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest

from lt_jax.errors import InputError
from lt_jax.training.log import Bar, Logger

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


def test_without_a_terminal_every_line_has_a_time(tmp_path: Path, capsys):
    log = Logger(tmp_path)
    log.info("a line")
    log.info("")
    log.detail("more")
    out = capsys.readouterr().out
    assert re.fullmatch(r"\d\d:\d\d:\d\d a line\n\n", out)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    text = (tmp_path / "log.txt").read_text()
    assert re.fullmatch(rf"{stamp} a line\n\n{stamp} more\n", text)


def test_a_warning_comes_once(tmp_path: Path, capsys):
    log = Logger(tmp_path)
    for _ in range(2):
        log.warning("careful")
    assert capsys.readouterr().out.count("careful") == 1


def test_lines_show_the_time_of_this_fit_and_of_all(tmp_path: Path, capsys):
    log = Logger(tmp_path)
    log.plan({"one": 10, "two": 20})
    with Bar(log, "one", 0, 100, 0.0) as bar:  # 10 steps per epoch
        assert bar.advance(50)
        bar.show({"loss": "loss 1.5"}, 2.0)
        bar.estimate(2.0)
        bar.estimate(2.0)
    out = capsys.readouterr().out
    assert "one | loss 1.5 | 1:40 left | 8:20 for all fits\n" in out
    assert out.count("estimated time left: 8:20") == 1
    with Bar(log, "two", 0, 200, 0.0) as bar:
        bar.advance(50)
        bar.show({}, float("nan"))  # not known yet
    assert capsys.readouterr().out.endswith(" two | 25%\n")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bars_below_the_lines(tmp_path: Path, monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    log = Logger(tmp_path)
    log.plan({"one": 10, "two": 20})
    with Bar(log, "one", 0, 100, 0.0) as bar:
        bar.advance(30)
        bar.show({"epoch": "epoch 3/10", "data": "data 7%"}, 2.0)
        log.info("[b]a line\x1b]0;title\x07 :smile:")
        log.bars.refresh()
    log.close()
    shown = " ".join(screen.getvalue().split())
    assert "[b]a line\\x1b]0;title\\x07 :smile:" in shown
    assert re.search(r"one +━*╸? 30% epoch 3/10 2:20", shown)
    assert re.search(r"all fits +━*╸? 10% then 1 more 9:00", shown)
    assert "data 7%" not in shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)  # colours, against NO_COLOR
