"""Files that are written completely or not at all, and JSON that is checked."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lt_jax.errors import InputError


@contextlib.contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to ``file`` on success."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".tmp")
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read_json(file: Path, fields: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """Read a JSON object and check its fields.

    Args:
      file: path of the file.
      fields: type of each required field, by dotted name.
      remedy: what the user can do about an invalid file; ends the error message.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # from JSON or UTF-8
        raise InputError(f"{file} is not valid JSON ({error}). {remedy}") from error
    check_fields(str(file), content, fields, remedy)
    return content


def check_fields(
    where: str, content: Any, fields: Mapping[str, type], remedy: str
) -> None:
    """Check that a JSON value is an object with these fields; see ``read_json``."""
    kinds = {dict: "a JSON object", list: "a list", str: "a string", int: "an integer"}
    for dotted, kind in {"": dict, **fields}.items():
        value = content
        for key in filter(None, dotted.split(".")):
            if not isinstance(value, dict) or key not in value:
                raise InputError(
                    f"{where} lacks {dotted!r}: another version of lt_jax may have "
                    f"written it. {remedy}"
                )
            value = value[key]
        if not isinstance(value, kind):
            name = f"{where}: {dotted}" if dotted else where
            expected = kinds.get(kind, kind.__name__)
            found = reprlib.repr(value)
            raise InputError(f"{name} must be {expected}, got {found}. {remedy}")
