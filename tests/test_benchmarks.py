"""The benchmarks run, and compare like with like."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "stage2.py"


@pytest.fixture(scope="module")
def stage2() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage2", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.parametrize("net", ["resnet32", "resnet34"])
def test_both_sides_have_the_same_parameters(stage2: ModuleType, net: str) -> None:
    theirs = sorted(p.numel() for p in stage2.torch_network(net).parameters())
    ours = sorted(p.size for p in jax.tree.leaves(stage2.jax_network(net).params))
    assert ours == theirs


@pytest.mark.parity
def test_stage2_measures_every_ratio(stage2: ModuleType) -> None:
    size = stage2.Size(largest=2, rounds=1, steps=1, heads=(2,), table_epochs=1)
    result = stage2.measure("resnet32", size)
    stage2.show(result)
    for name in stage2.RATIOS:
        assert result[name] > 0
        assert result["spread"][name] == [result[name]] * 2


def test_without_torch_stage2_says_what_to_install(
    stage2: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["stage2.py"])
    with pytest.raises(SystemExit, match="parity"):
        stage2.main()


@pytest.mark.parity
@pytest.mark.slow
def test_against_authors_starts_equal_and_draws(stage2: ModuleType, tmp_path: Path):
    """Two steps from the same weights: the first losses agree to rounding."""
    from lt_jax.types import Splits

    spec = importlib.util.spec_from_file_location(
        "against_authors", SCRIPT.with_name("against_authors.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    part = stage2.long_tail(2)
    splits = Splits(part, part.take(part.labels[:0]), part, part.counts, part.hash)
    result = module.measure("resnet32", 300, 2, splits)
    module.show(result)
    module.plot(result, tmp_path / "curve.png")
    assert result["steps"] == 2
    ours, theirs, other = result["losses"][0]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert other == pytest.approx(theirs, rel=1e-5)
    assert (tmp_path / "curve.png").stat().st_size < 50_000
