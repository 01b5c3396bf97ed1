"""Image files listed in a table, with the columns path, label and optionally split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lt_jax.errors import InputError, first_few

# Names of the splits, as folders and in tables.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


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
        name, label, image = (
            str(row["path"]),
            str(row["label"]),
            base / str(row["path"]),
        )
        where = f"{file}, row {number}"
        split = by_name.get(str(row.get("split") or "train").lower())
        if split is None:
            raise InputError(
                f"{where}: unknown split {row['split']!r}, expected one of "
                f"{', '.join(names[0] for names in SPLIT_NAMES.values())}"
            )
        if not name or not label:
            raise InputError(f"{where}: expected a path and a label, got {row}")
        if name in seen:
            raise InputError(f"{where}: duplicate entry: {name}")
        seen.add(name)
        try:
            entry = ImageFile(name, label, str(image), image.stat().st_size)
        except OSError:
            missing.append(str(image))
            continue
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


def _rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow  # imported here because it takes 0.2 s
    from pyarrow import csv, parquet

    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"{file}: expected a .csv or .parquet file")
    try:
        if file.suffix == ".parquet":
            table: Any = parquet.read_table(file)
        else:  # as text, so that a label 007 stays as it is
            kinds = dict.fromkeys(("path", "label", "split"), pyarrow.string())
            table = csv.read_csv(
                file, convert_options=csv.ConvertOptions(column_types=kinds)
            )
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not {"path", "label"} <= {*table.column_names}:
        raise InputError(
            f"{file} has the columns {', '.join(table.column_names)}; expected path, "
            "label and optionally split"
        )
    return table.to_pylist()
