"""The datasets that can be prepared from their original archives.

Names, versions, features, ids and labels are those of TFDS's own builders, whose label
files are used. Images keep the bytes of the archive; only CIFAR's pixels become PNG.
"""

from __future__ import annotations

import io
import itertools
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lt_jax.data import arrays
from lt_jax.data.prepare.archives import damaged, inner, opened, read_json
from lt_jax.errors import InputError, first_few
from lt_jax.files import COUNT


class Archive(NamedTuple):
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
    split: str
    id: str
    label: int
    features: dict[str, Any]  # as TFDS encodes them


class Builder(NamedTuple):
    """How to prepare a dataset."""

    name: str
    version: str
    description: str
    homepage: str
    archives: tuple[Archive, ...]
    gigabytes: float  # size of the prepared dataset
    counts: dict[str, int]  # examples per split
    # Folder of the archives -> TFDS features.
    features: Callable[[Path], dict[str, Any]]
    # (folder of the archives, folder of the lists) -> examples in the archives' order
    examples: Callable[[Path, Path], Iterator[Example]]


def _tfds_lines(file: str) -> list[str]:
    path: Any = tfds.core.tfds_path(file)  # a label file that is part of TFDS
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _require_all_found(missing: dict[str, Any], archive: Path) -> None:
    if missing:
        raise InputError(
            f"{archive} lacks {len(missing):,} listed images: "
            f"{first_few(sorted(missing))}. It is truncated, or belongs to other lists"
        )


# iNaturalist 2018

# What is read of train2018.json and val2018.json.
TARGETS = {
    "categories": [{"id": COUNT, "supercategory": str}],
    "images": [{"id": COUNT, "file_name": str}],
    "annotations": [{"image_id": COUNT, "category_id": COUNT}],
}


def _inat_names(what: str) -> list[str]:
    folder = "image_classification/i_naturalist2018"
    return _tfds_lines(f"{folder}/inaturalist2018_{what}.txt")


def _inat_features(folder: Path) -> dict[str, Any]:
    return {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=_inat_names("labels")),
        "supercategory": tfds.features.ClassLabel(names=_inat_names("supercategories")),
    }


def _inat_targets(
    folder: Path, split: str, stem: str
) -> dict[str, tuple[str, int, int]]:
    """Read the split, label and supercategory of every image id of a JSON file."""
    labels = {name: i for i, name in enumerate(_inat_names("labels"))}
    supers = {name: i for i, name in enumerate(_inat_names("supercategories"))}
    file = folder / "categories.json.tar.gz"
    found = read_json(file, "categories.json", [{"id": COUNT, "name": str}])
    names = {row["id"]: row["name"] for row in found}
    file = folder / f"{stem}.json.tar.gz"
    content = read_json(file, f"{stem}.json", TARGETS)
    groups = {row["id"]: row["supercategory"] for row in content["categories"]}
    ids = {row["id"]: Path(row["file_name"]).stem for row in content["images"]}
    try:
        return {
            ids[row["image_id"]]: (split, labels[names[i]], supers[groups[i]])
            for row in content["annotations"]
            for i in [row["category_id"]]
        }
    except KeyError as error:
        raise damaged(file, f"it refers to an unknown {error}") from error


def _inat_examples(folder: Path, lists: Path) -> Iterator[Example]:
    """Read both splits in one pass over the 128 GB, without the unlabelled test set."""
    wanted: dict[str, tuple[str, int, int]] = {}
    for split, stem in (("train", "train2018"), ("validation", "val2018")):
        wanted |= _inat_targets(folder, split, stem)
    source = folder / "train_val2018.tar.gz"
    with opened(source) as files:
        for name, file in files:
            id = name.split(".")[0]
            if id in wanted:
                split, label, group = wanted.pop(id)
                features = {"id": id, "image": file.read(), "label": label}
                yield Example(split, id, label, features | {"supercategory": group})
    _require_all_found(wanted, source)


# ImageNet-LT

LIST = "ImageNet_LT_{}.txt"
MAX_LIST = 2**26  # bytes; the list of training images has 5 MB
IMAGENET_TRAIN, IMAGENET_VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def _synsets() -> list[str]:
    return _tfds_lines("datasets/imagenet2012/labels.txt")


def _imagenet_features(folder: Path) -> dict[str, Any]:
    return {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=_synsets()),
    }


def _imagenet_example(split: str, label: int, name: str, image: IO[bytes]) -> Example:
    features = {"image": image.read(), "label": label, "file_name": name}
    return Example(split, name, label, features)


def _imagenet_examples(folder: Path, lists: Path) -> Iterator[Example]:
    """Read the listed images, then ImageNet's validation images for testing."""
    synsets = {name: str(i) for i, name in enumerate(_synsets())}
    wanted: dict[str, tuple[str, int]] = {}
    for split, short in (("train", "train"), ("validation", "val")):
        path = lists / LIST.format(short)
        for number, line in enumerate(_read_list(path), 1):
            name, _, label = line.rpartition("/")[2].partition(" ")
            if synsets.get(name.split("_")[0]) != label or name in wanted:
                raise InputError(
                    f"{path}, line {number}: expected an image that is listed once, as "
                    "'train/SYNSET/SYNSET_NUMBER.JPEG LABEL', where LABEL is the "
                    f"position of SYNSET in sorted order, got {reprlib.repr(line)}"
                )
            wanted[name] = (split, int(label))
    source = folder / IMAGENET_TRAIN
    with opened(source) as files:
        for _, synset in files:
            for name, image in inner(synset):
                if name in wanted:
                    yield _imagenet_example(*wanted.pop(name), name, image)
    _require_all_found(wanted, source)

    tested = _tfds_lines("datasets/imagenet2012/validation_labels.txt")
    labels = {
        f"ILSVRC2012_val_{number:08d}.JPEG": int(synsets[synset])
        for number, synset in enumerate(tested, 1)
    }
    with opened(folder / IMAGENET_VAL) as files:
        for name, image in files:
            if name in labels:
                yield _imagenet_example("test", labels[name], name, image)


def _read_list(path: Path) -> list[str]:
    names = f"{LIST.format('train')} and {LIST.format('val')}"
    expected = f"{names} of OLTR (Liu et al. 2019) in the folder --lists"
    with arrays.reading(path, expected):
        if path.stat().st_size > MAX_LIST:
            raise ValueError(f"more than {MAX_LIST:,} bytes")
        return path.read_text(encoding="utf-8").splitlines()


# CIFAR

SIDE = 32


def _cifar(
    name: str,
    archive: Archive,
    labels: dict[str, tuple[str, int]],
    files: dict[str, list[str]],
) -> Builder:
    """Make the builder of CIFAR-10 or CIFAR-100.

    Args:
      labels: the file of class names and their number, for each label byte of a record,
        in order.
      files: the files of records for each split.
    """
    length = len(labels) + 3 * SIDE**2  # labels, then pixels plane by plane

    def features(folder: Path) -> dict[str, Any]:
        content = contents(folder, [file for file, _ in labels.values()])
        found: dict[str, Any] = {}
        for feature, (file, count) in labels.items():
            names = content[file].decode(errors="replace").split()
            if (
                len(set(names)) != count
                or len(names) != count
                or "\ufffd" in str(names)
            ):
                reason = f"{file} does not hold {count} different names in UTF-8"
                raise damaged(folder / archive.name, reason)
            found[feature] = tfds.features.ClassLabel(names=names)
        image = tfds.features.Image(shape=(SIDE, SIDE, 3))
        return {"id": tfds.features.Text(), "image": image, **found}

    def examples(folder: Path, lists: Path) -> Iterator[Example]:
        content = contents(folder, [*itertools.chain(*files.values())])
        highest = [count - 1 for _, count in labels.values()]
        for split, names in files.items():
            data = b"".join(content[file] for file in names)
            if len(data) % length:
                raise damaged(folder / archive.name, f"{names[0]} has another size")
            rows = np.frombuffer(data, np.uint8).reshape(-1, length)
            if (rows[:, : len(labels)] > highest).any():
                reason = f"a label in {', '.join(names)} is larger than {highest}"
                raise damaged(folder / archive.name, reason)
            for index, row in enumerate(rows):
                pixels = row[len(labels) :].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
                png = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(png, "PNG")
                found = dict(zip(labels, map(int, row), strict=False))
                id = f"{split}_{index:05d}"
                encoded = {"id": id, "image": png.getvalue(), **found}
                yield Example(split, id, found["label"], encoded)

    def contents(folder: Path, names: list[str]) -> dict[str, bytes]:
        path = folder / archive.name
        with opened(path) as opened_files:
            content = {
                name: file.read() for name, file in opened_files if name in names
            }
        if missing := set(names) - set(content):
            raise damaged(path, f"{', '.join(sorted(missing))} is missing")
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
        archives=(ARCHIVES[IMAGENET_TRAIN], ARCHIVES[IMAGENET_VAL]),
        gigabytes=24.0,
        counts={"train": 115_846, "validation": 20_000, "test": 50_000},
        features=_imagenet_features,
        examples=_imagenet_examples,
    ),
    _cifar(
        "cifar100",
        ARCHIVES["cifar-100-binary.tar.gz"],
        {
            "coarse_label": ("coarse_label_names.txt", 20),
            "label": ("fine_label_names.txt", 100),
        },
        {"train": ["train.bin"], "test": ["test.bin"]},
    ),
    _cifar(
        "cifar10",
        ARCHIVES["cifar-10-binary.tar.gz"],
        {"label": ("batches.meta.txt", 10)},
        {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        },
    ),
)
BUILDERS = {builder.name: builder for builder in _ALL}
