"""Image files listed in a table, with the columns path, label and optionally split."""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lt_jax.data import arrays
from lt_jax.errors import InputError, first_few

# Names of the splits, as folders and in tables.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Characters of a path within a dataset, or of a class name. NumPy stores all ids in the
# length of the longest.
LONGEST = 1000


class ImageFile(NamedTuple):
    """An image file; sorts by id."""

    id: str  # path relative to the dataset, with forward slashes
    label: str  # class name
    path: str
    size: int  # bytes


def read(path: str, dir: str) -> dict[str, list[ImageFile]]:
    """List the files of a .csv or .parquet file per split, "train" without a column.

    ``dir`` is the base of relative paths; "" is the table's folder.
    """
    file = Path(path).expanduser()
    base = Path(dir).expanduser() if dir else file.parent
    by_name = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found: dict[str, list[ImageFile]] = {}
    missing: list[str] = []
    seen: set[str] = set()
    for number, (name, label, split) in enumerate(_rows(file), 1):
        where, row = f"{file}, row {number}", (name, label, split)
        if not name or not label or len(label) > LONGEST:
            raise InputError(
                f"{where}: expected a path and a label of at most {LONGEST:,} "
                f"characters, got {reprlib.repr(row)}"
            )
        if (in_lower := (split or "train").lower()) not in by_name:
            raise InputError(
                f"{where}: unknown split {reprlib.repr(split)}, expected one of "
                f"{', '.join(names[0] for names in SPLIT_NAMES.values())}"
            )
        if (same := os.path.normpath(name)) in seen:
            raise InputError(f"{where}: duplicate entry: {name}")
        seen.add(same)
        image = str(base / name)
        try:
            status = os.stat(image)
        except (OSError, ValueError):  # ValueError: a NUL in the name
            status = None
        if status is None or not stat.S_ISREG(status.st_mode) or len(name) > LONGEST:
            missing.append(image[:LONGEST])
            continue
        entry = ImageFile(name, label, image, status.st_size)
        found.setdefault(by_name[in_lower], []).append(entry)
    if missing:
        raise InputError(
            f"{file}: {len(missing):,} of its images do not exist or are not regular "
            f"files: {first_few(missing)}. Relative paths start from config.data.dir, "
            "or from the table's folder if that is empty"
        )
    if not found:
        raise InputError(f"{file} has no rows")
    return found


def _rows(file: Path) -> Iterator[tuple[str | None, ...]]:
    """Iterate over path, label and split of a table."""
    readers = {".csv": arrays.csv, ".parquet": arrays.parquet}
    if file.suffix not in readers:
        raise InputError(f"{file}: expected a .csv or .parquet file")
    expected = "a table with the columns path, label and optionally split"
    with arrays.reading(file, expected):
        table = readers[file.suffix](file, ("path", "label"), ("split",))
        columns = [_texts(name, table[name]) for name in table.column_names]
    if len(columns) == 2:
        columns.append([None] * len(table))
    return zip(*columns, strict=True)


def _texts(name: str, column: Any) -> list[str | None]:
    from pyarrow import large_string, string, types

    kind = column.type
    if types.is_dictionary(kind) and types.is_string(kind.value_type):
        # One Python string per value, not per row.
        found: list[str | None] = []
        for chunk in column.chunks:
            words = chunk.dictionary.to_pylist()
            found += [
                None if i is None else words[i] for i in chunk.indices.to_pylist()
            ]
        return found
    if not (types.is_integer(kind) or types.is_string(kind)) and kind != large_string():
        raise ValueError(f"the column {name} holds {kind}, not text or integers")
    return column.cast(string()).to_pylist()
