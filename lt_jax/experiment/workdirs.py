"""Finished workdirs, read for a report, and the differences between them."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from flax import traverse_util

from lt_jax import files
from lt_jax.errors import InputError
from lt_jax.experiment import results
from lt_jax.experiment.config import FREE, read_config
from lt_jax.experiment.results import REMEDY, Outcome, StoredRow
from lt_jax.experiment.schemas import RESULT
from lt_jax.experiment.tables import group_average
from lt_jax.files import NUMBER, check, parse_json, read_json
from lt_jax.metrics import COMPARED, GROUPS
from lt_jax.retraining.selection import number, spread
from lt_jax.training.log import LARGEST, RECORD

# Keys of a config that affect speed or place, but not the meaning of a figure.
NEUTRAL = {*FREE, "seed", "init.path"} - {"eval.choose", "eval.margin"}
# Keys of a config that the protocol in result.json has under a shorter name.
PROTOCOL = {
    "batch_norm": "method.batch_norm",
    "features": "method.features",
    "select": "eval.select",
    "flip": "eval.flip",
}

# Metrics of an evaluation during a fit, see ``curves``.
CURVES = ("epoch", "loss", "rate", "balanced", *GROUPS)


class Run(NamedTuple):
    """A workdir with at least one finished fit."""

    path: Path
    label: str  # unique in a report
    result: dict[str, Any]
    config: dict[str, Any]
    # By method, ordered by seeds; "none", the stage-1 head, comes first.
    fits: dict[str, list[Outcome]]  # what the sweep chose, if there is one
    fixed: dict[str, list[Outcome]]  # the config's own values, if there is a sweep
    rows: list[StoredRow]  # of the sweep
    refit: dict[str, list[Outcome]]  # the recommended fit that `method.refit` repeated

    @property
    def recommended(self) -> dict[str, Any]:
        """The recommendation in ``result.json``; empty if there is none."""
        return self.result.get("recommended") or {}

    @property
    def swept(self) -> bool:
        """Whether ``fits`` are what a sweep chose."""
        return bool(self.rows) or bool(self.fixed)

    @property
    def choose(self) -> str:
        """The metric that chooses on validation."""
        return self.result.get("sweep", {}).get("choose") or "balanced"

    @property
    def compare(self) -> str:
        """The metric that compares methods."""
        return COMPARED.get(self.choose, self.choose)

    @property
    def baseline(self) -> str:
        """Plain cross-entropy in stage 2, or else the first method."""
        return "ce" if "ce" in self.fits else next(iter(self.fits))

    @property
    def dataset(self) -> str:
        """The data, described; runs are compared only if this is equal."""
        d, tested = self.result["dataset"], self.result["dataset"].get("num_test")
        return f"{d['name']}, {d['num_classes']:,} classes, {tested} test images"


def read(paths: Sequence[Path]) -> list[Run]:
    """Read finished workdirs."""
    return list(map(_read, paths, labels(paths)))


def labels(paths: Sequence[Path]) -> list[str]:
    """Shorten paths to the shortest ends that differ from each other.

    >>> labels([Path("a/x"), Path("b/x"), Path("b/y")])
    ['a/x', 'b/x', 'y']
    """
    full = [path.resolve() for path in paths]

    def label(path: Path) -> str:
        if full.count(path) > 1:
            raise InputError(f"duplicate workdir: {path}")
        size = 1
        while sum(path.parts[-size:] == other.parts[-size:] for other in full) > 1:
            size += 1
        return "/".join(path.parts[-size:]).strip("/")

    return list(map(label, full))


def _read(path: Path, label: str) -> Run:
    config = read_config(path)
    if not (path / "result.json").is_file():
        raise InputError(
            f"{path} has no result.json: nothing has finished yet. Wait for the run, "
            "or stop it with Ctrl-C"
        )
    result = read_json(path / "result.json", RESULT, REMEDY)
    stage1 = results.outcomes(path, "stage1")
    chosen, fixed = _by_method(path, "chosen/"), _by_method(path, "fixed/")
    fits = chosen or _by_method(path, "")
    if not stage1 and not fits:
        raise InputError(
            f"no finished fits in {path}: there is no outcome.json in its checkpoints. "
            "Run the same command again: it resumes"
        )
    best, again = result.get("recommended") or {}, {}
    if best.get("refit") and (name := best["method"]) in ("none", *fits):  # no path
        folder = "stage1" if name == "none" else name
        again[name] = results.outcomes(path / results.REFIT, folder)
    every = itertools.chain(stage1, *fits.values(), *fixed.values(), *again.values())
    if len(sizes := {len(one["per_class"]["class"]) for one in every}) > 1:
        raise InputError(
            f"the fits in {path} have {' and '.join(map(str, sorted(sizes)))} classes: "
            f"expected one number. {REMEDY}"
        )
    order = [*result["methods"], *sorted(fits)]  # as in the table, then the rest
    first = {"none": stage1} if stage1 else {}
    return Run(
        path=path,
        label=label,
        result=result,
        config=config,
        fits=first | {name: fits[name] for name in order if name in fits},
        fixed=fixed,
        rows=results.rows(path),
        refit={name: found for name, found in again.items() if found},
    )


def _by_method(workdir: Path, folder: str) -> dict[str, list[Outcome]]:
    """Read the outcomes of every method in a folder of the checkpoints."""
    files = (workdir / "checkpoints" / folder).glob("*/*/outcome.json")
    names = sorted({file.parts[-3] for file in files} - {"stage1", "chosen", "fixed"})
    return {name: results.outcomes(workdir, folder + name) for name in names}


def curves(workdir: Path) -> dict[str, dict[str, list[float]]]:
    """Read the evaluations during every fit: values by metric, by title."""
    found: dict[str, dict[str, list[float]]] = {}
    file, schema = workdir / "metrics.jsonl", {f"{name}?": NUMBER for name in CURVES}
    for line in files.read(file, LARGEST).splitlines() if file.is_file() else ():
        try:
            record = parse_json(line)
            check(record, RECORD | schema, str(file), "")
        except ValueError:  # such as a line that a kill cut off
            continue
        columns = found.setdefault(record["run"], {name: [] for name in CURVES})
        for name, values in columns.items():
            values.append(number(record.get(name)))
    return found


def commands(workdir: Path) -> list[str]:
    """Read the commands that ran in a workdir from its log: date, version, command."""
    file = workdir / "log.txt"
    text = files.read(file, LARGEST).decode(errors="replace") if file.is_file() else ""
    start = rf"(?:[\d-]+ [\d:]+ )?{results.COMMAND}(.*)"
    found = (re.match(start, line) for line in text.splitlines())
    return [match[1] for match in found if match]


def over(fits: Sequence[Outcome], metric: str) -> tuple[float, float]:
    """Mean and standard deviation of a metric over fits."""
    return spread(fit["metrics"].get(metric) for fit in fits)


def paired(one: list[Outcome], other: list[Outcome], key: str) -> list[float]:
    """Differences of a metric between fits of the same seeds.

    A stage-1 head has one seed and is paired with every fit on its representation.
    """
    return [
        number(a["metrics"].get(key)) - number(b["metrics"].get(key))
        for a in one
        for b in other
        if all(x == y for x, y in zip(a["seeds"], b["seeds"], strict=False))
    ]


def interval(values: Sequence[float]) -> list[float]:
    """Return the mean and half of Student's 95 % interval (nan for one), in points."""
    mean, std = (100 * value for value in spread(values))
    share = scipy.stats.t.ppf(0.975, max(len(values) - 1, 1))
    return [mean, float(share * std / math.sqrt(max(len(values), 1)))]


def over_classes(fits: Sequence[Outcome], metric: str) -> np.ndarray:
    """Mean of a metric per class over fits, float[K]."""
    return np.mean(np.array([fit["per_class"][metric] for fit in fits], float), axis=0)


def hyper(fits: Sequence[Outcome]) -> dict[str, Any]:
    """Return the hyperparameters of fits; empty if there are none."""
    return fits[0]["hyper"] if fits else {}


def differences(one: Run, other: Run, method: str) -> dict[str, tuple[Any, Any]]:
    """Find what differs for a method between two runs, by the name of the choice.

    Compares the protocol, the training set, and every value of the config that can
    change the method's figures. A key that only one config has is skipped, as a later
    version added it.
    """
    first, second = (_choices(run, method) for run in (one, other))
    return {
        key: (first[key], second[key])
        for key in first
        if key in second and first[key] != second[key]
    }


def _choices(run: Run, method: str) -> dict[str, Any]:
    stage2 = run.config["method"]
    shared = {key: v for key, v in stage2.items() if not isinstance(v, dict)}
    tree = run.config | {"method": shared, method: stage2.get(method, {})}
    if method == "none":  # nothing of stage 2 affects the stage-1 head
        del tree["method"]
    values = traverse_util.flatten_dict(tree, sep=".")
    protocol = run.result["protocol"]
    named = {name: protocol[name] for name, key in PROTOCOL.items() if key in values}
    named["training set"] = run.result["dataset"]["split_hash"]
    named["group_average"] = group_average(protocol)
    skipped = {*NEUTRAL, *PROTOCOL.values(), "eval.group_average"}
    for key, value in values.items():
        if not any(fnmatch.fnmatch(key, pattern) for pattern in skipped):
            named[key] = value
    used = hyper(run.fits.get(method, []))
    taken = {f"{method}.{k}": used[k] for k in ("start", "sampler") if k in used}
    return named | taken
