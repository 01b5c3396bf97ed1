"""Reading a config from ``--config FILE[:ARGUMENT]`` and ``--config.KEY=VALUE``.

Heavy modules are imported inside functions so that ``--help`` is fast.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_jax.errors import InputError, suggest

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separate config flags, written as ``--config=FILE``, from all others."""
    config, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if word != "--config" and not word.startswith(("--config.", "--config=")):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            config.append(word)  # --config.KEY alone sets a boolean to true
        else:
            config.append(f"{word}={words.pop(0)}")
    return config, rest


def read(flags: list[str]) -> ConfigDict:
    """Return the locked config of a file, with the overrides of the other flags.

    Raises:
      InputError: no such file, an error in it, an unknown key, or an invalid value.
    """
    from flax.traverse_util import flatten_dict

    files = [flag for flag in flags if flag.startswith("--config=")]
    if len(files) != 1:
        raise InputError(
            "expected --config FILE once, for example --config configs/digits_lt.py"
        )
    config = _load(files[0].removeprefix("--config="))
    present = flatten_dict(config.to_dict(), sep=".")
    for flag in (flag for flag in flags if flag not in files):
        key, _, text = flag.removeprefix("--config.").partition("=")
        if key not in present:
            raise InputError(f"unknown config key {key!r}{suggest(key, present)}")
        config.update_from_flattened_dict({key: _parse(key, text, present[key])})
    return config.lock()


def _load(file: str) -> ConfigDict:
    """Call ``get_config`` of ``FILE[:ARGUMENT]``."""
    path, colon, argument = file.partition(":")
    path = _find(path)
    try:
        get_config = runpy.run_path(path)["get_config"]
        return get_config(argument) if colon else get_config()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a config file is code and may raise anything
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error


def _find(path: str) -> str:
    """Return the path if it exists, else that of the config shipped in the wheel."""
    shipped = Path(__file__).parents[1] / "configs"
    for file in (path, str(shipped / path.removeprefix("configs/"))):
        if os.path.isfile(file):
            return file
    names = ", ".join(f"configs/{p.name}" for p in sorted(shipped.glob("*.py")))
    also = f"; the package has {names}" if names else ""
    raise InputError(f"no config file {path!r} in {os.getcwd()}{also}")


def _parse(key: str, text: str, present: Any) -> Any:
    """Parse an override as the type of the present value."""
    truths = {"": True, "true": True, "1": True, "false": False, "0": False}
    try:
        if isinstance(present, bool):
            return truths[text.lower()]
        if isinstance(present, tuple):
            if re.fullmatch(r"[a-z]\w*(,\w+)*", text):  # names without quotes
                return tuple(text.split(","))
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return type(present)(text)
    except (KeyError, ValueError, SyntaxError) as error:
        kind = type(present).__name__
        raise InputError(f"{key} must be of type {kind}, got {text!r}") from error
