"""The input benchmark compares equal work, and reports its ratios."""

from __future__ import annotations

import functools

import input_pipeline as bench
import numpy as np
from made_photos import encoded, scene

from lt_jax.data.images.decode import decode


def test_all_decoders_give_the_same_image():
    data = encoded(scene(bench.WIDE, bench.HIGH))
    ways = {
        "pillow": bench.pillow,
        "draft": bench.pillow_draft,
        "opencv": bench.opencv,
        "area": functools.partial(bench.scaled, area=True),
        "linear": functools.partial(bench.scaled, area=False),
    }
    for box in ((0, 0, 800, 600), (301, 107, 230, 260), (11, 3, 500, 450)):
        ours = decode(data, lambda wide, high, box=box: box, bench.SIZE).astype(int)
        for name, way in ways.items():
            assert np.abs(way(data, box) - ours).mean() < 2, (name, box)


def test_every_ratio_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(bench, "importable", lambda name: False)
    monkeypatch.setattr(bench, "memory", lambda scale: iter(()))
    found = bench.measure(bench.Scale(files=2, images=8, rounds=1, memory=0))
    bench.show(found)
    for name in bench.BARS:
        assert found[name] is None or found[name] > 0
    assert found["over_tfdata_area"] is None
    assert found["python_microseconds"] > 0
    assert "tensorflow is not installed here" in capsys.readouterr().out
    cores = {(row["accelerators"], row["rate"]) for row in found["cores"]}
    assert cores == {(n, rate) for n in (1, 4, 8) for rate in (2500, 7000)}
