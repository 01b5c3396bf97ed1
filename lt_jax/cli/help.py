"""What ``--help`` shows besides flags: groups of commands, config keys, examples."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from typing import Any

with open(os.path.join(os.path.dirname(__file__), "help.toml"), "rb") as _file:
    HELP: dict[str, Any] = tomllib.load(_file)
COMMANDS: dict[str, dict[str, Any]] = HELP["commands"]


def overview() -> str:
    """List commands and their descriptions by group, then general hints."""
    parts = [
        f"{title}:\n" + "\n".join(f"  {n:10s} {sentence(n)}" for n in names)
        for title, *names in HELP["groups"]
    ]
    more = "lt-jax COMMAND --help lists the flags of a command, with examples.\n"
    return "\n\n".join([*parts, more, HELP["config"], _examples(HELP["examples"])])


def sentence(name: str) -> str:
    """Return the description of a command, such as ``data info``."""
    about = COMMANDS[name]["about"]
    return f"{about[0].upper()}{about[1:]}."


def epilog(name: str, configured: bool) -> str:
    """Return the end of the help of a command."""
    about = COMMANDS[name]
    keys = f"config keys it reads:\n  {about['keys']}\n" if "keys" in about else ""
    examples = _examples(about.get("examples", ()))
    parts = [HELP["config"] if configured else "", keys, examples]
    return "\n".join(filter(None, parts))


def flag(command: str, name: str) -> str | None:
    """Return the help of a flag of a command."""
    own = COMMANDS[command].get("flags", {})
    return own.get(name, HELP["flags"].get(name))


def _examples(commands: Iterable[str]) -> str:
    lines = "".join(f"  {command}\n" for command in commands)
    return lines and f"examples:\n{lines}"
