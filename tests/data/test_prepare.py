"""Datasets prepared from miniatures of the original archives; damaged input."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_archives
import tiny_photos
from PIL import Image

from lt_jax.cli import main
from lt_jax.data import catalogue
from lt_jax.data.images.decode import Undecodable
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.data.prepare import build
from lt_jax.data.prepare.archives import opened
from lt_jax.data.prepare.builders import BUILDERS
from lt_jax.data.sources import records, tfds
from lt_jax.errors import InputError
from lt_jax.experiment import stages

TRAIN, VALID = [0, 1, 5, 5, 8141, 0], [1, 0, 8141]
VIEW = PhotoOptions(
    size=8, resize=10, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), broken=0.0
)
IDS = {"imagenet_lt": "file_name"}
LOAD = {"imbalance": 1, "split": "whole", "valid": 0.0, "seed": 0}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A folder with miniatures of all archives."""
    root = tmp_path_factory.mktemp("archives")
    tiny_archives.inat(root, TRAIN, VALID)
    png = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 0, 0)).save(png, "PNG")
    odd = {1: tiny_archives.jpeg(1, mode="CMYK"), 2: png.getvalue()}
    tiny_archives.imagenet(root, [0, 0, 1, 2, 999], [1, 2], 4, odd)
    tiny_archives.cifar(root, 100, 60, 20)
    tiny_archives.cifar(root, 10, 50, 10)
    return root


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    """A TFDS data folder with all four datasets."""
    root = tmp_path_factory.mktemp("prepared")
    for name in BUILDERS:
        build.prepare(name, archives, str(root), partial=True)
    return root


def part(root: Path, name: str, split: str) -> tfds.Part:
    return tfds.load(name, str(root), split, IDS.get(name, "id"))


def exact(monkeypatch, archives: Path, name: str, **changes: object) -> None:
    """Make the builder expect the miniatures."""
    builder = BUILDERS[name]
    own = tuple(
        archive._replace(
            size=(archives / archive.name).stat().st_size,
            sha256=hashlib.sha256((archives / archive.name).read_bytes()).hexdigest(),
        )
        for archive in builder.archives
    )
    changed = builder._replace(archives=own, gigabytes=0.0, **changes)
    monkeypatch.setitem(BUILDERS, name, changed)


def nothing_left(root: Path) -> bool:
    return not [path for path in root.rglob("*") if path.is_file()]


# Prepared datasets


def test_inat(archives, prepared):
    folder = prepared / "i_naturalist2018/1.0.0"
    assert not list(folder.glob("*test*"))  # the unlabelled archive was not wanted
    names = tiny_archives.inat_names()
    for split, labels, first in (
        ("train", TRAIN, 0),
        ("validation", VALID, len(TRAIN)),
    ):
        made = part(prepared, "i_naturalist2018", split)
        assert made.classes == tuple(names)
        assert len(made.classes) == 8142
        keys = [hashlib.md5(str(first + i).encode()).hexdigest() for i in range(9)]
        wanted = sorted(zip(keys, labels, range(first, 99), strict=False))
        assert made.ids.tolist() == [key for key, _, _ in wanted]
        assert made.labels.tolist() == [label for _, label, _ in wanted]
        images = made.encoded(np.arange(len(labels)))
        assert images == [tiny_archives.jpeg(i) for _, _, i in wanted]


def test_inat_is_tested_on_validation(prepared):
    made = catalogue.PHOTOS["i_naturalist2018"].load(str(prepared), VIEW)
    assert made[1] is None
    assert (
        made[2].ids.tolist()
        == part(prepared, "i_naturalist2018", "validation").ids.tolist()
    )
    assert made[0].read(np.arange(2)).shape == (2, 8, 8, 3)


def test_imagenet_lt(archives, prepared):
    synsets = tiny_archives.label_file("datasets/imagenet2012", "labels.txt")
    made = part(prepared, "imagenet_lt", "train")
    assert made.classes == tuple(synsets)
    assert made.labels.tolist() == [0, 0, 1, 2, 999]
    assert made.ids[0] == "n01440764_0.JPEG"
    assert part(prepared, "imagenet_lt", "validation").labels.tolist() == [1, 2]
    test = part(prepared, "imagenet_lt", "test")
    order = tiny_archives.label_file("datasets/imagenet2012", "validation_labels.txt")
    assert [synsets[k] for k in test.labels] == order[:4]
    assert test.encoded(np.array([3])) == [tiny_archives.jpeg(5004)]


def test_cmyk_and_png_of_imagenet_are_read(prepared):
    train_set, valid, test = catalogue.PHOTOS["imagenet_lt"].load(str(prepared), VIEW)
    assert (len(train_set), len(valid), len(test)) == (5, 2, 4)
    images = train_set.read(np.arange(5))
    assert images[2].reshape(-1, 3).tolist() == [[200, 0, 0]] * 64
    assert images[1].std() > 0


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("cifar10", 10)])
def test_cifar(archives, prepared, name, classes):
    full, test = catalogue.SOURCES[name](str(prepared))
    assert len(full.classes) == classes
    assert full.classes[3] == ("fine_3" if classes == 100 else "class_3")
    assert full.ids[7] == "train_00007"
    assert test.ids[7] == "test_00007"
    assert full.labels[:11].tolist() == [i * 7 % classes for i in range(11)]
    # The first pixels of the archive, plane by plane.
    random = np.random.default_rng(classes)
    size = len(full) if classes == 100 else len(test)
    first = random.integers(0, 256, (size, 3072), np.uint8)[5].reshape(3, 32, 32)
    of = full if classes == 100 else test
    np.testing.assert_array_equal(of.read(np.array([5]))[0], first.transpose(1, 2, 0))


def test_prepared_datasets_are_tfds_datasets(prepared):
    import tensorflow_datasets as reader

    builder = reader.builder_from_directory(prepared / "i_naturalist2018/1.0.0")
    assert builder.info.name == "i_naturalist2018"
    assert str(builder.info.version) == "1.0.0"
    assert builder.info.splits["train"].num_examples == 6
    assert set(builder.info.features) == {"id", "image", "label", "supercategory"}
    source = builder.as_data_source(
        "train", decoders={"image": reader.decode.SkipDecoding()}
    )
    names = builder.info.features["supercategory"].names
    record = next(r for r in source if r["label"] == 8141)
    assert names[record["supercategory"]] == ["Fungi", "Plantae", "Insecta"][8141 % 3]


def test_prepare_needs_no_tensorflow(archives, tmp_path):
    program = (
        "import sys\n"
        "from lt_jax.cli import main\n"
        f"main.main(['data', 'prepare', 'imagenet_lt', '--from={archives}',"
        f" '--partial', '--dir={tmp_path}'])\n"
        "print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    line = f"imagenet_lt 1.0.0: train 5, validation 2, test 4; in {tmp_path}"
    assert done.stdout.startswith(line)
    assert done.stdout.endswith("False\n")


def test_many_files(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHARD", 1000)
    root = str(tmp_path)
    folder = build.prepare("i_naturalist2018", archives, root, partial=True)
    assert len(list(folder.glob("*-train.array_record-*-of-00003"))) == 3
    found = part(tmp_path, "i_naturalist2018", "train")
    assert sorted(found.labels) == sorted(TRAIN)
    assert found.encoded(np.arange(6)) == [
        found.encoded(np.array([i]))[0] for i in range(6)
    ]


def test_sizes_counts_and_checksums_are_verified(
    archives, tmp_path, monkeypatch, capsys
):
    counts = {"train": 6, "validation": 3}
    exact(monkeypatch, archives, "i_naturalist2018", counts=counts)
    folder = build.prepare("i_naturalist2018", archives, str(tmp_path), checksum=True)
    assert capsys.readouterr().out.count("SHA-256 verified") == 4
    assert build.prepare("i_naturalist2018", archives, str(tmp_path)) == folder
    assert "already exists" in capsys.readouterr().out


# The index of labels and ids


def test_index_and_records_agree(prepared, tmp_path, monkeypatch):
    root = shutil.copytree(prepared, tmp_path / "copy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    by_index = part(root, "imagenet_lt", "train")
    folder = root / "imagenet_lt/1.0.0"
    file = records.index_file(folder, "train")
    file.unlink()
    by_records = part(root, "imagenet_lt", "train")
    assert not file.exists()  # a small set is not worth one
    assert by_index.ids.tolist() == by_records.ids.tolist()
    assert by_index.labels.tolist() == by_records.labels.tolist()
    monkeypatch.setattr(tfds, "INDEX_FROM", 0)
    part(root, "imagenet_lt", "train")
    assert file.exists()
    asked = []
    monkeypatch.setattr(tfds, "_read_labels_and_ids", lambda *_: asked.append(1))
    assert part(root, "imagenet_lt", "train").ids.tolist() == by_records.ids.tolist()
    assert not asked


def test_an_index_of_other_files_is_not_used(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / "copy")
    folder = root / "imagenet_lt/1.0.0"
    shards = sorted(folder.glob("imagenet_lt-train.array_record*"))
    wrong = np.array([7, 7, 7, 7, 7]), np.array(list("abcde"))
    stamp = records.stamp(shards)
    records.save_index(folder, "train", stamp, *wrong)
    assert part(root, "imagenet_lt", "train").labels.tolist() == [7] * 5  # it is read
    with np.load(records.index_file(folder, "train")) as held:
        stored = dict(held) | {"stamp": np.array(stamp + "x")}
    with records.index_file(folder, "train").open("wb") as out:
        np.savez(out, **stored)
    assert part(root, "imagenet_lt", "train").labels.tolist() == [0, 0, 1, 2, 999]
    records.index_file(folder, "train").write_bytes(b"PK half a file")
    assert part(root, "imagenet_lt", "train").labels.tolist() == [0, 0, 1, 2, 999]


def test_an_index_goes_to_the_cache_if_the_folder_is_read_only(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = prepared / "imagenet_lt/1.0.0"
    shards = sorted(folder.glob("imagenet_lt-test.array_record*"))
    blocked = tmp_path / "no folder"
    blocked.write_text("")
    labels, ids = np.array([3, 4]), np.array(["a", "ü"])
    stamp = records.stamp(shards)
    records.save_index(blocked, "test", stamp, labels, ids)
    found = records.load_index(blocked, "test", stamp, 2)
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([3, 4], ["a", "ü"])
    assert records.load_index(blocked, "test", stamp, 3) is None


# Damaged or missing input


def test_missing_archives(archives, tmp_path):
    few = tmp_path / "few"
    (few / "train_val2018").mkdir(parents=True)
    shutil.copy(archives / "categories.json.tar.gz", few)
    with pytest.raises(InputError) as caught:
        build.prepare("i_naturalist2018", few, str(tmp_path / "out"))
    error = str(caught.value)
    assert "train2018.json.tar.gz, val2018.json.tar.gz" in error
    assert "in one folder, not extracted" in error
    assert "test2018" not in error
    assert not (tmp_path / "out").exists()


def test_an_archive_of_another_size(archives, tmp_path):
    with pytest.raises(InputError, match=r"expected 127,945,569,561: download it"):
        build.prepare("i_naturalist2018", archives, str(tmp_path))
    assert nothing_left(tmp_path)


ROWS = {"categories": [], "images": [], "annotations": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a JSON object, got None"),
        ([1], r"must be a JSON object, got \[1\]"),
        ({}, "lacks 'categories'"),
        (ROWS | {"categories": None}, "categories must be a list, got None"),
        (ROWS | {"categories": [1]}, r"categories\[0\] must be a JSON object, got 1"),
        (ROWS | {"categories": [{}]}, r"lacks 'categories\[0\]\.id'"),
        (
            ROWS | {"categories": [{"id": []}]},
            r"\[0\]\.id must be an integer",
        ),
        (
            ROWS | {"images": [{"id": 1, "file_name": 5}]},
            r"\[0\]\.file_name must",
        ),
        (ROWS | {"annotations": [{"image_id": 9, "category_id": 9}]}, "unknown 9"),
        (b"[" * 1500 + b"]" * 1500, "nested deeper"),
        (b'"\xff"', "utf-8"),
        (b"9" * 5000, "digits"),
    ],
)
def test_a_json_file_of_another_dataset(archives, tmp_path, content, message):
    folder = tmp_path / "archives"
    shutil.copytree(archives, folder)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    file = folder / "train2018.json.tar.gz"
    file.write_bytes(tiny_archives.tar([("train2018.json", text)], "w:gz"))
    with pytest.raises(InputError, match=rf"train2018\.json\.tar\.gz.*{message}"):
        build.prepare("i_naturalist2018", folder, str(tmp_path / "out"), partial=True)
    assert not (tmp_path / "out").exists()


def member(type: bytes, size: int, **headers: str) -> bytes:
    """The header of a member of this size, without its content."""
    made = tarfile.TarInfo("x/data_batch_1.bin")
    made.type, made.size, made.pax_headers = type, size, headers
    return made.tobuf(tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT)


HUGE = {
    "a file": member(tarfile.REGTYPE, 2**42),
    "a sparse file": member(tarfile.GNUTYPE_SPARSE, 0),
    "a sparse file of pax": member(
        tarfile.REGTYPE, 0, **{"GNU.sparse.size": str(2**42), "GNU.sparse.map": "0,0"}
    ),
    "a long name": member(tarfile.GNUTYPE_LONGNAME, 2**40),
    "extended attributes": member(tarfile.XHDTYPE, 2**40),
}


@pytest.mark.parametrize("what", HUGE)
@pytest.mark.parametrize("gzipped", [False, True])
def test_huge_members_take_no_memory(tmp_path, what, gzipped):
    content = gzip.compress(HUGE[what]) if gzipped else HUGE[what]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"is truncated.*bytes\)"):
        build.prepare("cifar10", tmp_path, str(out), partial=True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "test_batch.bin",
            b"\xc8" + bytes(3072),
            r"larger than \[9\]",
        ),
        ("test_batch.bin", bytes(3000), r"test_batch\.bin has another size"),
        ("batches.meta.txt", b"", "10 different names"),
        ("batches.meta.txt", b"cat\n" * 10, "10 different names"),
        ("batches.meta.txt", b"".join(b"\xff%d\n" % i for i in range(10)), "in UTF-8"),
    ],
)
def test_bad_content_of_cifar(archives, tmp_path, file, content, message):
    name = "cifar-10-binary.tar.gz"
    with tarfile.open(archives / name) as tar:
        held = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    held[f"cifar-10-batches-bin/{file}"] = content
    (tmp_path / name).write_bytes(tiny_archives.tar([*held.items()], "w:gz"))
    with pytest.raises(InputError, match=message):
        build.prepare("cifar10", tmp_path, str(tmp_path / "out"), partial=True)
    assert not (tmp_path / "out").exists()


def test_a_wrong_checksum(archives, tmp_path, monkeypatch):
    exact(monkeypatch, archives, "cifar100")
    builder = BUILDERS["cifar100"]
    wrong = tuple(a._replace(sha256="0" * 64) for a in builder.archives)
    monkeypatch.setitem(BUILDERS, "cifar100", builder._replace(archives=wrong))
    with pytest.raises(
        InputError, match=r"is damaged: it has SHA-256 .* expected 0000"
    ):
        build.prepare("cifar100", archives, str(tmp_path), checksum=True)
    assert nothing_left(tmp_path)


def test_wrong_counts(archives, tmp_path, monkeypatch):
    exact(monkeypatch, archives, "i_naturalist2018")
    with pytest.raises(InputError, match="expected 437,513 examples in train, got 6"):
        build.prepare("i_naturalist2018", archives, str(tmp_path))
    assert nothing_left(tmp_path)


def test_too_little_disk_space(archives, tmp_path, monkeypatch):
    exact(monkeypatch, archives, "cifar10")
    builder = BUILDERS["cifar10"]._replace(gigabytes=1e9)
    monkeypatch.setitem(BUILDERS, "cifar10", builder)
    with pytest.raises(InputError, match=r"GB free, cifar10 needs about 1e[+]09 GB"):
        build.prepare("cifar10", archives, str(tmp_path))
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("No space left on device")]
)
def test_a_full_disk(archives, tmp_path, monkeypatch, error, capsys):
    def add(self, record, label, name):
        raise error

    monkeypatch.setattr(build.SplitWriter, "add", add)
    arguments = ["data", "prepare", "i_naturalist2018", "--partial"]
    flags = [f"--from={archives}", f"--dir={tmp_path}"]
    assert main.main([*arguments, *flags]) == 2
    error = capsys.readouterr().err
    assert f"the disk of {tmp_path}/i_naturalist2018 is full" in error
    assert not list(tmp_path.iterdir())


def cut(archives: Path, folder: Path, name: str, share: float) -> Path:
    copy = shutil.copytree(archives, folder)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(len(content) * share)])
    return copy


@pytest.mark.parametrize(
    ("set_name", "file"),
    [
        ("i_naturalist2018", "train_val2018.tar.gz"),
        ("i_naturalist2018", "train2018.json.tar.gz"),
        ("imagenet_lt", "ILSVRC2012_img_train.tar"),
        ("imagenet_lt", "ILSVRC2012_img_val.tar"),
        ("cifar100", "cifar-100-binary.tar.gz"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.29, 0.44])  # within a content
def test_a_truncated_archive(archives, tmp_path, set_name, file, share):
    broken = cut(archives, tmp_path / "cut", file, share)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=rf"{file}"):
        build.prepare(set_name, broken, str(out), partial=True)
    assert nothing_left(out)


def test_a_duplicate_image(tmp_path):
    tiny_archives.imagenet(tmp_path, [0, 1], [1], 2)
    val = tmp_path / "ILSVRC2012_img_val.tar"
    name = "ILSVRC2012_val_00000001.JPEG"
    val.write_bytes(tiny_archives.tar([(name, b"x"), (name, b"y")], "w"))
    with pytest.raises(InputError, match=rf"duplicate example in the archives: {name}"):
        build.prepare("imagenet_lt", tmp_path, str(tmp_path / "out"), partial=True)


@pytest.mark.parametrize(
    ("split", "line", "message"),
    [
        ("train", "train/n01440764/n01440764_0.JPEG 1", "got '.*_0.JPEG 1'"),
        ("train", "train/n01440764/n01440764_0.JPEG 1000", "position of SYNSET"),
        ("train", "nothing", "line 1: expected .* listed once, as 'train/SYNSET/"),
        ("val", "train/n01440764/n01440764_5555.JPEG 0", "lacks 1 listed images"),
        ("val", "train/n01440764/n01440764_0.JPEG 0", "listed once"),
    ],
)
def test_bad_lists(archives, tmp_path, split, line, message):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train", "val"):
        shutil.copy(archives / f"ImageNet_LT_{name}.txt", lists)
    (lists / f"ImageNet_LT_{split}.txt").write_text(line + "\n")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        build.prepare("imagenet_lt", archives, str(out), lists=lists, partial=True)
    assert nothing_left(out)
    file = lists / "ImageNet_LT_train.txt"
    file.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"cannot be read .*utf-8.*--lists"):
        build.prepare("imagenet_lt", archives, str(out), lists=lists, partial=True)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="is not a regular file"):
        build.prepare("imagenet_lt", archives, str(out), lists=lists, partial=True)
    shutil.rmtree(lists)
    with pytest.raises(InputError, match=r"ImageNet_LT_train.txt does not .*--lists"):
        build.prepare("imagenet_lt", archives, str(out), lists=lists, partial=True)


def test_a_leftover_is_removed(archives, tmp_path, capsys):
    left = tmp_path / "cifar10/3.0.2.incomplete"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    (left / "folder/in it").mkdir(parents=True)
    folder = build.prepare("cifar10", archives, str(tmp_path), partial=True)
    assert "left by an interrupted command" in capsys.readouterr().out
    assert not left.exists()
    assert not (folder / "half").exists()


def test_a_link_in_place_of_the_draft_is_not_followed(archives, tmp_path):
    kept = tmp_path / "elsewhere/kept"
    kept.parent.mkdir()
    kept.write_text("x")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/3.0.2.incomplete").symlink_to(kept.parent)
    with pytest.raises(InputError, match="is a link, which is not followed"):
        build.prepare("cifar10", archives, str(tmp_path), partial=True)
    assert kept.exists()


def test_two_processes_at_once(archives, tmp_path):
    left = tmp_path / "cifar10/3.0.2.incomplete"
    left.mkdir(parents=True)
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another command is writing"):
        build.prepare("cifar10", archives, str(tmp_path), partial=True)
    os.close(handle)
    assert left.exists()


def test_prepare_of_an_unknown_dataset(tmp_path, capsys):
    assert main.main(["data", "prepare", "imagenetlt", f"--from={tmp_path}"]) == 2
    assert "did you mean 'imagenet_lt'" in capsys.readouterr().err


def test_a_missing_or_truncated_shard(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / "copy")
    (shard,) = (root / "imagenet_lt/1.0.0").glob("imagenet_lt-test.array_record*")
    shard.write_bytes(shard.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"(?s)is incomplete.* prepare imagenet_lt"):
        part(root, "imagenet_lt", "test")
    shard.unlink()
    with pytest.raises(
        InputError, match=r"is incomplete or damaged: .*imagenet_lt-test\.array_record"
    ):
        part(root, "imagenet_lt", "test")


def test_classes_without_training_images(prepared):
    with pytest.raises(InputError, match="has 1,000 classes and 5 training examples"):
        catalogue.load("imagenet_lt", dir=str(prepared), photos=VIEW, **LOAD)


# Training on a prepared dataset


def test_train_on_a_prepared_dataset(tmp_path):
    classes = list(range(1000))
    tiny_archives.imagenet(tmp_path, [*classes, 3, 3, 5], [1, 2], 6)
    build.prepare("imagenet_lt", tmp_path, str(tmp_path / "out"), partial=True)
    config = tiny_photos.config(
        tmp_path / "out",
        data__name="imagenet_lt",
        data__valid=0.0,
        data__many=2,
        data__few=2,
        data__size=8,
        data__resize=8,
        optim__epochs=1,
        optim__batch=256,
        method__features="cached",
        method__names=("los",),
        method__los__epochs=1,
        eval__choose="all",
    )
    result = stages.run(config, tmp_path / "run")
    found = result["dataset"]
    assert (found["num_train"], found["num_valid"], found["num_test"]) == (1003, 2, 6)
    assert found["groups"] == {"many": 1, "medium": 1, "few": 998}
    assert result["methods"]["los"]["all"]["values"] != []


# TFDS's own builders, where TensorFlow is installed


INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
LISTS = "https://drive.google.com/uc?export=download&id="
# The address of each archive that TFDS's builders download, by file name.
ADDRESSES = {
    "i_naturalist2018": {
        name: INAT + name
        for name in (
            "train_val2018.tar.gz",
            "train2018.json.tar.gz",
            "val2018.json.tar.gz",
            "test2018.tar.gz",
            "categories.json.tar.gz",
        )
    },
    "imagenet_lt": {
        "ImageNet_LT_train.txt": LISTS + "1Sl1cwy6Dei1I1BMS1YKjI35fkaR1UA_7",
        "ImageNet_LT_val.txt": LISTS + "1AjYczW4khrQrwPIygXUkHF-Qv4QGEsCF",
    },
    "cifar100": {"cifar-100-binary.tar.gz": CIFAR + "cifar-100-binary.tar.gz"},
    "cifar10": {"cifar-10-binary.tar.gz": CIFAR + "cifar-10-binary.tar.gz"},
}


def by_tfds(name: str, archives: Path, root: Path) -> dict[str, tfds.Part]:
    """Prepare with TFDS's own builder, from local archives."""
    import tensorflow_datasets as reader
    from tensorflow_datasets.core.download import checksums

    made = reader.builder_cls(name)
    made.url_infos = {
        address: checksums.compute_url_info(archives / file)
        for file, address in ADDRESSES[name].items()
    }
    builder = made(data_dir=root, file_format="array_record")
    builder.download_and_prepare(
        download_config=reader.download.DownloadConfig(
            manual_dir=archives, try_download_gcs=False
        )
    )
    return {split: part(root, name, split) for split in BUILDERS[name].counts}


@pytest.mark.prepare
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
@pytest.mark.parametrize("name", BUILDERS)
def test_equal_to_tfds_own_builder(archives, prepared, tmp_path, name):
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as reader

    theirs = by_tfds(name, archives, tmp_path)
    for split, other in theirs.items():
        ours = part(prepared, name, split)
        assert ours.classes == other.classes
        assert ours.ids.tolist() == other.ids.tolist()
        assert ours.labels.tolist() == other.labels.tolist()
    folders = [tfds.find(name, str(root)) for root in (prepared, tmp_path)]
    builders = [reader.builder_from_directory(folder) for folder in folders]
    assert builders[0].info.features.to_json() == builders[1].info.features.to_json()
    for file in folders[0].glob("*.labels.txt"):
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()
    raw = {"image": reader.decode.SkipDecoding()}
    for split in theirs:
        tables = []
        for builder in builders:
            source = builder.as_data_source(split, decoders=raw)
            records_ = [dict(source[i]) for i in range(len(source))]
            if name.startswith("cifar"):  # two encoders of PNG, the same pixels
                for record in records_:
                    png = Image.open(io.BytesIO(record["image"]))
                    record["image"] = png.tobytes()
            key = IDS.get(name, "id")
            tables.append(sorted(records_, key=lambda record: record[key]))
        assert tables[0] == tables[1]


def test_too_little_memory_is_not_a_damaged_archive(tmp_path):
    (tmp_path / "x").write_bytes(b"image")
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(tmp_path / "x", "x")

    def read() -> None:
        with opened(tmp_path / "one.tar") as files:
            for _ in files:
                raise MemoryError

    with pytest.raises(MemoryError):
        read()


def test_a_record_without_an_image_is_undecodable():
    for record in (b"", b"\xff\xff"):
        assert isinstance(records.image(record), Undecodable)
