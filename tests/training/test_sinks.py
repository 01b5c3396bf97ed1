"""TensorBoard, Weights & Biases and MLflow get what the workdir's files have."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_digits

from lt_jax.errors import InputError
from lt_jax.experiment import stages
from lt_jax.training import sinks
from lt_jax.training.log import Logger

ABOUT = {"config": {"seed": 0}, "dataset": {"split_hash": "abc"}}


def needs(package: str) -> None:
    """Skip unless the library is installed: the default suite needs tensorboardX only.

    It is not imported, as these libraries start threads and change logging.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it is an extra of the package")


def run_twice(workdir: Path, *names: str) -> None:
    """Records of a run that is interrupted after step 6, and resumed from step 5."""
    for steps in ((5, 6), (6, 10)):
        log = Logger(workdir)
        log.open_sinks(names, ABOUT)
        log.rewind("ce/0.0", steps[0] - 1)
        for step in steps:
            classes = {"accuracy": np.array([0.1, np.nan, 0.9])}
            values: dict[str, Any] = {"rate": 0.1, "loss": step / 2, "nll": None}
            log.record(classes, run="ce/0.0", step=step, **values)
        log.result("| all |", str)
        log.close()


def events(folder: Path) -> list[tuple[str, int, Any]]:
    """Tag, step and value of every event below a folder, by time."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*"), key=lambda file: file.suffix):
        content, at = file.read_bytes(), 0
        while at < len(content):  # length, its checksum, event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            found += [(value.tag, event.step, value) for value in event.summary.value]
    return found


def test_tensorboard(tmp_path: Path):
    needs("tensorboardX")
    run_twice(tmp_path, "tensorboard")
    found = events(tmp_path / "tensorboard" / "ce" / "0.0")
    scalars = [(t, s, v.simple_value) for t, s, v in found if not t.startswith("per_")]
    assert [s[1:] for s in scalars if s[0] == "loss"] == [(5, 2.5), (6, 3.0), (10, 5.0)]
    assert {s[0] for s in scalars} == {"rate", "loss"}
    tag, step, value = found[-1]
    assert (tag, step, value.histo.num) == ("per_class/accuracy", 10, 2)
    texts = [
        value.tensor.string_val for _, _, value in events(tmp_path / "tensorboard")
    ]
    assert b"split_hash" in texts[0][0]
    assert texts[-1] == [b"| all |"]


def test_only_process_zero_sends(tmp_path: Path, monkeypatch):
    needs("tensorboardX")
    monkeypatch.setattr("jax.process_index", lambda: 1)
    run_twice(tmp_path, "tensorboard")
    assert not [*tmp_path.iterdir()]


def test_a_run_without_permission_for_event_files(tmp_path: Path, capsys):
    needs("tensorboardX")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    run_twice(tmp_path, "tensorboard")
    out = capsys.readouterr().out
    assert out.count("log.sinks: tensorboard failed and is left out from now (") == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_whole_command(tmp_path: Path):
    """Every evaluation, the test results, the config and the table."""
    needs("tensorboardX")
    c = tiny_digits.config(log__sinks=("tensorboard",), method__names=("los",))
    stages.run(c, tmp_path)
    folder = tmp_path / "tensorboard"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for fit in ("stage1/0", "los/0.0"):
        found = events(folder / fit)
        assert {"loss", "rate", "test/all", "per_class/test/loma_row"} <= {
            tag for tag, _, _ in found
        }
        records = [json.loads(line) for line in lines]
        losses = [r["loss"] for r in records if r["run"] == fit]
        sent = [v.simple_value for tag, _, v in found if tag == "loss"]
        np.testing.assert_allclose(sent, losses, rtol=1e-6)
    text = str([value.tensor.string_val for _, _, value in events(folder)])
    assert "| none" in text
    assert "split_hash" in text


def in_a_process(workdir: Path, name: str, **environment: str) -> str:
    """Run ``run_twice`` where a library may start threads and services."""
    done = subprocess.run(
        [sys.executable, "-c", f"import test_sinks as t, pathlib; "
         f"t.run_twice(pathlib.Path({str(workdir)!r}), {name!r})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wandb_offline(tmp_path: Path):
    needs("wandb")
    out = in_a_process(tmp_path, "wandb", WANDB_MODE="offline")
    assert "failed" not in out
    run = json.loads((tmp_path / "sinks.json").read_text())["id"]
    folders = [*(tmp_path / "wandb").glob(f"offline-run-*-{run}")]
    assert folders
    written = b"".join(f.read_bytes() for d in folders for f in d.glob("*.wandb"))
    for text in (b"ce/0.0/loss", b"ce/0.0/per_class/accuracy", b"split_hash"):
        assert text in written
    html = [*folders[-1].glob("files/media/html/result*.html")]
    assert "| all |" in html[0].read_text()


def test_mlflow_on_a_local_store(tmp_path: Path):
    needs("mlflow")
    store = f"file:{tmp_path / 'store'}"
    given = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    assert "failed" not in in_a_process(tmp_path, "mlflow", **given)
    (run,) = {file.parent for file in (tmp_path / "store").glob("*/*/meta.yaml")}
    losses = (run / "metrics/ce/0.0/loss").read_text().splitlines()
    points = [line.split()[1:] for line in losses]
    assert points == [["2.5", "5"], ["3.0", "6"], ["5.0", "10"]]
    assert (run / "tags/split_hash").read_text() == "abc"
    assert (run / "artifacts/result.md").read_text() == "| all |"
    histogram = json.loads((run / "artifacts/per_class/ce/0.0/10.json").read_text())
    assert histogram == {"per_class/accuracy": [0.1, 0.9]}


def test_a_server_that_is_away_does_not_stop_a_run(tmp_path: Path):
    needs("mlflow")
    out = in_a_process(tmp_path, "mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:9",
                       MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")  # fmt: skip
    assert out.count("log.sinks: mlflow failed") == 2  # once per command
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_missing_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(sinks, "MODULES", {**sinks.MODULES, "wandb": "not_there"})
    c = tiny_digits.config(log__sinks=("wandb",))
    with pytest.raises(InputError, match=r"pip install 'lt_jax\[wandb\]'"):
        stages.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    c = tiny_digits.config(log__sinks=("wandbb",))
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        stages.train(c, tmp_path / "run")
