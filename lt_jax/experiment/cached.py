"""Stage 2 on cached features: many heads are fitted at once, without images.

A row is a method with its hyperparameters and seeds. All rows of one stage 1 share the
features of its frozen backbone. ``sweep.py`` uses the same functions for grids of rows.

    workdir/features/SEED/SPLIT.npy       features by the seed of stage 1
    workdir/checkpoints/METHOD/SEED.SEED  heads that ``retrain`` fitted
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lt_jax import models, recipes
from lt_jax.distributed import processes
from lt_jax.errors import Diverged
from lt_jax.experiment import results, weights
from lt_jax.experiment.checks import rates
from lt_jax.experiment.feature_cache import FeatureCache, Row, budget_of
from lt_jax.experiment.records import Config
from lt_jax.experiment.session import Session
from lt_jax.retraining import engine, features
from lt_jax.retraining.chunks import Chunk, HeadJob, count_programs, plan_chunks
from lt_jax.retraining.engine import HeadFit
from lt_jax.training.log import Bar, duration
from lt_jax.training.optim import Sgd
from lt_jax.training.stage import FitResult
from lt_jax.types import Params, Weights


def retrain_cached(session: Session, seed: int, network: Weights) -> None:
    """Fit every method at the config's own values on the features of one stage 1."""
    cache, diverged = FeatureCache(session, seed, network), []
    rows = rows_of(session.config, seed, grid=False)
    done = [row.name for row in rows if session.finished(row.title)]
    for fitted, fits, seconds in fit_rows(cache, rows, done):
        for row, each in zip(fitted, fits, strict=True):
            if step := diverged_at(each):
                where = f"the loss is not finite at step {step:,}"
                diverged.append(f"{row.name}: {where}")
            else:
                save_row(cache, row, [fit.head for fit in each], seconds, row.title)
    if diverged:
        raise Diverged("; ".join(diverged))
    analyse_stage1(cache)


def fit_rows(
    cache: FeatureCache, rows: Sequence[Row], done: Collection[str]
) -> Iterator[tuple[list[Row], list[tuple[HeadFit, ...]], float]]:
    """Fit rows; yield those of a chunk, their heads, and the seconds per row.

    With ``eval.folds`` a row has a head of all examples, then one without each fold.
    ``done`` are names of rows that are already fitted. They stay in the plan of chunks,
    so that a resumed sweep compiles the same programs and gives the same bits.
    """
    if all(row.name in done for row in rows):
        return
    session, started = cache.session, time.monotonic()
    m, info = session.config.method, session.log.info
    train, _, _ = map(cache.features, ("train", "valid", "test"))
    info(
        f"features of stage1/{cache.seed}: {len(train.labels):,} training examples x "
        f"{train.values.shape[-1]}, {_count(len(train.values), 'view')}, "
        f"{m.feature_dtype}, {duration(time.monotonic() - started)}"
    )
    computed_elsewhere = isinstance(session.task.backbone, models.Identity)
    if computed_elsewhere and (note := features.norm_note(train.values[0])):
        session.log.warning(note)
    budget, parts = budget_of(session.config), [cache, *cache.folds]
    jobs_of = [{job.run: job for job in _jobs(part, rows)} for part in parts]
    chunks = [
        chunk._replace(jobs=jobs)
        for chunk in plan_chunks([*jobs_of[0].values()], m.batch, budget)
        if (jobs := tuple(job for job in chunk.jobs if job.run not in done))
    ]
    # The same rows at a time without each fold, which has fewer steps.
    plans = [
        [c._replace(jobs=tuple(own[job.run] for job in c.jobs)) for c in chunks]
        for own in jobs_of
    ]
    jobs = [job for chunk in chunks for job in chunk.jobs]
    if any(job.method.correct and job.method.needs_features for job in jobs):
        cache.features("plain")
    times = f"{len(parts)} times " * (len(parts) > 1)
    info(
        f"{times}{_count(len(jobs), 'head')} in {_count(len(chunks), 'chunk')} of at "
        f"most {max(len(chunk.jobs) for chunk in chunks):,} "
        f"(method.memory {m.memory} GiB), "
        f"{_count(count_programs(chunks) * min(len(parts), 2), 'program')} to compile"
    )
    budget /= min(len(parts), 2)
    if not engine.fits_in_memory(train, budget):
        info("the features exceed method.memory: they are read piece by piece")
    where = "the heads on cached features; finished chunks are kept"
    by_name = {row.name: row for row in rows}
    total = sum(job.epochs + job.method.passes for job in jobs) * len(parts)
    with Bar(session.log, "heads", 0, total, session.config.log.seconds) as bar:

        def after_epoch(heads: int) -> None:
            if bar.advance(heads):
                bar.show({})
            session.raise_if_stopped(where)

        def of_fold(part: FeatureCache, plan: Sequence[Chunk]) -> Iterator[Any]:
            for chunk in plan:  # to its end, which frees the features of the fold
                yield from [*engine.fit_heads([chunk], part.features("train"), *how)]

        how = m.batch, budget, after_epoch
        plain = functools.partial(cache.features, "plain")
        runs = (
            engine.fit_heads(plans[0], train, *how, plain),
            *map(of_fold, parts[1:], plans[1:]),
        )
        chunk_begun = time.monotonic()
        for found in zip(*runs, strict=True):
            made = [by_name[job.run] for job in found[0][0].jobs]
            fits = [*zip(*(each for _, each in found), strict=True)]
            seconds = (time.monotonic() - chunk_begun) / len(made)
            yield made, fits, seconds
            chunk_begun = time.monotonic()
            session.raise_if_stopped(where)
    info(
        f"{_count(len(jobs), 'head')} fitted and measured in "
        f"{duration(time.monotonic() - started)}, including features"
    )


def _count(count: int, noun: str) -> str:
    """``1 view``, ``2 views``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _jobs(cache: FeatureCache, rows: Sequence[Row]) -> list[HeadJob]:
    """Make the jobs of rows; equal initial heads are made once."""
    session, c = cache.session, cache.session.config
    images = len(cache.features("train").labels)
    initial: dict[Any, Params] = {}
    jobs = []
    for row in rows:
        method, hyper, order = cache.method(row), row.hyper, (2, *row.seeds)
        key = method.head, method.start, order
        if key not in initial:
            given = session.task, c.model.init, cache.network, method, order
            initial[key] = weights.with_head(*given).params["head"]
        epochs = hyper["epochs"]
        job = HeadJob(
            run=row.name,
            method=method,
            start=initial[key],
            rates=rates(c.method, hyper["lr"], epochs, images),
            epochs=epochs,
            sgd=Sgd(c.method.momentum, hyper["decay"], c.method.decay_on, "head/"),
            order=order,
        )
        jobs.append(job)
    return jobs


def diverged_at(fits: Sequence[HeadFit]) -> int | None:
    """Return the first step at which a head of a row diverged."""
    return min((fit.diverged for fit in fits if fit.diverged), default=None)


def save_row(
    cache: FeatureCache,
    row: Row,
    heads: Sequence[Params],
    seconds: float,
    title: str,
) -> None:
    """Evaluate a row, see ``fit_rows``, on the test set; save it as a finished fit."""
    session, head, params = cache.session, cache.method(row).head, heads[0]
    (tally,) = cache.measure(head, [params], "test")
    epochs, images = row.hyper["epochs"], len(cache.features("train").labels)
    fitted = FitResult(
        network=cache.network._replace(params={**cache.network.params, "head": params}),
        step=epochs * -(-images // session.config.method.batch),
        seconds=seconds,
        images_per_second=len(heads) * epochs * images / seconds,
    )
    analysis, valid = cache.analyse(head, heads)
    results.save_fit(
        session.workdir,
        session.task,
        fitted,
        tally,
        title=title,
        hyper=row.hyper,
        epochs=epochs,
        valid=valid,
        keep={"params": {"head": params}},
        analysis=analysis,
    )


def analyse_stage1(cache: FeatureCache) -> None:
    """Add to the outcome of stage 1 its analysis, and its metrics on the folds."""
    directory = cache.session.workdir / "checkpoints" / "stage1" / f"{cache.seed}"
    outcome = processes.from_process_zero(lambda: results.outcome(directory))
    if outcome and outcome.get("analysis") is None:
        head, task = cache.session.methods["stage1"].head, cache.session.task
        heads = [part.network.params["head"] for part in (cache, *cache.folds)]
        analysis, valid = cache.analyse(head, heads)
        if valid and not outcome.get("valid"):
            measured = results.summary(task, valid.tally, heads[0])
            outcome |= {"valid": measured, "temperature": valid.temperature}
        results.save_outcome(directory, {**outcome, "analysis": analysis})


def rows_of(config: Config, stage1_seed: int, grid: bool) -> list[Row]:
    """List the rows of a stage 1: of every grid, or of the config's own values."""
    return [
        Row(name, hyper, (stage1_seed, seed))
        for name, own in own_values(config).items()
        for hyper in (recipes.expand(config.method.entries[name]) if grid else [own])
        for seed in seeds_of(config)
    ]


def own_values(config: Config) -> dict[str, dict[str, Any]]:
    """Return the config's own hyperparameters by method."""
    entries = config.method.entries
    return {name: recipes.own(entries[name]) for name in config.method.names}


def seeds_of(config: Config) -> range:
    """Return the seeds of stage 2."""
    return range(config.seed, config.seed + config.method.repeats)
