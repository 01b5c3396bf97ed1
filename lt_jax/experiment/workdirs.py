"""Finished workdirs, read: what came of each fit, and of each row of a sweep.

Nothing here opens a data set or a checkpoint; the files that are read are those listed
in the README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError
from lt_jax.metrics import CHOOSE

OUTCOME = ("seeds", "metrics", "per_class")
PER_CLASS = (
    "class",
    "train_count",
    "accuracy",
    "loma_row",
    "loma_col",
    "rsd_row_true",
    "rsd_row_false",
    "rsd_col_true",
    "rsd_col_false",
    "weight_norm",
)
RESULT = ("dataset", "protocol", "methods", "versions", "device")
DATASET = ("name", "split_hash", "num_train", "num_classes", "counts_max", "counts_min")
PROTOCOLS = ("batch_norm", "features", "select", "flip", "seeds", "group_limits")
ROW = ("method", "hyper", "seeds", "metrics")
# Keys of a config that say how and where, not what a figure means.
ASIDE = (
    "seed",
    "data.dir",
    "init.path",
    "method.names",
    "method.repeats",
    "method.memory",
    "optim.repeats",
    "eval.batch",
    "eval.curves",
    "save.",
    "log.",
)
# Keys that stand in the protocol of result.json under a shorter name.
PROTOCOL = {
    "batch_norm": "method.batch_norm",
    "features": "method.features",
    "select": "eval.select",
    "flip": "eval.flip",
}

Outcome = dict[str, Any]  # the content of an outcome.json


class Run(NamedTuple):
    """A finished workdir."""

    path: Path
    label: str  # tells it from the others of a report
    result: dict[str, Any]
    config: dict[str, Any]
    # By method, ordered by seeds; "none", the stage-1 head, comes first.
    fits: dict[str, list[Outcome]]  # chosen by the sweep if there is one
    fixed: dict[str, list[Outcome]]  # the config's own values, if there is a sweep
    rows: list[dict[str, Any]]  # of the sweep

    @property
    def swept(self) -> bool:
        """Whether ``fits`` are what a sweep chose."""
        return bool(self.rows) or bool(self.fixed)

    @property
    def choose(self) -> str:
        """The metric on validation that chooses."""
        return self.result.get("sweep", {}).get("choose") or "balanced"


class Setting(NamedTuple):
    """The rows of a sweep that differ in nothing but their seeds."""

    method: str
    hyper: dict[str, Any]
    rows: list[dict[str, Any]]

    def over(self, split: str, name: str) -> tuple[float, float]:
        """Mean and deviation of a metric over the seeds; nan if one diverged."""
        return spread(value(row, split, name) for row in self.rows)

    def score(self, choose: str) -> float:
        """How well it does on validation, more is better; -inf if it diverged."""
        mean, _ = self.over("valid", choose)
        return CHOOSE[choose] * mean if math.isfinite(mean) else -math.inf


def read(paths: Sequence[Path]) -> list[Run]:
    """The runs of these workdirs.

    Raises:
      InputError: something is not a finished workdir, or a file cannot be understood.
    """
    return [_run(path, name) for path, name in zip(paths, labels(paths), strict=True)]


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    >>> labels([Path("a/x"), Path("b/x"), Path("b/y")])
    ['a/x', 'b/x', 'y']
    """
    found = []
    whole = [path.resolve() for path in paths]
    for i, path in enumerate(whole):
        others = [other for j, other in enumerate(whole) if j != i]
        if path in others:
            raise InputError(f"{paths[i]} is given twice")
        size = 1
        while any(path.parts[-size:] == other.parts[-size:] for other in others):
            size += 1
        found.append("/".join(path.parts[-size:]).strip("/"))
    return found


def settings(rows: Iterable[dict[str, Any]]) -> list[Setting]:
    """The settings that rows belong to, in order of their first row."""
    found: dict[tuple[str, str], dict[tuple[int, ...], dict[str, Any]]] = {}
    for row in rows:
        key = row["method"], json.dumps(row["hyper"], sort_keys=True)
        found.setdefault(key, {})[tuple(row["seeds"])] = row
    return [
        Setting(method, json.loads(hyper), [by_seeds[s] for s in sorted(by_seeds)])
        for (method, hyper), by_seeds in found.items()
    ]


def best(among: Iterable[Setting], choose: str) -> Setting | None:
    """The setting that is best on validation; None if all have diverged."""
    held = [s for s in among if s.score(choose) > -math.inf]
    return max(held, key=lambda s: s.score(choose), default=None)


def value(row: Mapping[str, Any], split: str, name: str) -> float:
    """A metric of a row; nan if it diverged or was not measured."""
    if row.get("diverged") is not None:
        return math.nan
    return number(row["metrics"].get(split, {}).get(name))


def number(value: float | None) -> float:
    """JSON's null is not a number."""
    return math.nan if value is None else float(value)


def spread(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter needs two values."""
    array = np.array([number(v) for v in values], np.float64)
    return (
        float(array.mean()) if len(array) else math.nan,
        float(array.std(ddof=1)) if len(array) > 1 else math.nan,
    )


def over(fits: list[Outcome], key: str) -> tuple[float, float]:
    """Mean and deviation of a metric over the seeds of a method's fits."""
    return spread(fit["metrics"].get(key) for fit in fits)


def hyper(run: Run, method: str, fits: list[Outcome]) -> dict[str, Any]:
    """The hyper-parameters of a method's fits; nothing if there are none."""
    if not fits:
        return {}
    return (
        fits[0].get("hyper") or run.result["methods"].get(method, {}).get("hyper") or {}
    )


def differences(one: Run, other: Run, method: str) -> dict[str, tuple[Any, Any]]:
    """What is not the same for a method in two runs, by the name of the choice.

    Choices of the protocol, the training set, and every value of the configs that the
    method reads and that can change its figures; a key that one of them lacks is left
    out, as it came with a later version.
    """

    def choices(run: Run) -> dict[str, Any]:
        flat = {
            key: value
            for key, value in flattened(run.config).items()
            if not any(key == a or (a[-1] == "." and key.startswith(a)) for a in ASIDE)
            and key not in PROTOCOL.values()
        }
        entries = run.config["method"]
        for name in (n for n in entries if isinstance(entries[n], dict)):
            own = f"method.{name}."
            flat = {k: v for k, v in flat.items() if not k.startswith(own)} | {
                f"{name}.{k.removeprefix(own)}": v
                for k, v in flat.items()
                if k.startswith(own) and name == method
            }
        if method == "none":  # the stage-1 head: nothing of stage 2 concerns it
            flat = {k: v for k, v in flat.items() if not k.startswith("method.")}
        protocol = run.result["protocol"]
        named = {
            name: protocol[name]
            for name in PROTOCOL
            if name in protocol
            and (method != "none" or name not in ("batch_norm", "features"))
        }
        used = hyper(run, method, run.fits.get(method, []))
        taken = {f"{method}.{k}": used[k] for k in ("start", "sampler") if k in used}
        data = {"training set": run.result["dataset"]["split_hash"]}
        return named | data | flat | taken

    first, second = choices(one), choices(other)
    return {
        key: (first[key], second[key])
        for key in first
        if key in second and first[key] != second[key]
    }


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key."""
    flat: dict[str, Any] = {}
    for key, entry in config.items():
        if isinstance(entry, dict):
            flat |= flattened(entry, f"{prefix}{key}.")
        else:
            flat[prefix + key] = entry
    return flat


def _run(path: Path, label: str) -> Run:
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} is not a workdir: there is no config.json in it. Give the "
            "--workdir of a finished run"
        )
    if not (path / "result.json").is_file():
        raise InputError(
            f"nothing has finished in {path}: there is no result.json. Let its run "
            "end, or stop it with Ctrl-C"
        )
    result = _json(path / "result.json", RESULT)
    _check(path / "result.json", result["dataset"], DATASET)
    _check(path / "result.json", result["protocol"], PROTOCOLS)
    rows = []
    for file in sorted((path / "sweep").glob("*/*/rows.json")):
        held = _json(file, ("rows",))["rows"]
        if not isinstance(held, list):
            raise InputError(f"{file} holds no list of rows where one is expected")
        for row in held:
            _check(file, row, ROW)
        rows += held
    points = path / "checkpoints"
    chosen, fixed = _methods(points / "chosen"), _methods(points / "fixed")
    fits = chosen or _methods(points)
    none = {"none": first} if (first := _outcomes(points / "stage1")) else {}
    if not none and not fits:
        raise InputError(
            f"nothing has finished in {path}: no outcome.json under {points}. Run the "
            "same command again, it goes on"
        )
    order = [*result["methods"], *sorted(fits)]  # that of the table, then what is new
    return Run(
        path,
        label,
        result,
        _json(path / "config.json", ("method",)),
        none | {name: fits[name] for name in dict.fromkeys(order) if name in fits},
        fixed,
        rows,
    )


def _methods(folder: Path) -> dict[str, list[Outcome]]:
    """The outcomes under a folder by method; what has finished only."""
    names = sorted({file.parts[-3] for file in folder.glob("*/*/outcome.json")})
    aside = ("stage1", "chosen", "fixed")
    return {name: _outcomes(folder / name) for name in names if name not in aside}


def _outcomes(folder: Path) -> list[Outcome]:
    found = []
    for file in folder.glob("*/outcome.json"):
        outcome = _json(file, OUTCOME)
        _check(file, outcome["per_class"], PER_CLASS)
        found.append(outcome)
    return sorted(found, key=lambda o: o["seeds"])


def _json(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise InputError(
            f"{file} is not JSON ({error}). Remove its folder's fit and run the same "
            "command again, it goes on"
            if file.name == "outcome.json"
            else f"{file} is not JSON ({error}). Run the same command again, it writes "
            "it anew"
        ) from error
    _check(file, content, keys)
    return content


def _check(file: Path, content: Any, keys: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object where one is expected")
    if lacking := [key for key in keys if key not in content]:
        raise InputError(
            f"{file} lacks {', '.join(map(repr, lacking))}: another version of lt_jax "
            "wrote it. Run the same command again in a new workdir"
        )
