"""From finished fits to ``result.json``, the table and the report's files.

Each finished fit leaves ``outcome.json`` in its own directory of checkpoints; results
are gathered from these, so a run that was stopped and taken up again, or made by
several commands, gives the same result as one that was not.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import metrics
from lt_jax._version import __version__
from lt_jax.data.dataset import Splits
from lt_jax.distributed import sharding
from lt_jax.experiment import workdirs
from lt_jax.training.log import plain, write_whole

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "ml-collections",
    "numpy",
)
# Column title, path in a method's metrics, factor, decimals.
COLUMNS = (
    ("all", ("all",), 100, 1),
    ("many", ("many",), 100, 1),
    ("medium", ("medium",), 100, 1),
    ("few", ("few",), 100, 1),
    ("worst", ("worst",), 100, 1),
    ("ECE", ("ece",), 100, 1),
    ("LoMa row", ("loma_row",), 1, 2),
    ("LoMa col", ("loma_col",), 1, 2),
    ("LoMa spread", ("loma_col", "spread"), 1, 2),
)


def describe(
    name: str, splits: Splits, groups: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The ``dataset`` object of ``result.json``."""
    return {
        "name": name,
        "split_hash": splits.hash,
        "num_train": int(splits.counts.sum()),
        "num_valid": len(splits.valid),
        "num_test": len(splits.test),
        "num_classes": len(splits.counts),
        "counts_max": int(splits.counts.max()),
        "counts_min": int(splits.counts.min()),
        "groups": {group: int(where.sum()) for group, where in groups.items()},
    }


def save_outcome(directory: Path, outcome: dict[str, Any]) -> None:
    """Marks the fit in this directory as finished, with what came of it."""
    write_whole(directory / "outcome.json", json.dumps(plain(outcome), indent=1) + "\n")


def outcome(directory: Path) -> dict[str, Any] | None:
    """What came of the fit in this directory; None if it has not finished."""
    file = directory / "outcome.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def outcomes(workdir: Path, method: str) -> list[dict[str, Any]]:
    """The outcomes of a method's fits (or of ``stage1``), ordered by seeds."""
    found = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in (workdir / "checkpoints" / method).glob("*/outcome.json")
    ]
    return sorted(found, key=lambda o: o["seeds"])


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a sweep, each with its ``folder`` and its chunk's ``origin``."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((workdir / "sweep").glob("*/*/rows.json")):
        chunk = json.loads(file.read_text(encoding="utf-8"))
        beside = {"origin": chunk["origin"], "folder": str(file.parent)}
        for row in chunk["rows"]:
            row = {**row, **beside}
            keys = ("method", "hyper", "seeds", "origin")
            name = json.dumps([row[key] for key in keys])
            # Measured again on more splits: the fuller one.
            if len(row["metrics"]) >= len(found.get(name, row)["metrics"]):
                found[name] = row
    return list(found.values())


def _of(
    workdir: Path, folder: str, name: str, hyper: dict[str, Any]
) -> list[dict[str, Any]]:
    """A method's outcomes; of a sweep those of these values alone."""
    found = outcomes(workdir, folder + name)
    return [o for o in found if o["hyper"] == plain(hyper)] if folder else found


def build(
    workdir: Path,
    dataset: dict[str, Any],
    protocol: dict[str, Any],
    methods: dict[str, dict[str, Any]],
    folder: str = "",
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
      workdir: where the outcomes lie.
      dataset: see ``describe``.
      protocol: the choices that decide what a figure means.
      methods: hyper-parameters by method, in the order of the table.
      folder: of the methods' outcomes: "", ``chosen/`` or ``fixed/``.
    """
    first = outcomes(workdir, "stage1")
    fits = {"none": first}
    fits |= {name: _of(workdir, folder, name, methods[name]) for name in methods}
    hyper = {"none": {}, **methods}
    return {
        "dataset": dataset,
        "protocol": {
            **protocol,
            # [of stage 1] or [of stage 1, of stage 2] for each value.
            "seeds": [run["seeds"] for run in max(fits.values(), key=len)],
        },
        "stage1": {
            "epochs": first[0]["epochs"] if first else None,
            "seconds": spread([o["seconds"] for o in first]),
            "images_per_second": spread([o["images_per_second"] for o in first]),
        },
        "methods": {
            name: {
                **_nested([run["metrics"] for run in runs]),
                "hyper": hyper[name],
                "seconds": spread([run["seconds"] for run in runs]),
            }
            for name, runs in fits.items()
            if runs or name == "none"
        },
        "versions": versions(),
        "device": sharding.device_name(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that results hang on."""
    return {
        "python": platform.python_version(),
        "lt_jax": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def spread(values: list[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds; the latter needs two."""
    mean, std = workdirs.spread(values)
    return {"mean": mean, "std": std, "values": [*map(workdirs.number, values)]}


def _nested(runs: list[dict[str, float | None]]) -> dict[str, Any]:
    """Every metric over the seeds; group and spread below their metric."""

    def over(name: str) -> dict[str, Any]:
        return spread([run[name] for run in runs])

    plain_ones = ("all", *metrics.GROUPS, "balanced", "worst", "top5", "ece", "nll")
    return {
        **{name: over(name) for name in plain_ones},
        **{
            name: {
                **over(name),
                **{
                    part: over(f"{name}_{part}") for part in (*metrics.GROUPS, "spread")
                },
            }
            for name in ("loma_row", "loma_col")
        },
        "rsd": {part: over(f"rsd_{part}") for part in metrics.RSD},
        "weight_norm": {
            **over("weight_norm"),
            "spread": over("weight_norm_spread"),
        },
    }


def caption(result: dict[str, Any]) -> str:
    """What the figures of the table are of, in a few lines."""
    d, p = result["dataset"], result["protocol"]
    stage1 = sorted({seeds[0] for seeds in p["seeds"]})
    stage2 = sorted({seeds[1] for seeds in p["seeds"] if len(seeds) > 1})
    over = []
    if len(stage1) > 1:
        over.append(f"{len(stage1)} representations")
    if len(stage2) > 1:
        over.append(f"{len(stage2)} seeds of stage 2")
    if not over:
        spread = "one run, so without a spread"
    elif len(over) == 1 and len(stage1) == 1:
        spread = f"mean ± standard deviation over {over[0]} on one representation"
    else:
        spread = f"mean ± standard deviation over {' x '.join(over)}"
    choice = {
        "last": "last epoch",
        "validation": "best epoch on validation",
        "test": "BEST EPOCH ON THE TEST SET, as in the authors' code",
    }
    mirror = "averaged over mirror images" if p["flip"] else "each image once"
    limits = p["group_limits"]
    return (
        f"{d['name']}, split {d['split_hash']}, test set; per cent but for LoMa; "
        f"{spread}\n{choice[p['select']]}; {mirror}; stage 2 {p['features']}, batch "
        f"norm {p['batch_norm']}; many > {limits['many']} training images, few < "
        f"{limits['few']}"
    )


def text(result: dict[str, Any]) -> str:
    """The tables of a result and what they are of."""
    parts = [caption(result)]
    if "sweep" in result:
        s = result["sweep"]
        parts.append(
            f"Chosen on validation, by the mean {s['choose']} over seeds, of "
            f"{s['heads']:,} heads:"
        )
    parts.append(table(result["methods"]))
    if "fixed" in result:
        parts.append("At the config's own values:")
        parts.append(table(result["fixed"]))
    return "\n\n".join(parts)


def table(methods: dict[str, Any]) -> str:
    """The metrics of each of these as a Markdown table.

    Accuracies and the calibration error in per cent; mean and, over two seeds or more,
    the sample standard deviation.
    """
    head = ["method", *(title for title, *_ in COLUMNS)]
    rows = [head]
    for name, values in methods.items():
        row = [name]
        for _, path, factor, decimals in COLUMNS:
            value = values
            for part in path:
                value = value[part]
            row.append(_cell(value, factor, decimals))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(head), line(rule), *(line(row) for row in rows[1:])])


def _cell(value: dict[str, Any], factor: float, decimals: int) -> str:
    mean, std = value["mean"], value["std"]
    if mean is None or math.isnan(mean):
        return "nan"
    text = f"{factor * mean:.{decimals}f}"
    if std is not None and not math.isnan(std):
        text += f" ± {factor * std:.{decimals}f}"
    return text


def write(workdir: Path, result: dict[str, Any]) -> Path:
    """Writes ``result.json``, ``report/table.md`` and ``report/per_class.csv``.

    Returns:
      The directory of the report.
    """
    result = plain(result)
    content = json.dumps(result, indent=1, allow_nan=False)
    write_whole(workdir / "result.json", content + "\n")
    report = workdir / "report"
    write_whole(report / "table.md", text(result) + "\n")
    write_whole(report / "per_class.csv", _per_class(workdir, result))
    return report


def _per_class(workdir: Path, result: dict[str, Any]) -> str:
    """A line for each method, fit and class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header: list[str] | None = None
    folder = "chosen/" if "sweep" in result else ""
    stage1 = outcomes(workdir, "stage1")
    for name, values in result["methods"].items():
        hyper = values.get("hyper", {})
        for run in stage1 if name == "none" else _of(workdir, folder, name, hyper):
            columns = run["per_class"]
            if header is None:
                header = list(columns)
                writer.writerow(["method", "seeds", *header])
            seeds = ".".join(map(str, run["seeds"]))
            for row in zip(*(columns[key] for key in header), strict=True):
                writer.writerow([name, seeds, *row])
    return file.getvalue()
