"""A grid of heads on cached features: all fitted and kept, chosen on validation.

A sweep fits every row of the grids, measures each on validation, chooses a setting for
each method there, and measures the chosen rows and those at the config's own values on
the test set.

    workdir/sweep/SEED/CHUNK/                    fitted heads and rows.json
    workdir/checkpoints/chosen/METHOD/SEED.SEED  chosen on validation
    workdir/checkpoints/fixed/METHOD/SEED.SEED   at the config's own values
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax.distributed import processes
from lt_jax.experiment import results, weights
from lt_jax.experiment.cached import (
    Frozen,
    Row,
    budget_of,
    describe_stage1,
    fit_rows,
    own_values,
    record,
    rows_of,
    seeds_of,
)
from lt_jax.experiment.config import make_method
from lt_jax.experiment.session import Session
from lt_jax.methods import Method
from lt_jax.retraining import selection
from lt_jax.retraining.engine import Chunk, HeadFit, measure_heads
from lt_jax.retraining.features import fingerprint
from lt_jax.training import checkpoint
from lt_jax.training.log import jsonable
from lt_jax.types import Params


def sweep(session: Session) -> dict[str, Any]:
    """Fits the whole grid; returns what was chosen, for ``result.json``."""
    config, info = session.config, session.log.info
    found: list[dict[str, Any]] = []
    kept = []
    for seed, network in weights.representations(session):
        frozen = Frozen(session, seed, network)
        kept.append(frozen)
        found += _sweep_one(frozen)
    chosen = selection.choose(found, config.eval.choose)
    fixed = own_values(config)
    for frozen in kept:
        rows = [
            (folder, Row(name, values[name], (frozen.seed, seed)))
            for name in chosen
            for seed in seeds_of(config)
            for folder, values in (("chosen/", chosen), ("fixed/", fixed))
        ]
        _record_stored(frozen, rows, found)
        describe_stage1(frozen)
    diverged = sum(row["diverged"] is not None for row in found)
    metric = config.eval.choose
    info(
        f"chosen of {len(found):,} heads ({diverged:,} diverged) by the mean {metric} "
        f"on {len(session.task.splits.valid):,} validation images:"
    )
    for name, hyper in chosen.items():
        moving = [k for k in config.method.entries[name].grid or () if k in hyper]
        numbers = ", ".join(f"{k} {hyper[k]}" for k in moving)
        tied = selection.ties(found, name, metric)
        info(f"  {name}: {numbers or 'nothing to choose'}{tied}")
    return {
        "chosen": chosen,
        "fixed": fixed,
        "sweep": {
            "choose": metric,
            "curves": config.eval.curves,
            "heads": len(found),
            "diverged": diverged,
            "valid": {
                name: results.over_seeds(
                    [
                        r["metrics"]["valid"][metric]
                        for r in found
                        if _is(r, name, hyper)
                    ]
                )
                for name, hyper in chosen.items()
            },
        },
    }


def evaluate_rows(session: Session, split: str, pattern: str) -> dict[str, Any]:
    """The metrics of the stored heads of a sweep whose name the pattern matches."""
    found = {}
    everything = processes.from_process_zero(lambda: results.rows(session.workdir))
    stored = [r for r in everything if re.search(pattern, _row(r).name)]
    for seed, network in weights.representations(session):
        frozen = Frozen(session, seed, network)
        own = [_row(r) for r in stored if r["seeds"][0] == seed]
        if own:
            found |= _measure_stored(frozen, own, split, stored)
    return found


def _sweep_one(frozen: Frozen) -> list[dict[str, Any]]:
    """The rows of one representation, as in ``rows.json``, fitted where they lack."""
    session = frozen.session
    rows = rows_of(session.config, frozen.seed, grid=True)
    origin = {
        "fitted_on": session.task.splits.train.hash,
        "network": fingerprint(frozen.network._asdict()),
        "views": session.config.method.views,
        "dtype": session.config.method.feature_dtype,
    }
    splits = ["valid"]
    if session.config.eval.curves == "test":
        splits.append("test")
    there = {
        _row(stored).name: stored
        for stored in processes.from_process_zero(lambda: results.rows(session.workdir))
        if stored["origin"] == origin and set(splits) <= set(stored["metrics"])
    }
    by_name = {row.name: row for row in rows}
    if have := len(by_name.keys() & there.keys()):
        session.log.info(
            f"sweep on stage1/{frozen.seed}: {have:,} of {len(rows):,} heads are there "
            "already"
        )
    for chunk, heads, seconds in fit_rows(frozen, rows, frozenset(there)):
        own = [by_name[job.run] for job in chunk.jobs]
        made = _keep_chunk(frozen, own, chunk, heads, seconds, splits, origin)
        there |= {_row(stored).name: stored for stored in made}
    return [there[row.name] for row in rows]


def _keep_chunk(
    frozen: Frozen,
    rows: Sequence[Row],
    chunk: Chunk,
    fits: Sequence[HeadFit],
    seconds: float,
    splits: Sequence[str],
    origin: dict[str, Any],
) -> list[dict[str, Any]]:
    """Measures the heads of a chunk and writes them; ``rows.json`` marks the end."""
    session = frozen.session
    heads = [fit.head for fit in fits]
    measured: list[dict[str, Any]] = [{} for _ in rows]
    for split in splits:
        for entry, values in zip(
            measured, _measure(frozen, chunk.jobs[0].method, heads, split), strict=True
        ):
            entry[split] = values
    digest = hashlib.sha256("\n".join(row.name for row in rows).encode()).hexdigest()
    folder = session.workdir / "sweep" / f"{frozen.seed}" / digest[:12]
    stacked = {name: np.stack([head[name] for head in heads]) for name in heads[0]}
    # No rows beside heads that are not theirs.
    processes.on_process_zero(lambda: (folder / "rows.json").unlink(missing_ok=True))
    checkpoint.save_tree(folder, 0, {"heads": stacked})
    made = [
        jsonable(
            {
                "method": row.method,
                "hyper": row.hyper,
                "seeds": list(row.seeds),
                "index": index,
                "diverged": fit.diverged,
                "seconds": seconds / len(rows),
                "metrics": values,
            }
        )
        for index, (row, fit, values) in enumerate(
            zip(rows, fits, measured, strict=True)
        )
    ]
    results.save_rows(folder, origin, made)
    return [{**row, "origin": origin, "folder": str(folder)} for row in made]


def _measure(
    frozen: Frozen, method: Method, heads: Sequence[Params], split: str
) -> list[dict[str, float]]:
    session = frozen.session
    tallies = measure_heads(
        method.head,
        heads,
        frozen.features(split),
        session.task.eval_batch,
        budget_of(session.config),
    )
    with np.errstate(invalid="ignore", over="ignore"):  # of heads that diverged
        return [
            results.summary(session.task, tally, head)
            for tally, head in zip(tallies, heads, strict=True)
        ]


def _measure_stored(
    frozen: Frozen, rows: Sequence[Row], split: str, stored: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Rows by name, those of one chunk, which are of one kind of head, together."""
    config, counts = (
        frozen.session.config,
        frozen.session.task.splits.train.class_counts,
    )
    by_name = {}
    for group in _by_chunk([_find(row, stored) for row in rows]):
        frozen.session.raise_if_stopped("the heads of the sweep")
        first = _row(group[0])
        method = make_method(config, first.method, counts, first.hyper)
        values = _measure(frozen, method, _stored_heads(group), split)
        by_name |= {_row(s).name: v for s, v in zip(group, values, strict=True)}
    return {row.name: by_name[row.name] for row in rows}


def _by_chunk(stored: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of ``results.rows`` by the folder that holds their heads."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in stored:
        groups.setdefault(row["folder"], []).append(row)
    return list(groups.values())


def _stored_heads(stored: Sequence[dict[str, Any]]) -> list[Params]:
    """The parameters of rows of one chunk of ``results.rows``, which is read once."""
    leaves = checkpoint.load_leaves(Path(stored[0]["folder"]) / "0")
    named = {name.removeprefix("heads/"): leaf for name, leaf in leaves.items()}
    return [
        {name: leaf[row["index"]] for name, leaf in named.items()} for row in stored
    ]


def _record_stored(
    frozen: Frozen,
    rows: Sequence[tuple[str, Row]],
    found: Sequence[dict[str, Any]],
) -> None:
    """Measures rows of the sweep on the test set, once, and marks them as finished.

    Args:
      rows: each with the folder that its outcome goes to.
      found: as in ``rows.json``, all of the sweep.
    """
    session = frozen.session
    due = [
        (folder, row, _find(row, found))
        for folder, row in rows
        if _is_due(session, folder + row.title, row)
    ]
    for folder, row, stored in due:
        if (step := stored["diverged"]) is not None:
            session.log.info(
                f"{folder}{row.title} diverged at step {step:,}: no figures"
            )
    whole = [entry for entry in due if entry[2]["diverged"] is None]
    for group in _by_chunk([stored for *_, stored in whole]):
        indices = [stored["index"] for stored in group]
        heads = dict(zip(indices, _stored_heads(group), strict=True))
        for folder, row, stored in whole:
            if stored["folder"] == group[0]["folder"]:
                session.raise_if_stopped("the chosen heads; those measured stay")
                fit = HeadFit(heads[stored["index"]], None)
                record(frozen, row, fit, stored["seconds"], folder)


def _is_due(session: Session, title: str, row: Row) -> bool:
    """Whether a row has not been measured under this title yet."""
    directory = session.workdir / "checkpoints" / title
    outcome = processes.from_process_zero(lambda: results.outcome(directory))
    if not (outcome and session.finished(title)):
        return True
    if outcome["hyper"] == jsonable(row.hyper):
        return False
    session.log.info(f"{title}: another setting is chosen now, measured again")
    return True


def _text(hyper: dict[str, Any]) -> str:
    return json.dumps(jsonable(hyper), sort_keys=True)


def _is(stored: dict[str, Any], method: str, hyper: dict[str, Any]) -> bool:
    return stored["method"] == method and _text(stored["hyper"]) == _text(hyper)


def _row(stored: dict[str, Any]) -> Row:
    return Row(stored["method"], stored["hyper"], tuple(stored["seeds"]))


def _find(row: Row, stored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    (one,) = (
        s
        for s in stored
        if _is(s, row.method, row.hyper) and tuple(s["seeds"]) == row.seeds
    )
    return one
