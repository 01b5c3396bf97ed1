"""A vision transformer from training to an artefact and to timm's names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny_photos
import tiny_vit

from lt_jax import models
from lt_jax.experiment import stages
from lt_jax.export import fits, predict, stablehlo
from lt_jax.pretrained import load


@pytest.mark.slow
def test_a_trained_vit_is_exported(tmp_path, monkeypatch):
    """Pre-trained, trained on all devices, converted both ways, and used."""
    tiny_vit.register(monkeypatch)
    photos = tiny_photos.write(tmp_path / "photos", {"blau": 6, "rot": 6})
    net, run = tiny_vit.folder(tmp_path / "net"), tmp_path / "run"
    changes = {
        "data__size": 12,  # the position embedding is for 8
        "model__name": tiny_vit.NAME,
        "init__path": str(net),
        "method__names": ("los",),
        "method__features": "cached",
        "optim__epochs": 1,
    }
    stages.run(tiny_photos.config(photos, **changes), run)
    outcome = json.loads((run / "checkpoints/stage1/0/outcome.json").read_text())
    assert outcome["initial"]["licence"] == "mit"

    fit = fits.finished(run, "los")
    artefact = tmp_path / "net.stablehlo"
    stablehlo.write(fit, artefact)  # compares it with the network
    images = sorted(photos.glob("*/*"))
    by_run = predict.predict(run, images, "los", 2)
    by_file = predict.predict_by_artefact(artefact, images, 2)
    for one, two in zip(by_run["images"], by_file["images"], strict=True):
        ours, theirs = (
            [guess["probability"] for guess in found["top"]] for found in (one, two)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)

    file = tmp_path / "net.safetensors"
    stablehlo.write(fit, file)
    state = safetensors.numpy.load_file(file)
    assert state["head.weight"].shape == (2, 6)
    module = models.create(tiny_vit.NAME)
    leaves = load.backbone(load.find(str(file)), tiny_vit.NAME, module, 3)
    params = fit.network.params["backbone"]
    np.testing.assert_array_equal(
        leaves["params/backbone/block2/qkv/kernel"], params["block2"]["qkv"]["kernel"]
    )
