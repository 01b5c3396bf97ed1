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
from typing import Any, NamedTuple

from lt_jax import models, recipes
from lt_jax.distributed import processes
from lt_jax.errors import Diverged
from lt_jax.experiment import results, weights
from lt_jax.experiment.checks import make_method, rates
from lt_jax.experiment.records import Config
from lt_jax.experiment.session import Session
from lt_jax.heads import Head
from lt_jax.methods import Method
from lt_jax.metrics import Tally
from lt_jax.retraining import engine, features
from lt_jax.retraining.analysis import analyse
from lt_jax.retraining.engine import HeadFit, HeadJob
from lt_jax.retraining.features import Features
from lt_jax.training.log import Bar, duration
from lt_jax.training.loop import FitResult
from lt_jax.training.optim import Sgd
from lt_jax.types import Params, Weights


class Row(NamedTuple):
    """One head: a method at one setting, on two seeds."""

    method: str
    hyper: dict[str, Any]  # the method's entry in the config, with these values
    seeds: tuple[int, int]  # of stage 1 and of stage 2

    @property
    def title(self) -> str:
        """``los/0.2``, the folder of its outcome."""
        return f"{self.method}/{self.seeds[0]}.{self.seeds[1]}"

    @property
    def name(self) -> str:
        """``los delta=0.98 lr=0.0005 0.2``, unique among all rows."""
        numbers = " ".join(f"{key}={self.hyper[key]}" for key in sorted(self.hyper))
        return f"{self.method} {numbers} {self.seeds[0]}.{self.seeds[1]}"


class FeatureCache:
    """A stage 1 with a frozen backbone, and the features of every split."""

    def __init__(self, session: Session, seed: int, network: Weights):
        self.session = session
        self.seed = seed  # of stage 1
        self.network = network
        self._features: dict[str, Features] = {}

    def features(self, name: str) -> Features:
        """Return the features of a split: ``train``, ``valid`` or ``test``.

        ``plain`` are those of the training images without augmentation.
        """
        session, m = self.session, self.session.config.method
        name = "train" if name == "plain" and m.views == 1 else name
        if name not in self._features:
            varied = ("random",) * m.views if m.views > 1 else ("plain",)
            held_out = ("plain", "mirror") if session.task.flip else ("plain",)
            views = {"train": varied, "plain": ("plain",)}.get(name, held_out)
            self._features[name] = features.cached_features(
                session.task,
                self.network,
                getattr(session.task.splits, "train" if name == "plain" else name),
                features.Request(views, (3, self.seed), m.feature_dtype),
                session.workdir / "features" / f"{self.seed}" / f"{name}.npy",
            )
        return self._features[name]

    @functools.cached_property
    def origin(self) -> dict[str, Any]:
        """What heads depend on, apart from their rows."""
        m = self.session.config.method
        return {
            "fitted_on": self.session.task.splits.train.hash,
            "network": features.fingerprint(self.network._asdict()),
            "views": m.views,
            "dtype": m.feature_dtype,
        }

    def method(self, row: Row) -> Method:
        counts = self.session.task.splits.train.class_counts
        return make_method(row.method, counts, row.hyper)

    def measure(self, head: Head, many: Sequence[Params], split: str) -> list[Tally]:
        """Compute the tallies of many heads of one kind on a split."""
        budget, batch = budget_of(self.session.config), self.session.task.eval_batch
        return engine.measure_heads(head, many, self.features(split), batch, budget)

    def analyse(self, head: Head, params: Params) -> dict[str, Any]:
        """Make the ``analysis`` object of an outcome."""
        task, (valid, test) = self.session.task, map(self.features, ("valid", "test"))
        found = analyse(head, params, valid, test, task.groups, task.eval_batch)
        ids = task.splits.test.ids
        if len(ids) != len(test.labels):  # undecodable images shift the rows
            return {**found, "mistakes": []}
        found["mistakes"] = [{**m, "id": str(ids[m["row"]])} for m in found["mistakes"]]
        return found


def retrain_cached(session: Session, seed: int, network: Weights) -> None:
    """Fit every method at the config's own values on the features of one stage 1."""
    cache, diverged = FeatureCache(session, seed, network), []
    rows = rows_of(session.config, seed, grid=False)
    done = [row.name for row in rows if session.finished(row.title)]
    for fitted, fits, seconds in fit_rows(cache, rows, done):
        for row, fit in zip(fitted, fits, strict=True):
            if fit.diverged:
                where = f"the loss is not finite at step {fit.diverged:,}"
                diverged.append(f"{row.name}: {where}")
            else:
                save_row(cache, row, fit.head, seconds, row.title)
    if diverged:
        raise Diverged("; ".join(diverged))
    analyse_stage1(cache)


def fit_rows(
    cache: FeatureCache, rows: Sequence[Row], done: Collection[str]
) -> Iterator[tuple[list[Row], list[HeadFit], float]]:
    """Fit rows; yield those of a chunk, their heads, and the seconds per row.

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
    budget, chunks = budget_of(session.config), []
    for chunk in engine.plan_chunks(_jobs(cache, rows), m.batch, budget):
        if jobs := tuple(job for job in chunk.jobs if job.run not in done):
            chunks.append(chunk._replace(jobs=jobs))
    jobs = [job for chunk in chunks for job in chunk.jobs]
    if any(job.method.correct and job.method.needs_features for job in jobs):
        cache.features("plain")
    info(
        f"{_count(len(jobs), 'head')} in {_count(len(chunks), 'chunk')} of at most "
        f"{max(len(chunk.jobs) for chunk in chunks):,} (method.memory {m.memory} GiB), "
        f"{_count(engine.count_programs(chunks), 'program')} to compile"
    )
    if not engine.fits_in_memory(train, budget):
        info("the features exceed method.memory: streaming them from disk")
    where = "the heads on cached features; finished chunks are kept"
    by_name, total = {row.name: row for row in rows}, sum(job.epochs for job in jobs)
    with Bar(session.log, "heads", 0, total, session.config.log.seconds) as bar:

        def after_epoch(heads: int) -> None:
            if bar.advance(heads):
                bar.show({})
            session.raise_if_stopped(where)

        plain = functools.partial(cache.features, "plain")
        given = chunks, train, m.batch, budget, after_epoch, plain
        chunk_begun = time.monotonic()
        for chunk, fits in engine.fit_heads(*given):
            seconds = (time.monotonic() - chunk_begun) / len(fits)
            yield [by_name[job.run] for job in chunk.jobs], fits, seconds
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
            sgd=Sgd(c.method.momentum, hyper["decay"], c.method.decay_on),
            order=order,
        )
        jobs.append(job)
    return jobs


def save_row(
    cache: FeatureCache, row: Row, params: Params, seconds: float, title: str
) -> None:
    """Evaluate a head on the test set and save it as a finished fit."""
    session, head = cache.session, cache.method(row).head
    (tally,) = cache.measure(head, [params], "test")
    epochs, images = row.hyper["epochs"], len(cache.features("train").labels)
    fitted = FitResult(
        network=cache.network._replace(params={**cache.network.params, "head": params}),
        step=epochs * -(-images // session.config.method.batch),
        seconds=seconds,
        images_per_second=epochs * images / seconds,
    )
    analysis, valid = cache.analyse(head, params), None
    if analysis["temperature"]:
        (measured,) = cache.measure(head, [params], "valid")
        valid = results.Validation(measured, analysis["temperature"])
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
    """Add the analysis of stage 1's own head to its outcome, for comparison."""
    directory = cache.session.workdir / "checkpoints" / "stage1" / f"{cache.seed}"
    outcome = processes.from_process_zero(lambda: results.outcome(directory))
    if outcome and outcome.get("analysis") is None:
        head = cache.session.methods["stage1"].head
        analysis = cache.analyse(head, cache.network.params["head"])
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


def budget_of(config: Config) -> float:
    """Return the bytes per device for features; heads may take as many."""
    return config.method.memory * 2**30 / 2
