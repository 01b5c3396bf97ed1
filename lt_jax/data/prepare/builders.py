"""The datasets that can be prepared from their original archives.

Names, versions, features, ids and labels are those of TFDS's own builders, whose label
files are used. Images keep the bytes of the archive; only CIFAR's pixels become PNG.
"""

from __future__ import annotations

import io
import itertools
import json
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tensorflow_datasets import core

from lt_jax import files
from lt_jax.data import arrays
from lt_jax.data.prepare.archives import damaged, inner, opened, read_json
from lt_jax.errors import InputError, first_few
from lt_jax.files import COUNT


class Archive(NamedTuple):
    name: str
    size: int  # bytes
    sha256: str


Example = tuple[str, dict[str, Any]]  # the split, and features as TFDS encodes them


class Builder(NamedTuple):
    """How to prepare a dataset, from ``builders.json``.

    Sizes and checksums are TFDS's. Those of iNaturalist are in its repository, but not
    in its wheel.
    """

    name: str
    # (builder, folder of the archives, folder of the lists) -> in the archives' order
    examples: Callable[[Builder, Path, Path], Iterator[Example]]
    archives: tuple[Archive, ...]
    version: str
    description: str
    homepage: str
    gigabytes: float  # size of the prepared dataset
    counts: dict[str, int]  # examples per split
    labels: dict[str, str]  # features that are labels, and files of the class names
    id: str = "id"  # the feature that identifies an example
    shape: tuple[Any, ...] = (None, None, 3)  # of the images
    # For CIFAR: the number of classes for each label byte of a record, in order; the
    # files of records for each split.
    classes: tuple[int, ...] = ()
    files: dict[str, list[str]] = {}  # noqa: RUF012


def class_names(builder: Builder, folder: Path) -> dict[str, list[str]]:
    """Read the class names of every label, from CIFAR's archive or from TFDS."""
    if not builder.files:
        return {label: _tfds_lines(file) for label, file in builder.labels.items()}
    found = {}
    contents = _cifar_contents(builder, folder, [*builder.labels.values()])
    for label, content, count in zip(
        builder.labels, contents, builder.classes, strict=True
    ):
        names = found[label] = content.decode(errors="replace").split()
        if not len(set(names)) == len(names) == count or "\ufffd" in str(names):
            reason = f"does not hold {count} different names in UTF-8"
            archive = folder / builder.archives[0].name
            raise damaged(archive, f"{builder.labels[label]} {reason}")
    return found


def _tfds_lines(file: str) -> list[str]:
    path: Any = core.tfds_path(file)  # a label file that is part of TFDS
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _positions(names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _require_all_found(missing: dict[str, Any], archive: Path) -> None:
    if missing:
        raise InputError(
            f"{archive} lacks {len(missing):,} listed images: "
            f"{first_few(sorted(missing))}. It is truncated, or belongs to other lists"
        )


# What is read of train2018.json and val2018.json of iNaturalist 2018.
TARGETS = {
    "categories": [{"id": COUNT, "supercategory": str}],
    "images": [{"id": COUNT, "file_name": str}],
    "annotations": [{"image_id": COUNT, "category_id": COUNT}],
}


def _inat_examples(builder: Builder, folder: Path, lists: Path) -> Iterator[Example]:
    """Read both splits in one pass over the 128 GB, without the unlabelled test set."""
    labels, supers = map(_positions, class_names(builder, folder).values())
    source, *targets, categories = (folder / file.name for file in builder.archives)
    rows = read_json(categories, [{"id": COUNT, "name": str}])
    names = {row["id"]: row["name"] for row in rows}
    wanted = {}
    for split, file in zip(builder.counts, targets, strict=True):
        content = read_json(file, TARGETS)
        groups = {row["id"]: row["supercategory"] for row in content["categories"]}
        ids = {row["id"]: Path(row["file_name"]).stem for row in content["images"]}
        try:
            for row in content["annotations"]:
                id, category = ids[row["image_id"]], row["category_id"]
                label, group = labels[names[category]], supers[groups[category]]
                wanted[id] = split, {"id": id, "label": label, "supercategory": group}
        except KeyError as error:
            raise damaged(file, f"it refers to an unknown {error}") from error
    with opened(source) as members:
        for name, image in members:
            if (id := name.split(".")[0]) in wanted:
                split, example = wanted.pop(id)
                yield split, example | {"image": image.read()}
    _require_all_found(wanted, source)


LIST = "ImageNet_LT_{}.txt"
MAX_LIST = 2**26  # bytes; the list of training images has 5 MB


def _imagenet_examples(
    builder: Builder, folder: Path, lists: Path
) -> Iterator[Example]:
    """Read the listed images, then ImageNet's validation images for testing."""
    train, val = (folder / archive.name for archive in builder.archives)
    synsets = _positions(class_names(builder, folder)["label"])
    wanted = _listed(lists, synsets)
    with opened(train) as tars:
        for name, image in itertools.chain.from_iterable(inner(t) for _, t in tars):
            if name in wanted:
                split, label = wanted.pop(name)
                yield split, {"file_name": name, "image": image.read(), "label": label}
    _require_all_found(wanted, train)
    tested = _tfds_lines("datasets/imagenet2012/validation_labels.txt")
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, len(tested) + 1)]
    label_of = dict(zip(names, map(synsets.get, tested), strict=True))
    with opened(val) as members:
        for name, image in members:
            if name in label_of:
                found = {"image": image.read(), "label": label_of[name]}
                yield "test", found | {"file_name": name}


def _listed(lists: Path, synsets: dict[str, int]) -> dict[str, tuple[str, int]]:
    """Read the split and the label of every listed image."""
    names = f"{LIST.format('train')} and {LIST.format('val')}"
    expected = f"{names} of OLTR (Liu et al. 2019) in the folder --lists"
    found: dict[str, tuple[str, int]] = {}
    for split, short in (("train", "train"), ("validation", "val")):
        path = lists / LIST.format(short)
        with arrays.reading(path, expected):
            lines = files.read(path, MAX_LIST).decode("utf-8").splitlines()
        for row, line in enumerate(lines, 1):
            name, _, label = line.rpartition("/")[2].partition(" ")
            synset = name.split("_")[0]
            known = synset in synsets and label == str(synsets[synset])
            if not known or name in found:
                raise InputError(
                    f"{path}, line {row}: expected an image that is listed once, as "
                    "'train/SYNSET/SYNSET_NUMBER.JPEG LABEL', where LABEL is the "
                    f"position of SYNSET in sorted order, got {reprlib.repr(line)}"
                )
            found[name] = split, int(label)
    return found


def _cifar_contents(builder: Builder, folder: Path, names: list[str]) -> list[bytes]:
    """Read these files of the archive."""
    path = folder / builder.archives[0].name
    with opened(path) as members:
        content = {name: file.read() for name, file in members if name in names}
    if missing := set(names) - set(content):
        raise damaged(path, f"{', '.join(sorted(missing))} is missing")
    return [content[name] for name in names]


def _cifar_examples(builder: Builder, folder: Path, lists: Path) -> Iterator[Example]:
    archive, count = folder / builder.archives[0].name, len(builder.labels)
    height, width, planes = builder.shape
    length = count + height * width * planes  # labels, then pixels plane by plane
    highest = [size - 1 for size in builder.classes]
    for split, names in builder.files.items():
        data = b"".join(_cifar_contents(builder, folder, names))
        if len(data) % length:
            raise damaged(archive, f"{names[0]} has another size")
        rows = np.frombuffer(data, np.uint8).reshape(-1, length)
        if (rows[:, :count] > highest).any():
            reason = f"a label in {', '.join(names)} is larger than {highest}"
            raise damaged(archive, reason)
        for index, row in enumerate(rows):
            pixels = row[count:].reshape(planes, height, width).transpose(1, 2, 0)
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(png, "PNG")
            found = dict(zip(builder.labels, map(int, row), strict=False))
            id = f"{split}_{index:05d}"
            yield split, {"id": id, "image": png.getvalue(), **found}


EXAMPLES = {
    "i_naturalist2018": _inat_examples,
    "imagenet_lt": _imagenet_examples,
    "cifar100": _cifar_examples,
    "cifar10": _cifar_examples,
}


def _builder(name: str, archives: list[Any], **facts: Any) -> Builder:
    made = tuple(Archive(*archive) for archive in archives)
    return Builder(name, EXAMPLES[name], made, **facts)


FACTS = json.loads(Path(__file__).with_name("builders.json").read_text("utf-8"))
BUILDERS = {name: _builder(name, **facts) for name, facts in FACTS.items()}
