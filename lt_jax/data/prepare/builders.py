"""The datasets that can be prepared from their original archives.

Names, versions, features, ids and labels are those of TFDS's own builders, whose label
files are used. Images keep the bytes of the archive, except that CIFAR's bare pixels
become PNG. The 22 CMYK photographs of ImageNet and its PNG with a JPEG name are handled
by the decoder.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lt_jax.data.prepare.archives import damaged, members, read_json, walk
from lt_jax.errors import InputError, first_few


class Archive(NamedTuple):
    """An original archive."""

    name: str
    size: int  # bytes
    sha256: str


# Sizes and checksums are TFDS's. Those of iNaturalist are in its repository, but not in
# its wheel.
ARCHIVES = {
    name: Archive(name, int(size), sha256)
    for name, size, sha256 in map(
        str.split,
        Path(__file__).with_name("archives.tsv").read_text("utf-8").splitlines(),
    )
}


class Example(NamedTuple):
    """An example with its features as TFDS encodes them."""

    split: str
    id: str
    label: int
    features: dict[str, Any]


class Builder(NamedTuple):
    """How to prepare a dataset."""

    name: str
    version: str
    description: str
    homepage: str
    archives: tuple[Archive, ...]
    gigabytes: float  # size of the prepared dataset
    counts: dict[str, int]  # examples per split
    features: Callable[
        [Path], dict[str, Any]
    ]  # folder of the archives -> TFDS features
    # (folder of the archives, folder of the lists) -> examples in the archives' order
    examples: Callable[[Path, Path], Iterator[Example]]


def _tfds_lines(file: str) -> list[str]:
    """The lines of a label file that is part of TFDS."""
    path: Any = tfds.core.tfds_path(file)
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _class_label(names: list[str]) -> Any:
    return tfds.features.ClassLabel(names=names)


def _require_all_found(missing: dict[str, Any], archive: Path) -> None:
    if missing:
        raise InputError(
            f"{len(missing):,} images are missing from {archive}: "
            f"{first_few(sorted(missing))}. It is truncated, or belongs to other lists"
        )


# iNaturalist 2018


def _inat_names(what: str) -> list[str]:
    folder = "image_classification/i_naturalist2018"
    return _tfds_lines(f"{folder}/inaturalist2018_{what}.txt")


def _inat_features(folder: Path) -> dict[str, Any]:
    return {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(),
        "label": _class_label(_inat_names("labels")),
        "supercategory": _class_label(_inat_names("supercategories")),
    }


def _inat_examples(folder: Path, lists: Path) -> Iterator[Example]:
    """Read both splits in one pass over the 128 GB, without the unlabelled test set."""
    labels = {name: i for i, name in enumerate(_inat_names("labels"))}
    supers = {name: i for i, name in enumerate(_inat_names("supercategories"))}
    source = folder / "categories.json.tar.gz"
    names = {c["id"]: c["name"] for c in read_json(source, "categories.json")}
    wanted: dict[str, tuple[str, int, int]] = {}
    for split, stem in (("train", "train2018"), ("validation", "val2018")):
        source = folder / f"{stem}.json.tar.gz"
        content = read_json(source, f"{stem}.json")
        try:
            groups = {c["id"]: c["supercategory"] for c in content["categories"]}
            category_of = {
                a["image_id"]: a["category_id"] for a in content["annotations"]
            }
            for image in content["images"]:
                category = category_of[image["id"]]
                wanted[Path(image["file_name"]).name.split(".")[0]] = (
                    split,
                    labels[names[category]],
                    supers[groups[category]],
                )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{source} is not the iNaturalist 2018 file: {error} is missing, or "
                "names a category that is not in TFDS's list"
            ) from error
        del content  # half a gigabyte
    source = folder / "train_val2018.tar.gz"
    for name, file in walk(source):
        id = name.split(".")[0]
        if id in wanted:
            split, label, supercategory = wanted.pop(id)
            features = {"id": id, "image": file.read(), "label": label}
            features["supercategory"] = supercategory
            yield Example(split, id, label, features)
    _require_all_found(wanted, source)


# ImageNet-LT

LIST = "ImageNet_LT_{}.txt"
IMAGENET_TRAIN, IMAGENET_VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def _synsets() -> list[str]:
    return _tfds_lines("datasets/imagenet2012/labels.txt")


def _imagenet_features(folder: Path) -> dict[str, Any]:
    return {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(),
        "label": _class_label(_synsets()),
    }


def _imagenet_example(split: str, name: str, label: int, image: bytes) -> Example:
    features = {"image": image, "label": label, "file_name": name}
    return Example(split, name, label, features)


def _imagenet_examples(folder: Path, lists: Path) -> Iterator[Example]:
    """Read the listed images by file name; labels count the sorted synsets."""
    synsets = {name: i for i, name in enumerate(_synsets())}
    wanted: dict[str, tuple[str, int]] = {}
    for split, short in (("train", "train"), ("validation", "val")):
        path = lists / LIST.format(short)
        for name, label in _read_list(path, len(synsets)).items():
            expected = synsets.get(name.split("_")[0])
            if expected != label:
                raise InputError(
                    f"{path}: {name} has label {label}, expected {expected}, the "
                    "position of its synset in sorted order: use the published list"
                )
            if name in wanted:
                raise InputError(f"{path}: {name} is also in the other list")
            wanted[name] = (split, label)
    source = folder / IMAGENET_TRAIN
    for inner, content in walk(source):
        try:
            with tarfile.open(fileobj=content.file, mode="r:") as tar:
                for name, image in members(tar):
                    if name in wanted:
                        split, label = wanted.pop(name)
                        yield _imagenet_example(split, name, label, image.read())
        except tarfile.TarError as error:
            raise damaged(source, f"{inner}: {error}") from error
    _require_all_found(wanted, source)
    yield from _imagenet_test(folder / IMAGENET_VAL, lists, synsets)


def _imagenet_test(
    source: Path, lists: Path, synsets: dict[str, int]
) -> Iterator[Example]:
    """Read ImageNet's validation images, which are the test set of ImageNet-LT.

    Labels are TFDS's; the published test list must agree if it is there.
    """
    order = _tfds_lines("datasets/imagenet2012/validation_labels.txt")
    path = lists / LIST.format("test")
    listed = _read_list(path, len(synsets)) if path.exists() else {}
    for name, image in walk(source):
        try:
            number = int(name.removesuffix(".JPEG").rsplit("_", 1)[1])
            label = synsets[order[number - 1]]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{source} contains {name}, expected names such as "
                "ILSVRC2012_val_00000001.JPEG"
            ) from error
        if (other := listed.pop(name, label)) != label:
            raise InputError(f"{path}: {name} has label {other}, ImageNet has {label}")
        yield _imagenet_example("test", name, label, image.read())
    _require_all_found(listed, source)


def _read_list(path: Path, num_classes: int) -> dict[str, int]:
    """Labels by file name, from lines such as ``train/SYNSET/NAME.JPEG 0``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(
            f"no list {path}: set --lists to the folder of {LIST.format('train')} and "
            f"{LIST.format('val')}, published with OLTR (Liu et al. 2019)"
        ) from error
    found: dict[str, int] = {}
    for number, line in enumerate(filter(None, lines), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit() or int(label) >= num_classes:
            raise InputError(
                f"{path}, line {number}: expected 'train/SYNSET/NAME.JPEG LABEL' with "
                f"a label below {num_classes}, got {line!r}"
            )
        found[name.rsplit("/", 1)[-1]] = int(label)
    return found


# CIFAR

SIDE = 32


def _cifar(
    name: str, archive: Archive, labels: dict[str, str], files: dict[str, list[str]]
) -> Builder:
    """Make the builder of CIFAR-10 or CIFAR-100.

    Args:
      labels: the file of class names for each label byte of a record, in order.
      files: the files of records for each split.
    """
    length = len(labels) + 3 * SIDE**2  # labels, then pixels plane by plane

    def features(folder: Path) -> dict[str, Any]:
        content = _contents(folder, [*labels.values()])
        found: dict[str, Any] = {
            feature: _class_label([*filter(None, content[file].decode().split("\n"))])
            for feature, file in labels.items()
        }
        image = tfds.features.Image(shape=(SIDE, SIDE, 3))
        return {"id": tfds.features.Text(), "image": image, **found}

    def examples(folder: Path, lists: Path) -> Iterator[Example]:
        content = _contents(folder, [f for names in files.values() for f in names])
        for split, names in files.items():
            data = b"".join(content[file] for file in names)
            if len(data) % length:
                raise damaged(folder / archive.name, f"{names[0]} has another size")
            rows = np.frombuffer(data, np.uint8).reshape(-1, length)
            for index, row in enumerate(rows):
                pixels = row[len(labels) :].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
                png = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(png, "PNG")
                found = dict(zip(labels, map(int, row), strict=False))
                id = f"{split}_{index:05d}"
                encoded = {"id": id, "image": png.getvalue(), **found}
                yield Example(split, id, found["label"], encoded)

    def _contents(folder: Path, names: list[str]) -> dict[str, bytes]:
        path = folder / archive.name
        content = {name: file.read() for name, file in walk(path)}
        for file in names:
            if file not in content:
                raise damaged(path, f"{file} is missing")
        return content

    return Builder(
        name=name,
        version="3.0.2",
        description=f"60,000 images of 32x32 in {name.removeprefix('cifar')} classes.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        archives=(archive,),
        gigabytes=0.2,
        counts={"train": 50_000, "test": 10_000},
        features=features,
        examples=examples,
    )


_ALL = (
    Builder(
        name="i_naturalist2018",
        version="1.0.0",
        description="8,142 species; the unlabelled test images are left out.",
        homepage="https://github.com/visipedia/inat_comp/tree/master/2018",
        archives=(
            ARCHIVES["train_val2018.tar.gz"],
            ARCHIVES["train2018.json.tar.gz"],
            ARCHIVES["val2018.json.tar.gz"],
            ARCHIVES["categories.json.tar.gz"],
        ),
        gigabytes=130.0,
        counts={"train": 437_513, "validation": 24_426},
        features=_inat_features,
        examples=_inat_examples,
    ),
    Builder(
        name="imagenet_lt",
        version="1.0.0",
        description="A long-tailed part of ImageNet 2012 (Liu et al. 2019).",
        homepage="https://github.com/zhmiao/OpenLongTailRecognition-OLTR",
        archives=(
            ARCHIVES[IMAGENET_TRAIN],
            ARCHIVES[IMAGENET_VAL],
        ),
        gigabytes=24.0,
        counts={"train": 115_846, "validation": 20_000, "test": 50_000},
        features=_imagenet_features,
        examples=_imagenet_examples,
    ),
    _cifar(
        "cifar100",
        ARCHIVES["cifar-100-binary.tar.gz"],
        {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        {"train": ["train.bin"], "test": ["test.bin"]},
    ),
    _cifar(
        "cifar10",
        ARCHIVES["cifar-10-binary.tar.gz"],
        {"label": "batches.meta.txt"},
        {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        },
    ),
)
BUILDERS = {builder.name: builder for builder in _ALL}
