"""Anybody's own photographs: a folder for each class, or a table of paths and labels.

    DIR/train/CLASS/**, DIR/test/CLASS/** and, if wanted, DIR/val/CLASS/**
    DIR/CLASS/**        one folder, of which a share is set apart for testing
    TABLE               CSV or Parquet of paths and labels, see ``listing``

Classes are numbered in the sorted order of their names. Files are found and counted
here; an image is opened when it is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lt_jax.data import longtail
from lt_jax.data.dataset import Dataset
from lt_jax.data.images.photos import PhotoOptions, photographs
from lt_jax.data.sources import listing
from lt_jax.data.sources.listing import File, some, warn
from lt_jax.errors import InputError

HEAD = 4096  # bytes by which files of one size are told apart before all is read


class Encoded:
    """The content of files by row; b"" where a file can no longer be read."""

    def __init__(self, paths: list[str]):
        self._paths = paths

    def __call__(self, rows: np.ndarray) -> list[bytes]:
        """The bytes of these rows' files, in this order."""
        return [_content(self._paths[row]) for row in rows]


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def load(
    dir: str, view: PhotoOptions, *, table: str, test: float, valid_seed: int
) -> tuple[Dataset, Dataset | None, Dataset]:
    """Training, validation (None where there is none) and test set.

    Where there is no test set, ``test`` of each class of the training set is set apart
    as one, by ``valid_seed``.

    Args:
      dir: the folder; with a table what its paths start from, "" the table's folder.
      view: how photographs are looked at.
      table: path of a CSV or Parquet file; "" reads the folders.
      test: share of each class; read where no test set comes with the images.
      valid_seed: of what is set apart.

    Raises:
      InputError: a folder or table that cannot be read, classes without images or
        fewer than two, empty files, a test image of an unknown class.
    """
    parts = listing.table(table, dir) if table else listing.folders(dir)
    where = table or dir
    files = {split: _files(split, found, where) for split, found in parts.items()}
    if "train" not in files:
        raise InputError(
            f"{where} has no training images: expected "
            f"{' or '.join(listing.SPLITS['train'])}, found {', '.join(files)}"
        )
    classes = sorted({file.label for file in files["train"]}, key=_in_order)
    if len(classes) < 2:
        raise InputError(
            f"{where} holds one class alone, {classes[0]!r}: expected a folder for "
            "each of at least two classes" + ("" if table else listing.LAYOUT)
        )
    number = {name: k for k, name in enumerate(classes)}
    for split, found in files.items():
        unknown = sorted({file.label for file in found} - set(classes))
        if unknown:
            raise InputError(
                f"{where}: {len(unknown)} classes of {split!r} have no training image: "
                + some(unknown)
            )
    if "test" not in files:
        if "valid" in files:
            warn(
                f"{where} has validation images and no test images: the former choose, "
                f"and a share of {test} of each training class is set apart for testing"
            )
        if not 0 < test < 1:
            raise InputError(
                f"{where} has no test images, and data.test is {test}: set apart a "
                "share of the training images, for example data.test=0.2"
            )
        labels = np.array([number[file.label] for file in files["train"]])
        kept, apart = longtail.hold_out(labels, test, valid_seed, len(classes))
        whole = files["train"]
        files |= {"train": [whole[i] for i in kept], "test": [whole[i] for i in apart]}
    _warn_of_twins(files)

    def made(found: list[File]) -> Dataset:
        return photographs(
            Path(where).name,
            tuple(classes),
            np.array([number[file.label] for file in found], np.int32),
            np.array([file.id for file in found]),
            Encoded([file.path for file in found]),
            view,
        )

    valid = made(files["valid"]) if "valid" in files else None
    return made(files["train"]), valid, made(files["test"])


def _files(split: str, found: list[File], where: str) -> list[File]:
    """The files of a split in the order of their ids, none of them empty."""
    empty = [file.id for file in found if not file.size]
    if empty:
        raise InputError(
            f"{where}: image files without content ({len(empty)}): {some(empty)}. They "
            "look half extracted or half copied; get them again, or remove them"
        )
    if not found:
        raise InputError(f"{where}: {split!r} has no images")
    return sorted(found)


def _in_order(name: str) -> tuple[int, str]:
    """Names of classes in the order of text, numbers in that of numbers."""
    return (int(name), name) if name.isdecimal() else (-1, name)


def _warn_of_twins(files: dict[str, list[File]]) -> None:
    """Warns of images that are in the test set and in another one, byte by byte.

    Only files of equal size are opened, and only equal beginnings are read further.
    """
    tests = {file.size for file in files["test"]}
    alike: dict[tuple[int, bytes], list[tuple[str, File]]] = {}
    for split, found in files.items():
        for file in found:
            if file.size in tests:
                with open(file.path, "rb") as opened:
                    start = opened.read(HEAD)
                alike.setdefault((file.size, start), []).append((split, file))
    seen: dict[bytes, dict[str, str]] = {}
    for group in alike.values():
        if len({split for split, _ in group}) > 1:
            for split, file in group:
                digest = hashlib.sha256(_content(file.path)).digest()
                seen.setdefault(digest, {})[split] = file.id
    twins = [of for of in seen.values() if "test" in of and len(of) > 1]
    if twins:
        pairs = [" = ".join(of.values()) for of in twins]
        warn(
            f"WARNING: test images that are, byte by byte, training or validation "
            f"images too ({len(twins):,}): {some(pairs)}"
        )
