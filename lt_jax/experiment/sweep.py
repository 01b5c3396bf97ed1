"""A grid of heads on cached features: all are fitted and kept, validation chooses.

For each method, the setting that is best on validation and the config's own setting are
then evaluated on the test set.

    workdir/sweep/SEED/CHUNK/                    fitted heads and rows.json
    workdir/checkpoints/chosen/METHOD/SEED.SEED  chosen on validation
    workdir/checkpoints/fixed/METHOD/SEED.SEED   at the config's own values
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from lt_jax.distributed import processes
from lt_jax.experiment import cached, checks, results, weights
from lt_jax.experiment.feature_cache import FeatureCache, Row
from lt_jax.experiment.results import StoredRow
from lt_jax.experiment.session import Session
from lt_jax.files import jsonable
from lt_jax.heads import Head
from lt_jax.retraining import selection
from lt_jax.retraining.analysis import balanced_nll
from lt_jax.retraining.engine import HeadFit
from lt_jax.training import checkpoint
from lt_jax.types import Params

Stored = dict[str, StoredRow]  # by Row.name


def sweep(session: Session) -> dict[str, Any]:
    """Fit the grids; return ``chosen``, ``fixed`` and ``sweep`` for ``result.json``."""
    config, metric = session.config, session.config.eval.choose
    caches, stored = [], {}
    for seed, network in weights.representations(session):
        caches.append(FeatureCache(session, seed, network))
        stored |= _fit_grid(caches[-1])
    found = list(stored.values())
    fixed = cached.own_values(config)
    counts = checks.validated(config, session.task.splits)
    chosen = selection.choose(found, metric, fixed, counts, config.eval.margin)
    for cache in caches:
        _save_best(cache, stored, {"chosen": chosen, "fixed": fixed})
        cached.analyse_stage1(cache)
    diverged = sum(row["diverged"] is not None for row in found)
    session.log.info(
        f"chosen from {len(found):,} heads ({diverged:,} diverged) by the mean "
        f"{metric} on {counts.sum():,} validation images; "
        f"{config.eval.margin:g} standard errors better than the config's own values:"
    )
    valid, edges = {}, []
    for name, hyper in chosen.items():
        grid = config.method.entries[name]["grid"]
        values = ", ".join(f"{key} {hyper[key]}" for key in grid)
        how = " (the config's own)" * (hyper == jsonable(fixed[name]))
        keys = selection.at_edge(hyper, fixed[name], grid)
        edges += [f"{name}.grid.{key} ({hyper[key]:g})" for key in keys]
        session.log.info(f"  {name}: {values or 'nothing to choose'}{how}")
        key = name, jsonable(hyper)
        own = [row for row in found if (row["method"], row["hyper"]) == key]
        valid[name] = results.over_seeds([r["metrics"]["valid"][metric] for r in own])
    if edges:
        session.log.info(
            f"chosen at the end of a grid, so further values may be better: "
            f"{', '.join(edges)}; widen one with --config.method.NAME.grid.KEY=VALUES"
        )
    return {
        "chosen": chosen,
        "fixed": fixed,
        "sweep": {
            "choose": metric,
            "curves": config.eval.curves,
            "heads": len(found),
            "diverged": diverged,
            "valid": valid,
        },
    }


def evaluate_rows(session: Session, split: str, pattern: str) -> dict[str, Any]:
    """Evaluate the stored heads of a sweep whose ``Row.name`` the pattern matches."""
    found = {}
    for seed, network in weights.representations(session):
        cache = FeatureCache(session, seed, network)
        stored, values = _stored(cache), {}
        stored = {name: row for name, row in stored.items() if re.search(pattern, name)}
        for names, heads in _load_heads(stored):
            session.raise_if_stopped("the heads of the sweep")
            kind = cache.method(_row(stored[names[0]])).head
            values |= zip(names, _summaries(cache, kind, heads, split), strict=True)
        found |= {name: values[name] for name in stored}
    return found


def _fit_grid(cache: FeatureCache) -> Stored:
    """Fit the rows of one stage 1 that are not fitted yet; return all of its rows."""
    session = cache.session
    splits = ["valid", "test"] if session.config.eval.curves == "test" else ["valid"]
    rows, stored = cached.rows_of(session.config, cache.seed, grid=True), _stored(cache)
    done = {
        name: row
        for name, row in stored.items()
        if set(splits) <= set(row["metrics"])
        and session.config.eval.choose in row["metrics"]["valid"]
    }
    if count := sum(row.name in done for row in rows):
        session.log.info(
            f"sweep on stage1/{cache.seed}: {count:,} of {len(rows):,} heads are "
            "already fitted"
        )
    for fitted in cached.fit_rows(cache, rows, done):
        done |= _save_chunk(cache, splits, *fitted)
    return {row.name: done[row.name] for row in rows}


def _stored(cache: FeatureCache) -> Stored:
    """Read the rows that were fitted on this stage 1 and these features."""
    workdir = cache.session.workdir
    known, report = cache.session.config.method.entries, cache.session.log.warning
    found = processes.from_process_zero(lambda: results.rows(workdir, report))
    seed, origin = cache.seed, cache.origin
    own = (r for r in found if r["origin"] == origin and r["seeds"][0] == seed)
    return {_row(row).name: row for row in own if row["method"] in known}


def _row(stored: StoredRow) -> Row:
    return Row(stored["method"], stored["hyper"], tuple(stored["seeds"]))


def _save_chunk(
    cache: FeatureCache,
    splits: Sequence[str],
    rows: Sequence[Row],
    fits: Sequence[Sequence[HeadFit]],
    seconds: float,
) -> Stored:
    """Measure the heads of a chunk and write them; ``rows.json`` comes last."""
    heads = [[fit.head for fit in each] for each in fits]
    kind, batch = cache.method(rows[0]).head, cache.session.task.eval_batch
    measured = [_summaries(cache, kind, heads, split) for split in splits]
    if cache.session.config.eval.choose == "balanced_nll":
        for each, summary in zip(heads, measured[0], strict=True):
            unseen = cache.unseen(each)
            summary["balanced_nll"] = balanced_nll(kind.apply, unseen, batch)
    names = [row.name for row in rows]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    folder = cache.session.workdir / "sweep" / f"{cache.seed}" / digest[:12]
    stacked = {
        f"heads_{part:04}" if part else "heads": {
            name: np.stack([head[name] for head in each]) for name in each[0]
        }
        for part, each in enumerate(zip(*heads, strict=True))
    }
    # New heads must never be next to the rows of old ones.
    processes.on_process_zero(lambda: (folder / "rows.json").unlink(missing_ok=True))
    checkpoint.save_tree(folder, 0, stacked)
    stored: list[StoredRow] = [
        {
            **row._asdict(),
            "index": index,
            "diverged": cached.diverged_at(each),
            "seconds": seconds,
            "metrics": dict(zip(splits, summaries, strict=True)),
        }
        for index, (row, each, *summaries) in enumerate(
            zip(rows, fits, *measured, strict=True)
        )
    ]
    stored = jsonable(stored)
    results.save_rows(folder, cache.origin, stored)
    placed = ({**row, "folder": str(folder)} for row in stored)
    return dict(zip(names, placed, strict=True))


def _summaries(
    cache: FeatureCache, kind: Head, rows: Sequence[Sequence[Params]], split: str
) -> list[dict[str, float]]:
    """Measure rows, each with its heads, see ``cached.fit_rows``."""
    heads = [each[0] for each in rows]
    if split == "valid":
        tallies = cache.validate(kind, rows)
    else:
        tallies = cache.measure(kind, heads, split)
    with np.errstate(invalid="ignore", over="ignore"):  # heads that diverged
        pairs = zip(tallies, heads, strict=True)
        return [results.summary(cache.session.task, *pair) for pair in pairs]


def _load_heads(stored: Stored) -> Iterator[tuple[list[str], list[list[Params]]]]:
    """Load the heads of rows chunk by chunk, with the names of the rows."""
    by_folder = sorted(stored, key=lambda name: stored[name]["folder"])
    chunks = itertools.groupby(by_folder, key=lambda name: stored[name]["folder"])
    for folder, names in chunks:
        leaves = checkpoint.load_leaves(Path(folder) / "0")
        parts = sorted(unflatten_dict(leaves, sep="/").items())
        names, rows = list(names), []
        for index in (stored[name]["index"] for name in names):
            heads = ({n: leaf[index] for n, leaf in part.items()} for _, part in parts)
            rows.append([*heads])
        yield names, rows


def _save_best(
    cache: FeatureCache, stored: Stored, settings: dict[str, dict[str, Any]]
) -> None:
    """Evaluate rows of the sweep on the test set and save them as finished fits.

    ``settings`` are hyperparameters by folder of the checkpoints and method.
    """
    session, info = cache.session, cache.session.log.info
    due: dict[str, list[str]] = {}  # titles by row
    for folder, values in settings.items():
        for method in settings["chosen"]:
            for seed in cached.seeds_of(session.config):
                row = Row(method, values[method], (cache.seed, seed))
                title, step = f"{folder}/{row.title}", stored[row.name]["diverged"]
                outcome = session.finished(title)
                if outcome and outcome["hyper"] == jsonable(row.hyper):
                    continue
                if outcome:
                    info(f"{title}: the choice has changed; evaluating the new one")
                if step is not None:
                    info(f"{title} diverged at step {step:,}: not measured")
                    continue
                due.setdefault(row.name, []).append(title)
    for names, heads in _load_heads({name: stored[name] for name in due}):
        for name, each in zip(names, heads, strict=True):
            for title in due[name]:
                session.raise_if_stopped("the chosen heads; finished ones are kept")
                row, seconds = _row(stored[name]), stored[name]["seconds"]
                cached.save_row(cache, row, each, seconds, title)
