"""The sets that ``prepare`` makes from their original archives.

Names, versions, features, ids and labels are those of TFDS's own builders, whose label
files are used. Images stay the bytes that the archive holds (CIFAR's, which are bare
pixels, become PNG), so the 22 CMYK photographs of ImageNet and its PNG under a JPEG
name are told apart where they are decoded.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lt_jax.data.prepare.archives import (
    Archive,
    Made,
    Recipe,
    damaged,
    members,
    read_json,
    walk,
)
from lt_jax.data.sources.listing import some
from lt_jax.errors import InputError


def _names(*parts: str) -> list[str]:
    """The lines of a label file that comes with TFDS."""
    import tensorflow_datasets as tfds

    path: Any = tfds.core.tfds_path("/".join(parts))
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _features(**extra: list[str]) -> dict[str, Any]:
    """An image of any size and, of each name, a class label."""
    import tensorflow_datasets as tfds

    labels = {
        key: tfds.features.ClassLabel(names=names) for key, names in extra.items()
    }
    return {"image": tfds.features.Image(), **labels}


def _text() -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.Text()


# iNaturalist 2018


def _inat_names(what: str) -> list[str]:
    folder = "image_classification/i_naturalist2018"
    return _names(folder, f"inaturalist2018_{what}.txt")


def _inat_features(folder: Path) -> dict[str, Any]:
    del folder
    labels = _features(
        label=_inat_names("labels"), supercategory=_inat_names("supercategories")
    )
    return {"id": _text(), **labels}


def _inat_examples(folder: Path, lists: Path) -> Iterator[Made]:
    """Both splits in one pass over the 128 GB; the unlabelled test set is left out."""
    del lists
    labels = {name: i for i, name in enumerate(_inat_names("labels"))}
    above = {name: i for i, name in enumerate(_inat_names("supercategories"))}
    source = folder / "categories.json.tar.gz"
    names = {c["id"]: c["name"] for c in read_json(source, "categories.json")}
    wanted: dict[str, tuple[str, int, int]] = {}
    for split, stem in (("train", "train2018"), ("validation", "val2018")):
        source = folder / f"{stem}.json.tar.gz"
        held = read_json(source, f"{stem}.json")
        try:
            groups = {c["id"]: c["supercategory"] for c in held["categories"]}
            of = {a["image_id"]: a["category_id"] for a in held["annotations"]}
            for image in held["images"]:
                category = of[image["id"]]
                wanted[Path(image["file_name"]).name.split(".")[0]] = (
                    split,
                    labels[names[category]],
                    above[groups[category]],
                )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{source} is not the iNaturalist 2018 file: {error} is missing there, "
                "or names a category that TFDS's list has not"
            ) from error
        del held
    for name, content in walk(folder / "train_val2018.tar.gz"):
        key = name.split(".")[0]
        if key in wanted:
            split, label, supercategory = wanted.pop(key)
            features = {
                "id": key,
                "image": content.read(),
                "label": label,
                "supercategory": supercategory,
            }
            yield Made(split, key, label, features)
    _all_found(wanted, folder / "train_val2018.tar.gz")


def _all_found(wanted: dict[str, Any], path: Path) -> None:
    """Raises InputError for images that were to be in an archive and are not."""
    if wanted:
        raise InputError(
            f"{len(wanted):,} images are not in {path}: "
            f"{some(sorted(wanted))}. It is cut, or "
            "belongs to other lists"
        )


# ImageNet-LT

LISTS = "ImageNet_LT_{}.txt"


def _imagenet_names() -> list[str]:
    return _names("datasets/imagenet2012", "labels.txt")


def _imagenet_features(folder: Path) -> dict[str, Any]:
    del folder
    return {**_features(label=_imagenet_names()), "file_name": _text()}


def _imagenet_examples(folder: Path, lists: Path) -> Iterator[Made]:
    """By file name; labels are those of sorted synsets, as in the lists."""
    synsets = {name: i for i, name in enumerate(_imagenet_names())}
    wanted: dict[str, tuple[str, int]] = {}
    for split, short in (("train", "train"), ("validation", "val")):
        path = lists / LISTS.format(short)
        for name, label in _listed(path, len(synsets)).items():
            if synsets.get(name.split("_")[0]) != label:
                raise InputError(
                    f"{path} gives {name} the label {label}, expected "
                    f"{synsets.get(name.split('_')[0])}, the place of its synset in "
                    "sorted order: take the published list"
                )
            if name in wanted:
                raise InputError(f"{path}: {name} is in the other list too")
            wanted[name] = (split, label)
    source = folder / "ILSVRC2012_img_train.tar"
    for inner, content in walk(source):
        try:
            with tarfile.open(fileobj=content.file, mode="r:") as tar:
                for member, image in members(tar):
                    name = Path(member.name).name
                    if name in wanted:
                        split, label = wanted.pop(name)
                        yield _imagenet(split, name, label, image.read())
        except tarfile.TarError as error:
            raise damaged(source, f"{inner}: {error}") from error
    _all_found(wanted, source)
    yield from _imagenet_test(folder, lists, synsets)


def _imagenet_test(
    folder: Path, lists: Path, synsets: dict[str, int]
) -> Iterator[Made]:
    """The ImageNet validation images, which ImageNet-LT tests on.

    Labels are those of TFDS's list; the published one, where it is given, must agree.
    """
    order = _names("datasets/imagenet2012", "validation_labels.txt")
    path = lists / LISTS.format("test")
    listed = _listed(path, len(synsets)) if path.exists() else None
    for name, image in walk(folder / "ILSVRC2012_img_val.tar"):
        try:
            number = int(name.removesuffix(".JPEG").rsplit("_", 1)[1])
            label = synsets[order[number - 1]]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{folder / 'ILSVRC2012_img_val.tar'} holds {name}, expected names as "
                "ILSVRC2012_val_00000001.JPEG"
            ) from error
        if listed is not None and listed.pop(name, label) != label:
            raise InputError(
                f"{path} gives {name} another label than {label}, ImageNet's"
            )
        yield _imagenet("test", name, label, image.read())
    if listed:
        _all_found(listed, folder / "ILSVRC2012_img_val.tar")


def _imagenet(split: str, name: str, label: int, image: bytes) -> Made:
    features = {"image": image, "label": label, "file_name": name}
    return Made(split, name, label, features)


def _listed(path: Path, num_classes: int) -> dict[str, int]:
    """Label by file name, of a list with lines as ``train/SYNSET/NAME.JPEG 0``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(
            f"no list {path}: name the folder of {LISTS.format('train')} and "
            f"{LISTS.format('val')}, which OLTR (Liu et al. 2019) published, with "
            "--lists"
        ) from error
    found: dict[str, int] = {}
    for i, line in enumerate(filter(None, lines)):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit() or int(label) >= num_classes:
            raise InputError(
                f"{path}, line {i + 1}: expected 'train/SYNSET/NAME.JPEG LABEL' with a "
                f"label below {num_classes}, found {line!r}"
            )
        found[name.rsplit("/", 1)[-1]] = int(label)
    return found


# CIFAR

SIDE = 32


def _cifar_features(
    archive: str, names: dict[str, str]
) -> Callable[[Path], dict[str, Any]]:
    """Class names stand in the archive, in these files by feature."""

    def features(folder: Path) -> dict[str, Any]:
        import tensorflow_datasets as tfds

        path = folder / archive
        held = {name: content.read() for name, content in walk(path)}
        labels = {}
        for feature, file in names.items():
            if file not in held:
                raise damaged(path, f"{file} is missing")
            lines = filter(None, held[file].decode().split("\n"))
            labels[feature] = tfds.features.ClassLabel(names=list(lines))
        image = tfds.features.Image(shape=(SIDE, SIDE, 3))
        return {"id": _text(), "image": image, **labels}

    return features


def _cifar_examples(
    archive: str, files: dict[str, list[str]], coarse: bool
) -> Callable[[Path, Path], Iterator[Made]]:
    """Records of one or two label bytes and 3,072 of pixels, plane by plane."""
    first = 2 if coarse else 1

    def examples(folder: Path, lists: Path) -> Iterator[Made]:
        del lists
        path = folder / archive
        held = {name: content.read() for name, content in walk(path)}
        for split, names in files.items():
            index = 0
            for name in names:
                if name not in held or len(held[name]) % (first + 3 * SIDE**2):
                    raise damaged(path, f"{name} is missing or of another size")
                rows = np.frombuffer(held[name], np.uint8)
                for row in rows.reshape(-1, first + 3 * SIDE**2):
                    pixels = row[first:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
                    png = io.BytesIO()
                    Image.fromarray(np.ascontiguousarray(pixels)).save(png, "PNG")
                    label = int(row[first - 1])
                    id = f"{split}_{index:05d}"
                    features = {"id": id, "image": png.getvalue(), "label": label}
                    if coarse:
                        features["coarse_label"] = int(row[0])
                    yield Made(split, id, label, features)
                    index += 1

    return examples


INAT2018 = Recipe(
    name="i_naturalist2018",
    version="1.0.0",
    description="8,142 species; the unlabelled test images are left out.",
    homepage="https://github.com/visipedia/inat_comp/tree/master/2018",
    # Sizes and checksums: TFDS's repository; its wheel has left them out.
    archives=(
        Archive(
            "train_val2018.tar.gz",
            127_945_569_561,
            "276522b02b65d98ee5168a17415b2b1ec971b035bd62959e37b80b1092130495",
        ),
        Archive(
            "train2018.json.tar.gz",
            20_951_917,
            "be550dd4e2692458e508dd03e3a8d79f087453e2ad570a438a4ff198a7abc68f",
        ),
        Archive(
            "val2018.json.tar.gz",
            1_276_686,
            "e23c47d61d3aa2a9095090dbc49de861445d9a8144884a78222873f11f7ef43e",
        ),
        Archive(
            "categories.json.tar.gz",
            139_473,
            "2287211e8da582419dc2ca66736005fdb079e0a89eaf38936a441d8277a8162e",
        ),
    ),
    space=130.0,
    counts={"train": 437_513, "validation": 24_426},
    features=_inat_features,
    examples=_inat_examples,
)
IMAGENET_LT = Recipe(
    name="imagenet_lt",
    version="1.0.0",
    description="A long-tailed part of ImageNet 2012 (Liu et al. 2019).",
    homepage="https://github.com/zhmiao/OpenLongTailRecognition-OLTR",
    # Sizes and checksums: TFDS's, of imagenet2012.
    archives=(
        Archive(
            "ILSVRC2012_img_train.tar",
            147_897_477_120,
            "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
        ),
        Archive(
            "ILSVRC2012_img_val.tar",
            6_744_924_160,
            "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
        ),
    ),
    space=24.0,
    counts={"train": 115_846, "validation": 20_000, "test": 50_000},
    features=_imagenet_features,
    examples=_imagenet_examples,
)
# Sizes and checksums: TFDS's.
_CIFAR100 = Archive(
    "cifar-100-binary.tar.gz",
    168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
_CIFAR10 = Archive(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = Recipe(
    name="cifar100",
    version="3.0.2",
    description="60,000 images of 32x32 in 100 classes.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    archives=(_CIFAR100,),
    space=0.2,
    counts={"train": 50_000, "test": 10_000},
    features=_cifar_features(
        _CIFAR100.name,
        {"label": "fine_label_names.txt", "coarse_label": "coarse_label_names.txt"},
    ),
    examples=_cifar_examples(
        _CIFAR100.name, {"train": ["train.bin"], "test": ["test.bin"]}, coarse=True
    ),
)
CIFAR10 = Recipe(
    name="cifar10",
    version="3.0.2",
    description="60,000 images of 32x32 in 10 classes.",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    archives=(_CIFAR10,),
    space=0.2,
    counts={"train": 50_000, "test": 10_000},
    features=_cifar_features(_CIFAR10.name, {"label": "batches.meta.txt"}),
    examples=_cifar_examples(
        _CIFAR10.name,
        {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        },
        coarse=False,
    ),
)
RECIPES = {r.name: r for r in (INAT2018, IMAGENET_LT, CIFAR100, CIFAR10)}
