"""The door to the disk: how the package reads and writes its own files.

A workdir may come from anyone. Reading checks the kind of a file, its size, structure
and types. Writing follows no links, and a file is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import reprlib
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.errors import InputError

LARGEST = 64 * 2**20  # bytes of a JSON file
DEEPEST = 50  # levels of a JSON value
DRAFT = re.compile(r".+\.[0-9a-f]{8}\.tmp")  # names of unfinished files
DIGEST = "digest"  # the field with the SHA-256 of all others

# How a JSON value must look:
#   a type          an instance; ``float`` takes integers too, ``object`` anything
#   a range         an integer in it
#   a set           one of these strings
#   [schema]        a list of such values; with n: of at least n; with n, n: of n
#   {name: schema}  an object with these fields; "name?" may be missing
#   {str: schema}   an object whose other fields all look like this
#   (schema, None)  such a value or null
Schema = Any
COUNT = range(2**53)  # steps, seeds and sizes
NUMBER = (float, None)  # null is NaN
# Types of the values that fit a type, and its name.
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    dict: ((dict,), "a JSON object"),
    list: ((list,), "a list"),
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    float: ((float, int), "a number"),
    object: ((dict, list, str, bool, float, int, type(None)), "a value"),
}


def open_regular(file: Path, flags: int) -> int:
    """Open a regular file, without blocking; follows a link only to read."""
    if flags != os.O_RDONLY:
        flags |= os.O_NOFOLLOW
    try:
        handle = os.open(file, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InputError(f"{file} is a link or a pipe: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{file} is not a regular file: remove it")
    return handle


def read(file: Path, limit: int = LARGEST) -> bytes:
    """Read a regular file of at most ``limit`` bytes."""
    with open(open_regular(file, os.O_RDONLY), "rb") as opened:
        size = os.fstat(opened.fileno()).st_size  # read(n) takes n bytes of memory
        content = opened.read(min(size, limit) + 1)
    if len(content) > limit:
        raise InputError(f"{file} has more than {limit:,} bytes: it is not a valid one")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON; ValueError for NaN, infinities, huge integers and deep nesting."""

    def check(value: Any, depth: int) -> None:
        if isinstance(value, dict | list):
            if depth == DEEPEST:
                raise RecursionError
            for inner in value.values() if isinstance(value, dict) else value:
                check(inner, depth + 1)
        elif isinstance(value, int | float) and not abs(value) < 2**1000:
            raise ValueError(f"{reprlib.repr(value)} is not a finite number")

    try:
        value = json.loads(content.decode("utf-8"))
        check(value, 0)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    return value


def read_json(file: Path, schema: Schema, remedy: str) -> dict[str, Any]:
    """Read a JSON object, check it, and return it without its digest.

    Args:
      remedy: what the user can do about an invalid file; ends the error message.

    Raises:
      InputError: it is invalid, or does not match its digest. Files of older versions
        have none.
    """
    text = read(file)
    try:
        content = parse_json(text)
    except ValueError as error:  # from JSON or UTF-8
        raise InputError(f"{file} is not valid JSON ({error}). {remedy}") from error
    check(content, schema, str(file), remedy)
    digest = content.pop(DIGEST, None)
    if digest not in (None, digest_of(content)):
        raise InputError(f"{file} has changed since it was written. {remedy}")
    return content


def check(value: Any, schema: Schema, file: str, remedy: str, name: str = "") -> None:
    """Check a JSON value, ``name`` in the file; InputError states what is wrong."""
    if isinstance(schema, tuple):
        if value is None:
            return
        schema = schema[0]
    if expected := _problem(value, schema):
        where, found = f"{file}: {name}" if name else file, reprlib.repr(value)
        raise InputError(f"{where} must be {expected}, got {found}. {remedy}")
    # Long lists of numbers are common: look at their types alone.
    fast = schema == [NUMBER] and {*map(type, value)} <= {float, int, type(None)}
    if isinstance(schema, list) and not fast:
        for index, inner in enumerate(value):
            check(inner, schema[0], file, remedy, f"{name}[{index}]")
    if not isinstance(schema, dict):
        return
    named = {key.removesuffix("?"): key for key in schema if key is not str}
    others = [field for field in value if field not in named and str in schema]
    for field in [*named, *others]:
        dotted, key = f"{name}.{field}".removeprefix("."), named.get(field, str)
        if field in value:
            check(value[field], schema[key], file, remedy, dotted)
        elif key == field:  # it has no "?"
            raise InputError(
                f"{file} lacks {dotted!r}: it is another file, or of another version. "
                f"{remedy}"
            )


def _problem(value: Any, schema: Schema) -> str | None:
    """Return what a value must be; None if it is, apart from its fields and items."""
    if isinstance(schema, set):
        fits = isinstance(value, str) and value in schema
        return None if fits else f"one of {', '.join(sorted(schema))}"
    if isinstance(schema, range):
        fits = type(value) is int and value in schema
        return None if fits else f"an integer of at least {schema.start}"
    kind = schema if isinstance(schema, type) else type(schema)
    if type(value) not in KINDS[kind][0]:
        return KINDS[kind][1]
    if isinstance(schema, list) and len(schema) > 1:
        least, most = schema[1], schema[-1] if len(schema) > 2 else len(value)
        if not least <= len(value) <= most:
            return f"a list of {'at least ' if len(schema) == 2 else ''}{least}"
    return None


def jsonable(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def digest_of(content: dict[str, Any]) -> str:
    """Hash a JSON object, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed_json(content: dict[str, Any]) -> str:
    """Format an object as JSON, with the digest that ``read_json`` checks."""
    content = jsonable(content)
    return as_json({**content, DIGEST: digest_of(content)})


def as_json(content: dict[str, Any]) -> str:
    """Format an object as the JSON text of a file, see `jsonable`."""
    return json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n"


def write(file: Path, content: str | bytes) -> None:
    """Write a file completely or not at all."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with atomic_path(file) as draft:
        draft.write_bytes(content)


@contextlib.contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """Yield a new, empty file to write to; rename it to ``file`` on success."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.open("xb").close()  # exclusively, so it is not a link
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def append(file: Path, text: str) -> None:
    """Append to a text file."""
    handle = open_regular(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open(handle, "a", encoding="utf-8", errors="backslashreplace") as opened:
        opened.write(text)


def is_inside(path: str | Path, root: Path) -> bool:
    """Return whether a path, its links followed, is in ``root``."""
    real = Path(os.path.realpath(path))  # Path.resolve fails for a loop of links
    return real.is_relative_to(os.path.realpath(root))


def claim(folder: Path, root: Path) -> None:
    """Make a folder, check that writing in it stays in ``root``, remove drafts.

    Raises:
      InputError: it is a link, or contains one, that leaves ``root``; or a pipe.
    """

    def check(path: str) -> None:
        if not is_inside(path, root):
            raise InputError(
                f"{path} is a link to {os.path.realpath(path)}, outside of {root}: "
                "nothing is written there. Replace it by a file or folder"
            )

    check(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    check(entry.path)
                elif entry.is_dir():
                    pending.append(entry.path)
                elif not entry.is_file():
                    raise InputError(f"{entry.path} is a pipe or a device: remove it")
                elif DRAFT.fullmatch(entry.name):
                    os.unlink(entry.path)
