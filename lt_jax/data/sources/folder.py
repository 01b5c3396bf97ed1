"""A user's own photographs: one folder per class, or a table of paths and labels.

    DIR/train/CLASS/**, DIR/test/CLASS/** and optionally DIR/val/CLASS/**
    DIR/CLASS/**        one folder; a share is held out for testing
    TABLE               CSV or Parquet, see ``table``

Classes are numbered in the sorted order of their names. Files are listed here; an image
is opened when it is read.
"""

from __future__ import annotations

import collections
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from lt_jax.data import longtail
from lt_jax.data.dataset import Dataset, sorted_classes
from lt_jax.data.images.decode import Undecodable, read_file
from lt_jax.data.images.photos import PhotoOptions, from_files, photographs
from lt_jax.data.sources import table as tables
from lt_jax.data.sources.table import LONGEST, SPLIT_NAMES, ImageFile
from lt_jax.errors import InputError, first_few

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LAYOUT = " Expected DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE"
HEAD = 4096  # bytes to compare before two files of one size are read completely


def load(
    dir: str, photos: PhotoOptions, *, table: str, test: float, valid_seed: int
) -> tuple[Dataset, Dataset | None, Dataset]:
    """Load the training, validation (or None) and test set.

    Args:
      dir: the folder; with a table, the base of relative paths.
      table: path of a CSV or Parquet file; "" to list the folders.
      test: share of each training class to use for testing if there is no test set.
      valid_seed: of that draw.
    """
    source = table or dir
    files = tables.read(table, dir) if table else _list_folders(dir)
    files = {split: sorted(found) for split, found in files.items()}
    for found in files.values():
        if empty := [file.id for file in found if not file.size]:
            raise InputError(
                f"{source}: {len(empty)} image files are empty: {first_few(empty)}. "
                "Extraction or copying may be incomplete; repeat it, or remove them"
            )
    if "train" not in files:
        raise InputError(
            f"{source} has no training images: expected the split "
            f"{' or '.join(SPLIT_NAMES['train'])}, found {', '.join(files)}"
        )
    names = {file.label for file in files["train"]}
    classes = sorted_classes(names)
    if len(classes) < 2:
        raise InputError(
            f"{source} has only one class, {classes[0]!r}: expected at least two"
            + ("" if table else "." + LAYOUT)
        )
    number = {name: k for k, name in enumerate(classes)}
    for split, found in files.items():
        if unknown := sorted({file.label for file in found} - names):
            raise InputError(
                f"{source}: {len(unknown)} classes of {split!r} have no training "
                f"image: {first_few(unknown)}"
            )
    if "test" not in files:
        if not test:
            raise InputError(
                f"{source} has no test images, and data.test is {test}: set it to the "
                "share of training images to use for testing, for example 0.2"
            )
        if "valid" in files:
            _warn(
                f"{source} has validation images but no test images: a share of {test} "
                "of each training class is used for testing"
            )
        full = files["train"]
        labels = np.array([number[file.label] for file in full])
        kept, held = longtail.hold_out(labels, test, valid_seed, len(classes))
        if not held.size:
            raise InputError(
                f"{source}: every class has a single image, so none is left for testing"
            )
        files |= {"train": [full[i] for i in kept], "test": [full[i] for i in held]}
    _warn_of_duplicates(files)

    def dataset(found: list[ImageFile]) -> Dataset:
        return photographs(
            Path(source).name,
            tuple(classes),
            np.array([number[file.label] for file in found], np.int32),
            np.array([file.id for file in found]),
            from_files([file.path for file in found]),
            photos,
        )

    valid = dataset(files["valid"]) if "valid" in files else None
    return dataset(files["train"]), valid, dataset(files["test"])


def _list_folders(dir: str) -> dict[str, list[ImageFile]]:
    """List the files per split; all are in "train" if there are no split folders."""
    root = Path(dir).expanduser()
    if not dir or not root.is_dir():
        raise InputError(
            f"no folder {dir!r}: set config.data.dir to the folder of your images."
            + LAYOUT
        )
    below = {path.name.lower(): path for path in _subfolders(root)}
    splits: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        present = [below[name] for name in names if name in below]
        if len(present) > 1:
            raise InputError(
                f"{dir} has several folders of one split, "
                f"{' and '.join(path.name for path in present)}: remove or rename one"
            )
        if present:
            splits[split] = present[0]
    splits = splits if "train" in splits else {"train": root}
    skipped: list[str] = []
    files = {split: _list_classes(splits[split], root, skipped) for split in splits}
    if skipped:
        count = f"{len(skipped):,}"
        _warn(f"{dir}: skipped {count} files without images: {first_few(skipped)}")
    return files


def _list_classes(path: Path, root: Path, skipped: list[str]) -> list[ImageFile]:
    """List the images in every class folder; add other files to ``skipped``."""
    found: list[ImageFile] = []
    classes = _subfolders(path)
    if not classes:
        packed = [p.name for p in path.iterdir() if p.suffix in (".zip", ".tar", ".gz")]
        hint = f" It contains {first_few(packed)}: extract it first." if packed else ""
        raise InputError(f"{path} has no class folders.{hint}{LAYOUT}")
    for folder in classes:
        for entry in _entries(folder):
            file = Path(entry.path)
            id = file.relative_to(root).as_posix()
            if len(id) > LONGEST:
                raise InputError(
                    f"{id[:100]}... in {root} is a path of {len(id):,} characters, "
                    f"limit {LONGEST:,}: are folders nested by mistake?"
                )
            if entry.is_dir():
                continue
            is_image = file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
            try:
                status = entry.stat() if is_image else None
            except OSError as error:  # a link to a missing file
                _unreadable(error)
            if status and stat.S_ISREG(status.st_mode):
                found.append(ImageFile(id, folder.name, entry.path, status.st_size))
            else:
                skipped.append(id)
    used = {file.label for file in found}
    if empty := [folder.name for folder in classes if folder.name not in used]:
        raise InputError(
            f"class folders without images in {path}: {first_few(empty)}. Remove them, "
            "or finish extracting or copying"
        )
    return found


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Iterate over everything under a folder, through links, without recursion."""
    pending: list[tuple[str, tuple[os.stat_result, ...]]] = [(str(folder), ())]
    while pending:
        path, above = pending.pop()
        try:
            own = os.stat(path)
            if any(os.path.samestat(own, outer) for outer in above):
                raise InputError(
                    f"{path} is a link to a folder that contains it: remove the link"
                )
            with os.scandir(path) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            _unreadable(error)
        for entry in entries:
            yield entry
            if entry.is_dir():
                pending.append((entry.path, (*above, own)))


def _subfolders(path: Path) -> list[Path]:
    names = next(os.walk(path, onerror=_unreadable))[1]
    return [path / name for name in sorted(names) if not name.startswith(".")]


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def _warn_of_duplicates(files: dict[str, list[ImageFile]]) -> None:
    """Warn of test images that are also in another split, byte for byte."""

    def content(file: ImageFile, size: int) -> object:
        if size == 0:
            return file.size
        try:
            return hashlib.sha256(read_file(file.path, size)).digest()
        except Undecodable:
            return object()  # equals nothing

    groups = [[(split, file) for split, found in files.items() for file in found]]
    # Read more of the files, and only of those that may be equal so far.
    for size in (0, HEAD, -1):
        finer = collections.defaultdict(list)
        for number, group in enumerate(groups):
            for split, file in group:
                finer[number, content(file, size)].append((split, file))
        groups = [
            group
            for group in finer.values()
            if len(splits := {split for split, _ in group}) > 1 and "test" in splits
        ]
    if groups:
        pairs = [
            " = ".join({split: file.id for split, file in group}.values())
            for group in groups
        ]
        _warn(
            f"WARNING: {len(pairs):,} test images are also training or validation "
            f"images, byte for byte: {first_few(pairs)}"
        )


def _warn(text: str) -> None:
    print(f"lt-jax: {text}", file=sys.stderr)
