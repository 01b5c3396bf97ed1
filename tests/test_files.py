"""The door to the disk: what is wrong, in which field, and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lt_jax import files
from lt_jax.errors import InputError

SCHEMA = {
    "name": str,
    "step?": files.COUNT,
    "kept?": {"last", "best"},
    "metrics": {"all": [files.NUMBER], "few?": ([float, 1], None)},
    "flip?": bool,
    "pair?": [float, 2, 2],
    "more?": {str: {"lr": float}},
}
VALID = {"name": "a", "metrics": {"all": []}}


def read(content: str | bytes, tmp_path: Path) -> dict:
    file = tmp_path / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return files.read_json(file, SCHEMA, "Try again")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"x\.json is not valid JSON \(.*\)\. Try again"),
        ("{", r"x\.json is not valid JSON \(.*\)\. Try again"),
        (b"\xff\xfe", "is not valid JSON .*utf-8"),
        ('{"name": NaN}', "is not valid JSON .nan is not a finite number"),
        ('{"name": 1e999}', "is not valid JSON .inf is not a finite number"),
        ('{"name": 1%s}' % ("0" * 400), "is not valid JSON .1000.* finite"),
        ('{"name": 1%s}' % ("0" * 5000), "is not valid JSON"),
        ("[" * 1500 + "]" * 1500, "is not valid JSON .nested deeper than 50 levels"),
        ("[" * 51 + "]" * 51, "is not valid JSON .nested deeper than 50 levels"),
        ("[1]", r"x\.json must be a JSON object, got \[1\]\. Try again"),
        ("null", r"x\.json must be a JSON object, got None\. Try again"),
        ("{}", r"x\.json lacks 'name': .*another version\. Try again"),
        ('{"name": "a", "metrics": {}}', "lacks 'metrics.all'"),
        ('{"name": 1}', r"x\.json: name must be a string, got 1\. Try again"),
    ],
)
def test_invalid_json(tmp_path: Path, content: str | bytes, message: str):
    with pytest.raises(InputError, match=message):
        read(content, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": 1}, "metrics must be a JSON object, got 1"),
        ({"metrics": {"all": None}}, "metrics.all must be a list, got None"),
        ({"metrics": {"all": [1, "a"]}}, r"metrics.all\[1\] must be a number, got 'a'"),
        ({"metrics": {"all": [True]}}, r"metrics.all\[0\] must be a number, got True"),
        (
            {"metrics": {"all": [], "few": []}},
            r"metrics.few must be a list of at",
        ),
        ({"step": -1}, "step must be an integer of at least 0, got -1"),
        ({"step": 1.0}, "step must be an integer of at least 0, got 1.0"),
        ({"step": True}, "step must be an integer of at least 0, got True"),
        ({"flip": 1}, "flip must be true or false, got 1"),
        ({"pair": [1, 2, 3]}, r"pair must be a list of 2, got \[1, 2, 3\]"),
        ({"kept": "x"}, "kept must be one of best, last, got 'x'"),
        ({"kept": ["x"]}, r"kept must be one of best, last, got \['x'\]"),
        ({"more": {"a": {}}}, "lacks 'more.a.lr'"),
        ({"more": {"a": {"lr": "1"}}}, "more.a.lr must be a number, got '1'"),
    ],
)
def test_invalid_fields(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        read(json.dumps(VALID | changes), tmp_path)


def test_valid_json(tmp_path: Path):
    content = VALID | {
        "step": 3, "kept": "last", "metrics": {"all": [1, None, 0.5], "few": None},
        "flip": True, "pair": [0, 1], "more": {"a": {"lr": 1}}, "unknown": [[{}]],
    }  # fmt: skip
    assert read(json.dumps(content), tmp_path) == content


def test_a_digest_detects_changes(tmp_path: Path):
    content = {"name": "ü", "metrics": {"all": [0.1, float("nan"), 1e-300]}}
    text = files.sealed_json(content)
    assert read(text, tmp_path)["metrics"]["all"] == [0.1, None, 1e-300]
    assert "digest" not in read(text, tmp_path)
    with pytest.raises(InputError, match=r"x\.json has changed since it was written"):
        read(text.replace("0.1", "0.9"), tmp_path)


def test_what_is_not_a_regular_file(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(InputError, match=f"{name} is not a regular file"):
            files.read(tmp_path / name)
        with pytest.raises((InputError, IsADirectoryError)):
            files.append(tmp_path / name, "text")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path):
    file = tmp_path / "x.json"
    with file.open("wb") as opened:
        opened.truncate(10 * 2**30)  # sparse
    with pytest.raises(InputError, match="more than 67,108,864 bytes"):
        files.read_json(file, SCHEMA, "Try again")


def test_links_are_replaced_not_followed(tmp_path: Path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    with pytest.raises(InputError, match="link is a link or a pipe"):
        files.append(link, "text")
    files.write(link, "text")
    assert (link.read_text(), link.is_symlink()) == ("text", False)
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["link", "victim"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    file = tmp_path / "file"
    files.write(file, "old")
    with pytest.raises(ZeroDivisionError), files.atomic_path(file) as draft:
        draft.write_text(f"{1 / 0}")
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


def test_claim(tmp_path: Path):
    """Links that leave a workdir are refused, and what a kill left is removed."""
    workdir, outside = tmp_path / "w", tmp_path / "outside"
    outside.mkdir()
    files.claim(workdir, workdir)
    (workdir / "a").mkdir()
    (workdir / "a/x.json.0123abcd.tmp").touch()
    (workdir / "a/mine.tmp").touch()
    (workdir / "within").symlink_to(workdir / "a")
    files.claim(workdir, workdir)
    assert os.listdir(workdir / "a") == ["mine.tmp"]
    (workdir / "a/b").symlink_to(outside)
    with pytest.raises(InputError, match=r"a/b is a link to .*outside, outside of"):
        files.claim(workdir, workdir)
    (tmp_path / "link").symlink_to(outside)
    files.claim(tmp_path / "link", tmp_path / "link")  # a workdir may be a link
    with pytest.raises(InputError, match="is a link to"):
        files.claim(workdir / "a/b", workdir)
