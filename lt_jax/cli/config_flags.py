"""Reading a config from ``--config FILE[:ARGUMENT]`` and ``--config.KEY=VALUE``.

Heavy modules are imported inside functions so that ``--help`` is fast.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from lt_jax.errors import InputError, located, near_name, suggest

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict

    from lt_jax.experiment.records import Config


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


def of_data(data: str) -> list[str]:
    """Return the flags of photographs, a table of them, features, or a config file."""
    if os.path.isdir(data):
        kind = "features" if has_features(data) else "folder"
        return [f"--config=configs/{kind}.py", f"--config.data.dir={data}"]
    if data.endswith((".csv", ".parquet")):
        return ["--config=configs/folder.py", f"--config.data.table={data}"]
    return [f"--config={data}"]


def has_features(folder: str) -> bool:
    """Whether a folder holds features, rather than photographs."""
    from lt_jax.data.sources.features import FORMATS

    return any(os.path.isfile(f"{folder}/train{suffix}") for suffix in FORMATS)


def read(flags: list[str], workdir: Path | None = None) -> ConfigDict:
    """Return the locked config of a file, with the overrides of the other flags.

    Without ``--config FILE`` it is that of the workdir.

    Raises:
      InputError: no such file, an error in it, an unknown key, or an invalid value.
    """
    files = [flag for flag in flags if flag.startswith("--config=")]
    if not files and workdir and (workdir / "config.json").exists():
        from lt_jax.experiment.config import workdir_config

        config, present = _as_tree(workdir_config(workdir))
    elif len(files) == 1:
        config, present = _load(files[0].removeprefix("--config="))
    else:
        missing = f": {workdir} has no config.json" if workdir and not files else ""
        raise InputError(
            "expected --config FILE once, for example --config configs/digits_lt.py, "
            f"or the --workdir of an earlier run{missing}"
        )
    for flag in (flag for flag in flags if flag not in files):
        key, equals, text = flag.removeprefix("--config.").partition("=")
        if key not in present:
            raise InputError(f"unknown config key {key!r:.100}{suggest(key, present)}")
        if not equals and not isinstance(present[key], bool):
            raise InputError(f"--config.{key} needs a value: --config.{key}=VALUE")
        value = _parse(key, text if equals else "true", present[key])
        config.update_from_flattened_dict({key: value})
    return config.lock()


def _as_tree(config: Config) -> tuple[ConfigDict, dict[str, Any]]:
    from flax.traverse_util import flatten_dict
    from ml_collections import ConfigDict

    from lt_jax.experiment.config import as_dict

    tree = as_dict(config)
    return ConfigDict(tree), flatten_dict(tree, sep=".")


def _load(file: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Call ``get_config`` of ``FILE[:ARGUMENT]``; return its values by full key too."""
    import reprlib
    import runpy
    from pathlib import Path

    from flax.traverse_util import flatten_dict
    from ml_collections import ConfigDict

    path, colon, argument = file.partition(":")
    path = _find(path)
    if path.endswith(".json"):
        from lt_jax.experiment.config import file_config

        if colon:
            raise InputError(
                f"{path} takes no argument, got {argument!r:.100}: change values by "
                "--config.KEY=VALUE"
            )
        return _as_tree(file_config(Path(path)))
    with located(path):
        try:
            get_config = runpy.run_path(path).get("get_config")
            if get_config is None:
                raise InputError("a config file must define get_config()")
            config = get_config(argument) if colon else get_config()
            if not isinstance(config, ConfigDict):
                found = reprlib.repr(config)
                raise InputError(f"get_config must return a ConfigDict, got {found}")
            return config, flatten_dict(config.to_dict(), sep=".")
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # a config file may raise anything
            reason = " ".join(str(error).split())
            raise InputError(f"{type(error).__name__}: {reason:.500}") from error


def _find(path: str) -> str:
    """Return the path if it exists, else that of the config of wheel or checkout."""
    from pathlib import Path

    shipped = Path(__file__).parents[1] / "configs"
    if not shipped.is_dir():  # a checkout; next to a wheel it would be anyone's
        shipped = Path(__file__).parents[2] / "configs"
    for file in (path, str(shipped / path.removeprefix("configs/"))):
        if os.path.isfile(file):
            return file
    names = ", ".join(f"configs/{p.name}" for p in sorted(shipped.glob("*.py")))
    also = f"; the package has {names}" if names else ""
    near = near_name(path)
    raise InputError(f"no config file {path!r:.200} in {os.getcwd()}{also}{near}")


def _parse(key: str, text: str, present: Any) -> Any:
    """Parse an override as the type of the present value."""
    import ast

    truths = {"true": True, "1": True, "false": False, "0": False}
    try:
        if isinstance(present, bool):
            return truths[text.lower()]
        if isinstance(present, tuple):
            if re.fullmatch(r"[a-z]\w*(,\w+)*", text):  # names without quotes
                return tuple(text.split(","))
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, (tuple, list)) else (value,)
        return type(present)(text)
    except Exception as error:  # ast may raise anything, and so may a type
        kind = type(present).__name__
        raise InputError(f"{key} must be of type {kind}, got {text!r:.100}") from error
