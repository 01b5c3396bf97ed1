"""Folders and tables of images: layouts, formats, invalid input, predict."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny_digits
import tiny_photos
from PIL import Image

from lt_jax.cli import config_flags, main
from lt_jax.data import catalogue
from lt_jax.data.dataset import Splits
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.data.sources import folder
from lt_jax.errors import InputError
from lt_jax.experiment import evaluation, stages
from lt_jax.export import predict

VIEW = PhotoOptions(
    size=16, resize=20, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), broken=0.0
)
SIZES = {"blau": 10, "grün wiese": 5, "rot": 20}


def load(dir: Path | str, table: str = "", test: float = 0.25, seed: int = 0, **more):
    values = {"table": table, "test": test, "valid_seed": seed}
    given = {"imbalance": 1.0, "split": "whole", "valid": 0.0, "seed": seed, **more}
    return catalogue.load("folder", dir=str(dir), photos=VIEW, extra=values, **given)


def three(root: Path, val: bool = True) -> Path:
    tiny_photos.write(root / "train", SIZES)
    tiny_photos.write(root / "test", dict.fromkeys(SIZES, 4), first=9000)
    if val:
        tiny_photos.write(root / "val", dict.fromkeys(SIZES, 2), first=5000)
    return root


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.valid), len(splits.test)


# Layouts


def test_three_folders(tmp_path, capsys):
    splits = load(three(tmp_path), valid=0.5)
    assert sizes(splits) == (35, 6, 12)  # its own validation images, whatever valid is
    assert splits.train.classes == ("blau", "grün wiese", "rot")
    assert splits.full_class_counts.tolist() == [10, 5, 20]
    assert splits.train.ids[0] == "train/blau/bild 0.jpg"
    assert splits.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert capsys.readouterr().err == ""


def test_without_val_a_share_is_held_out(tmp_path):
    splits = load(three(tmp_path, val=False), valid=0.2)
    assert sizes(splits) == (28, 7, 12)
    assert splits.valid.class_counts.tolist() == [2, 1, 4]


def test_one_folder_is_split_by_the_seed(tmp_path):
    tiny_photos.write(tmp_path, SIZES)
    one, same, other = (load(tmp_path, seed=s) for s in (0, 0, 1))
    assert one.test.class_counts.tolist() == [2, 1, 5]
    assert one.train.class_counts.tolist() == [8, 4, 15]
    assert one.test.hash == same.test.hash != other.test.hash
    assert not set(one.train.ids) & set(one.test.ids)
    assert one.train.ids[0].startswith("blau/")


def test_val_without_test(tmp_path, capsys):
    root = three(tmp_path)
    shutil.rmtree(root / "test")
    splits = load(root)
    assert sizes(splits) == (27, 6, 8)
    assert "no test images" in capsys.readouterr().err


def test_classes_are_numbered_in_sorted_order(tmp_path):
    for name in ("10", "9", "1", "b", "A"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = tiny_photos.image((1, 2, 3), i)
            (tmp_path / name / f"{i}.png").write_bytes(pixels)
    assert load(tmp_path).train.classes == ("A", "b", "1", "9", "10")


def test_images_in_subfolders_of_a_class(tmp_path):
    tiny_photos.write(tmp_path, SIZES)
    deep = tmp_path / "rot/2024/mai"
    deep.mkdir(parents=True)
    (deep / "x.webp").write_bytes(tiny_photos.image((1, 2, 3), 5, "WEBP"))
    splits = load(tmp_path)
    assert splits.full_class_counts[2] + splits.test.class_counts[2] == 21
    assert "rot/2024/mai/x.webp" in {*splits.train.ids, *splits.test.ids}


def test_images_match_their_ids(tmp_path):
    splits = load(three(tmp_path))
    for part in (splits.train, splits.valid, splits.test):
        rows = np.random.default_rng(0).permutation(len(part))[:6]
        for row, image in zip(rows, part.read(rows), strict=True):
            mean = image.reshape(-1, 3).mean(axis=0)
            colour = tiny_photos.COLOURS[part.classes[part.labels[row]]]
            np.testing.assert_allclose(mean, colour, atol=12)
            assert part.ids[row].split("/")[1] == part.classes[part.labels[row]]


def test_cut_to_a_long_tail(tmp_path):
    tiny_photos.write(tmp_path / "train", dict.fromkeys(SIZES, 9))
    tiny_photos.write(tmp_path / "test", dict.fromkeys(SIZES, 2), first=9000)
    assert load(tmp_path, split="first", imbalance=9).full_class_counts.tolist() == [
        9,
        3,
        1,
    ]
    with pytest.raises(InputError, match=r"imbalance must be 1 .* got 9"):
        load(tmp_path, imbalance=9)


# Image formats and other files


def odd_images() -> dict[str, bytes]:
    """The same red in every format."""
    made = {}
    red = Image.new("RGB", (60, 40), (200, 40, 40))
    for name in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        file = io.BytesIO()
        red.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(name, name.upper()))
        made[f"plain.{name}"] = file.getvalue()
    for name, mode in (("palette.png", "P"), ("alpha.png", "RGBA"), ("c.jpg", "CMYK")):
        file = io.BytesIO()
        red.convert(mode).save(file, "JPEG" if name.endswith("jpg") else "PNG")
        made[name] = file.getvalue()
    return made


def test_formats(tmp_path):
    images = odd_images()
    for name in ("rot", "blau"):
        tiny_photos.write(tmp_path / "test", {name: 2})
        tiny_photos.write(tmp_path / "train", {name: 2})
    for name, content in images.items():
        (tmp_path / "train/rot" / name).write_bytes(content)
    found = load(tmp_path).train
    pixels = dict(zip(found.ids, found.read(np.arange(len(found))), strict=True))
    for name in images:
        mean = pixels[f"train/rot/{name}"].reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(mean, (200, 40, 40), atol=6, err_msg=name)


def test_grey_and_16_bit(tmp_path):
    tiny_photos.write(tmp_path / "test", dict.fromkeys(SIZES, 2))
    tiny_photos.write(tmp_path / "train", dict.fromkeys(SIZES, 2))
    place = tmp_path / "train/rot"
    Image.new("L", (30, 30), 120).save(place / "grey.jpg")
    deep = np.full((30, 30), 120 * 257, np.uint16)
    Image.fromarray(deep).save(place / "deep.png")
    found = load(tmp_path).train
    for name in ("grey.jpg", "deep.png"):
        (row,) = np.flatnonzero(found.ids == f"train/rot/{name}")
        image = found.read(np.array([row]))[0]
        np.testing.assert_allclose(image.astype(float), 120, atol=1.5, err_msg=name)


def test_exif_rotates_a_photograph(tmp_path):
    tiny_photos.write(tmp_path / "test", dict.fromkeys(SIZES, 2))
    tiny_photos.write(tmp_path / "train", dict.fromkeys(SIZES, 2))
    # Black above, white below; orientation 6 rotates it clockwise by 90 degrees.
    pixels = np.zeros((40, 40), np.uint8)
    pixels[20:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert("RGB").save(
        tmp_path / "train/rot/a turned.jpg", exif=exif
    )
    found = load(tmp_path).train
    (row,) = np.flatnonzero(found.ids == "train/rot/a turned.jpg")
    image = found.read(np.array([row]))[0].astype(int)
    assert image[:, :6].mean() > 240  # white is on the left now
    assert image[:, -6:].mean() < 15


def test_other_files_are_skipped_and_reported(tmp_path, capsys):
    root = three(tmp_path)
    for name in ("notes.txt", ".DS_Store", "._bild 0.jpg", "film.mp4"):
        (root / "train/rot" / name).write_bytes(b"x")
    assert sizes(load(root)) == (35, 6, 12)
    error = capsys.readouterr().err
    assert "skipped 4 files without images" in error
    assert "train/rot/notes.txt" in error


def test_duplicates_are_reported(tmp_path, capsys):
    root = three(tmp_path)
    shutil.copy(root / "train/rot/bild 2.jpg", root / "test/rot/other name.jpg")
    shutil.copy(root / "val/blau/bild 0.jpg", root / "test/rot/third.jpg")
    shutil.copy(root / "train/rot/bild 1.PNG", root / "train/rot/alike.PNG")
    # As long as a training image, but not equal.
    content = bytearray((root / "train/rot/bild 4.jpg").read_bytes())
    content[-30] ^= 1
    (root / "test/rot/near.jpg").write_bytes(content)
    load(root)
    error = capsys.readouterr().err
    assert "2 test images are also training or validation" in error
    assert "train/rot/bild 2.jpg = test/rot/other name.jpg" in error
    assert "near" not in error


def test_a_deleted_file_counts_as_undecodable(tmp_path):
    found = load(three(tmp_path)).train
    (tmp_path / "train/blau/bild 0.jpg").unlink()
    assert found.ids[0] == "train/blau/bild 0.jpg"
    with pytest.raises(InputError, match=r"train/blau/bild 0\.jpg cannot be decoded"):
        found.read(np.array([0]))


# Tables


def rows_of(root: Path) -> list[tuple[str, str, str]]:
    return [
        (path.relative_to(root).as_posix(), path.parent.name, path.parts[-3])
        for path in sorted(root.rglob("bild*"))
    ]


def csv_of(root: Path, columns: str, rows: list[tuple[str, ...]]) -> str:
    file = root / "list.csv"
    lines = [columns, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(file)


def test_csv_with_splits(tmp_path):
    root = three(tmp_path)
    table = csv_of(root, "path,label,split", rows_of(root))
    listed, found = load("", table), load(root)
    for a, b in ((listed, found),):
        assert sizes(a) == sizes(b)
        assert a.hash == b.hash
        assert a.train.classes == b.train.classes
    other = shutil.copy(table, tmp_path.parent / f"{tmp_path.name}.csv")
    assert load(root, str(other)).hash == found.hash


def test_csv_without_splits(tmp_path):
    tiny_photos.write(tmp_path, SIZES)
    rows = [(path, label) for path, label, _ in rows_of(tmp_path)]
    splits = load("", csv_of(tmp_path, "path,label", rows))
    assert splits.hash == load(tmp_path).hash


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = three(tmp_path)
    rows = rows_of(root)
    names = ("path", "label", "split")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    parquet.write_table(pa.table(columns), root / "list.parquet")
    assert load("", str(root / "list.parquet")).hash == load(root).hash
    (root / "list.parquet").write_bytes(b"PAR1 not so")
    with pytest.raises(InputError, match=r"cannot be read \(.*[Pp]arquet"):
        load("", str(root / "list.parquet"))


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (
            "file,label",
            [("a", "b")],
            r"'path' once among .*: expected a table",
        ),
        ("", [], r"cannot be read \(.*Empty CSV file"),
        ("path,label", [], "has no rows"),
        ("path,label", [("a.jpg", "")], "row 1: expected a path and a label"),
        ("path,label", [("a.jpg", "x")], r"1 of its images do not exist .*: .*a\.jpg"),
        ("path,label,split", [("a.jpg", "x", "dev")], "split 'dev', expected one of"),
        (
            "path,label",
            [("a.jpg", "x"), ("a.jpg", "y")],
            "row 2: duplicate entry: a.jpg",
        ),
    ],
)
def test_bad_tables(tmp_path, columns, rows, message):
    with pytest.raises(InputError, match=message):
        load("", csv_of(tmp_path, columns, rows))


def test_tables_of_other_files(tmp_path):
    """A pipe or a device would hang; one file under two names would count twice."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", ".", "/dev/zero", "a\0b", "a" * 5000):
        rows = [("a.jpg", "x"), (name, "y")]
        with pytest.raises(InputError, match="do not exist or are not regular files"):
            load("", csv_of(tmp_path, "path,label", rows))
    with pytest.raises(InputError, match=r"duplicate entry: \./a\.jpg"):
        load("", csv_of(tmp_path, "path,label", [("a.jpg", "x"), ("./a.jpg", "y")]))
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="is not a regular file: expected a table"):
        load("", str(tmp_path / "pipe.csv"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"a": "x"}, {"a": "y"}], "label holds struct"),
        ([["x"], ["y"]], "label holds list"),
        ([0.5, 1.5], "label holds double, not text or integers"),
        ([b"x", b"y"], "label holds binary"),
        (["x", None], r"row 2: expected a path .*got \('b.jpg', None, None\)"),
        (["x", "y" * 2000], "label of at most 1,000 characters"),
    ],
)
def test_bad_columns(tmp_path, labels, message):
    table = pyarrow.table({"path": ["a.jpg", "b.jpg"], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        load("", str(tmp_path / "list.parquet"))


def test_integers_and_categories_are_labels(tmp_path):
    names = [str(i) for i in range(6)]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * (int(name) + 1))
    whole, text = [9, 10] * 3, ["9", "10"] * 3
    for labels in (whole, pyarrow.array(text).dictionary_encode()):
        table = pyarrow.table({"path": names, "label": labels})
        pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
        splits = load("", str(tmp_path / "list.parquet"))
        assert splits.train.classes == ("9", "10")


def test_unreadable_tables(tmp_path):
    with pytest.raises(InputError, match=r"expected a \.csv or \.parquet file"):
        load("", str(tmp_path / "list.xlsx"))
    with pytest.raises(InputError, match="does not exist"):
        load("", str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(InputError, match=r"cannot be read \(.*UTF8"):
        load("", str(tmp_path / "list.csv"))


# Bad folders


def test_names_that_are_not_utf8(tmp_path):
    """Names are bytes on disk. They are read, hashed and found again."""
    root = three(tmp_path)
    for split in ("train", "test", "val"):
        os.rename(root / split / "rot", os.fsencode(root / split) + b"/ros\xe9")
    folder = os.fsencode(root) + b"/train/ros\xe9"
    os.rename(folder + b"/bild 0.jpg", folder + b"/caf\xe9.jpg")
    found = load(root).train
    assert "ros\udce9" in found.classes
    assert "train/ros\udce9/caf\udce9.jpg" in found.ids
    assert (len(found.hash), len(found.hash_of_order)) == (16, 64)
    assert found.read(np.flatnonzero(found.ids > "train/ros")).std() > 0


def test_folders_without_an_end(tmp_path):
    root = three(tmp_path)
    loop = root / "train/rot/loop"
    for target in (root / "train/rot", root, root / "train"):
        loop.symlink_to(target)
        with pytest.raises(InputError, match="is a link to a folder that contains it"):
            load(root)
        loop.unlink()
    before = os.getcwd()
    os.chdir(root / "train/rot")
    for _ in range(600):  # pytest removes them by recursion
        os.mkdir("d")
        os.chdir("d")
    os.chdir(before)
    with pytest.raises(InputError, match="limit 1,000: are folders nested by mistake"):
        load(root)


def test_pipes_and_dangling_links(tmp_path, capsys):
    root = three(tmp_path)
    os.mkfifo(root / "train/rot/pipe.jpg")
    assert sizes(load(root)) == (35, 6, 12)
    assert (
        "skipped 1 files without images: train/rot/pipe.jpg" in capsys.readouterr().err
    )
    (root / "train/rot/link.jpg").symlink_to("nothing")
    with pytest.raises(InputError, match=r"link\.jpg cannot be read: No such file"):
        load(root)


def test_two_folders_of_one_split(tmp_path):
    root = three(tmp_path)
    shutil.copytree(root / "val", root / "validation")
    with pytest.raises(InputError, match="several folders of one split, val and valid"):
        load(root)


def test_no_folder(tmp_path):
    for dir in ("", tmp_path / "missing"):
        with pytest.raises(InputError, match=r"no folder .* Expected DIR/train/CLASS"):
            load(dir)


def test_a_folder_without_classes(tmp_path):
    with pytest.raises(InputError, match=r"has no class folders\. Expected"):
        load(tmp_path)
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"It contains images\.zip: extract it first"):
        load(tmp_path)


def test_an_empty_class(tmp_path):
    root = three(tmp_path)
    (root / "train/leer").mkdir()
    (root / "train/nur text").mkdir()
    (root / "train/nur text/a.txt").write_text("x")
    with pytest.raises(InputError, match=r"without images in .*: leer, nur text"):
        load(root)


def test_one_image_per_class(tmp_path):
    tiny_photos.write(tmp_path, dict.fromkeys(SIZES, 1))
    with pytest.raises(InputError, match="every class has a single image"):
        load(tmp_path)


def test_only_one_class(tmp_path):
    tiny_photos.write(tmp_path, {"rot": 5})
    with pytest.raises(InputError, match="only one class, 'rot'"):
        load(tmp_path)


def test_a_test_class_without_training_images(tmp_path):
    root = three(tmp_path)
    shutil.copytree(root / "test/rot", root / "test/fremd")
    with pytest.raises(InputError, match=r"1 classes of 'test' have .*fremd"):
        load(root)


def test_empty_files(tmp_path):
    root = three(tmp_path)
    (root / "train/rot/bild 3.PNG").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 image files are empty: .*bild 3\.PNG"):
        load(root)


def test_no_share_of_test_images(tmp_path):
    tiny_photos.write(tmp_path, SIZES)
    with pytest.raises(InputError, match=r"has no test images, and data\.test is 0"):
        load(tmp_path, test=0.0)


def test_an_unreadable_folder(tmp_path, monkeypatch):
    root = three(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder.os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        load(root)


# From the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on the folder, and the folder."""
    root = three(tmp_path_factory.mktemp("photos"))
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_photos.config(root, optim__epochs=6)
    result = stages.run(config, workdir)
    return config, workdir, root, result


def test_run(run):
    _, workdir, _, result = run
    assert result["dataset"]["num_classes"] == 3
    assert result["dataset"]["groups"] == {"many": 1, "medium": 1, "few": 1}
    assert result["methods"]["los"]["all"]["mean"] > 0.6
    assert "grün wiese" in (workdir / "report/per_class.csv").read_text("utf-8")


def test_predict(run, tmp_path, capsys):
    _, workdir, root, _ = run
    shutil.move(root, tmp_path / "away")  # the data are not needed any more
    try:
        images = [tmp_path / f"away/test/{name}/bild 0.jpg" for name in SIZES]
        arguments = ["predict", "--workdir", str(workdir), *map(str, images)]
        assert main.main([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        best = json.loads((workdir / "result.json").read_text())["recommended"]
        assert found["head"] == best["fit"]
        assert found["recommended"]
        assert [image["path"] for image in found["images"]] == list(map(str, images))
        for image in found["images"]:
            chances = [guess["probability"] for guess in image["top"]]
            assert chances == sorted(chances, reverse=True)
            assert abs(sum(chances) - 1) < 1e-5
        assert main.main([*arguments, "--method=none", "--top=1"]) == 0
        output = capsys.readouterr().out
        assert re.match(r"head: stage1/0.*, temperature \d+\.\d\d\n", output)
        assert output.count(" %  ") == 3
    finally:
        shutil.move(tmp_path / "away", root)


def test_predict_agrees_with_evaluate(run, capsys):
    config, workdir, root, _ = run
    measured = evaluation.evaluate_all(config, workdir, "test")["ce/0.0"]
    images = sorted((root / "test").rglob("bild*"))
    found = predict.predict(workdir, images, "ce", 1)
    assert found["head"] == "ce/0.0"
    right = [
        image["top"][0]["class"] == path.parent.name
        for image, path in zip(found["images"], images, strict=True)
    ]
    assert np.mean(right) == pytest.approx(measured["all"])
    flags = ["--workdir", str(workdir), str(images[0])]
    assert main.main(["predict", *flags, "--method", "ce/0.0"]) == 0
    assert "head: ce/0.0" in capsys.readouterr().out


def test_predict_by_the_artefact(run, tmp_path, capsys):
    """Same result without the workdir, for photographs of several sizes."""
    _, workdir, root, _ = run
    file, away = tmp_path / "net.stablehlo", tmp_path / "away"
    assert main.main(["convert", str(workdir), str(file), "--method=los"]) == 0
    images = sorted((root / "test").rglob("bild*"))
    Image.new("RGB", (30, 61), (40, 200, 40)).save(tmp_path / "high.png")
    images.append(tmp_path / "high.png")
    expected = predict.predict(workdir, images, "los", 3)
    capsys.readouterr()
    shutil.move(workdir, away)
    try:
        arguments = ["predict", "--artefact", str(file), *map(str, images)]
        assert main.main([*arguments, "--top=3", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    finally:
        shutil.move(away, workdir)
    assert_same_guesses(found, expected)


def test_predict_by_the_artefact_of_small_images(tmp_path, monkeypatch):
    """With mirror images averaged, and in several batches."""
    workdir, file = tmp_path / "run", tmp_path / "net.stablehlo"
    stages.train(tiny_digits.config(optim__epochs=1, eval__flip=True), workdir)
    assert main.main(["convert", str(workdir), str(file)]) == 0
    _, test = catalogue.SOURCES["digits"]("")
    images = [tmp_path / f"{row}.png" for row in range(7)]
    for path, image in zip(images, test.read(np.arange(7)), strict=True):
        Image.fromarray(image[..., 0]).save(path)
    monkeypatch.setattr(predict, "BATCH", 3)
    found = predict.predict_by_artefact(file, images, 10)
    assert_same_guesses(found, predict.predict(workdir, images, "", 10))


def assert_same_guesses(found, expected):
    assert found["head"] == expected["head"]
    assert len(found["images"]) == len(expected["images"])
    for one, other in zip(found["images"], expected["images"], strict=True):
        assert one["path"] == other["path"]
        # By name: two classes may be equally probable up to rounding.
        ours, theirs = (
            {guess["class"]: guess["probability"] for guess in image["top"]}
            for image in (one, other)
        )
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_predict_rejects_other_files_as_artefacts(run, tmp_path, capsys):
    _, workdir, root, _ = run
    image = str(next((root / "test").rglob("bild*")))
    file = tmp_path / "net.stablehlo"
    assert main.main(["convert", str(workdir), str(file)]) == 0
    note = tmp_path / "net.stablehlo.json"
    error = note.read_text()

    def refused(*arguments):
        capsys.readouterr()
        assert main.main(["predict", "--artefact", str(file), image, *arguments]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    assert "it holds one head" in refused("--method=los")
    assert "--top must be at least 1" in refused("--top=0")
    note.write_text(error.replace('"images"', '"pictures"'))
    assert "net.stablehlo.json lacks 'images'" in refused()
    note.unlink()
    assert "Convert the workdir again" in refused()
    note.write_text(error)
    file.write_bytes(file.read_bytes()[:1000])
    assert "net.stablehlo has changed since it was written" in refused()
    file.unlink()
    assert "no such file" in refused()


def test_evaluate_names_classes(run):
    config, workdir, _, _ = run
    found = evaluation.evaluate_all(config, workdir, "train")["los/0.0"]
    names, values = zip(*found["lowest"], strict=True)
    assert set(names) == set(SIZES)
    assert list(values) == sorted(values)
    assert values[0] == found["worst"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--method=lso", "no finished fit of 'lso' in "),
        ("--method=lso", "did you mean 'los'"),
        ("--top=0", "--top must be at least 1"),
    ],
)
def test_predict_rejects(run, capsys, flag, message):
    _, workdir, root, _ = run
    image = next((root / "test").rglob("bild*"))
    assert main.main(["predict", "--workdir", str(workdir), str(image), flag]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_predict_rejects_files_that_are_not_images(run, tmp_path):
    _, workdir, root, _ = run
    (tmp_path / "text.jpg").write_text("x")
    whole = next((root / "test").rglob("*.jpg")).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("text.jpg", "text.jpg cannot be decoded: not an image"),
        ("cut.jpg", "cut.jpg cannot be decoded"),
        ("none.jpg", "none.jpg cannot be decoded: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            predict.predict(workdir, [tmp_path / name], "", 5)
    with pytest.raises(InputError, match=r"is not a workdir: it has no config\.json"):
        predict.predict(tmp_path, [tmp_path / "text.jpg"], "", 5)


def test_predict_on_digits(tmp_path):
    stages.train(tiny_digits.config(optim__epochs=1), tmp_path / "run")
    _, test = catalogue.SOURCES["digits"]("")
    rows = np.arange(0, 600, 60)
    for row, image in zip(rows, test.read(rows), strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{row}.png")
    images = [tmp_path / f"{row}.png" for row in rows]
    found = predict.predict(tmp_path / "run", images, "", 3)
    assert found["head"] == "stage1/0"  # nothing else is finished
    assert [len(image["top"]) for image in found["images"]] == [3] * 10
    assert {g["class"] for i in found["images"] for g in i["top"]} <= set("0123456789")
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="9 x 8 pixels, expected 8 x 8 as in digits"):
        predict.predict(tmp_path / "run", [tmp_path / "wide.png"], "", 3)


def test_info_draws_the_curve(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        config_flags, "read", lambda *_: tiny_photos.config(three(tmp_path))
    )
    png = tmp_path / "counts.png"
    assert main.main(["data", "info", "--config=x", "--png", str(png)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"largest +rot \(20\), \S+ \(\d+\), grün wiese \(5\)\n", output)
    assert re.search(r"smallest +grün wiese \(5\), \S+ \(\d+\), rot \(20\)\n", output)
    assert "many 1 (> " in output
    assert "'few' is one class: its accuracy is measured on 4 test images" in output
    assert "█" in output
    assert "3 classes, largest first" in output
    assert png.read_bytes().startswith(b"\x89PNG")
    assert main.main(["data", "info", "--config=x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts_max"] == 20
