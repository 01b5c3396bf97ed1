"""Images of mistakes, from the data of a workdir."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import made_workdirs as made
import numpy as np
import pytest
from PIL import Image

from configs import digits_lt
from lt_jax.experiment import splits, workdirs
from lt_jax.experiment.config import as_dict, resolve
from lt_jax.report import classes


@pytest.fixture(scope="module")
def digits() -> Any:
    return splits.load_splits(resolve(digits_lt.get_config()))[0]


def run(folder: Path, digits: Any, **mistake: Any) -> workdirs.Run:
    counts = digits.full_class_counts
    one = made.outcome([0], 0.4, counts, {}, made.analysis())
    row = {"row": 5, "predicted": 3, "confidence": 0.987, "id": str(digits.test.ids[5])}
    one["analysis"] |= {
        "taken_for": {"class": [3] * 10, "share": [0.5] * 9 + [0.0]},
        "mistakes": [row | mistake],
    }
    made.write(folder, {"none": [one]}, as_dict(resolve(digits_lt.get_config())))
    result = json.loads((folder / "result.json").read_text())
    result["dataset"]["split_hash"] = digits.hash
    (folder / "result.json").write_text(json.dumps(result))
    (found,) = workdirs.read([folder])
    return found


def test_mistakes_are_shown_as_images(digits: Any, tmp_path: Path):
    part = classes.table(run(tmp_path, digits))
    ((image, text),) = part.images
    names = digits.test.classes
    assert text == f"{names[digits.test.labels[5]]} → {names[3]}, 99 %"
    content = base64.b64decode(image.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(pixels, digits.test.read(np.array([5]))[0, ..., 0])
    assert part.table
    assert [row[-1] for row in part.table.rows] == ["class 3 (50 %)"] * 9 + [""]


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ({"id": "another"}, "the test images are not those of this run any more"),
        ({"row": 10**9}, "the test images are not those of this run any more"),
        ({"predicted": 10}, "index out of range"),
    ],
)
def test_other_data_are_not_shown(
    mistake: dict[str, Any], reason: str, digits: Any, tmp_path: Path
):
    part = classes.table(run(tmp_path, digits, **mistake))
    assert reason in part.note
    assert not part.images


def test_no_mistakes_need_no_data(digits: Any, tmp_path: Path, monkeypatch: Any):
    found = run(tmp_path, digits)
    found.fits["none"][0]["analysis"]["mistakes"] = []
    monkeypatch.setattr(splits, "load_splits", None)
    part = classes.table(found)
    assert part.note.startswith("none has no mistakes")


def test_damaged_predictions_are_as_none(digits: Any, tmp_path: Path):
    found = run(tmp_path, digits)
    found.fits["none"][0]["analysis"]["taken_for"]["class"][0] = 10
    part = classes.table(found)
    assert "measured on cached features" in part.note
    assert part.table
    assert part.table.header[-1] == "none"
