"""Image files listed in a table, with the columns path, label and optionally split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lt_jax.errors import InputError, first_few

# Names of the splits, as folders and in tables.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
REQUIRED = ("path", "label")


class ImageFile(NamedTuple):
    """An image file; sorts by id."""

    id: str  # path relative to the dataset, with forward slashes
    label: str  # class name
    path: str
    size: int  # bytes


def read(path: str, dir: str) -> dict[str, list[ImageFile]]:
    """List the files per split; all are in "train" if there is no column split.

    Args:
      path: a .csv or .parquet file.
      dir: base of relative paths; "" is the table's folder.

    Raises:
      InputError: an unreadable table, a missing column, an unknown split, a duplicate
        entry or a missing file.
    """
    file = Path(path).expanduser()
    base = Path(dir).expanduser() if dir else file.parent
    by_name = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found: dict[str, list[ImageFile]] = {}
    missing: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(file), 1):
        name, image = str(row["path"]), base / str(row["path"])
        given = str(row.get("split") or "train")
        split = by_name.get(given.lower())
        if split is None:
            raise InputError(
                f"{file}, row {number}: unknown split {given!r}, expected one of "
                f"{', '.join(names[0] for names in SPLIT_NAMES.values())}"
            )
        if name in seen:
            raise InputError(f"{file}, row {number}: duplicate entry: {name}")
        seen.add(name)
        try:
            size = image.stat().st_size
        except OSError:
            missing.append(str(image))
            continue
        entry = ImageFile(name, str(row["label"]), str(image), size)
        found.setdefault(split, []).append(entry)
    if missing:
        raise InputError(
            f"{file}: {len(missing):,} of its images do not exist: "
            f"{first_few(missing)}. Relative paths start from config.data.dir, or from "
            "the table's folder if that is empty"
        )
    if not found:
        raise InputError(f"{file} has no rows")
    return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"{file}: expected a .csv or .parquet file")
    try:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file)
            return
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened)
            _check_columns(rows.fieldnames or [], file)
            for number, row in enumerate(rows, 1):
                if None in row or not all(row[column] for column in REQUIRED):
                    raise InputError(
                        f"{file}, row {number}: expected a path and a label, got "
                        f"{list(row.values())}"
                    )
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{file} cannot be read: {reason}") from error


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow  # imported here because it takes 0.2 s
    from pyarrow import parquet

    try:
        table: Any = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file} is not a valid Parquet file: {error}") from error
    _check_columns(table.column_names, file)
    yield from table.to_pylist()


def _check_columns(names: Iterable[str], file: Path) -> None:
    missing = [column for column in REQUIRED if column not in names]
    if missing:
        raise InputError(
            f"{file} has no column {' and '.join(map(repr, missing))}: expected path, "
            f"label and optionally split, found {', '.join(names) or 'nothing'}"
        )
