"""Loading datasets: sources, splits, missing and damaged files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_cifar
from PIL import Image
from test_longtail import cao_oracle, first_oracle
from tiny_digits import CONFIGS

from lt_jax.cli import main
from lt_jax.data import catalogue, longtail
from lt_jax.data.dataset import Dataset
from lt_jax.data.images.decode import Undecodable
from lt_jax.data.sources import cifar, digits, records, tfds
from lt_jax.errors import InputError

LOAD = {"imbalance": 10, "split": "first", "valid": 0.0, "seed": 0}


def test_import_is_light():
    heavy = "{'tensorflow', 'tensorflow_datasets', 'sklearn', 'grain', 'torch'}"
    program = (
        f"import sys, lt_jax.data.catalogue; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Digits


def test_digits_have_scikit_learns_pixels():
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    for part in digits.load(""):
        rows = [int(name.removeprefix("digits_")) for name in part.ids]
        images = part.read(np.arange(len(part)))
        assert images.dtype == np.uint8
        assert images.shape == (len(part), *part.shape) == (len(part), 8, 8, 1)
        assert part.labels.dtype == np.int32
        assert part.labels.tolist() == labels[rows].tolist()
        exact = images.reshape(-1, 64) / 255 * 16
        np.testing.assert_array_equal(np.round(exact), values[rows])
        assert np.abs(exact - values[rows]).max() < 0.5 * 16 / 255 + 1e-9


def test_digits_are_balanced_and_disjoint():
    train, test = digits.load("")
    assert train.class_counts.tolist() == [114] * 10
    assert test.class_counts.tolist() == [60] * 10
    assert not set(train.ids) & set(test.ids)
    assert train.classes == tuple("0123456789")
    assert (train.ids == np.sort(train.ids)).all()
    # From everywhere in the file, which lists one writer after another.
    tenth = np.array([int(name[-5:]) for name in test.ids]) * 10 // 1797
    assert np.bincount(tenth, minlength=10).min() > 40


def test_digits_split_is_pinned():
    train, test = digits.load("")
    assert (train.hash, test.hash) == ("4f7919ff06886718", "67a7a0aaa53e6592")
    assert catalogue.load("digits", dir="", **LOAD).hash == "17694783ba3c9b5c"
    assert (
        catalogue.load("digits", dir="", **LOAD | {"split": "cao"}).hash
        == "9ad898406bc1ad2b"
    )


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'lt_jax\[demo\]'"):
        digits.load("")


# Loading


def test_load_cuts_and_holds_out():
    whole = catalogue.load("digits", dir="", **LOAD)
    parts = catalogue.load("digits", dir="", **LOAD | {"valid": 0.2})
    expected = [114, 88, 68, 52, 40, 31, 24, 19, 14, 11]
    assert (
        whole.full_class_counts.tolist() == parts.full_class_counts.tolist() == expected
    )
    assert whole.hash == parts.hash == whole.train.hash
    assert parts.hash != parts.train.hash
    assert len(whole.valid) == 0
    assert whole.valid.read(np.arange(0)).shape == (0, 8, 8, 1)
    train, valid = set(parts.train.ids), set(parts.valid.ids)
    assert not train & valid
    assert train | valid == set(whole.train.ids)
    assert not (train | valid) & set(parts.test.ids)
    assert parts.valid.class_counts.tolist() == [round(0.2 * n) for n in expected]
    assert len(parts.test) == 600


def test_load_seed_changes_only_the_validation_split():
    one, two = (
        catalogue.load("digits", dir="", **LOAD | {"valid": 0.2, "seed": s})
        for s in (0, 1)
    )
    assert one.hash == two.hash
    assert one.valid.hash != two.valid.hash


def test_load_keeps_images_with_their_ids():
    full, _ = digits.load("")
    of_id = dict(zip(full.ids, full.read(np.arange(len(full))), strict=True))
    parts = catalogue.load("digits", dir="", **LOAD | {"valid": 0.2, "split": "cao"})
    for part in (parts.train, parts.valid):
        rows = np.random.default_rng(0).permutation(len(part))[:50]
        for image, name in zip(part.read(rows), part.ids[rows], strict=True):
            np.testing.assert_array_equal(image, of_id[name])


def test_load_decodes_only_what_was_chosen(monkeypatch):
    asked = []

    def source(dir):
        def read(rows):
            asked.append(len(rows))
            return full.read(rows)

        full, test = digits.load(dir)
        return dataclasses.replace(full, read=read), test

    monkeypatch.setitem(catalogue.SOURCES, "digits", source)
    parts = catalogue.load("digits", dir="", **LOAD | {"valid": 0.1})
    assert not asked  # counting needs no image
    parts = parts.in_memory()
    parts.train.read(np.arange(5))  # from memory, not from the source
    assert sum(asked) == parts.full_class_counts.sum() < 1140


@pytest.mark.parametrize("label", [-1, 10])
def test_load_rejects_a_label_outside_the_classes(monkeypatch, label):
    train, test = digits.load("")
    labels = test.labels.copy()
    labels[3] = label
    wrong = dataclasses.replace(test, labels=labels)
    monkeypatch.setitem(catalogue.SOURCES, "digits", lambda dir: (train, wrong))
    message = rf"{test.ids[3]} has label {label}, expected 0 to 9 \(1 such"
    with pytest.raises(InputError, match=message):
        catalogue.load("digits", dir="", **LOAD)


# CIFAR, on a miniature of the files


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    tiny_cifar.write(root)
    return root


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the version's folder that tests may damage."""
    return shutil.copytree(tiny / "cifar100/3.0.2", tmp_path / "cifar100/3.0.2")


def test_cifar_is_in_id_order(tiny):
    train, test = cifar.cifar100(str(tiny))
    for part, prefix, per_class, seed in (
        (train, "train", 20, 1),
        (test, "test", 3, 2),
    ):
        made = tiny_cifar.examples(prefix, per_class, 100, seed)
        assert part.ids.tolist() == [name for name, _, _ in made]
        assert part.labels.tolist() == [label for _, label, _ in made]
        assert part.labels.dtype == np.int32
        assert part.ids.dtype.kind == "U"
        rows = np.random.default_rng(0).permutation(len(part))[:50]
        pngs = [Image.open(io.BytesIO(made[i][2])) for i in rows]
        images = part.read(rows)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, np.stack(pngs))
    assert train.name == "cifar100"
    assert train.classes == tuple(f"class {c}" for c in range(100))
    assert train.shape == (32, 32, 3)
    assert train.read(np.arange(0)).shape == (0, 32, 32, 3)


def test_cifar_files_are_shuffled(tiny):
    # Otherwise the test above would pass without sorting by id.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tiny / "cifar100/3.0.2")
    source = builder.as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    ids = [record["id"] for record in source.__getitems__(range(100))]
    assert ids != sorted(ids)


def test_cifar_reads_across_chunks(tiny, monkeypatch):
    train, _ = cifar.cifar100(str(tiny))
    whole = train.read(np.arange(100))
    monkeypatch.setattr(tfds, "CHUNK", 7)
    train, _ = cifar.cifar100(str(tiny))
    assert len(train) == 2000
    np.testing.assert_array_equal(train.read(np.arange(100)), whole)


def test_cifar_needs_no_tensorflow(tiny):
    program = (
        "import sys\n"
        "from lt_jax.data import catalogue\n"
        f"s = catalogue.load('cifar100', dir={str(tiny)!r}, imbalance=10,"
        " split='first', valid=0.1, seed=0)\n"
        "print(len(s.train), len(s.valid), len(s.test), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert done.stderr == ""  # no warning either, from absl or TFDS
    sizes = np.array([int(20 * 0.1 ** (c / 99)) for c in range(100)])
    held = sum(max(round(0.1 * n), 1) for n in sizes)
    assert done.stdout.split() == [str(sizes.sum() - held), str(held), "300", "False"]


def test_cifar10(tmp_path):
    tiny_cifar.write(tmp_path, num_classes=10)
    parts = catalogue.load("cifar10", dir=str(tmp_path), **LOAD)
    assert parts.full_class_counts.tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    assert parts.train.name == "cifar10"
    assert cifar.original_order(parts.train) is None  # nothing on record


def test_cifar_folder_from_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert len(cifar.cifar100("")[0]) == 2000
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tiny / "nobody"))
    with pytest.raises(InputError, match="nobody/tensorflow_datasets/cifar100/<ver"):
        cifar.cifar100("")


def test_cifar_uses_the_highest_version(copy, tmp_path):
    for version in ("3.0.10.incomplete01", "notes"):
        (copy.parent / version).mkdir()
    assert len(cifar.cifar100(str(tmp_path))[0]) == 2000
    (copy.parent / "3.0.10").mkdir()  # above 3.0.2, though not as text
    with pytest.raises(
        InputError, match=r"3\.0\.10 is incomplete or damaged: .*dataset_info.json"
    ):
        cifar.cifar100(str(tmp_path))


def test_original_order():
    names = ["train_00000", "train_00001", "train_00002", "train_49999"]

    def part(labels, rows, name="cifar100"):
        return Dataset(
            name=name,
            classes=tuple("x" * 100),
            labels=np.array(labels, np.int32)[rows],
            ids=np.array(names)[rows],
            shape=(32, 32, 3),
            read=lambda rows: np.zeros((len(rows), 32, 32, 3), np.uint8),
        )

    archive = [19, 29, 0, 73]
    assert cifar.original_order(part(archive, [0, 1, 2, 3])) is True
    assert cifar.original_order(part(archive, [0, 2])) is True
    assert cifar.original_order(part([19, 29, 0, 72], [0, 1, 2, 3])) is False
    assert cifar.original_order(part([29, 19, 0, 73], [0, 1, 2, 3])) is False
    assert cifar.original_order(part(archive, [2])) is None
    assert cifar.original_order(part(archive, [0, 1], "cifar10")) is None
    held = part([29, 28, 0, 73], [1])
    assert cifar.original_order(part(archive, [0, 2]), held) is False


def test_info_names_both_splits_that_depend_on_the_order(tiny, capsys):
    config = [f"--config={CONFIGS}/cifar100_lt.py:ir=10", f"--config.data.dir={tiny}"]
    assert main.main(["data", "info", *config]) == 0
    (line,) = re.findall("id order .*", capsys.readouterr().out)
    assert "`first` and `cao` pick other images than the authors'" in line


# Missing and damaged CIFAR files


def edit_info(folder, **changes):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_cifar_not_prepared(tmp_path):
    (tmp_path / "cifar100").mkdir()  # what an interrupted download leaves
    with pytest.raises(InputError) as caught:
        cifar.cifar100(str(tmp_path))
    message = str(caught.value)
    assert f"{tmp_path}/cifar100/<version> does not exist" in message
    assert "lt-jax data prepare cifar100 --from=" in message
    assert "docs/howto/prepare_data.md" in message
    assert [path.name for path in tmp_path.iterdir()] == ["cifar100"]  # no download


def test_cifar_as_tfrecord(copy, tmp_path):
    edit_info(copy, fileFormat="tfrecord")
    with pytest.raises(InputError) as caught:
        cifar.cifar100(str(tmp_path))
    assert "holds tfrecord files" in str(caught.value)
    assert f"tfds convert_format --dataset_version_dir={copy} " in str(caught.value)


def test_cifar_converted_in_place(copy, tmp_path):
    # As `tfds convert_format` leaves it: array_record next to TFRecord files.
    edit_info(copy, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert len(cifar.cifar100(str(tmp_path))[1]) == 300


def test_cifar_without_a_file(copy, tmp_path):
    os.remove(copy / "cifar100-test.array_record-00000-of-00001")
    with pytest.raises(InputError, match=r"is incomplete .*cifar100-test\.array"):
        cifar.cifar100(str(tmp_path))


def test_cifar_with_a_cut_file(copy, tmp_path):
    path = copy / "cifar100-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError,
        match=r"is incomplete .*lt-jax data prepare cifar100",
    ):
        cifar.cifar100(str(tmp_path))


def test_cifar_without_a_split(copy, tmp_path):
    splits = json.loads((copy / "dataset_info.json").read_text())["splits"]
    edit_info(copy, splits=[split for split in splits if split["name"] == "train"])
    with pytest.raises(InputError, match=r"no split 'test' \(found: train\)"):
        cifar.cifar100(str(tmp_path))


def test_cifar_with_bad_images(tmp_path):
    train = tiny_cifar.examples("train", 2, 10, seed=1)
    test = tiny_cifar.examples("test", 1, 10, seed=2)
    small = io.BytesIO()
    Image.new("RGB", (31, 32)).save(small, "PNG")
    for i, png in enumerate([train[0][2][:-300], train[1][2][:20], b"", small]):
        name, label, _ = train[i]
        train[i] = (name, label, png if isinstance(png, bytes) else png.getvalue())
    tiny_cifar.write_splits(tmp_path, 10, {"train": train, "test": test})
    full, _ = cifar.cifar10(str(tmp_path))  # labels and ids are sound
    assert full.read(np.arange(4, 20)).shape == (16, 32, 32, 3)
    for i in range(3):
        with pytest.raises(InputError, match=f"train_0000{i} cannot be decoded"):
            full.read(np.arange(i, 20))
    with pytest.raises(InputError, match="train_00003 has 31 x 32 pixels"):
        full.read(np.arange(3, 20))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_info.json", b"", "is not valid JSON"),
        ("dataset_info.json", b"\xff", "is not valid JSON"),
        ("dataset_info.json", b"[" * 9999, "nested deeper than"),
        ("dataset_info.json", b"null", "must be a JSON object"),
        ("dataset_info.json", b"{}", "holds tfrecord files"),
        ("dataset_info.json", b'{"splits": [{}]}', r"lacks 'splits\[0\]\.name'"),
        ("label.labels.txt", b"\xff", "is incomplete or damaged: 'utf-8'"),
        ("label.labels.txt", b"x\nx\n", "holds a class name twice"),
        ("label.labels.txt", b"\n", "has 0 classes"),
        ("label.labels.txt", b"a\nb\n", "expected 0 to 1"),
        ("label.labels.txt", b"x\n" * 3_000_000, "has more than 4,194,304 bytes"),
    ],
)
def test_cifar_with_other_metadata(copy, tmp_path, file, content, message):
    (copy / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        catalogue.load("cifar100", dir=str(tmp_path), **LOAD)
    assert "\n" not in str(caught.value)


def test_shards_are_named_by_us_not_by_the_metadata(copy, tmp_path):
    splits = json.loads((copy / "dataset_info.json").read_text())["splits"]
    for split in splits:
        split["filepathTemplate"] = "../../../{DATASET}-{SPLIT}"
    edit_info(copy, splits=splits, name="../evil")
    assert len(cifar.cifar100(str(tmp_path))[1]) == 300
    splits[0]["shardLengths"] = ["-5", "2005"]
    edit_info(copy, splits=splits)
    with pytest.raises(InputError, match=r"00000-of-00002 is missing or not a regular"):
        cifar.cifar100(str(tmp_path))
    splits[0]["shardLengths"] = ["many"]
    edit_info(copy, splits=splits)
    with pytest.raises(InputError, match="is incomplete or damaged: invalid literal"):
        cifar.cifar100(str(tmp_path))


def test_metadata_imports_no_module(copy, tmp_path, monkeypatch):
    """TFDS imports the classes that features.json names."""
    features = (copy / "features.json").read_text()
    features = features.replace("tensorflow_datasets.core.features", "evil_module")
    (copy / "features.json").write_text(features)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(cifar.cifar100(str(tmp_path))[1]) == 300
    assert "evil_module" not in sys.modules


def record(**features: int | bytes) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    made = tf_example_pb2.Example()
    for name, value in features.items():
        feature = made.features.feature[name]
        values = feature.int64_list if isinstance(value, int) else feature.bytes_list
        values.value.append(value)
    # Without `deterministic` the order of a map changes from process to process, and
    # with it the names of the parametrized tests.
    return made.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff rubbish", "is incomplete or damaged: Error parsing message"),
        (b"", r"no label or no 'id' \(features: none\)"),
        (record(id=b"x"), r"\(features: id\)"),
        (record(id=b"x", label=b"x"), r"no label"),
        (record(id=7, label=7), "no 'id'"),
        (record(id=b"x" * 5000, label=7), "no 'id'"),
        (record(id=b"\xff", label=7), "utf-8"),
        (record(id=b"x", label=2_000_000_000), "x has label 2000000000, expected"),
        (record(id=b"x", label=2**60), "x has label 2147483647, expected"),
        (record(id=b"x", label=-5), "x has label -1, expected"),
        (record(id=b"train_00001", label=7), "two examples of train are train_00001"),
    ],
)
def test_records_of_another_dataset(tmp_path, content, message):
    from array_record.python import array_record_module

    folder = tiny_cifar.write(tmp_path, per_class=2, num_classes=10)
    shard = str(folder / "cifar10-train.array_record-00000-of-00001")
    writer = array_record_module.ArrayRecordWriter(shard, "group_size:1,uncompressed")
    for i in range(20):
        good = record(id=b"train_%05d" % i, label=i % 10)
        writer.write(content if i == 3 else good)
    writer.close()
    with pytest.raises(InputError, match=message):
        catalogue.load("cifar10", dir=str(tmp_path), **LOAD | {"imbalance": 2})


def test_a_record_without_an_image(tmp_path):
    found = records.image(record(id=b"x", label=1))
    assert isinstance(found, Undecodable)
    assert records.image(record(image=b"PNG")) == b"PNG"
    assert isinstance(records.image(b"\xff rubbish"), Undecodable)


# The real CIFAR-100


@pytest.fixture(scope="module")
def real_full(data_dir):
    train, test = cifar.cifar100(str(data_dir))
    if len(train) != 50_000:
        pytest.skip(f"cifar100 in LT_JAX_DATA_DIR is cut to {len(train)} images")
    return train, test


@pytest.mark.realdata
@pytest.mark.parametrize("split", ["first", "cao"])
@pytest.mark.parametrize(
    ("imbalance", "total", "groups"),
    [
        (100, 10_847, (35, 35, 30)),
        (50, 12_608, (41, 41, 18)),
        (10, 19_573, (69, 31, 0)),
    ],
)
def test_real_counts(real_full, imbalance, split, total, groups):
    labels = real_full[0].labels
    rows = longtail.choose(labels, np.arange(50_000), 100, imbalance, split)
    sizes = np.bincount(labels[rows], minlength=100)
    assert sizes.sum() == len(set(rows)) == total
    assert (sizes.max(), sizes.min()) == (500, 500 // imbalance)
    many, few = (sizes > 100).sum(), (sizes < 20).sum()
    assert (many, 100 - many - few, few) == groups
    oracle = first_oracle if split == "first" else cao_oracle
    assert rows.tolist() == oracle(labels.tolist(), sizes)


@pytest.mark.realdata
def test_real_load(data_dir):
    # Also true for a copy that was cut to IR 100.
    parts = catalogue.load(
        "cifar100", dir=str(data_dir), **LOAD | {"imbalance": 100, "valid": 0.1}
    )
    assert (
        parts.full_class_counts.sum() == len(parts.train) + len(parts.valid) == 10_847
    )
    assert parts.test.class_counts.tolist() == [100] * 100
    assert parts.train.class_counts.min() == 4
    assert parts.valid.class_counts.min() == 1
    assert cifar.original_order(parts.train, parts.valid) in (True, False)


@pytest.mark.realdata
def test_real_images_agree_with_pillow(real_full, data_dir):
    import tensorflow_datasets as tfds

    full, test = real_full
    assert test.class_counts.tolist() == [100] * 100
    assert full.ids[[0, -1]].tolist() == ["train_00000", "train_49999"]
    assert {"apple", "worm"} < set(full.classes)
    assert len(set(full.ids)) == 50_000
    (folder,) = (data_dir / "cifar100").glob("*.*.*")
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for record in source.__getitems__(range(0, 50_000, 997)):
        i = int(record["id"].decode().removeprefix("train_"))
        image = np.asarray(Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(full.read(np.array([i]))[0], image)
        assert full.labels[i] == record["label"]
