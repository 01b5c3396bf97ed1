"""From the flags of a config, ``--config FILE`` and its overrides, to a locked config.

Heavy imports stand inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lt_jax.experiment.config import UserConfig


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Parts the flags of the config from the others; both ``=`` and space work."""
    config, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if word != "--config" and not word.startswith(("--config.", "--config=")):
            rest.append(word)
        elif "=" in word or not words or words[0].startswith("--"):
            config.append(word)  # a truth value may stand alone
        else:
            config.append(f"{word}={words.pop(0)}")
    return config, rest


def read(config_args: list[str]) -> UserConfig:
    """The locked config of a file and its overrides.

    Raises:
      InputError: no such file, an unknown key, a value of the wrong type.
    """
    from flax.traverse_util import flatten_dict

    from lt_jax.errors import InputError, suggest

    with warnings.catch_warnings():
        # ml_collections imports the config file in a way Python is about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        files = [arg for arg in config_args if arg.startswith("--config=")]
        if len(files) != 1:
            raise InputError(
                "expected --config FILE once, for example --config configs/digits_lt.py"
            )
        path, colon, argument = files[0].removeprefix("--config=").partition(":")
        file = f"--config={_file(path)}{colon}{argument}"
        config_args = [file if arg in files else arg for arg in config_args]
        files = [file]
        known = [*flatten_dict(_parsed(files).to_dict(), sep=".")]
        for arg in config_args:
            key = arg.split("=")[0].removeprefix("--config.")
            if arg not in files and key not in known:
                raise InputError(f"unknown config key {key!r}{suggest(key, known)}")
        return _parsed(config_args)


def _file(path: str) -> str:
    """The file at hand, else the one of this name that the package brought along.

    Raises:
      InputError: there is neither.
    """
    from lt_jax.errors import InputError

    if os.path.isfile(path):
        return path
    # In a wheel; a checkout has them next to the package.
    shipped = Path(__file__).parents[1] / "configs"
    own = shipped / path.removeprefix("configs/")
    if own.is_file():
        return str(own)
    names = ", ".join(f"configs/{p.name}" for p in sorted(shipped.glob("*.py")))
    with_it = f"; with the package came {names}" if names else ""
    raise InputError(f"no config file {path!r} here ({os.getcwd()}){with_it}")


def _parsed(config_args: list[str]) -> UserConfig:
    from absl import flags
    from ml_collections import config_flags

    from lt_jax.errors import InputError

    values, argv = flags.FlagValues(), ["lt-jax", *config_args]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.IllegalFlagValueError as error:
        # An error of the file may come as a traceback in text: its last line.
        raise InputError(str(error).strip().splitlines()[-1]) from error
    except Exception as error:  # the file is code of the user's, and may raise anything
        file = config_args[0].removeprefix("--config=")
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    return values.config
