"""Image files and their classes, as folders or a table list them.

A table is a CSV or Parquet file with the columns path, label and, if wanted, split.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lt_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What the folders of splits are called, and the values of a column of splits.
SPLITS = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
COLUMNS = ("path", "label")  # a table needs these
SHOWN = 5  # names in a message
LAYOUT = " Expected DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE"


def warn(text: str) -> None:
    """Tells of something that does not stop a command."""
    print(f"lt-jax: {text}", file=sys.stderr)


class File(NamedTuple):
    """An image file."""

    id: str  # path in the folder, with forward slashes
    label: str  # name of the class
    path: str
    size: int  # bytes


def folders(dir: str) -> dict[str, list[File]]:
    """The files of each split of a folder; of "train" alone if it is not divided.

    Raises:
      InputError: as ``load``.
    """
    root = Path(dir).expanduser()
    if not dir or not root.is_dir():
        raise InputError(
            f"no folder {dir!r}: name that of your images with config.data.dir."
            + LAYOUT
        )
    below = {path.name.lower(): path for path in _subfolders(root)}
    splits = {
        split: below[name]
        for split, names in SPLITS.items()
        for name in names
        if name in below
    }
    if "train" not in splits:
        splits = {"train": root}
    skipped: list[str] = []
    found = {
        split: _class_folders(path, root, skipped) for split, path in splits.items()
    }
    if skipped:
        warn(
            f"{dir}: files that are no images are skipped ({len(skipped):,}): "
            f"{some(skipped)}"
        )
    return found


def _class_folders(path: Path, root: Path, skipped: list[str]) -> list[File]:
    """The images of every class folder below a path; notes what is no image."""
    found, empty = [], []
    classes = _subfolders(path)
    if not classes:
        packed = [p.name for p in path.iterdir() if p.suffix in (".zip", ".tar", ".gz")]
        hint = f" It holds {some(packed)}: extract it first." if packed else ""
        raise InputError(f"{path} has no folders of classes.{hint}{LAYOUT}")
    for folder in classes:
        before = len(found)
        for entry in _walk(folder):
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                skipped.append(name)
            else:
                size = entry.stat().st_size
                found.append(File(name, folder.name, entry.path, size))
        if len(found) == before:
            empty.append(folder.name)
    if empty:
        raise InputError(
            f"class folders without an image in {path}: {some(empty)}. "
            "Remove them, or finish extracting or copying"
        )
    return found


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(
            entry
            for entry in path.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _walk(folder: Path) -> Iterable[os.DirEntry[str]]:
    """The files below a folder, in sorted order."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in ordered:
        if entry.is_dir():
            yield from _walk(Path(entry.path))
        else:
            yield entry


def table(path: str, dir: str) -> dict[str, list[File]]:
    """The files of each split of a table; of "train" alone if it has no such column.

    Args:
      path: of the table, .csv or .parquet.
      dir: what relative paths start from; "" is the table's own folder.

    Raises:
      InputError: a table that cannot be read or lacks a column, an unknown split, a
        file that is not there.
    """
    file = Path(path).expanduser()
    base = Path(dir).expanduser() if dir else file.parent
    found: dict[str, list[File]] = {}
    missing: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(file), 1):
        image = base / str(row["path"])
        split = _split(str(row.get("split") or "train"), file, number)
        name, label = str(row["path"]), str(row["label"])
        if name in seen:
            raise InputError(f"{file}, row {number}: {name} stands there twice")
        seen.add(name)
        try:
            size = image.stat().st_size
        except OSError:
            missing.append(str(image))
            continue
        found.setdefault(split, []).append(File(name, label, str(image), size))
    if missing:
        raise InputError(
            f"{file}: {len(missing):,} of its images are not there: {some(missing)}. "
            "Relative paths start from config.data.dir, or else from the table's folder"
        )
    if not found:
        raise InputError(f"{file} has no rows")
    return found


def _split(name: str, file: Path, number: int) -> str:
    for split, names in SPLITS.items():
        if name.lower() in names:
            return split
    expected = ", ".join(names[0] for names in SPLITS.values())
    raise InputError(
        f"{file}, row {number}: split {name!r}, expected one of {expected}"
    )


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table by column."""
    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"{file}: expected a .csv or .parquet file")
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
            return
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            _check_columns(rows.fieldnames or [], file)
            for number, row in enumerate(rows, 1):
                if None in row or not all(row[column] for column in COLUMNS):
                    raise InputError(
                        f"{file}, row {number}: expected a path and a label, found "
                        f"{list(row.values())}"
                    )
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"{file} cannot be read: {what}") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{file} needs pyarrow: pip install pyarrow, or write a CSV"
        ) from error
    try:
        read: Any = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} is no Parquet file: {error}") from error
    _check_columns(read.column_names, file)
    yield from read.to_pylist()


def _check_columns(names: Iterable[str], file: Path) -> None:
    names = list(names)
    lacking = [column for column in COLUMNS if column not in names]
    if lacking:
        raise InputError(
            f"{file} has no column {' and '.join(map(repr, lacking))}: expected path, "
            f"label and perhaps split, found {', '.join(names) or 'nothing'}"
        )


def some(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
