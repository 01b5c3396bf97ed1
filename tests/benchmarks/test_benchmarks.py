"""The benchmarks run, and compare equal work."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import against_authors
import authors_curves
import extraction
import heads
import jax
import parts
import protocol
import pytest
import stage2
import train_step

from lt_jax import recipes


@pytest.mark.parity
@pytest.mark.parametrize("net", ["resnet32", "resnet34"])
def test_both_sides_have_the_same_parameters(net: str) -> None:
    network = parts.torch_network(net, stage2.NETS[net], stage2.CLASSES)
    theirs = sorted(p.numel() for p in network.parameters())
    ours = sorted(p.size for p in jax.tree.leaves(stage2.jax_network(net).params))
    assert ours == theirs


@pytest.mark.parity
def test_stage2_measures_every_ratio() -> None:
    size = stage2.Size(largest=2, rounds=1, steps=1)
    result = stage2.measure("resnet32", size)
    stage2.show(result)
    for name in stage2.RATIOS:
        assert result[name] > 0
        assert result["spread"][name] == [result[name]] * 2


def test_stage2_without_torch_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["stage2.py"])
    with pytest.raises(SystemExit, match="parity"):
        stage2.main()


@pytest.mark.parity
@pytest.mark.slow
def test_against_authors_starts_equal_and_plots(tmp_path: Path):
    """Two steps from the same weights: the first losses agree to rounding."""
    from lt_jax.data.dataset import Splits

    part = stage2.long_tail(2)
    splits = Splits(
        part, part.take(part.labels[:0]), part, part.class_counts, part.hash
    )
    result = against_authors.measure("resnet32", 300, 2, splits)
    against_authors.show(result)
    against_authors.plot(result, tmp_path / "curve.png")
    assert result["steps"] == 2
    ours, theirs, other = result["losses"][0]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert other == pytest.approx(theirs, rel=1e-5)
    assert (tmp_path / "curve.png").stat().st_size < 50_000


def test_protocol_table_compares_seed_by_seed() -> None:
    by_head = {head: [0.3, 0.5] for head in protocol.HEADS}
    found = {"split": "abc", **dict.fromkeys(protocol.ROWS, by_head)}
    found["flip"] = {**by_head, "los": [0.35, 0.53]}
    result = protocol.summary(found)
    assert result["difference"]["flip"]["los"]["mean"] == pytest.approx(0.04)
    lines = protocol.table(result).splitlines()
    assert len(lines) == 2 + len(protocol.ROWS)
    assert lines[2].startswith("| clean | 40.0 ± 14.1 | 40.0 ± 14.1 | 40.0 ± 14.1 |  |")
    assert lines[4].endswith("| 44.0 ± 12.7 | +0.0 ± 0.0 | +0.0 ± 0.0 | +4.0 ± 1.4 |")


@pytest.mark.slow
@pytest.mark.timeout(1500)  # fifteen commands that compile everything
def test_protocol_rows_equal_separate_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows from shared trainings equal separate runs."""
    import json

    import tiny_digits

    from lt_jax.experiment import stages

    arguments = ["--quick", "--json", f"--workdir={tmp_path / 'table'}"]
    monkeypatch.setattr(sys, "argv", ["protocol.py", *arguments])
    protocol.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]
    assert set(found) == set(protocol.ROWS)
    assert found["flip"] != found["clean"]
    changes = {"optim__epochs": 3, "optim__repeats": 2}
    for row, more in {
        "clean": {},
        "flip": {"eval__flip": True},
        "drop_last": {"optim__drop_last": True},
        "paper": {key.replace(".", "__"): v for key, v in protocol.PAPER.items()},
    }.items():
        config = tiny_digits.config(**changes, **more)
        config.method.los.lr = config.method.ce.lr
        own = stages.run(config, tmp_path / row)["methods"]
        for head in protocol.HEADS:
            expected = own[head]["all"]["values"]
            assert found[row][head]["values"] == expected, (row, head)


def test_train_step_ratio_is_best_over_best_per_round():
    rounds = [
        {
            "lt_jax": 8.0,
            "lt_jax_split": 1.0,
            "channels_first": 10.0,
            "channels_last": 5.0,
        },
        {
            "lt_jax": 6.0,
            "lt_jax_split": 1.0,
            "channels_first": 5.0,
            "channels_last": 10.0,
        },
        {
            "lt_jax": 5.0,
            "lt_jax_split": 9.0,
            "channels_first": 1.0,
            "channels_last": 10.0,
        },
    ]
    assert train_step.ratio(rounds) == pytest.approx(0.8)


@pytest.mark.parity
@pytest.mark.slow
def test_train_step_measures_all_sides():
    counts = {"step": 1, "eval": 1, "epoch": 1, "resident": 1}
    rates = train_step.measure("resnet32", 8, 1, counts, 16, "cpu")
    assert rates.keys() == counts.keys()
    for (one,) in rates.values():
        assert one.keys() == {*train_step.OURS["cpu"], *train_step.TORCH}
        assert all(rate > 0 for rate in one.values())


def test_curves_contain_the_first_epoch():
    theirs = "".join(
        f"\rTraining |##  | ({step}/3) Data: 0.0s | ETA: 0:0{step} | Loss: {loss} "
        for step, loss in ((1, 4.5), (2, 4.25), (2, 4.25), (3, 4.0), (1, 3.5))
    )
    ours = "".join(
        f"stage1/0 | step {step}/6 | loss {loss:.3f} | train 3.1%\n"
        for step, loss in ((1, 4.5), (2, 4.25), (3, 4.0))
    )
    assert [*authors_curves.curve(theirs, authors_curves.THEIRS)] == [4.5, 4.25, 4.0]
    assert [*authors_curves.curve(ours, authors_curves.OURS)] == [4.5, 4.25, 4.0]


@pytest.mark.parametrize("text", ["", "stage1/0 | step 2/6 | loss 4.250 | train 3.1%"])
def test_incomplete_curves_are_reported(text: str, tmp_path, monkeypatch):
    file = tmp_path / "log.txt"
    file.write_text(text)
    words = ["authors_curves.py", "--theirs", str(file), "--ours", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"log.txt: (found no line|expected step 1)"):
        authors_curves.main()


@pytest.mark.parity
@pytest.mark.slow
def test_extraction_measures_both_sides() -> None:
    kinds = (*extraction.OURS["cpu"], *extraction.TORCH)
    (rates,) = extraction.measure("resnet32", "cpu", 1, kinds, quick=True)
    assert len(rates) == 4
    assert extraction.best(rates, torch=True) > 0
    assert extraction.best(rates, torch=False) > 0


def test_heads_counts_steps_and_fits_every_grid(monkeypatch) -> None:
    monkeypatch.setattr(heads, "CIFAR", (4, 3, 40, 10))
    monkeypatch.setattr(heads, "PHOTOS", (5, 2, 30, 10))
    monkeypatch.setattr(heads, "SHAPES", (heads.CIFAR,))
    rows, rate = heads.steps((1, 2), epochs=1)
    assert [row["heads"] for row in rows] == [1, 2]
    assert all(row["microseconds"] > 0 and rate > 0 for row in rows)
    assert len(heads.over_one(2, epochs=1)) == 2
    for row in heads.grids(seeds=2, settings=1):
        assert row["heads"] == row["methods"] == len(recipes.RECIPES)
        assert row["seconds_of_all_seeds"] > row["seconds"]
