"""The report: hand-computed numbers, the page read back, missing data and errors."""

from __future__ import annotations

import base64
import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import made_workdirs as made
import numpy as np
import pytest

from lt_jax.cli import main
from lt_jax.errors import InputError
from lt_jax.experiment import workdirs
from lt_jax.report import build, style, tables

COUNTS = (500, 50, 5)
LOS = {"lr": 5e-4, "epochs": 2, "delta": 0.9, "start": "stage1", "sampler": "instance"}
CE = {k: v for k, v in LOS.items() if k != "delta"}
FIGURES = ("accuracy", "groups", "loma_row", "loma_col", "rsd_row", "rsd_col")


def fits(los: tuple[float, ...] = (0.5, 0.6), **entry: Any) -> dict[str, list[dict]]:
    return {
        "none": [made.outcome([0], 0.4, COUNTS)],
        "ce": [made.outcome([0, s], 0.45, COUNTS) for s in range(2)],
        "los": [
            made.outcome([0, s], accuracy, COUNTS, **entry)
            for s, accuracy in enumerate(los)
        ],
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages and its report."""
    folder = made.write(
        tmp_path_factory.mktemp("plain") / "run",
        fits(),
        made.config({"ce": CE, "los": LOS}),
    )
    build.write([folder], folder / "report")
    return folder


def sweep_rows() -> list[dict]:
    """LOS at two deltas and rates, CE at two rates; one setting diverged.

    The best rate of LOS on validation is 0.005 for delta 0.5 and 0.0005 for delta 0.9.
    On the test set it is the reverse.
    """
    table = {  # delta, lr: accuracy on validation, on test
        (0.5, 5e-4): (0.30, 0.52),
        (0.5, 5e-3): (0.40, 0.50),
        (0.9, 5e-4): (0.50, 0.60),
        (0.9, 5e-3): (0.45, 0.62),
    }
    rows = [
        made.row(
            "los",
            LOS | {"delta": delta, "lr": lr},
            [0, s],
            made.summary(valid),
            made.summary(test + 0.02 * s, loma=2 + delta),
        )
        for (delta, lr), (valid, test) in table.items()
        for s in range(2)
    ]
    rows += [
        made.row("ce", CE | {"lr": 5e-4}, [0, s], made.summary(0.4), made.summary(0.45))
        for s in range(2)
    ]
    nothing = dict.fromkeys(made.summary(0.0))
    return [*rows, made.row("ce", CE | {"lr": 5e-3}, [0, 0], nothing, nothing, 7)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep and its report."""
    chosen = {
        "none": [made.outcome([0], 0.4, COUNTS, analysed=made.analysis())],
        "ce": [
            made.outcome([0, s], 0.45, COUNTS, CE, made.analysis(valid=False))
            for s in range(2)
        ],
        "los": [
            made.outcome([0, s], 0.6 + 0.02 * s, COUNTS, LOS, made.analysis())
            for s in range(2)
        ],
    }
    fixed = {"los": [made.outcome([0, s], 0.55, COUNTS, LOS) for s in range(2)]}
    folder = made.write(
        tmp_path_factory.mktemp("swept") / "sweep",
        chosen,
        made.config({"ce": CE, "los": LOS}, method__features="cached"),
        sweep_rows(),
        fixed,
    )
    build.write([folder], folder / "report")
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes most of the time."""
    files = {"png": b"png", "svg": b'<svg width="9pt"/>'}
    monkeypatch.setattr(style, "render", lambda _: files)


def numbers(workdir: Path, name: str) -> list[dict[str, str]]:
    file = workdir / "report" / "figures" / f"{name}.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def html(workdir: Path) -> str:
    return (workdir / "report" / "index.html").read_text(encoding="utf-8")


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


# The numbers.


def test_groups_are_means_and_deviations_in_per_cent(plain: Path):
    none, ce, los = numbers(plain, "groups")
    assert los["method"] == "los"
    assert float(los["all"]) == pytest.approx(55)
    assert float(los["all_std"]) == pytest.approx(np.std([50, 60], ddof=1))
    assert float(los["many"]) == pytest.approx(75)
    assert float(los["few"]) == pytest.approx(35)
    assert float(ce["all_std"]) == 0
    assert none["all_std"] == ""  # one seed has no deviation


def test_per_class_has_a_row_for_each_method_and_class(plain: Path):
    lines = numbers(plain, "accuracy")
    assert len(lines) == 3 * 3
    last = lines[-1]
    assert (last["method"], last["class"], last["train_count"]) == (
        "los",
        "class 2",
        "5",
    )
    assert float(last["accuracy"]) == pytest.approx(55)
    assert float(numbers(plain, "rsd_col")[0]["rsd_col_false"]) == pytest.approx(1 / 7)


def test_differences_from_los_are_paired_by_seeds(plain: Path):
    none, ce = numbers(plain, "versus")
    assert none["pairs"] == ce["pairs"] == "2"
    # 0.45 - 0.5 and 0.45 - 0.6
    assert float(ce["all"]) == pytest.approx(-10)
    assert float(ce["all_std"]) == pytest.approx(np.std([-5, -15], ddof=1))
    assert ce["verdict"] == "los ahead"
    assert "LOS is ahead of 2 of 2." in html(plain)


def test_delta_uses_the_best_rate_on_validation_and_the_fixed_one(swept: Path):
    """The curve starts at delta 0, which is plain cross-entropy."""
    lines = numbers(swept, "delta")
    best, fixed = lines[:3], lines[3:]
    assert [(float(r["delta"]), float(r["lr"])) for r in best] == [
        (0.0, 5e-4),
        (0.5, 5e-3),
        (0.9, 5e-4),
    ]
    assert [float(r["lr"]) for r in fixed] == [5e-4, 5e-4, 5e-4]
    assert float(best[0]["all"]) == pytest.approx(0.45)
    best = best[1:]
    assert float(best[0]["all"]) == pytest.approx(0.51)  # over the two seeds, test set
    assert float(best[0]["all_std"]) == pytest.approx(np.std([0.5, 0.52], ddof=1))
    assert float(best[0]["loma_row"]) == pytest.approx(2.5)
    assert float(best[0]["gap_asked"]) == pytest.approx(np.log(1 + 3 * 0.5 / 0.5))
    assert float(best[1]["gap_asked"]) == pytest.approx(np.log(1 + 3 * 0.1 / 0.9))


def test_heat_map_uses_the_best_other_values_on_validation(swept: Path):
    lines = {(r["method"], float(r["lr"])): r for r in numbers(swept, "learning_rate")}
    assert json.loads(lines["los", 5e-4]["hyper"])["delta"] == 0.9
    assert float(lines["los", 5e-4]["all"]) == pytest.approx(61)
    assert float(lines["los", 5e-3]["all"]) == pytest.approx(63)
    assert lines["ce", 5e-3]["hyper"] == "diverged"


def test_correlation_skips_diverged_heads(swept: Path):
    assert len(numbers(swept, "correlation")) == 10


def test_main_table_lists_chosen_and_fixed_settings(swept: Path):
    lines = [(r["method"], r["values"], r["all"]) for r in numbers(swept, "main")]
    assert lines == [
        ("none", "", "40"),
        ("ce", "chosen", "45"),
        ("los", "chosen", "61"),
        ("los", "fixed", "55"),
    ]


def test_confusion_adds_up_over_seeds(swept: Path):
    line = next(r for r in numbers(swept, "confusion") if r["method"] == "los")
    assert (line["true_group"], line["right"], line["wrong_to_medium"]) == (
        "many",
        "16",
        "2",
    )
    assert float(line["right_percent"]) == 80


def test_reliability_adds_up_over_seeds_and_needs_no_validation_set(swept: Path):
    lines = numbers(swept, "reliability")
    last = [r for r in lines if (r["method"], r["when"]) == ("los", "before")][-1]
    assert (last["seen"], last["right"], float(last["conf"])) == ("20", "16", 19.6)
    assert not [r for r in lines if (r["method"], r["when"]) == ("ce", "after")]
    assert [r for r in lines if (r["method"], r["when"]) == ("los", "after")]
    cells = [cell.text for cell in tree(html(swept)).iter("td")]
    assert "1.50 ± 0.00" in cells  # T
    assert "3.0 ± 0.0" in cells  # ECE afterwards


# The page.


@pytest.mark.parametrize("which", ["plain", "swept"])
def test_page_is_well_formed_and_self_contained(
    which: str, request: pytest.FixtureRequest
):
    folder = request.getfixturevalue(which)
    text = html(folder)
    root = tree(text)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        assert element.tag not in ("script", "link", "iframe", "object")
        for key in ("src", "href"):
            where = element.get(key)
            assert where is None or where.startswith(("data:", "#"))
            assert where is None or where[0] != "#" or where[1:] in ids
        if element.tag == "img":
            assert element.get("alt")
            _, content = element.get("src", "").split("base64,")
            svg = base64.b64decode(content).decode()
            ElementTree.fromstring(svg)
            assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "0123456789abcdef" in text  # the split
    assert "1 x made" in text  # the device


def test_every_figure_has_its_files_and_they_are_reproducible(
    swept: Path, tmp_path: Path
):
    names = (*FIGURES, "weight_norm", "delta", "learning_rate", "correlation")
    for name in (*names, "reliability", "confusion"):
        for kind in ("png", "svg", "csv"):
            assert (swept / "report" / "figures" / f"{name}.{kind}").stat().st_size
    build.write([swept], tmp_path / "again")
    for file in sorted((swept / "report").rglob("*.*")):
        again = tmp_path / "again" / file.relative_to(swept / "report")
        assert file.read_bytes() == again.read_bytes(), file.name


def test_page_embeds_the_numbers(plain: Path):
    links = [a for a in tree(html(plain)).iter("a") if a.get("download")]
    link = next(a for a in links if a.get("download") == "groups.csv")
    content = base64.b64decode(link.get("href", "").split("base64,")[1])
    assert content == (plain / "report" / "figures" / "groups.csv").read_bytes()


def test_page_only_names_a_large_csv():
    table = tables.Table(["x"], [["9" * build.LARGEST_DOWNLOAD]])
    part = tables.Part("n", "t", "r", numbers=table)
    text = build.render("", [build.Chapter("c", (), [part])])
    assert "figures/n.csv" in text
    assert "download" not in text


def test_names_are_escaped(tmp_path: Path):
    """Markup in names of classes, methods, devices and folders becomes text."""
    runs = fits()
    for outcomes in runs.values():
        for one in outcomes:
            one["per_class"]["class"][0] = "<b>&\x1b[31m\udce9"  # ESC; not UTF-8
    runs["<i>$x$"] = runs.pop("ce")
    folder = made.write(tmp_path / "a<u>&", runs, made.config({"los": LOS}))
    result = json.loads((folder / "result.json").read_text())
    result["device"] = "<script>&"
    (folder / "result.json").write_text(json.dumps(result))
    build.write([folder], folder / "report")
    root = tree(html(folder))
    assert not {"b", "i", "u", "script"} & {element.tag for element in root.iter()}
    words = "".join(root.itertext())
    for word in ("<i>$x$", "a<u>&", "<script>&"):
        assert word in words
    assert numbers(folder, "accuracy")[0]["class"].startswith("<b>&")


# Missing data.


def test_page_explains_missing_parts(plain: Path):
    text = {
        section.get("id"): "".join(section.itertext())
        for section in tree(html(plain)).iter("section")
        if section.get("id")
    }
    assert "needs a sweep of LOS with two or more values" in text["delta"]
    assert "needs a sweep with two or more learning rates" in text["learning_rate"]
    assert "has no reliability" in text["reliability"]
    assert "has no confusion" in text["confusion"]
    for name in ("delta", "learning_rate", "reliability", "confusion"):
        assert not list((plain / "report" / "figures").glob(f"{name}.*"))


@pytest.mark.usefixtures("undrawn")
def test_stage_1_alone_and_empty_groups_and_nulls(tmp_path: Path):
    one = made.outcome([0], 0.4, COUNTS)
    one["metrics"] |= {"few": None, "loma_row": None}
    one["per_class"]["accuracy"][2] = None
    one["per_class"]["rsd_row_true"] = [None] * 3
    del one["analysis"]
    folder = made.write(tmp_path / "run", {"none": [one]}, made.config({}))
    build.write([folder], folder / "report")
    assert numbers(folder, "groups")[0]["few"] == ""
    assert "nan" in [cell.text for cell in tree(html(folder)).iter("td")]
    assert "This needs LOS and at least one other method." in html(folder)
    assert "at least three heads with a finite accuracy" in html(folder)


def test_a_method_without_analysis_is_named(tmp_path: Path):
    runs = fits(analysed=made.analysis())
    folder = made.write(tmp_path / "run", runs, made.config({}))
    build.write([folder], folder / "report")
    assert "Not measured for none and ce." in html(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_whose_heads_all_diverged(tmp_path: Path):
    rows = [
        made.row("los", LOS | {"delta": d, "lr": lr}, [0, 0], {}, {}, 3)
        for d in (0.5, 0.9)
        for lr in (0.1, 1.0)
    ]
    runs = {"none": [made.outcome([0], 0.4, COUNTS)]}
    folder = made.write(tmp_path / "run", runs, made.config({"los": LOS}), rows)
    build.write([folder], folder / "report")
    assert "4 heads, 4 diverged" in html(folder)
    assert "All LOS heads of the sweep diverged." in html(folder)


# Several workdirs.


@pytest.mark.usefixtures("undrawn")
def test_protocol_lists_the_choices_that_differ(plain: Path, tmp_path: Path):
    entries = {"ce": CE, "los": LOS}
    drift = made.write(
        tmp_path / "drift",
        fits(los=(0.6, 0.8)),
        made.config(entries, method__batch_norm="drift", init__path="elsewhere"),
    )
    both = made.write(
        tmp_path / "both",
        fits(),
        made.config(entries | {"los": LOS | {"start": "fresh"}}, eval__flip=True),
    )
    out = tmp_path / "out"
    build.write([plain, drift, both], out)
    with (out / "figures" / "protocol.csv").open() as stream:
        lines = {(r["workdir"], r["method"]): r for r in csv.DictReader(stream)}
    one = lines["drift", "los"]
    assert one["what_differs"] == "batch_norm: frozen → drift"
    assert float(one["all"]) == pytest.approx(15)  # 0.6 - 0.5 and 0.8 - 0.6
    assert float(one["all_std"]) == pytest.approx(np.std([10, 20], ddof=1))
    assert one["choices"] == "1"
    # Batch norm in stage 2 does not affect the stage-1 head.
    assert lines["drift", "none"]["what_differs"] == "nothing: a repetition"
    choices = lines["both", "los"]["what_differs"]
    assert choices.startswith("2 choices: ")
    assert "flip: False → True" in choices
    assert "los.start: stage1 → fresh" in choices
    assert lines["both", "ce"]["what_differs"] == "flip: False → True"
    text = (out / "index.html").read_text(encoding="utf-8")
    assert {"protocol", "accuracy-1-run", "accuracy-2-drift", "accuracy-3-both"} <= {
        element.get("id") for element in tree(text).iter("section")
    }
    assert (out / "figures" / "groups-2-drift.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_training_set_and_epochs_are_choices(plain: Path, tmp_path: Path):
    folder = made.write(
        tmp_path / "other",
        {"none": [made.outcome([7], 0.5, COUNTS)]},
        made.config({}, optim__epochs=4),
    )
    result = json.loads((folder / "result.json").read_text())
    result["dataset"]["split_hash"] = "f" * 16
    del result["protocol"]["group_average"]  # as in version 0.1
    (folder / "result.json").write_text(json.dumps(result))
    one, other = workdirs.read([plain, folder])
    assert workdirs.differences(one, other, "none") == {
        "training set": ("0123456789abcdef", "f" * 16),
        "group_average": ("classes", "examples"),
        "optim.epochs": (2, 4),
    }
    build.write([plain, folder], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for average in ("classes", "examples"):
        assert f"few &lt; 20, mean over {average}" in page
        assert f"classes, as the mean over {average}." in page
    with (tmp_path / "out" / "figures" / "protocol.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["pairs"], line["all"], line["all_std"]) == ("0", "10", "")


# Errors.


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "not a workdir"),
        ("result.json", None, "nothing has finished"),
        ("result.json", "{}", "result.json lacks 'dataset'"),
        ("checkpoints/los/0.1/outcome.json", "{", "0.1/outcome.json is not valid JSON"),
        (
            "checkpoints/los/0.1/outcome.json",
            "[]",
            "0.1/outcome.json must be a JSON object, got []",
        ),
        ("checkpoints/los/0.1/outcome.json", "{}", "outcome.json lacks 'seeds'"),
        (
            "sweep/0/0/rows.json",
            '{"origin": {}, "rows": [{}]}',
            "rows.json lacks 'rows[0].method'",
        ),
        (
            "sweep/0/0/rows.json",
            '{"origin": {}, "rows": 3}',
            "rows must be a list, got 3",
        ),
    ],
)
def test_bad_workdirs(
    file: str, content: str | None, message: str, tmp_path: Path, capsys: Any
):
    folder = made.write(tmp_path / "run", fits(), made.config({}))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    assert main.main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(folder) in error
    assert not (folder / "report").exists()


def test_a_workdir_without_finished_fits(tmp_path: Path):
    folder = made.write(tmp_path / "run", {"none": fits()["none"]}, made.config({}))
    (folder / "checkpoints" / "stage1" / "0" / "outcome.json").unlink()
    with pytest.raises(InputError, match="no finished fits"):
        workdirs.read([folder])


def test_missing_or_repeated_workdir_and_unwritable_output(
    plain: Path, tmp_path: Path, capsys: Any
):
    assert main.main(["report", str(tmp_path / "absent")]) == 2
    assert "not a workdir" in capsys.readouterr().err
    assert main.main(["report", str(plain), str(plain)]) == 2
    assert "duplicate workdir" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main.main(["report", str(plain), "--out", str(tmp_path / "file")]) == 2
    assert "File exists" in capsys.readouterr().err


def test_command_does_not_take_a_config(plain: Path, capsys: Any):
    assert main.main(["report", "--config", "configs/digits_lt.py", str(plain)]) == 2
    assert "does not take --config" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_command_prints_the_path_of_the_page(plain: Path, tmp_path: Path, capsys: Any):
    assert main.main(["report", str(plain), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'index.html'}\n"
    assert (tmp_path / "index.html").exists()
