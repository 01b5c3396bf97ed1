"""The report: its numbers by hand, its page read back, and what is said of gaps."""

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
from matplotlib.figure import Figure

from lt_jax.cli import main
from lt_jax.errors import InputError
from lt_jax.experiment import workdirs
from lt_jax.report import build, figures, page, style, tables

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
    """A run of both stages, and its report."""
    folder = made.write(
        tmp_path_factory.mktemp("plain") / "run",
        fits(),
        made.config({"ce": CE, "los": LOS}),
    )
    build.write([folder], folder / "report")
    return folder


def sweep_rows() -> list[dict]:
    """LOS at two deltas and rates, CE at two rates; one setting diverged.

    On validation LOS is best at 0.005 for delta 0.5 and at 0.0005 for delta 0.9; on
    the test set it would be the other way round.
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
    """A sweep, and its report."""
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
    """Leaves out the drawing, which takes most of the time."""
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
    assert none["all_std"] == ""  # one seed has no spread


def test_per_class_has_a_line_for_each_method_and_class(plain: Path):
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


@pytest.mark.parametrize(
    ("mean", "std", "pairs", "expected"),
    [
        (0.01, 0.02, 3, "within the spread"),
        (0.03, 0.02, 3, "ce ahead"),
        (-0.03, 0.02, 3, "los ahead"),
        (-0.03, np.nan, 1, "los ahead, spread unknown"),
        (0.0, 0.0, 3, "equal"),
        (np.nan, np.nan, 0, "no seeds in common"),
    ],
)
def test_verdict(mean: float, std: float, pairs: int, expected: str):
    assert tables.verdict("ce", mean, std, pairs) == expected


def test_delta_takes_the_rate_that_validation_chooses_and_the_fixed_one(swept: Path):
    """The curve begins with plain cross-entropy, which is a delta of 0."""
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


def test_heat_map_takes_the_best_of_the_rest_on_validation(swept: Path):
    lines = {(r["method"], float(r["lr"])): r for r in numbers(swept, "learning_rate")}
    assert json.loads(lines["los", 5e-4]["hyper"])["delta"] == 0.9
    assert float(lines["los", 5e-4]["all"]) == pytest.approx(61)
    assert float(lines["los", 5e-3]["all"]) == pytest.approx(63)
    assert lines["ce", 5e-3]["hyper"] == "diverged"


def test_diverged_heads_are_in_no_correlation(swept: Path):
    assert len(numbers(swept, "correlation")) == 10


def test_chosen_stands_beside_fixed(swept: Path):
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


def test_reliability_adds_up_and_lives_without_a_validation_set(swept: Path):
    lines = numbers(swept, "reliability")
    last = [r for r in lines if (r["method"], r["when"]) == ("los", "before")][-1]
    assert (last["seen"], last["right"], float(last["conf"])) == ("20", "16", 19.6)
    assert not [r for r in lines if (r["method"], r["when"]) == ("ce", "after")]
    assert [r for r in lines if (r["method"], r["when"]) == ("los", "after")]
    cells = [cell.text for cell in tree(html(swept)).iter("td")]
    assert "1.50 ± 0.00" in cells  # T
    assert "3.0 ± 0.0" in cells  # ECE afterwards


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Ranks 1 2.5 2.5 4 and 1 3 2 4: cov 4.5, variances 4.5 and 5.
        ([1, 2, 2, 9], [0, 5, 1, 7], 4.5 / np.sqrt(4.5 * 5)),
        ([1, 2, np.nan, 3], [1, 2, 0, 3], 1.0),
        ([1, 1, 1], [1, 2, 3], np.nan),
        ([1, 2], [1, 2], np.nan),
    ],
)
def test_spearman(x: list[float], y: list[float], expected: float):
    rho = figures.spearman(np.array(x, float), np.array(y, float))
    assert rho == pytest.approx(expected, nan_ok=True)


def test_limits_leave_out_what_is_far_and_count_it():
    values = np.append(np.linspace(0, 1, 200), [1e6, np.nan])
    low, high, beyond = style.limits(values)
    assert -0.1 < low < 0.01
    assert 1.0 < high < 1.6
    assert beyond == 1
    assert style.limits(np.array([-1.0, 1.0, 10.0]), log=True)[2] == 1
    assert style.limits(np.array([np.nan])) == (0.0, 1.0, 0)


def test_a_trend_of_few_points_goes_through_them():
    x, y = style.trend(np.array([3.0, 1.0, 2.0]), np.array([30.0, 10.0, 20.0]))
    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [10, 20, 30])


# The page.


@pytest.mark.parametrize("which", ["plain", "swept"])
def test_the_page_is_well_formed_and_needs_nothing_else(
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
            style = base64.b64decode(content).decode()
            ElementTree.fromstring(style)
            assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", style)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "0123456789abcdef" in text  # the split
    assert "1 x made" in text  # the device


def test_every_figure_has_its_files_and_they_come_out_the_same(
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


def test_numbers_can_be_taken_from_the_page(plain: Path):
    links = [a for a in tree(html(plain)).iter("a") if a.get("download")]
    link = next(a for a in links if a.get("download") == "groups.csv")
    content = base64.b64decode(link.get("href", "").split("base64,")[1])
    assert content == (plain / "report" / "figures" / "groups.csv").read_bytes()


def test_numbers_too_large_for_the_page_are_named():
    table = page.Table(["x"], [["9" * page.LARGEST]])
    part = page.Part("n", "t", "r", numbers=table)
    text = page.html("", "", [page.Chapter("c", (), [part])])
    assert "figures/n.csv" in text
    assert "download" not in text


def test_names_are_escaped(tmp_path: Path):
    """Markup in names of classes, methods, devices and folders is text."""
    runs = fits()
    for held in runs.values():
        for one in held:
            one["per_class"]["class"][0] = "<b>&"
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
    assert numbers(folder, "accuracy")[0]["class"] == "<b>&"


# What is missing.


def test_what_is_missing_is_said(plain: Path):
    said = {
        section.get("id"): "".join(section.itertext())
        for section in tree(html(plain)).iter("section")
        if section.get("id")
    }
    assert "no sweep of LOS over two values of delta" in said["delta"]
    assert "no sweep over two learning rates" in said["learning_rate"]
    assert "hold no reliability" in said["reliability"]
    assert "hold no confusion" in said["confusion"]
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
    assert "No other method to hold LOS against, or no LOS." in html(folder)
    assert "too few for a correlation" in html(folder)


def test_a_method_without_analysis_is_named(tmp_path: Path):
    runs = fits(analysed=made.analysis())
    folder = made.write(tmp_path / "run", runs, made.config({}))
    build.write([folder], folder / "report")
    assert "Not measured for none and ce." in html(folder)


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_in_which_all_diverged(tmp_path: Path):
    rows = [
        made.row("los", LOS | {"delta": d, "lr": lr}, [0, 0], {}, {}, 3)
        for d in (0.5, 0.9)
        for lr in (0.1, 1.0)
    ]
    runs = {"none": [made.outcome([0], 0.4, COUNTS)]}
    folder = made.write(tmp_path / "run", runs, made.config({"los": LOS}), rows)
    build.write([folder], folder / "report")
    assert "4 heads, 4 diverged" in html(folder)
    assert "Every LOS head of the sweep has diverged." in html(folder)


# Several workdirs.


@pytest.mark.usefixtures("undrawn")
def test_one_choice_is_named_and_several_are_listed(plain: Path, tmp_path: Path):
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
    # Batch norm in stage 2 is nothing to the head of stage 1.
    assert lines["drift", "none"]["what_differs"] == "nothing: a repetition"
    told = lines["both", "los"]["what_differs"]
    assert told.startswith("2 choices: ")
    assert "flip: False → True" in told
    assert "los.start: stage1 → fresh" in told
    assert lines["both", "ce"]["what_differs"] == "flip: False → True"
    text = (out / "index.html").read_text(encoding="utf-8")
    assert {"protocol", "accuracy-1-run", "accuracy-2-drift", "accuracy-3-both"} <= {
        element.get("id") for element in tree(text).iter("section")
    }
    assert (out / "figures" / "groups-2-drift.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_another_training_set_and_other_epochs_are_differences(
    plain: Path, tmp_path: Path
):
    folder = made.write(
        tmp_path / "other",
        {"none": [made.outcome([7], 0.5, COUNTS)]},
        made.config({}, optim__epochs=4),
    )
    result = json.loads((folder / "result.json").read_text())
    result["dataset"]["split_hash"] = "f" * 16
    (folder / "result.json").write_text(json.dumps(result))
    one, other = workdirs.read([plain, folder])
    assert workdirs.differences(one, other, "none") == {
        "training set": ("0123456789abcdef", "f" * 16),
        "optim.epochs": (2, 4),
    }
    build.write([plain, folder], tmp_path / "out")
    with (tmp_path / "out" / "figures" / "protocol.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["pairs"], line["all"], line["all_std"]) == ("0", "10", "")


# Errors.


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "not a workdir"),
        ("result.json", None, "nothing has finished"),
        ("result.json", "{}", "result.json lacks 'dataset.name'"),
        ("checkpoints/los/0.1/outcome.json", "{", "0.1/outcome.json is not valid JSON"),
        (
            "checkpoints/los/0.1/outcome.json",
            "[]",
            "0.1/outcome.json must be a JSON object, got []",
        ),
        ("checkpoints/los/0.1/outcome.json", "{}", "outcome.json lacks 'run'"),
        (
            "sweep/0/0/rows.json",
            '{"origin": {}, "rows": [{}]}',
            "rows[0] lacks 'method'",
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
    told = capsys.readouterr().err
    assert message in told
    assert str(folder) in told
    assert not (folder / "report").exists()


def test_a_workdir_in_which_no_fit_has_ended(tmp_path: Path):
    folder = made.write(tmp_path / "run", {"none": fits()["none"]}, made.config({}))
    (folder / "checkpoints" / "stage1" / "0" / "outcome.json").unlink()
    with pytest.raises(InputError, match="no finished fits"):
        workdirs.read([folder])


def test_no_such_folder_the_same_twice_and_no_place_to_write(
    plain: Path, tmp_path: Path, capsys: Any
):
    assert main.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "not a workdir" in capsys.readouterr().err
    assert main.main(["report", str(plain), str(plain)]) == 2
    assert "duplicate workdir" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main.main(["report", str(plain), "--out", str(tmp_path / "file")]) == 2
    assert "Give another folder with --out" in capsys.readouterr().err


def test_the_command_reads_workdirs_and_no_config(plain: Path, capsys: Any):
    assert main.main(["report", "--config", "configs/digits_lt.py", str(plain)]) == 2
    assert "does not take --config" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_command_tells_where_the_page_is(plain: Path, tmp_path: Path, capsys: Any):
    assert main.main(["report", str(plain), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'index.html'}\n"
    assert (tmp_path / "index.html").exists()


def test_a_scale_of_one_count_has_one_number():
    """As in a balanced set, where a logarithmic scale finds no round numbers."""
    axis = Figure().subplots()
    style.count_axis(axis, np.array([500, 500]))
    assert [f"{x:g}" for x in axis.get_xticks()] == ["500"]
    style.count_axis(axis, np.array([5, 500]))
    assert {10, 100} <= set(axis.get_xticks())
