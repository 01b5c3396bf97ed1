"""Miniatures of the original archives: their names, folders, JSON and list files.

Images are a few pixels wide; everything else is as in the originals.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def jpeg(seed: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    """Make a small photograph from a seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (2, 3, len(mode)), np.uint8).squeeze()
    file = io.BytesIO()
    Image.fromarray(coarse, mode).resize(size).save(file, "JPEG")
    return file.getvalue()


def tar(files: Iterable[tuple[str, bytes]], mode: str) -> bytes:
    """Make a tar file with entries for its folders, as ``tar`` does."""
    made = io.BytesIO()
    folders: set[Path] = set()
    with tarfile.open(fileobj=made, mode=mode) as out:
        for name, content in files:
            for folder in [*reversed(Path(name).parents)][1:]:
                if folder not in folders:
                    folders.add(folder)
                    info = tarfile.TarInfo(str(folder))
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    out.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return made.getvalue()


def label_file(*parts: str) -> list[str]:
    """The lines of a label file that is part of TFDS."""
    path = tfds.core.tfds_path("/".join(parts))
    return path.read_text(encoding="utf-8").splitlines()


def inat_names() -> list[str]:
    folder = "image_classification/i_naturalist2018"
    return label_file(folder, "inaturalist2018_labels.txt")


def inat(folder: Path, train: list[int], valid: list[int], test: int = 2) -> None:
    """Write archives with training and validation images of these categories."""
    names = inat_names()
    supers = ["Fungi", "Plantae", "Insecta"]
    groups = [supers[c % 3] for c in range(len(names))]
    tarred: list[tuple[str, bytes]] = []
    hidden = [
        {"id": c, "name": str(c), "supercategory": g} for c, g in enumerate(groups)
    ]
    for stem, labels, first in (
        ("train2018", train, 0),
        ("val2018", valid, len(train)),
    ):
        images, annotations = [], []
        for i, category in enumerate(labels, first):
            key = hashlib.md5(str(i).encode()).hexdigest()
            path = f"train_val2018/{groups[category]}/{category}/{key}.jpg"
            tarred.append((path, jpeg(i)))
            images.append(
                {
                    "id": i,
                    "width": 24,
                    "height": 16,
                    "file_name": path,
                    "license": 3,
                    "rights_holder": "Nobody",
                }
            )
            annotations.append({"id": i, "image_id": i, "category_id": category})
        content = {
            "info": {"year": 2018, "version": "1", "description": "", "url": ""},
            "images": images,
            "licenses": [{"id": 3, "name": "CC", "url": ""}],
            "annotations": annotations,
            "categories": hidden,
        }
        write_json(folder / f"{stem}.json.tar.gz", f"{stem}.json", content)
    shown = [
        {"id": c, "name": names[c], "supercategory": group, "kingdom": "Life"}
        for c, group in enumerate(groups)
    ]
    write_json(folder / "categories.json.tar.gz", "categories.json", shown)
    # Sorted by folder, as in the original: training and validation images mixed.
    (folder / "train_val2018.tar.gz").write_bytes(tar(sorted(tarred), "w:gz"))
    tests = [
        (f"test2018/{hashlib.md5(f'test{i}'.encode()).hexdigest()}.jpg", jpeg(900 + i))
        for i in range(test)
    ]
    (folder / "test2018.tar.gz").write_bytes(tar(tests, "w:gz"))


def write_json(path: Path, name: str, content: object) -> None:
    path.write_bytes(tar([(name, json.dumps(content).encode())], "w:gz"))


def imagenet(
    folder: Path,
    train: list[int],
    valid: list[int],
    test: int,
    odd: dict[int, bytes] | None = None,
) -> None:
    """Write archives of ImageNet 2012 and ImageNet-LT's lists.

    Args:
      train: classes of the listed training images, one after the other.
      valid: and of the validation images, out of the same archive.
      test: images of ImageNet's own validation set, which are tested on.
      odd: other bytes for the images of these numbers.
    """
    synsets = label_file("datasets/imagenet2012", "labels.txt")
    held: dict[int, list[tuple[str, bytes]]] = {}
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, (split, label) in enumerate(
        [("train", c) for c in train] + [("val", c) for c in valid]
    ):
        name = f"{synsets[label]}_{i}.JPEG"
        held.setdefault(label, []).append((name, (odd or {}).get(i, jpeg(i))))
        lines[split].append(f"train/{synsets[label]}/{name} {label}")
    for label in held:  # images that no list names
        held[label].append((f"{synsets[label]}_999999.JPEG", jpeg(77)))
    inner = [
        (f"{synsets[label]}.tar", tar(sorted(files), "w"))
        for label, files in sorted(held.items())
    ]
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(inner, "w"))
    labels = label_file("datasets/imagenet2012", "validation_labels.txt")
    images = []
    for number in range(1, test + 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        images.append((name, jpeg(5000 + number)))
        synset = labels[number - 1]
        lines["test"].append(f"val/{synset}/{name} {synsets.index(synset)}")
    order = np.random.default_rng(0).permutation(test)
    shuffled = [images[i] for i in order]
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(shuffled, "w"))
    for split, listed in lines.items():
        text = "".join(line + "\n" for line in listed)
        (folder / f"ImageNet_LT_{split}.txt").write_text(text)


def cifar(folder: Path, num_classes: int, train: int, test: int) -> None:
    """Write the binary archive of CIFAR-10 or CIFAR-100."""
    coarse = num_classes == 100
    top = "cifar-100-binary" if coarse else "cifar-10-batches-bin"
    random = np.random.default_rng(num_classes)

    def rows(count: int) -> bytes:
        pixels = random.integers(0, 256, (count, 3072), np.uint8)
        labels = (np.arange(count) * 7 % num_classes).astype(np.uint8)[:, None]
        columns = [labels // 5, labels, pixels] if coarse else [labels, pixels]
        return np.concatenate(columns, axis=1).tobytes()

    def names(count: int, word: str) -> bytes:
        return "".join(f"{word}_{i}\n" for i in range(count)).encode() + b"\n"

    if coarse:
        files = {
            "fine_label_names.txt": names(100, "fine"),
            "coarse_label_names.txt": names(20, "coarse"),
            "train.bin": rows(train),
            "test.bin": rows(test),
        }
    else:
        files = {"batches.meta.txt": names(10, "class"), "test_batch.bin": rows(test)}
        for i in range(5):
            files[f"data_batch_{i + 1}.bin"] = rows(train // 5)
    files["readme.html"] = b"<html>"
    name = "cifar-100-binary.tar.gz" if coarse else "cifar-10-binary.tar.gz"
    made = tar([(f"{top}/{file}", content) for file, content in files.items()], "w:gz")
    (folder / name).write_bytes(made)
