"""JSON files: what is wrong, in which field, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from lt_jax.errors import InputError
from lt_jax.files import read_json

FIELDS = {"name": str, "metrics.all": list}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"x\.json is not valid JSON \(.*\)\. Try again"),
        ("[1]", r"x\.json must be a JSON object, got \[1\]\. Try again"),
        ("{}", r"x\.json lacks 'name': another version .* Try again"),
        ('{"name": "a"}', "lacks 'metrics.all'"),
        ('{"name": "a", "metrics": 1}', "lacks 'metrics.all'"),
        ('{"name": 1}', r"x\.json: name must be a string, got 1\. Try again"),
        ('{"name": "a", "metrics": {"all": null}}', "must be a list, got None"),
    ],
)
def test_invalid_json(tmp_path: Path, content: str, message: str):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "x.json", FIELDS, "Try again")


def test_valid_json(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"name": "a", "metrics": {"all": []}, "more": 1}')
    found = read_json(tmp_path / "x.json", FIELDS, "Try again")
    assert found == {"name": "a", "metrics": {"all": []}, "more": 1}
