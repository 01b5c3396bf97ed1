"""Streamed batches and resident images give the same numbers."""

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
from lt_jax.training import batches, inference, loop


def fitted(monkeypatch, workdir, **changes: Any) -> list[Any]:
    """Run stage 1 and LOS; return the parameters and statistics of each fit."""
    ends = []

    def fit(*arguments: Any, **options: Any) -> loop.FitResult:
        ends.append(loop.fit(*arguments, **options))
        return ends[-1]

    with monkeypatch.context() as patch:
        patch.setattr(commands, "fit", fit)
        changes = {"optim__epochs": 2, "method__names": ("los",), **changes}
        commands.run(tiny_digits.config(**changes), workdir)
    return [jax.device_get(end.network) for end in ends]


def test_resident_images_are_bitwise_equal(monkeypatch, tmp_path):
    """Through config and both stages, with an incomplete last batch."""
    streamed = fitted(monkeypatch, tmp_path / "a", optim__resident=0.0)
    held = fitted(monkeypatch, tmp_path / "b")
    assert len(streamed) == len(held) == 2
    for one, other in zip(streamed, held, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_gathered_batches_equal_loaded_batches():
    labels = np.arange(10, dtype=np.int32) % 3
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 1), np.uint8)
    dataset = Dataset(
        "made", ("a", "b", "c"), labels, np.arange(10), (2, 2, 1), lambda r: images[r]
    )
    rows = np.array([[3, 1, 4, 9, 7, -1, -1, -1]], np.int32)
    rows = sharding.process_part(sharding.arrange_micro_batches(rows, 1, pairs=False))
    (loaded,) = load_batches(dataset, rows, sharding.shard_batch)
    held = sharding.replicate({"image": images, "label": labels})
    gathered = inference.make_gather()(held, sharding.shard_batch(rows[0]))
    assert gathered.keys() == loaded.keys()
    for name in gathered:
        assert gathered[name].dtype == loaded[name].dtype
        np.testing.assert_array_equal(gathered[name], loaded[name])


@pytest.mark.parametrize(
    ("gib", "decoder", "answer"),
    [
        (100 * 192 / 2**30, None, True),
        (99 * 192 / 2**30, None, False),
        (0.0, None, False),
        (1.0, Decoder(lambda *_: [], 0, 1, 0.0, {}), False),
    ],
)
def test_fits_on_device(gib, decoder, answer):
    dataset = Dataset(
        "made",
        ("a",),
        np.zeros(100, np.int32),
        np.arange(100),
        (8, 8, 3),
        lambda rows: rows,
        decoder,
    )
    assert batches.fits_on_device(dataset, gib) is answer
