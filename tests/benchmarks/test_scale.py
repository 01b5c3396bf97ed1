"""The scale benchmarks run at small size, and no step is slow with 8,142 classes.

Times are only compared with each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import compiled
import dispatch
import numpy as np
import pytest
import scale

from lt_jax import metrics
from lt_jax.data import longtail
from lt_jax.heads import NEAREST, nearest_mean
from lt_jax.retraining.engine import feature_blocks
from lt_jax.retraining.features import Features

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_made_counts_match_the_size():
    counts = scale.made_counts(scale.FULL)
    assert counts.sum() == 437_513
    assert (len(counts), counts[0], counts[-1]) == (8142, 1000, 2)
    assert (np.diff(counts) <= 0).all()
    groups = metrics.groups(counts, 100, 20)
    assert 700 < groups["many"].sum() < 1200
    assert 3000 < groups["few"].sum() < 4200


TINY = (60, 1500, 100, 2, 16, 200, 64, 16, 2, 4, 2**12)


def test_the_phases_measure(tmp_path):
    size = scale.Size(*TINY)
    phases = [phase for phase in scale.PHASES if phase != "stage1"]
    found = {phase: scale.rehearse(size, tmp_path, phase) for phase in phases}
    json.dumps(found)
    assert found["host"]["images"] == 1500
    assert found["features"]["file_gib"] > 1500 * 16 * 2 / 2**30
    assert found["heads"]["ncm_seconds"] > 0
    assert found["heads"]["steps_epoch"] == 24
    assert all(part["anonymous_gib"] >= 0 for part in found.values())


@pytest.mark.slow
def test_stage1_steps(tmp_path):
    found = scale.rehearse(scale.Size(*TINY), tmp_path, "stage1")
    assert found["step_seconds"] > 0
    assert found["steps_epoch"] == 24
    assert np.isfinite(found["loss"])


def least(run, times=3):
    """Return the seconds of the fastest run."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found)


def test_validation_split_time_is_not_classes_times_images():
    """Equally many images in 400 times the classes used to take 100 times as long."""
    labels = np.random.default_rng(0).integers(0, 4000, 200_000)
    few, many = (
        least(lambda k=k: longtail.hold_out(labels % k, 0.1, 0, k)) for k in (10, 4000)
    )
    assert many < 30 * few


def test_places_by_class():
    labels = np.random.default_rng(0).integers(0, 7, 100)
    labels[labels == 3] = 4
    for k, rows in enumerate(longtail.by_class(labels, 8)):
        np.testing.assert_array_equal(rows, np.flatnonzero(labels == k))


@pytest.mark.parametrize("kind", NEAREST)
def test_nearest_mean_never_holds_all_features(kind):
    """Blocks have at most 16 rows; cl2 reads the file twice, the others once."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(50) % 5).astype(np.int32)
    values = rng.normal(size=(1, 50, 6)).astype(jnp.bfloat16)
    blocks = feature_blocks(Features(values, labels), rows=16)
    sizes: list[list[int]] = []

    def noted():
        sizes.append([])
        for block in blocks():
            sizes[-1].append(len(block))
            yield block

    found = nearest_mean(noted, labels, (6, 5), kind)
    whole = nearest_mean(lambda: iter([values[0]]), labels, (6, 5), kind)
    for name, leaf in whole.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6)
    assert sizes == [[16, 16, 16, 2]] * (2 if kind == "cl2" else 1)


def test_hand_counts_of_resnet50():
    """The published numbers: 4.09 GMAC at 224 px, 23.5 M weights."""
    layers = compiled.layers("resnet50", 224)
    assert len(layers) == 53
    whole = sum(2 * layer.out**2 * layer.weights for layer in layers)
    assert whole / 2 == pytest.approx(4.087e9, rel=1e-3)
    norms = 2 * sum(layer.outputs for layer in layers)
    assert sum(layer.weights for layer in layers) + norms == 23_508_032
    assert 0.95 < sum(layer.flops for layer in layers) / whole < 1


@pytest.mark.slow
def test_compiled_agrees_with_hand_counts():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "compiled.py", "--quick", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["rows"]) == 2
    for low, high in (found["flops_over_hand"], found["arguments_over_hand"]):
        assert 0.97 < low <= high < 1.12
    for row in found["rows"]:
        assert 0.3 < row["temporary_over_hand"] < 5


@pytest.mark.slow
def test_dispatch_compares_equal_steps():
    found = dispatch.measure("resnet8", 2, 1)
    assert found["ratio"] > 0
    assert found["loss"]["pmap"] == pytest.approx(found["loss"]["shard_map"], rel=1e-6)
