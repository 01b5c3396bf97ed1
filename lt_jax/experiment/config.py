"""The resolved config: ``resolve`` turns a ConfigDict into checked, frozen records.

Only this file, ``defaults.py`` and ``cli/config_flags.py`` know ConfigDict. The records
are in ``records.py``; ``checks.py`` compares their values with the data.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lt_jax import methods, recipes
from lt_jax.data import catalogue
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.errors import InputError, in_range, located, near_name, one_of, suggest
from lt_jax.experiment.records import ENTRIES, Config, RetrainConfig
from lt_jax.files import Schema, read_json

UserConfig = ConfigDict  # what config files return and `resolve` takes

# The values of a method's entry that belong to its optimiser, not to the method.
OPTIMISER = ("lr", "epochs", "decay")

# Former keys: one is ignored at the value that it had everywhere, one at any value.
DROPPED = {"nesterov": (False,), "at_once": range(10001)}
# Keys that version 0.1.0 lacks, with what it did.
ADDED = {
    **{"model.pool": "token", "init.sha256": "", "eval.group_average": "examples"},
    **{"eval.margin": 0.0, "log.sinks": (), "data.norm": 0.0, "method.refit": False},
    "eval.folds": 0,
    **{f"{group}.milestones": () for group in ("optim", "method")},
    **{f"{group}.fall": 0.1 for group in ("optim", "method")},
}

# May change between two commands in one workdir: no result depends on these keys.
FREE = (
    *("data.dir", "data.table", "data.workers", "optim.resident"),
    *("save.*", "log.*", "eval.batch", "eval.curves", "method.memory"),
    # Every fit is kept by its method and seeds, so more of them may come.
    *("method.names", "method.repeats", "optim.repeats", "method.refit"),
    # Every row of a sweep records its setting; `choose` only reads rows.
    *("method.*.grid.*", "eval.choose", "eval.margin"),
)

# The records of a config by name, without the seed.
GROUPS: dict[str, Any] = {
    name: kind
    for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
}
SCHEMA: Schema = {
    **{f"{name}?": {str: object} for name in GROUPS},
    "method": {str: object},
}
# What is accepted for an annotated type, and its name. ``object`` stands for a value of
# a method.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((float, int), "a number"),
    bool: ((bool,), "True or False"),
    str: ((str,), "a string"),
    object: ((float, int, bool, str), "a number or a string"),
}
MAX_CHARACTERS = 4096
MAX_ROWS = 10_000  # of a grid


def resolve(config: UserConfig | Mapping[str, Any]) -> Config:
    """Return the checked, frozen values of a config."""
    plain: Any = config.to_dict() if isinstance(config, ConfigDict) else config
    found = _record(Config, "", without_dropped(_group("the config", plain)))
    if found.data.name in catalogue.PHOTOS:
        extra = catalogue.PHOTOS[found.data.name].extra
        for key in (*PhotoOptions._fields, *extra):
            if getattr(found.data, key) is None:
                raise InputError(
                    f"the config has no data.{key}, which data.name={found.data.name} "
                    "needs: see photo_config, or start from configs/folder.py"
                )
    return found


def _group(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise InputError(f"{key} must be a group of keys, got {reprlib.repr(value)}")
    return value


def _record(kind: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    """Check that the keys are the fields of a record, and every value."""
    if kind is RetrainConfig:
        names = sorted(key for key in values if isinstance(values[key], Mapping))
        entries = {name: _entry(f"{prefix}{name}", values[name]) for name in names}
        values = {key: value for key, value in values.items() if key not in entries}
        values["entries"] = entries
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in hints:
            hint = suggest(key, hints)
            raise InputError(f"unknown config key {prefix + key!r:.100}{hint}")
    found = {}
    for key, hint in hints.items():
        name = f"{prefix}{key}"
        if key in GROUPS and kind is Config:
            inner = _group(name, values.get(key, {}))
            found[key] = _record(hint, f"{name}.", inner)
        elif key in values:
            found[key] = (
                values[key] if key == "entries" else _value(name, values[key], hint)
            )
        elif name in ADDED:
            found[key] = ADDED[name]
        elif getattr(kind, key, None) is not None:  # not a key of photographs
            raise InputError(f"the config has no {name}")
    return kind(**found)


def _entry(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a method in the order of their keys, its grid last."""
    for key in OPTIMISER:
        if key not in values:
            raise InputError(f"{where} needs a value for {key!r}")
    entry = {
        key: _scalar(
            f"{where}.{key}",
            value,
            int if key == "epochs" else object,
            ENTRIES.get(key),
        )
        for key, value in sorted(_group(where, values).items())
        if key != recipes.GRID
    }
    if recipes.GRID not in values:
        return entry
    where, tried = f"{where}.{recipes.GRID}", {}
    for key, several in _group(where, values[recipes.GRID]).items():
        if key not in entry:
            raise InputError(f"{where} has an unknown key {key!r}{suggest(key, entry)}")
        hint = typing.Annotated[tuple[object, ...], ENTRIES.get(key)]
        tried[key] = _value(f"{where}.{key}", several, hint)
        if not several:
            raise InputError(f"{where}.{key} must have at least one value, got ()")
    if (rows := math.prod(map(len, tried.values()))) > MAX_ROWS:
        raise InputError(f"{where} has {rows:,} rows, expected at most {MAX_ROWS:,}")
    return {**entry, recipes.GRID: tried}


def _value(key: str, value: Any, hint: Any) -> Any:
    """Check a value against its annotation; return it as a Python one."""
    if type(None) in typing.get_args(hint):  # the default of a missing key
        hint, _ = typing.get_args(hint)
    annotated = typing.get_origin(hint) is typing.Annotated
    kind, rule = typing.get_args(hint) if annotated else (hint, None)
    if typing.get_origin(kind) is not tuple:
        value = _scalar(key, value, kind, rule)
        return float(value) if kind is float else value
    if not isinstance(value, tuple):
        raise InputError(f"{key} must be a tuple, got {reprlib.repr(value)}")
    inner = typing.get_args(kind)
    found = tuple(_scalar(key, v, inner[0], rule, "each value of ") for v in value)
    if inner[-1] is not ... and len(value) != len(inner):
        given = reprlib.repr(value)
        raise InputError(f"{key} must have {len(inner)} values, got {given}")
    return found


def _scalar(key: str, value: Any, kind: type, rule: Any, each: str = "") -> Any:
    """Check the type and the rule of a number, boolean or string.

    Numbers are finite, and strings can be paths.
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    accepted, name = TYPES[kind]
    if type(value) not in accepted or (
        len(value) > MAX_CHARACTERS or "\0" in value
        if isinstance(value, str)
        else not abs(value) <= 1e38  # fits float32
    ):
        raise InputError(f"{each}{key} must be {name}, got {reprlib.repr(value)}")
    if rule is re.compile:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            found = f"got {value!r} ({error})"
            raise InputError(f"{key} must be a regular expression, {found}") from error
    elif isinstance(rule, str):
        interval, _, other = rule.partition(" or ")  # as in "[0, 1) or -1"
        if not other or value != float(other):
            in_range(key, value, interval)
    elif rule is not None:
        one_of(key, value, rule)
    return value


def without_dropped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested config without the keys of ``DROPPED``."""
    return {
        name: {k: v for k, v in group.items() if v not in DROPPED.get(k, ())}
        if isinstance(group, Mapping)
        else group
        for name, group in tree.items()
    }


def earlier_value(key: str) -> Any:
    """Return what versions without this key of the config did."""
    return ADDED.get(key, methods.ADDED.get(key.rpartition(".")[2]))


def as_dict(config: Config) -> dict[str, Any]:
    """Return the nested keys and values, as in a config file and ``config.json``."""
    tree: dict[str, Any] = {"seed": config.seed}
    for name in GROUPS:
        group = vars(getattr(config, name))
        tree[name] = {k: v for k, v in group.items() if v is not None}
    tree["method"] |= tree["method"].pop("entries")
    return tree


def read_config(workdir: Path) -> dict[str, Any]:
    """Read ``config.json`` as it is, of another version too."""
    file = workdir / "config.json"
    if not file.exists():
        raise InputError(
            f"{workdir} is not a workdir: it has no config.json. Give the --workdir of "
            f"an earlier `lt-jax run`{near_name(workdir)}"
        )
    remedy = "Restore the file, or run the same command in another --workdir"
    return read_json(file, SCHEMA, remedy)


def workdir_config(workdir: Path) -> Config:
    """Read and resolve ``config.json``, of version 0.1 too."""
    tree = read_config(workdir)
    with located(f"{workdir / 'config.json'}"):
        return from_json(tree)


def file_config(file: Path) -> Config:
    """Read and resolve a JSON file, as ``lt-jax config --json`` prints it."""
    remedy = "Expected what `lt-jax config --json` prints, which may be edited"
    tree = read_json(file, SCHEMA, remedy)
    with located(f"{file}"):
        return from_json(tree)


def from_json(tree: Any) -> Config:
    """Resolve nested values from JSON, where tuples are lists."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return resolve(tuples(tree))
