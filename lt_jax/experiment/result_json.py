"""``result.json``: the metrics of all methods over seeds, and a recommendation.

It is gathered from the outcomes. A run that was stopped and resumed, or split over
several commands, therefore gives the same result.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import metrics
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment import results, tables
from lt_jax.experiment.results import REMEDY, Outcome, outcomes, over_seeds, versions
from lt_jax.experiment.schemas import ACCURACIES, RESULT
from lt_jax.files import jsonable, read_json, sealed_json
from lt_jax.retraining.selection import recommend, spread

FILE = "result.json"
SPEEDS = ("seconds", "images_per_second")  # of a fit


def build(
    workdir: Path,
    dataset: dict[str, Any],
    protocol: dict[str, Any],
    methods: dict[str, dict[str, Any]],
    folder: str = "",
    *,
    counts: np.ndarray,
    **chooses: Any,
) -> dict[str, Any]:
    """Gather the content of ``result.json`` from the outcomes in a workdir.

    ``methods`` are the hyperparameters by method, in the order of the table. Their
    outcomes are in ``folder``: "", ``chosen/`` or ``fixed/``.
    ``counts`` are the validation images per class, int[K]; ``chooses`` are ``folds``,
    and ``metric`` and ``margin`` of ``selection.recommend``.
    """
    methods = {"none": {}, **methods}
    fits = {name: _fits(workdir, folder, name, methods[name]) for name in methods}
    stage1 = fits["none"]
    return {
        "recommended": _recommend(fits, folder, counts, **chooses),
        "dataset": dataset,
        "protocol": {
            **protocol,
            # [of stage 1] or [of stage 1, of stage 2] for each value.
            "seeds": [run["seeds"] for run in max(fits.values(), key=len)],
        },
        "stage1": {
            "epochs": stage1[0]["epochs"] if stage1 else None,
            **{k: over_seeds([o[k] for o in stage1]) for k in SPEEDS},
        },
        "methods": {
            name: {
                **_nested([run["metrics"] for run in runs]),
                "hyper": methods[name],
                "seconds": over_seeds([run["seconds"] for run in runs]),
            }
            for name, runs in fits.items()
            if runs or name == "none"
        },
        "versions": versions(),
        "device": sharding.device_name(),
    }


def _recommend(
    fits: dict[str, list[Outcome]],
    folder: str,
    counts: np.ndarray,
    *,
    metric: str,
    margin: float,
    folds: int,
) -> dict[str, Any] | None:
    """Recommend a fit of the table; None if no fit was measured on validation."""
    rows = [
        {"method": name, "hyper": {}, "seeds": o["seeds"], "metrics": {"valid": valid}}
        for name, runs in fits.items()
        for o in runs
        if (valid := o.get("valid"))
    ]
    if not rows:
        return None
    untouched, _ = spread([(o.get("valid") or {}).get("all") for o in fits["none"]])
    found = recommend(
        rows,
        counts,
        chosen={name: {} for name in fits},
        untouched=untouched if math.isfinite(untouched) else None,
        metric=metric,
        margin=margin,
    )
    best = fits[found.method][0]
    seeds = ".".join(map(str, best["seeds"]))
    name = "stage1" if found.method == "none" else f"{folder}{found.method}"
    return {
        **found._asdict(),
        "hyper": best["hyper"],
        "fit": f"{name}/{seeds}",
        "by": metric,
        "folds": folds,
        "test": on_test(best),
    }


def on_test(outcome: Outcome) -> dict[str, float]:
    """Make ``recommended.test``: what the head that `predict` uses has on test."""
    return {name: outcome["metrics"][name] for name in ("balanced", "all")}


def _fits(
    workdir: Path, folder: str, name: str, hyper: dict[str, Any]
) -> list[Outcome]:
    """Read a method's outcomes; for a sweep only those with these values."""
    if name == "none":
        return outcomes(workdir, "stage1")
    found = outcomes(workdir, folder + name)
    return [o for o in found if o["hyper"] == jsonable(hyper)] if folder else found


def _nested(runs: list[dict[str, float | None]]) -> dict[str, Any]:
    """Every metric over the seeds, with groups and spread below their metric."""

    def over(name: str, *parts: str) -> dict[str, Any]:
        below = {part: over(f"{name}_{part}") for part in parts}
        return over_seeds([run[name] for run in runs]) | below

    return {
        **{name: over(name) for name in ACCURACIES},
        "loma_row": over("loma_row", *metrics.GROUPS, "spread"),
        "loma_col": over("loma_col", *metrics.GROUPS, "spread"),
        "rsd": {part: over(f"rsd_{part}") for part in metrics.RSD},
        "weight_norm": over("weight_norm", "spread"),
    }


def write(workdir: Path, result: dict[str, Any]) -> Path:
    """Write ``result.json`` and the tables; return the folder of the tables."""
    result = jsonable(result)
    results.write(workdir / FILE, sealed_json(result))
    report, folder = workdir / "report", "chosen/" if "sweep" in result else ""
    results.write(report / "table.md", tables.text(result) + "\n")
    rows: list[list[Any]] = []
    for name, entry in result["methods"].items():
        for run in _fits(workdir, folder, name, entry["hyper"]):
            rows = rows or [["method", "seeds", *run["per_class"]]]
            seeds = ".".join(map(str, run["seeds"]))
            columns = (run["per_class"][key] for key in rows[0][2:])
            rows += ([name, seeds, *row] for row in zip(*columns, strict=True))
    results.write(report / "per_class.csv", tables.csv_text(rows))
    return report


def recommended(workdir: Path) -> dict[str, Any]:
    """Return the recommendation in ``result.json``; {} if there is none."""
    file = workdir / FILE
    found = read_json(file, RESULT, REMEDY) if file.exists() else {}
    return found.get("recommended") or {}


def swept(workdir: Path) -> dict[str, Any] | None:
    """Read the ``result.json`` of a finished sweep; None if there is no valid one."""
    with contextlib.suppress(InputError, FileNotFoundError):
        found = read_json(workdir / FILE, RESULT, REMEDY)
        return found if "sweep" in found else None
    return None
