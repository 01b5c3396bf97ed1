"""Outcomes of fits and rows of sweeps, read and written here alone.

    config.json                        resolved config
    checkpoints/METHOD/SEEDS/outcome.json  a finished fit: metrics, hyperparameters
    sweep/SEED/CHUNK/rows.json         finished heads of a sweep
    result.json                        metrics of all methods: ``result_json.py``
    refit/checkpoints/                 the recommended head, fitted on all examples
    report/table.md, per_class.csv     the same as text; every class of every fit

These are the files of a workdir, apart from checkpoints.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax import files, metrics
from lt_jax._version import __version__
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment.schemas import MEASURED, OUTCOME, ROWS
from lt_jax.files import Schema, read_json, sealed_json
from lt_jax.heads import effective_norms
from lt_jax.metrics import Tally
from lt_jax.retraining.selection import number, spread
from lt_jax.training import checkpoint
from lt_jax.training.stage import FitResult, Task
from lt_jax.types import Params

REFIT = "refit"  # folder of a workdir with the head that `method.refit` fits
FINAL = "final"  # folder of weights that no checkpoint of the training loop holds

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("tensorflow-datasets", "ml-collections", "numpy"),
)

REMEDY = "Delete it and rerun the command that wrote it, which computes it again"

COMMAND = "command: "  # starts a line of log.txt

Outcome = dict[str, Any]  # the content of an outcome.json
StoredRow = dict[str, Any]  # an entry of a rows.json


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "lt_jax": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def command() -> str:
    """Describe this process: date, version, commit of a checkout, command line."""
    root, commit = Path(__file__).resolve().parents[2], ""
    if (root / ".git").exists():
        git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        with contextlib.suppress(OSError):
            done = subprocess.run(git, capture_output=True, text=True, timeout=10)
            commit = f" ({done.stdout.strip()})" if done.returncode == 0 else ""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"{COMMAND}{now}, lt_jax {__version__}{commit}: {shlex.join(sys.argv)}"


# Finished fits.


def summary(task: Task, tally: Tally, head: Params) -> dict[str, float]:
    """Compute ``metrics.summary`` and the mean and spread of the class norms."""
    norms = np.asarray(effective_norms(head), np.float64)
    return {
        **metrics.summary(tally, task.groups, task.group_average),
        "weight_norm": float(norms.mean()),
        "weight_norm_spread": float(norms.std() / norms.mean()),
    }


class Validation(NamedTuple):
    """A fitted head on the validation set."""

    tally: Tally
    temperature: float  # divisor of the logits with the least cross-entropy


def save_fit(
    workdir: Path,
    task: Task,
    fitted: FitResult,
    tally: Tally,
    *,
    title: str,
    hyper: dict[str, Any],
    epochs: int | None,
    valid: Validation | None,
    keep: dict[str, Any] | None = None,
    analysis: dict[str, Any] | None = None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write the weights of a fit, then its outcome, which marks it as finished.

    Args:
      tally: of the test set.
      title: METHOD/SEEDS, the folder below ``checkpoints``.
      valid: of the validation set; None if it is empty.
      keep: weights to write; None if a checkpoint of the training loop has them. If
        only ``head`` is among its parameters, the backbone is that of stage 1.
      analysis: see ``analysis.analyse``.
      origin: ``fitted_on`` and ``adopted_for`` of another workdir's stage 1, or the
        ``initial`` weights that it started from.
    """
    directory, head = workdir / "checkpoints" / title, fitted.network.params["head"]
    # New weights must never be next to the outcome of old ones.
    processes.on_process_zero(
        lambda: (directory / "outcome.json").unlink(missing_ok=True)
    )
    if keep is not None:
        checkpoint.save_tree(directory / FINAL, fitted.step, keep)
    alone = keep is not None and "backbone" not in keep["params"]
    seeds = [*map(int, directory.name.split("."))]
    outcome = {
        "run": title,
        "weights": "" if keep is None else FINAL,
        "backbone": f"stage1/{seeds[0]}" if alone else "",
        "seeds": seeds,
        "step": fitted.step,
        "epochs": epochs,
        "hyper": hyper,
        "fitted_on": task.splits.train.hash,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
        # Test images that could not be decoded and are in no metric.
        "left_out": len(task.splits.test) - int(tally.seen.sum()),
        "metrics": summary(task, tally, head),
        "valid": valid and summary(task, valid.tally, head),
        "temperature": valid and valid.temperature,
        "per_class": {
            "class": list(task.splits.train.classes),
            "train_count": task.splits.full_class_counts,
            **metrics.per_class(tally),
            "weight_norm": np.asarray(effective_norms(head), np.float64),
        },
        "analysis": analysis,
        **(origin or {}),
    }
    save_outcome(directory, outcome)
    both = outcome["metrics"], metrics.per_class(tally)
    test = ({f"test/{name}": v for name, v in values.items()} for values in both)
    task.log.publish(title, fitted.step, *test)


def save_outcome(directory: Path, outcome: Outcome) -> None:
    """Write ``outcome.json``: the fit in this directory is finished."""
    write(directory / "outcome.json", sealed_json(outcome))


def outcome(
    directory: Path, report: Callable[[str], None] | None = None
) -> Outcome | None:
    """Read the outcome of the fit in this directory; None if it has not finished."""
    file = directory / "outcome.json"
    return _read(file, OUTCOME, report) if file.exists() else None


def outcomes(workdir: Path, folder: str) -> list[Outcome]:
    """Read the evaluated fits in a folder such as ``stage1`` or ``chosen/los``."""
    found = []
    for file in (workdir / "checkpoints" / folder).glob("*/outcome.json"):
        found.append(read_json(file, MEASURED, REMEDY))
        if len({*map(len, found[-1]["per_class"].values())}) > 1:
            raise InputError(f"{file}: per_class has lists of two lengths. {REMEDY}")
    return sorted(found, key=lambda o: o["seeds"])


def _read(
    file: Path, schema: Schema, report: Callable[[str], None] | None
) -> dict[str, Any] | None:
    """Read a file; an invalid one is None and a line to ``report``, if there is one."""
    try:
        return read_json(file, schema, "Computing it again" if report else REMEDY)
    except InputError as error:
        if report is None:
            raise
        report(str(error))
        return None


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Make the entry of a metric: mean, sample standard deviation and values."""
    mean, std = spread(values)
    return {"mean": mean, "std": std, "values": [*map(number, values)]}


# Rows of a sweep.


def save_rows(folder: Path, origin: dict[str, Any], made: Sequence[StoredRow]) -> None:
    """Write ``rows.json``: the heads in this folder are finished."""
    write(folder / "rows.json", sealed_json({"origin": origin, "rows": made}))


def rows(workdir: Path, report: Callable[[str], None] | None = None) -> list[StoredRow]:
    """Read the rows of a sweep, each with its ``folder`` and its chunk's ``origin``."""
    found, sizes = dict[str, StoredRow](), dict[str, int]()
    for file in sorted((workdir / "sweep").glob("*/*/rows.json")):
        chunk = _read(file, ROWS, report) or {"rows": []}
        for row in chunk["rows"]:
            row = {**row, "origin": chunk["origin"], "folder": str(file.parent)}
            keys = ("method", "hyper", "seeds", "origin")
            name = json.dumps([row[key] for key in keys])
            # A row that was measured again by more metrics replaces the first one.
            size = sum(map(len, row["metrics"].values()))
            if size >= sizes.get(name, 0):
                found[name], sizes[name] = row, size
    return list(found.values())


def write(file: Path, text: str) -> None:
    """Write a file in process 0; other processes wait."""
    processes.on_process_zero(lambda: files.write(file, text))
