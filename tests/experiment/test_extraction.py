"""`lt-jax features`: values, resumption, provenance, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import timm_library
import tiny_photos
import tiny_vit
from flax import traverse_util
from PIL import Image

from lt_jax import models
from lt_jax.cli.main import main
from lt_jax.data import catalogue
from lt_jax.data.dataset import Dataset
from lt_jax.data.images.decode import resized
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.errors import InputError, Interrupted
from lt_jax.experiment import backbones, extraction
from lt_jax.files import write
from lt_jax.pretrained import load

SIZES = {"blau": 5, "grün wiese": 3, "rot": 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_vit.register(monkeypatch)
    monkeypatch.setattr(extraction, "PART", 4)


@pytest.fixture
def photos(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        sizes = SIZES if split == "train" else dict.fromkeys(SIZES, 1)
        tiny_photos.write(tmp_path / "photos" / split, sizes, first=number)
    return tmp_path / "photos"


@pytest.fixture
def net(tmp_path):
    return tiny_vit.folder(tmp_path / "net")


def features(net, data, out, *flags):
    given = ["--model", str(net), "--data", str(data), "--out", str(out)]
    return main(["features", *given, "--batch", "3", *flags])


def arrays(out, split):
    with np.load(out / f"{split}.npz", allow_pickle=False) as found:
        return found["features"], found["labels"]


def test_features_of_photographs(photos, net, tmp_path, capsys):
    out = tmp_path / "out"
    assert features(net, photos, out, "--mirror") == 0
    files = {path.name for path in out.iterdir()}
    made = {"train.npz", "val.npz", "test.npz", "features.json"}
    assert files - {"lock", "log.txt"} == made
    assert "train: 10 of 10 images |" in capsys.readouterr().out

    # By hand: centre crops of the decoder, both views, the network itself.
    looks = PhotoOptions(8, 8, (1, 1), (1, 1), 0)
    extra = {"table": "", "test": 0.1, "valid_seed": 0}
    full, valid, test = catalogue.PHOTOS["folder"].load(str(photos), looks, **extra)
    module = models.create(tiny_vit.NAME)
    leaves = load.backbone(load.find(str(net)), tiny_vit.NAME, module, 3)
    params = traverse_util.unflatten_dict(leaves, sep="/")["params"]
    parts = (("train", full), ("val", valid), ("test", test))
    for split, dataset in (
        (name, part.at_size(8, 8, "bicubic")) for name, part in parts
    ):
        order = np.argsort(dataset.ids) if split == "train" else np.arange(3)
        images = (dataset.read(order) / np.float32(255) - 0.5) / np.float32(0.2)
        views = [
            module.apply({"params": params["backbone"]}, view, None, False)
            for view in (images, images[:, :, ::-1])
        ]
        found, labels = arrays(out, split)
        np.testing.assert_allclose(found, np.mean(views, 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(labels, dataset.labels[order])

    provenance = json.loads((out / "features.json").read_text())
    assert provenance["examples"] == {"train": 10, "val": 3, "test": 3}
    assert provenance["classes"] == [*SIZES]
    assert provenance["request"]["weights"]["licence"] == "mit"
    assert provenance["request"]["views"] == ["plain", "mirror"]

    # configs/features.py reads them, with the validation set.
    splits = catalogue.load(
        "features", dir=str(out), imbalance=1.0, split="whole", valid=0.1, seed=0
    )
    counts = [len(s) for s in (splits.train, splits.valid, splits.test)]
    assert counts == [10, 3, 3]
    assert splits.train.shape == (1, 1, 6)
    assert splits.train.classes == (*SIZES,)

    # The hash identifies the weights, not where they were found.
    provenance["request"]["weights"] |= {"revision": "0" * 40, "checked": True}
    (out / "features.json").write_text(json.dumps(provenance))
    assert features(net, photos, out, "--mirror") == 0
    assert "has these features already" in capsys.readouterr().out
    assert features(net, photos, out, "--pool", "mean") == 2
    assert "has other features, which differ in pool, views." in capsys.readouterr().err


def test_an_interrupted_extraction_is_resumed(photos, net, tmp_path, monkeypatch):
    assert features(net, photos, tmp_path / "one") == 0
    calls, extract = [], backbones.extract

    def stops(*given, **named):
        calls.append(given[2].ids.tolist())
        if len(calls) == 3:
            raise Interrupted("the features", "SIGTERM")
        return extract(*given, **named)

    monkeypatch.setattr(backbones, "extract", stops)
    out = tmp_path / "two"
    assert features(net, photos, out) == 75
    assert not (out / "features.json").exists()
    assert not list(out.glob("*.npz"))
    assert features(net, photos, out) == 0
    assert len(calls) == 3 + 3  # of five parts, two were finished
    for split in ("train", "val", "test"):
        for one, two in zip(
            *(arrays(tmp_path / n, split) for n in ("one", "two")), strict=True
        ):
            np.testing.assert_array_equal(one, two)


def test_images_that_cannot_be_decoded_are_left_out(photos, net, tmp_path, capsys):
    broken = photos / "train" / "blau" / "bild 0.jpg"
    broken.write_bytes(broken.read_bytes()[:50])
    out = tmp_path / "out"
    assert features(net, photos, out) == 2
    assert "1 of 10 images of train cannot be decoded" in capsys.readouterr().err
    assert features(net, photos, tmp_path / "other", "--config.data.broken=0.2") == 0
    assert len(arrays(tmp_path / "other", "train")[1]) == 9
    provenance = json.loads((tmp_path / "other" / "features.json").read_text())
    assert provenance["left_out"]["train"] == ["train/blau/bild 0.jpg"]


def test_small_images_are_resized():
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    ids, labels = np.array(["a", "b"]), np.zeros(2, np.int32)
    one = Dataset("x", ("k",), labels, ids, (32, 32, 3), lambda rows: images[rows])
    by_pillow = Image.fromarray(images[1]).resize((8, 8), Image.Resampling.BICUBIC)
    for how, expected in (("", resized(images[1], 8)), ("bicubic", by_pillow)):
        small = extraction._resized(one, 8, 8, how)
        assert small.shape == (8, 8, 3)
        read = small.read(np.array([1]))
        np.testing.assert_array_equal(read[0], np.asarray(expected))


def test_a_damaged_part_is_named(tmp_path):
    part = tmp_path / "parts" / "train-000000000.npz"
    part.parent.mkdir()
    part.write_bytes(b"PK")
    ids, labels = np.array(["a", "b"]), np.zeros(2, np.int32)
    dataset = Dataset("x", ("k",), labels, ids, (8, 8, 3), lambda rows: rows)
    with pytest.raises(InputError, match=r"train-0+\.npz cannot be .*remove it and"):
        extraction._join(tmp_path, "train", dataset)


@pytest.mark.parametrize("file", ["features.json", "parts/request.json"])
def test_features_made_before_filters(tmp_path, file):
    """Their pixels are those of today without a filter, and of no other."""
    looks = {"size": 8, "resize": 8}
    for earlier in (looks, looks | {"interpolation": ""}):
        note = {"request": {"model": "torch:means:Means", "images": earlier}}
        write(tmp_path / file, json.dumps(note))
        request = {"model": "torch:means:Means", "images": looks}
        finished = extraction._is_finished(tmp_path, request)
        assert finished == (file == "features.json")
        request["images"] = looks | {"interpolation": "bicubic"}
        message = r"differ in images\.interpolation\. Use another .* another --workdir"
        with pytest.raises(InputError, match=message):
            extraction._is_finished(tmp_path, request)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "10"], "sides are multiples of 4 pixels, at least 4, got 10 x 10"),
        (["--size", "3"], "at least 4, got 3 x 3"),
        (["--size", "-1"], "--size must be at least 0, got -1"),
        (["--sha256", "ab"], "has the SHA-256"),
        (["--data", "configs/digits_lt.py"], "expected colour images, of 3 channels"),
        (["--model", "vit_small_patch14_dinov2"], "'vit_small_patch14_dinov2.lvd142m'"),
        (["--model", "torch:keras/x"], "expected torch:timm/NAME, torch:open_clip/"),
        (
            ["--model", "resnet18.tv_in1k", "--weights", "{net}/model.safetensors"],
            "does not hold a resnet18: it holds no residual network",
        ),
        (
            ["--model", "{net}/model.safetensors"],
            "not state its architecture: use",
        ),
    ],
)
def test_bad_input_writes_nothing(photos, net, tmp_path, capsys, flags, message):
    flags = [flag.format(net=net) for flag in flags]
    assert features(net, photos, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_features_is_left_alone(photos, net, tmp_path, capsys):
    (tmp_path / "train.npz").write_bytes(b"mine")
    assert features(net, photos, tmp_path) == 2
    assert "has features of unknown origin" in capsys.readouterr().err
    assert (tmp_path / "train.npz").read_bytes() == b"mine"


@pytest.mark.parity
def test_pytorch_computes_the_same_features(photos, net, tmp_path, monkeypatch):
    timm = timm_library.load()
    import torch

    def create(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ("some_vit", True, 0)
        sizes = {"embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 0}
        made = timm.models.vision_transformer.VisionTransformer(8, 4, **sizes)
        state = safetensors.numpy.load_file(net / "model.safetensors")
        state = {n: torch.from_numpy(v) for n, v in state.items() if "head" not in n}
        made.load_state_dict(state)
        made.pretrained_cfg = tiny_vit.CONFIG["pretrained_cfg"]
        return made

    monkeypatch.setattr(timm, "create_model", create)
    assert features(net, photos, tmp_path / "flax", "--mirror") == 0
    assert features("torch:timm/some_vit", photos, tmp_path / "torch", "--mirror") == 0
    for split in ("train", "val", "test"):
        ours, theirs = (arrays(tmp_path / by, split) for by in ("flax", "torch"))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(ours[1], theirs[1])
