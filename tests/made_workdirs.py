"""Workdirs of a run or a sweep, with made-up numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GROUPS = ("many", "medium", "few")
RSD = ("row_true", "row_false", "col_true", "col_false")
BINS = 15


def summary(accuracy: float, loma: float = 4.0) -> dict[str, float]:
    """Metrics of a fit; the groups are 20 points above, at and below ``accuracy``."""
    return {
        "all": accuracy,
        "many": accuracy + 0.2,
        "medium": accuracy,
        "few": accuracy - 0.2,
        "balanced": accuracy,
        "worst": 0.0,
        "top5": 0.9,
        "nll": 2 - accuracy,
        "ece": 0.1,
        **{
            f"{name}{end}": value
            for name, shift in (("loma_row", 0.0), ("loma_col", 0.1))
            for end, value in {
                "": loma + shift,
                **{f"_{group}": loma for group in GROUPS},
                "_spread": loma / 10,
            }.items()
        },
        **{f"rsd_{part}": 1 / (loma + i) for i, part in enumerate(RSD)},
        "weight_norm": 2.0,
        "weight_norm_spread": loma / 8,
    }


def per_class(counts: Sequence[int], accuracy: Any, loma: float = 4.0) -> dict:
    """Metrics per class."""
    size = len(counts)
    return {
        "class": [f"class {k}" for k in range(size)],
        "train_count": list(map(int, counts)),
        "accuracy": np.broadcast_to(accuracy, size).tolist(),
        "nll": [1.0] * size,
        "loma_row": [loma] * size,
        "loma_col": [loma + 0.1] * size,
        **{f"rsd_{part}": [1 / (loma + i)] * size for i, part in enumerate(RSD)},
        "weight_norm": [2.0] * size,
    }


def analysis(valid: bool = True) -> dict[str, Any]:
    """Calibration and confusion; the test set has 10 examples per group."""
    seen = [0] * (BINS - 2) + [20, 10]
    bins = {"seen": seen, "right": [0] * (BINS - 2) + [10, 8], "conf": [0.0] * 13}
    before = bins | {"conf": [0.0] * (BINS - 2) + [18.0, 9.8]}
    after = bins | {"conf": [0.0] * (BINS - 2) + [11.0, 8.1]}
    return {
        "temperature": 1.5 if valid else None,
        "calibrated": {"nll": 0.9, "ece": 0.03} if valid else None,
        "reliability": {"before": before, "after": after if valid else None},
        "confusion": {
            "groups": list(GROUPS),
            "counts": [[8, 1, 1, 0], [6, 3, 1, 0], [4, 3, 2, 1]],
        },
    }


def outcome(
    seeds: Sequence[int],
    accuracy: float,
    counts: Sequence[int],
    hyper: Mapping[str, Any] | None = None,
    analysed: Any = None,
    loma: float = 4.0,
) -> dict[str, Any]:
    """Content of an outcome.json."""
    found = {
        "run": "made",
        "weights": "",
        "seeds": list(seeds),
        "step": 10,
        "epochs": 2,
        "fitted_on": "0" * 16,
        "seconds": 1.0,
        "images_per_second": 100.0,
        "metrics": summary(accuracy, loma),
        "per_class": per_class(counts, accuracy, loma),
        "analysis": analysed,
    }
    return found | ({"hyper": dict(hyper)} if hyper is not None else {})


def row(
    method: str,
    hyper: Mapping[str, Any],
    seeds: Sequence[int],
    valid: Mapping[str, Any],
    test: Mapping[str, Any] | None = None,
    diverged: int | None = None,
) -> dict[str, Any]:
    """Row of a sweep."""
    return {
        "method": method,
        "hyper": dict(hyper),
        "seeds": list(seeds),
        "index": 0,
        "diverged": diverged,
        "seconds": 1.0,
        "metrics": {"valid": dict(valid)} | ({"test": dict(test)} if test else {}),
    }


def config(methods: Mapping[str, Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    """Content of a config.json.

    Args:
      methods: hyperparameters by method.
      changes: values by dotted key, with ``__`` for a dot.
    """
    made: dict[str, Any] = {
        "seed": 0,
        "data": {"name": "made", "dir": "", "many": 100, "few": 20},
        "init": {"path": "", "skip": ""},
        "method": {
            "names": list(methods),
            "features": "online",
            "batch_norm": "frozen",
            **{name: dict(entry) for name, entry in methods.items()},
        },
        "optim": {"epochs": 2, "repeats": 1},
        "eval": {"batch": 100, "select": "last", "flip": False},
        "save": {"every": 1},
        "log": {"seconds": 30.0},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        group = made
        for part in path:
            group = group[part]
        group[last] = value
    return made


def write(
    workdir: Path,
    fits: Mapping[str, Sequence[dict[str, Any]]],
    made: Mapping[str, Any],
    rows: Sequence[dict[str, Any]] = (),
    fixed: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> Path:
    """Write a workdir.

    Args:
      fits: outcomes by method, ``none`` for stage 1; with ``rows``, the chosen ones.
      made: the config.
      rows: rows of a sweep, if it had one.
      fixed: outcomes at the config's own values, with ``rows`` only.
    """
    groups = {"chosen/": {}, "fixed/": fixed or {}} if rows else {"": {}}
    for name, outcomes in fits.items():
        groups["chosen/" if rows else ""][name] = outcomes
    for folder, methods in groups.items():
        for name, outcomes in methods.items():
            for one in outcomes:
                one = {"hyper": made["method"].get(name, {}), **one}
                place = "stage1" if name == "none" else folder + name
                seeds = ".".join(map(str, one["seeds"]))
                _json(workdir / "checkpoints" / place / seeds / "outcome.json", one)
    if rows:
        origin = {"fitted_on": "0" * 16, "network": "made"}
        chunk = {"origin": origin, "rows": list(rows)}
        _json(workdir / "sweep" / "0" / "0" / "rows.json", chunk)
    counts = next(iter(fits.values()))[0]["per_class"]["train_count"]
    seeds = max(([o["seeds"] for o in runs] for runs in fits.values()), key=len)
    method = made["method"]
    result = {
        "dataset": {
            "name": made["data"]["name"],
            "split_hash": "0123456789abcdef",
            "num_train": sum(counts),
            "num_valid": 10,
            "num_test": 30,
            "num_classes": len(counts),
            "counts_max": max(counts),
            "counts_min": min(counts),
            "groups": {"many": 1, "medium": 1, "few": 1},
        },
        "protocol": {
            "batch_norm": method["batch_norm"],
            "features": method["features"],
            "select": made["eval"]["select"],
            "flip": made["eval"]["flip"],
            "group_limits": {"many": 100, "few": 20},
            "group_average": "classes",
            "interrupted": False,
            "seeds": seeds,
        },
        "stage1": {"epochs": 2},
        "methods": {
            name: {"hyper": outcomes[0].get("hyper", method.get(name, {}))}
            for name, outcomes in fits.items()
        },
        "versions": {"python": "3.11", "lt_jax": "0"},
        "device": "1 x made",
    }
    if rows:
        result["sweep"] = {"choose": "balanced", "heads": len(rows)}
    _json(workdir / "result.json", result)
    _json(workdir / "config.json", made)
    return workdir


def _json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
