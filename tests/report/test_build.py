"""The report: hand-computed numbers, the page read back, missing data and errors."""

from __future__ import annotations

import csv
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import made_workdirs as made
import numpy as np
import pytest

from lt_jax.cli import main
from lt_jax.errors import InputError
from lt_jax.experiment import results, workdirs
from lt_jax.report import build, drawing, leaderboard

COUNTS = (500, 50, 5)
LOS = {"lr": 5e-4, "epochs": 2, "delta": 0.9, "start": "stage1", "sampler": "instance"}
CE = {k: v for k, v in LOS.items() if k != "delta"}


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


def numbers(folder: Path, name: str) -> list[dict[str, str]]:
    file = folder / "figures" / f"{name}.csv"
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def chart(workdir: Path, name: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """The points of a chart by label of the y axis, series and label."""
    rows = numbers(workdir / "report", name)
    return {(r["ylabel"], r["series"], r["label"]): r for r in rows}


def html(workdir: Path) -> str:
    return (workdir / "report" / "index.html").read_text(encoding="utf-8")


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


# The numbers.


def test_groups_are_means_and_deviations_in_per_cent(plain: Path):
    points = chart(plain, "groups")
    los = points["", "los, all", "los"]
    assert float(los["x"]) == pytest.approx(55)
    assert float(los["std"]) == pytest.approx(np.std([50, 60], ddof=1))
    assert float(points["", "los, many", "los"]["x"]) == pytest.approx(75)
    assert float(points["", "ce, all", "ce"]["std"]) == 0
    assert points["", "none, all", "none"]["std"] == ""  # one seed has no deviation


def test_charts_of_classes_have_the_mean_over_seeds(plain: Path):
    points = chart(plain, "per_class")
    last = points["accuracy (%)", "los", "class 2"]
    assert (last["x"], float(last["y"])) == ("5", pytest.approx(55))
    assert float(points["weight norm", "ce", "class 0"]["y"]) == 2


def test_differences_from_los_are_paired_by_seeds(plain: Path):
    none, ce = numbers(plain / "report", "versus")
    assert none["pairs"] == ce["pairs"] == "2"
    # 0.45 - 0.5 and 0.45 - 0.6; 12.7 standard errors of 5 points
    assert float(ce["all"]) == pytest.approx(-10)
    assert float(ce["all ± 95 %"]) == pytest.approx(12.7062 * 5, rel=1e-4)
    assert "<td>−10.0</td><td>63.5</td>" in html(plain)
    assert ce["verdict (balanced)"] == "los ahead"
    assert "by balanced, LOS is ahead of 2 of 2 methods; by all, LOS is" in html(plain)


def test_leaderboard_ranks_chosen_and_fixed_settings(swept: Path):
    rows = numbers(swept / "report", "leaderboard")
    assert [(r["method"], r["values"], r["balanced"]) for r in rows] == [
        ("los", "chosen", "61"),
        ("los", "fixed", "55"),
        ("ce", "chosen", "45"),
        ("none", "", "40"),
    ]
    assert "delta 0.9" in html(swept)
    cells = tree(html(swept)).findall(".//section[@id='leaderboard']//tbody/tr/td[3]")
    assert ["".join(cell.itertext()) for cell in cells] == [
        "+16.0 ± 1.4",
        "+10.0 ± 0.0",
        "",
        "−5.0 ± 0.0",
    ]


def test_leaderboard_marks_the_best_and_what_is_within_the_noise(tmp_path: Path):
    runs = fits(los=(0.5, 0.6)) | {
        "crt": [made.outcome([0, s], a, COUNTS) for s, a in enumerate((0.52, 0.57))],
        "lws": [made.outcome([0, s], a, COUNTS) for s, a in enumerate((0.44, 0.54))],
    }
    folder = made.write(tmp_path / "run", runs, made.config({}))
    (run,) = workdirs.read([folder])
    ((_, rows),) = leaderboard.boards([run]).items()
    kinds = {row.method: row.cells[0][1] for row in rows}
    # crt is 2 points ahead and 3 behind; lws is 6 behind with both seeds
    assert kinds == {"los": "best", "crt": "close", "lws": "", "ce": "", "none": ""}
    assert [row.method for row in rows] == ["los", "crt", "lws", "ce", "none"]


def test_delta_takes_the_best_rate_on_validation(swept: Path):
    """The curve starts at delta 0, which is plain cross-entropy."""
    points = chart(swept, "delta")
    rates = [
        (label, float(r["y"]))
        for (y, _, label), r in points.items()
        if y == "learning rate"
    ]
    assert rates == [("δ 0", 5e-4), ("δ 0.5", 5e-3), ("δ 0.9", 5e-4)]
    half = points["accuracy (%)", "all", "δ 0.5"]
    assert float(half["y"]) == pytest.approx(51)  # over the two seeds, test set
    assert float(half["std"]) == pytest.approx(np.std([50, 52], ddof=1))
    gap = points["LoMa row", "loma row", "δ 0.9"]
    assert float(gap["x"]) == pytest.approx(np.log(1 + 3 * 0.1 / 0.9))
    assert float(gap["y"]) == pytest.approx(2.9)


def test_heat_map_uses_the_best_other_values_on_validation(swept: Path):
    lines = {r["method"]: r for r in numbers(swept / "report", "learning_rate")}
    assert float(lines["los"]["lr 0.0005"]) == pytest.approx(61)  # delta 0.9
    assert float(lines["los"]["lr 0.005"]) == pytest.approx(63)
    assert lines["ce"]["lr 0.005"] == ""  # diverged
    heat = tree(html(swept)).find(".//section[@id='learning_rate']//tr[@data-m='los']")
    assert heat is not None
    assert [td.get("class") for td in heat.iter("td")] == ["framed", None]
    assert "•" in "".join(heat.itertext())


def test_correlation_skips_diverged_heads(swept: Path):
    rows = numbers(swept / "report", "correlation")
    assert len([r for r in rows if r["xlabel"] == "RSD row true"]) == 10


def test_confusion_adds_up_over_seeds(swept: Path):
    (line,) = (
        r for r in numbers(swept / "report", "confusion") if r["method"] == "los"
    )
    assert (line["many: right"], line["many: as medium"]) == ("80", "10")


def test_reliability_adds_up_over_seeds_and_needs_no_validation_set(swept: Path):
    rows = numbers(swept / "report", "reliability")
    last = [r for r in rows if (r["series"], r["panel"]) == ("los", "before")][-1]
    assert (last["label"], float(last["x"]), float(last["y"])) == (
        "20 examples",
        pytest.approx(98),
        pytest.approx(80),
    )
    assert {r["series"] for r in rows if r["panel"] == "after"} == {"none", "los"}
    cells = [cell.text for cell in tree(html(swept)).iter("td")]
    assert "1.50 ± 0.00" in cells  # T
    assert "3.0 ± 0.0" in cells  # ECE afterwards


def test_learning_curves_of_every_fit(tmp_path: Path):
    folder = made.write(tmp_path / "run", fits(), made.config({}))
    lines = [
        {"run": "stage1/0", "step": 1, "epoch": 1.0, "loss": 2.0, "balanced": 0.3},
        {"run": "los/0.1", "step": 5, "epoch": 0.5, "loss": 1.0, "balanced": None},
        {"run": "los/0.1", "step": 9, "epoch": 1.0, "loss": 0.5, "balanced": 0.4},
        {"run": "los/0.1", "step": 9, "epoch": 1.0, "loss": "0.5"},  # skipped
    ]
    text = "\n".join([*map(json.dumps, lines), '{"run": "cut'])
    (folder / "metrics.jsonl").write_text(text)
    build.write([folder], folder / "report")
    assert [
        (r["ylabel"], r["series"], r["x"], r["y"])
        for r in numbers(folder / "report", "curves_stage2")
    ] == [
        ("training loss", "los/0.1", "0.5", "1"),
        ("training loss", "los/0.1", "1", "0.5"),
        ("balanced accuracy (%)", "los/0.1", "1", "40"),
    ]
    assert len(numbers(folder / "report", "curves_stage1")) == 2


# The page.


@pytest.mark.parametrize("which", ["plain", "swept"])
def test_page_is_well_formed_and_self_contained(
    which: str, request: pytest.FixtureRequest
):
    text = html(request.getfixturevalue(which))
    root = tree(text)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        assert element.tag not in ("link", "iframe", "object")
        for key in ("src", "href"):
            where = element.get(key)
            assert where is None or where.startswith(("data:", "#"))
            assert where is None or where[0] != "#" or where[1:] in ids
    assert not re.search(r"https?://|@import|url\(", text)
    assert "0123456789abcdef" in text  # the split
    assert "1 x made" in text  # the device


def test_files_are_reproducible(swept: Path, tmp_path: Path):
    build.write([swept], tmp_path)
    made_files = [file for file in (swept / "report").rglob("*") if file.is_file()]
    assert len(made_files) == 11
    for file in made_files:
        again = tmp_path / file.relative_to(swept / "report")
        assert file.read_bytes() == again.read_bytes(), file.name


def test_charts_are_drawn_as_files_on_request(plain: Path, tmp_path: Path):
    assert main.main(["report", str(plain), "--out", str(tmp_path), "--figures"]) == 0
    folder = tmp_path / "figures"
    for name in ("groups", "per_class", "correlation"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not (plain / "report" / "figures" / "groups.png").exists()
    before = (folder / "groups.pdf").read_bytes()
    build.write([plain], tmp_path, figures=True)
    assert (folder / "groups.pdf").read_bytes() == before


def test_files_name_the_groups_of_their_markers(
    plain: Path, tmp_path: Path, monkeypatch
):
    """In grey, as a colour is that of a method."""
    named, figure = {}, pytest.importorskip("matplotlib.figure").Figure

    def legend(_, handles, names, **options):
        named[tuple(names)] = handles

    monkeypatch.setattr(figure, "legend", legend)
    build.write([plain], tmp_path, figures=True)
    handles = named["all", "many", "medium", "few"]
    assert [line.get_marker() for line in handles] == ["|", "o", "s", "^"]
    assert {line.get_color() for line in handles} == {drawing.GREY}


def test_names_are_escaped(tmp_path: Path):
    """Markup in names of classes, methods, devices and folders becomes text."""
    runs = fits()
    for outcomes in runs.values():
        for one in outcomes:
            one["per_class"]["class"][0] = "<b>&\x1b[31m\udce9" + "x" * 200
    runs['<i>"]]>$x$'] = runs.pop("ce")
    folder = made.write(tmp_path / "a<u>&", runs, made.config({"los": LOS}))
    result = json.loads((folder / "result.json").read_text())
    result["device"] = "<script>&"
    (folder / "result.json").write_text(json.dumps(result))
    build.write([folder], folder / "report", figures=True)
    root = tree(html(folder))
    assert not {"b", "i", "u"} & {element.tag for element in root.iter()}
    assert len(root.findall(".//script")) == 1
    words = "".join(root.itertext())
    for word in ('<i>"]]>$x$', "a<u>&", "<script>&"):
        assert word in words
    assert numbers(folder / "report", "classes")[0]["class"].startswith("<b>&")


def test_page_states_the_command_and_what_is_newer(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/lt-jax", "run", "--workdir=x y"])
    folder = made.write(tmp_path / "run", fits(), made.config({}))
    with (folder / "log.txt").open("w") as log:
        log.write(f"epoch 1\n{results.command()}\n")
    result = json.loads((folder / "result.json").read_text())
    result["versions"]["lt_jax"] = "99.1"
    result["recommended"] = {"method": "los", "fit": "los/0.0", "warning": "few"}
    (folder / "result.json").write_text(json.dumps(result))
    build.write([folder], folder / "report")
    text = html(folder)
    assert "lt-jax run &#39;--workdir=x y&#39;" in text
    assert "run was written by lt_jax 99.1, newer than this" in text
    assert "run: validation recommends los; few; by balanced, LOS" in text


def test_a_result_cannot_name_another_folder(tmp_path: Path):
    made.write(tmp_path / "run/refit", fits(), made.config({}))
    folder = made.write(tmp_path / "run", fits(), made.config({}))
    result = json.loads((folder / "result.json").read_text())
    for method, found in {"los": 1, "../checkpoints/los": 0}.items():
        best = {"method": method, "fit": "los/0.0", "refit": True}
        text = json.dumps({**result, "recommended": best})
        (folder / "result.json").write_text(text)
        (run,) = workdirs.read([folder])
        assert len(run.refit) == found


# Missing data.


def test_page_lists_what_was_not_measured(plain: Path):
    text = html(plain)
    missing = text[text.index("What was not measured") :]
    assert "needs a sweep of LOS with two or more values" in missing
    assert "needs a sweep with two or more learning rates" in missing
    assert missing.count("This is measured on cached features") == 2
    for name in ("delta", "learning_rate", "reliability", "confusion"):
        assert not list((plain / "report" / "figures").glob(f"{name}.*"))


def test_stage_1_alone_and_empty_groups_and_nulls(tmp_path: Path):
    one = made.outcome([0], 0.4, COUNTS)
    one["metrics"] |= {"few": None, "loma_row": None}
    one["per_class"]["accuracy"][2] = None
    one["per_class"]["loma_row"] = [None] * 3
    del one["analysis"]
    folder = made.write(tmp_path / "run", {"none": [one]}, made.config({}))
    build.write([folder], folder / "report", figures=True)
    assert numbers(folder / "report", "groups")[3]["x"] == ""
    assert "nan" in [cell.text for cell in tree(html(folder)).iter("td")]
    assert "This needs LOS and at least one other method." in html(folder)
    assert "at least three heads with a finite accuracy" in html(folder)


def test_a_method_without_analysis_is_named(tmp_path: Path):
    runs = fits(analysed=made.analysis())
    folder = made.write(tmp_path / "run", runs, made.config({}))
    build.write([folder], folder / "report")
    assert "Not measured for none, ce." in html(folder)


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


@pytest.mark.parametrize("key", ["lr", "delta"])
def test_a_setting_that_lacks_a_value_of_its_method(tmp_path: Path, key: str):
    rows = sweep_rows()
    for row in rows[4:6]:  # the best of its delta
        row["hyper"] = {k: v for k, v in row["hyper"].items() if k != key}
    runs = {"none": [made.outcome([0], 0.4, COUNTS)]}
    folder = made.write(tmp_path / "run", runs, made.config({"los": LOS}), rows)
    build.write([folder], folder / "report")
    shown = {label for *_, label in chart(folder, "delta")}
    assert shown == {"δ 0", "δ 0.5", "δ 0.9"}


# Several workdirs.


def test_runs_are_compared_by_the_choices_that_differ(plain: Path, tmp_path: Path):
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
    rows = numbers(out, "runs")
    lines = {(r["run"], r["minus"], r["method"]): r for r in rows}
    one = lines["drift", "run", "los"]
    assert one["what differs"] == "batch_norm: frozen → drift"
    assert float(one["all"]) == pytest.approx(15)  # 0.6 - 0.5 and 0.8 - 0.6
    # Batch norm in stage 2 does not affect the stage-1 head.
    assert lines["drift", "run", "none"]["what differs"] == "nothing: a repetition"
    choices = lines["both", "run", "los"]["what differs"]
    assert "flip: False → True" in choices
    assert "los.start: stage1 → fresh" in choices
    assert lines["both", "run", "ce"]["what differs"] == "flip: False → True"
    assert ("both", "drift", "los") in lines  # every pair
    text = (out / "index.html").read_text(encoding="utf-8")
    assert {"runs", "groups-1-run", "groups-2-drift", "groups-3-both"} <= {
        element.get("id") for element in tree(text).iter("section")
    }
    # The stage 1 of all three measures the same.
    assert len({r["representation"] for r in numbers(out, "leaderboard")}) == 1
    assert len(numbers(out, "leaderboard")) == 9


def test_datasets_are_not_compared(plain: Path, tmp_path: Path):
    runs = {"none": [made.outcome([0], 0.4, (9, 8))]}
    other = made.write(tmp_path / "other", runs, made.config({}, data__name="birds"))
    build.write([plain, other], tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "These workdirs have 2 datasets: birds, 2 classes" in text
    assert "No two workdirs share a dataset and a method." in text
    bold = tree(text).findall(".//section[@id='leaderboard']//td[@class='best']")
    assert len(bold) > 9  # each dataset has its best


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
    (line,) = numbers(tmp_path / "out", "runs")
    assert (line["pairs"], line["all"], line["all ± 95 %"]) == ("0", "10", "")


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


def test_fits_of_other_numbers_of_classes(tmp_path: Path, capsys: Any):
    runs = fits() | {"ce": [made.outcome([0, 0], 0.4, (9, 8))]}
    folder = made.write(tmp_path / "run", runs, made.config({}))
    assert main.main(["report", str(folder)]) == 2
    assert f"the fits in {folder} have 2 and 3 classes" in capsys.readouterr().err


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


def test_command_prints_the_path_of_the_page(plain: Path, tmp_path: Path, capsys: Any):
    assert main.main(["report", str(plain), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'index.html'}\n"
    assert (tmp_path / "index.html").exists()


def test_figures_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "lt_jax.report.drawing", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'lt_jax\[report\]'"):
        build.write([tmp_path], tmp_path, figures=True)
