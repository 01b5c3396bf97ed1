"""Streamed batches and images that lie on the devices: the same numbers."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import tiny_digits

from lt_jax.data.dataset import Dataset, Decoder
from lt_jax.data.loader import load_batches
from lt_jax.distributed import sharding
from lt_jax.experiment import stages as commands
from lt_jax.training import loop, steps
from lt_jax.training.stepping import holds


def fitted(monkeypatch, workdir, **changes: Any) -> list[Any]:
    """Parameters and statistics after stage 1 and LOS, and the lines of the log."""
    ends = []

    def fit(*arguments: Any) -> loop.FitResult:
        ends.append(loop.fit(*arguments))
        return ends[-1]

    with monkeypatch.context() as patch:
        patch.setattr(commands, "fit", fit)
        changes = {"optim__epochs": 2, "method__names": ("los",), **changes}
        commands.run(tiny_digits.config(**changes), workdir)
    return [jax.device_get((end.params, end.batch_stats)) for end in ends]


def largest(one: Any, other: Any) -> float:
    """The largest difference of two trees, over the largest value of its array."""
    differences = jax.tree.map(
        lambda a, b: np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6), one, other
    )
    return max(jax.tree.leaves(differences))


def test_images_on_the_devices_give_the_same_bits(monkeypatch, tmp_path):
    """Through config and both stages; an epoch's last batch is ragged."""
    streamed = fitted(monkeypatch, tmp_path / "a", optim__resident=0.0)
    held = fitted(monkeypatch, tmp_path / "b", optim__at_once=1)
    assert len(streamed) == len(held) == 2
    for one, other in zip(streamed, held, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_several_steps_in_one_call_are_these_steps(monkeypatch, tmp_path):
    """Another program, so to rounding; at a rate at which rounding stays rounding."""
    rates = {"optim__lr": 1e-3, "optim__epochs": 1}
    one = fitted(monkeypatch, tmp_path / "a", optim__at_once=1, **rates)
    several = fitted(monkeypatch, tmp_path / "b", optim__at_once=8, **rates)
    for some, other in zip(several, one, strict=True):
        assert largest(some, other) < 1e-4
    lines = [
        (folder / "metrics.jsonl").read_text().count("\n")
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert lines[0] == lines[1]


def test_the_devices_pick_what_feed_brings():
    labels = np.arange(10, dtype=np.int32) % 3
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1), np.uint8)
    dataset = Dataset(
        "made", ("a", "b", "c"), labels, np.arange(10), (2, 2, 1), lambda r: images[r]
    )
    rows = np.array([[3, 1, 4, 9, 7, -1, -1, -1]], np.int32)
    rows = sharding.process_part(sharding.arrange_micro_batches(rows, 1, pairs=False))
    (brought,) = load_batches(dataset, rows, sharding.shard_batch)
    held = sharding.replicate({"image": images, "label": labels})
    picked = steps.make_pick()(held, sharding.shard_indices(rows))
    assert picked.keys() == brought.keys()
    for name in picked:
        assert picked[name].dtype == brought[name].dtype
        np.testing.assert_array_equal(picked[name], brought[name])


@pytest.mark.parametrize(
    ("gib", "decoder", "answer"),
    [
        (100 * 192 / 2**30, None, True),
        (99 * 192 / 2**30, None, False),
        (0.0, None, False),
        (1.0, Decoder(lambda *_: [], 0, 1, 0.0, {}), False),
    ],
)
def test_what_the_devices_may_hold(gib, decoder, answer):
    dataset = Dataset(
        "made",
        ("a",),
        np.zeros(100, np.int32),
        np.arange(100),
        (8, 8, 3),
        lambda rows: rows,
        decoder,
    )
    assert holds(dataset, gib) is answer
