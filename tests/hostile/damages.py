"""What can happen to a file: name -> function that damages it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGEST = "digest"  # the field that older versions do not write, and an attacker removes
Damage = Callable[[Path, Path], None]  # the file, the victim folder


def _replaced(content: bytes) -> Damage:
    def damage(file: Path, victim: Path) -> None:
        _remove(file)
        file.write_bytes(content)

    return damage


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _half(file: Path, victim: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _folder(file: Path, victim: Path) -> None:
    _remove(file)
    file.mkdir()


def _pipe(file: Path, victim: Path) -> None:
    _remove(file)
    os.mkfifo(file)


def _link_to_victim(file: Path, victim: Path) -> None:
    _remove(file)
    file.symlink_to(victim / "secret.txt")


def _link_to_nothing(file: Path, victim: Path) -> None:
    _remove(file)
    file.symlink_to(victim / "made_by_a_link")


def _link_to_itself(file: Path, victim: Path) -> None:
    _remove(file)
    file.symlink_to(file.name)


def _link_to_zeros(file: Path, victim: Path) -> None:
    _remove(file)
    file.symlink_to("/dev/zero")


def _huge(file: Path, victim: Path) -> None:
    """Eight gigabytes of holes."""
    _remove(file)
    with file.open("wb") as opened:
        opened.truncate(8 * 2**30)


def _missing(file: Path, victim: Path) -> None:
    _remove(file)


def _flipped(file: Path, victim: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


ANY: dict[str, Damage] = {
    "missing": _missing,
    "empty": _replaced(b""),
    "half": _half,
    "flipped": _flipped,
    "binary": _replaced(bytes(range(256)) * 8),
    "folder": _folder,
    "pipe": _pipe,
    "link to victim": _link_to_victim,
    "link to nothing": _link_to_nothing,
    "link to itself": _link_to_itself,
    "link to zeros": _link_to_zeros,
    "huge": _huge,
}

JSON: dict[str, Damage] = {
    **ANY,
    **{
        name: _replaced(text.encode("utf-8", "surrogatepass"))
        for name, text in {
            "null": "null",
            "list": "[]",
            "list of null": "[null]",
            "number": "17",
            "text": '"text"',
            "empty object": "{}",
            "other object": '{"a": {"b": [1, 2]}, "run": 3, "method": 4}',
            "NaN": "NaN",
            "1,500 lists": "[" * 1500 + "]" * 1500,
            "100,000 lists": "[" * 100_000,
            "1,500 objects": '{"a":' * 1500 + "1" + "}" * 1500,
            "a number of 5,000 digits": "9" * 5000,
            "a lone surrogate": '"\ud800"',
            "control characters": '"\x1b[31m\x07"',
            "two values": "{} {}",
            "100,000 keys": json.dumps({f"key {i}": i for i in range(100_000)}),
        }.items()
    },
}

# What a value of a JSON file may become: every leaf and every inner object in turn.
VALUES: dict[str, Any] = {
    "null": None,
    "text": "text",
    "number": -1,
    "fraction": 0.5,
    "huge": 10**30,
    "infinite": float("inf"),
    "list": [],
    "nested": [[{}]],
    "object": {},
    "path out": "../../../victim",
    "escape": "=1+1\x1b[31m\n\x07",
    "null byte": "a\0b",
}


def set_value(file: Path, keys: tuple[Any, ...], value: Any) -> None:
    """Replace the value at this place of a JSON file, and remove its digest."""
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop(DIGEST, None)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def places(content: Any, below: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of a JSON value; of a list only the first one."""
    found = [below] if below else []
    if isinstance(content, dict):
        for key, value in content.items():
            found += places(value, (*below, key))
    elif isinstance(content, list) and content:
        found += places(content[0], (*below, 0))
    return found
