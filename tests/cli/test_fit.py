"""`lt-jax fit`: photographs or features in, a recommended head and its page out."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree

import made_photos
import numpy as np
import pytest
import tiny_photos
import tiny_vit
from PIL import Image
from test_feature_files import NAMES, arrays, write

from lt_jax import logistic, recipes
from lt_jax.cli import config_flags, fit
from lt_jax.cli.main import main
from lt_jax.experiment import extraction
from lt_jax.experiment.config import resolve
from lt_jax.experiment.splits import load_splits
from lt_jax.pretrained import load

SIZES = {"blau": 20, "grün wiese": 10, "rot": 5}
PHOTOS = ("dir=photos", "size=8", "resize=8", "test=0.2", "valid=0.2")
FEW = ["--config.method.names=ce,crt", "--config.optim.epochs=3"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    tiny_vit.register(monkeypatch)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Photographs, a backbone, and a workdir fitted on them, in a folder of its own."""
    root = tmp_path_factory.mktemp("fit")
    tiny_photos.write(root / "photos", SIZES)
    # Half of them show nothing of their class, so that every method has mistakes.
    for i, photo in enumerate(sorted((root / "photos").rglob("*.jpg"))):
        photo.write_bytes(made_photos.encoded(made_photos.scene(52, 40, seed=i)))
    with pytest.MonkeyPatch.context() as patch:
        tiny_vit.register(patch)
        net = tiny_vit.folder(root / "net")
        patch.chdir(root)
        assert main(["fit", "photos", "--backbone", str(net), *FEW]) == 0
    return root


def test_fit_splits_fits_recommends_and_names_the_next_command(
    fitted, monkeypatch, capsys
):
    monkeypatch.chdir(fitted)
    flags = ["fit", "photos", "--backbone", str(fitted / "net"), *FEW]
    assert main(flags) == 0  # resumes
    out = capsys.readouterr().out
    assert "has these features already" in out
    assert "heads are already fitted" in out
    assert "Recommended: " in out
    assert "(5-fold validation balanced " in out
    assert "page: runs/photos/report/index.html" in out
    assert out.endswith("next: lt-jax predict --workdir runs/photos PHOTO.jpg\n")
    result = json.loads((fitted / "runs/photos/result.json").read_text())
    assert result["dataset"]["num_classes"] == 3
    assert [result["dataset"][f"num_{s}"] for s in ("train", "valid", "test")] == [
        28, 0, 7
    ]  # fmt: skip
    assert set(result["methods"]) == {"none", "ce", "crt"}


def mistakes(page):
    """The thumbnails of a page, uint8[H, W, 3], with their texts."""
    root = ElementTree.fromstring(page.read_text().removeprefix("<!DOCTYPE html>"))
    for item in root.findall(".//ul[@class='strip']/li"):
        (image,) = item
        kind, _, data = image.get("src", "").partition(";base64,")
        assert kind == "data:image/png"
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image.tail


def test_the_page_shows_the_worst_mistakes(fitted, tmp_path, monkeypatch):
    """The page has photographs, though the heads are fitted on features alone."""
    monkeypatch.chdir(fitted)
    run, page = fitted / "runs/photos", fitted / "runs/photos/report/index.html"
    (method,) = re.findall(r"Wrong predictions of (\w+) with", page.read_text())
    (file,) = (run / "checkpoints/chosen" / method).glob("*/outcome.json")
    kept = json.loads(file.read_text())["analysis"]["mistakes"]
    shown = [*mistakes(page)]
    flags = ["--config=configs/folder.py", *(f"--config.data.{p}" for p in PHOTOS)]
    test = load_splits(resolve(config_flags.read(flags)))[0].test
    assert len(shown) == len(kept) > 0
    for (pixels, text), one in zip(shown, kept, strict=True):
        row = one["row"]
        assert np.array_equal(pixels, test.read(np.array([row]))[0])
        true, guess = test.classes[test.labels[row]], test.classes[one["predicted"]]
        assert text == f"{true} → {guess}, {100 * one['confidence']:.0f} %"

    monkeypatch.chdir(tmp_path)  # without the photographs
    assert main(["report", str(run), "--out", "page"]) == 0
    page = tmp_path / "page/index.html"
    assert not [*mistakes(page)]
    assert "No images of mistakes, because of the data: " in page.read_text()


def test_the_printed_config_reproduces_the_run(fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(fitted)
    assert main(["config", "--workdir", "runs/photos", "--json"]) == 0
    file, again = tmp_path / "printed.json", tmp_path / "again"
    file.write_text(capsys.readouterr().out)
    assert main(["sweep", "--config", str(file), "--workdir", str(again)]) == 0
    found, before = (
        json.loads((run / "result.json").read_text())
        for run in (again, fitted / "runs/photos")
    )
    for result in (found, before):
        for method in (*result["methods"].values(), *result["fixed"].values()):
            del method["seconds"]
    for part in ("methods", "fixed", "recommended", "dataset", "sweep"):
        assert found[part] == before[part]


def test_predict_needs_the_workdir_only(fitted, tmp_path, capsys):
    """The backbone is in it; the logits equal those of the extracted features."""
    shutil.copytree(fitted / "runs/photos", tmp_path / "moved")
    photos = sorted((fitted / "photos").rglob("*.*"))
    provenance = json.loads((tmp_path / "moved/extracted/features.json").read_text())
    flags = ["predict", "--workdir", str(tmp_path / "moved"), "--json"]
    assert main([*flags, *map(str, photos)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"]
    assert found["refit"]
    assert {g["class"] for i in found["images"] for g in i["top"]} == {*SIZES}
    assert provenance["config"]["test"] == 0.2

    features = tmp_path / "moved/extracted/test.npz"
    assert main([*flags, str(features)]) == 0
    by_features = json.loads(capsys.readouterr().out)
    assert provenance["config"]["dir"] == "photos"
    assert by_features["head"] == found["head"]
    of_photos, of_features = map(chances, (found, by_features))
    assert len(of_features) == 7
    apart = np.abs(of_photos[:, None] - of_features).max(axis=2)
    assert apart.min(axis=0).max() < 2e-3  # each is that of a photograph


def chances(found):
    """Probabilities float[N, K] in the order of the classes' names."""
    each = [{g["class"]: g["probability"] for g in i["top"]} for i in found["images"]]
    return np.array([[one[name] for name in SIZES] for one in each])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gone"], "no such folder or table: gone. Expected photographs"),
        (["notes.txt"], "no such folder or table: notes.txt. Expected photographs"),
        (
            ["photos", "--backbone", "net", "--workdir", "old"],
            "old has a run on other data: use another",
        ),
        (["photos", "--backbone", "vit_tset"], "unknown backbone 'vit_tset'"),
        (["photos/rot", "--backbone", "net"], "has no class folders"),
        (["photos", "--backbone", "net", "--config.data.size=x"], "data.size must be"),
        (["photos", "--backbone", "net", "--config.optim.lr=-1"], "optim.lr must be"),
        (["photos", "--config", "x.py"], "it takes --config.KEY=VALUE alone"),
        (["one", "--backbone", "net"], "one has only one class, 'rot'"),
        (["gone", "--backbone", "dinov2"], "; did you mean 'vit_small_patch14_dinov2"),
        (["features", "--backbone", "resnet5"], "tensors; did you mean 'resnet50"),
        (["features", "--backbone", "net"], "has features already: leave out --backb"),
    ],
)
def test_bad_input_is_one_line(fitted, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(fitted)
    tiny_photos.write(fitted / "one", {"rot": 3})
    write(fitted / "features")
    (fitted / "notes.txt").write_text("def get_config(): pass")
    (fitted / "old").mkdir(exist_ok=True)
    other = json.loads((fitted / "runs/photos/config.json").read_text())
    other["data"]["dir"] = "features"
    (fitted / "old/config.json").write_text(json.dumps(other))
    assert main(["fit", "--workdir", "bad", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (fitted / "bad/checkpoints").exists()
    assert len([*(fitted / "old").iterdir()]) == 1


@pytest.mark.parametrize("command", ["fit", "features"])
def test_the_data_are_checked_before_weights_are_found(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.setattr(load, "find", None)  # would fail
    monkeypatch.chdir(tmp_path)
    tiny_photos.write(tmp_path / "one", {"rot": 3})
    given = ["--data", "{}", "--model", fit.BACKBONE, "--out", "new"]
    given = ["{}", "--workdir", "new"] if command == "fit" else given
    for folder, message in (("one/rot", "no class folders"), ("one", "only one class")):
        assert main([command, *(word.format(folder) for word in given)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_fit_of_features_with_names(tmp_path, capsys):
    (features, labels), test = arrays(), arrays((10,) * 4, seed=1)
    pairs = {"train": (features, NAMES[labels]), "test": (test[0], NAMES[test[1]])}
    folder = write(tmp_path / "f", **pairs)
    flags = ["fit", folder, "--workdir", str(tmp_path / "run"), *FEW]
    assert main([*flags, "--config.eval.folds=0"]) == 0
    assert "FEATURES.npz\n" in capsys.readouterr().out
    assert main(flags) == 0  # as the workdir began, not by folds
    out = capsys.readouterr().out
    assert "heads are already fitted" in out
    (words,) = re.findall(r"Fitted again on all examples for .*; the table has", out)
    page = (tmp_path / "run/report/index.html").read_text()
    assert words[1:].removesuffix("; the table has") in page
    assert page.count("<small>fitted again</small>") == 1
    flags = ["predict", "--workdir", str(tmp_path / "run"), f"{folder}/test.npz"]
    assert main([*flags, "--top", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    guesses = np.array([each["top"][0]["class"] for each in found])
    assert np.mean(guesses == NAMES[test[1]]) > 0.7


def test_fit_of_features_without_a_test_set(tmp_path, capsys):
    folder = write(tmp_path / "f", train=arrays((30, 12, 6, 1)))
    (tmp_path / "f/test.npz").unlink()
    assert main(["fit", folder, "--workdir", str(tmp_path / "run"), *FEW]) == 0
    found = capsys.readouterr()
    assert found.err.count("no test set (test.npz)") == 1
    line = "classes without a test example have no accuracy: 3; a group of only"
    assert line in found.out + found.err


@pytest.mark.parametrize(
    ("rows", "folds", "most"), [(30, 5, 6), (29.9, 0, 12), (3, 0, 3)]
)
def test_held_out_examples_choose_where_folds_take_long(
    tmp_path, monkeypatch, capsys, rows, folds, most
):
    """``rows`` settings of each method can be tried, or a fifth of them by 5 folds."""
    folder = write(tmp_path / "f")
    flags = [*fit.HEADS, f"--config.data.dir={folder}", *FEW]
    flags += ["--config.method.names=ce,crt,logistic,los"]
    entries = resolve(config_flags.read(flags)).method.entries
    epochs = [entries[name]["epochs"] for name in ("ce", "crt", "los")]
    epochs = sum(epochs) + logistic.PASSES
    monkeypatch.setattr(fit, "OPERATIONS", rows * epochs * 6 * 76 * 8 * 4)
    own = fit.adapted(flags, tmp_path / "run")
    held_out = "choosing by held-out examples, as folds take long here; "
    line = ("" if folds else held_out) + f"--config.eval.folds={5 - folds} changes this"
    assert line in capsys.readouterr().out
    config = resolve(config_flags.read([*flags, *own]))
    assert (config.eval.folds, config.method.refit) == (folds, not folds)
    for name in ("ce", "crt", "logistic", "los"):
        grid = config.method.entries[name]["grid"]
        assert recipes.FROM_DATA not in grid.get("delta", ())
        assert 1 <= math.prod(map(len, grid.values())) <= most
    if folds:
        return
    own = fit.adapted([*flags, "--config.eval.folds=5"], tmp_path / "run")
    assert own[0] == "--config.eval.folds=5"
    assert "choosing by" not in capsys.readouterr().out


def test_features_of_another_backbone(fitted, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(fitted / "runs/photos/extracted", other)
    note = json.loads((other / "features.json").read_text())
    flags = ["predict", "--workdir", str(fitted / "runs/photos")]
    note["request"]["weights"] |= {"revision": "0" * 40, "checked": True}
    (other / "features.json").write_text(json.dumps(note))
    assert main([*flags, str(other / "test.npz")]) == 0
    note["request"]["weights"]["sha256"] = "0" * 64
    (other / "features.json").write_text(json.dumps(note))
    assert main([*flags, str(other / "test.npz")]) == 2
    assert "are features of another backbone" in capsys.readouterr().err


def test_a_run_goes_on_without_its_extracted_features(
    fitted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fitted / "photos", "photos")
    shutil.copytree(fitted / "runs", "runs")
    shutil.rmtree("runs/photos/extracted")
    assert main(["fit", "photos", "--backbone", str(fitted / "net"), *FEW]) == 0
    assert "heads are already fitted" in capsys.readouterr().out


def test_a_backbone_of_a_module_needs_consent(fitted, tmp_path, capsys):
    """A workdir from someone else must not run code."""
    shutil.copytree(fitted / "runs/photos", tmp_path / "run")
    file = tmp_path / "run" / extraction.FOLDER / "features.json"
    note = json.loads(file.read_text())
    note["request"].pop("arch")
    note["request"]["model"] = "torch:antigravity:fly_geohash"
    file.write_text(json.dumps(note))
    image = str(next((fitted / "photos").rglob("*.jpg")))
    assert main(["predict", "--workdir", str(tmp_path / "run"), image]) == 2
    error = capsys.readouterr().err
    assert "confirm it with --backbone torch:antigravity:fly_geohash\n" in error
    flags = ["--workdir", str(fitted / "runs/photos"), "--backbone", "torch:os:abort"]
    assert main(["predict", *flags, image]) == 2
    error = capsys.readouterr().err
    assert f"was not trained on features of torch:os:abort, but of {fitted}" in error
