"""Stage 2 on cached features: heads of many methods and seeds, fitted side by side.

A row is a method with its hyper-parameters and seeds; a representation, frozen, gives
the features that rows are fitted on. What ``sweep`` does with grids of them it does
with the functions here.

    workdir/features/SEED/SPLIT.npy              what the backbone of stage 1 sees
    workdir/checkpoints/METHOD/SEED.SEED         retrain, with cached features
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from lt_jax.distributed import processes
from lt_jax.errors import Diverged
from lt_jax.experiment import results, weights
from lt_jax.experiment.config import Config, make_method
from lt_jax.experiment.session import Session
from lt_jax.experiment.weights import Weights
from lt_jax.methods import Method, projection_steps
from lt_jax.retraining.analysis import analyse
from lt_jax.retraining.engine import (
    Chunk,
    HeadFit,
    HeadJob,
    count_programs,
    fit_heads,
    fits_in_memory,
    measure_heads,
    plan_chunks,
)
from lt_jax.retraining.features import (
    Features,
    Request,
    cached_features,
    evaluated_views,
    random_views,
)
from lt_jax.training.log import Logger, duration
from lt_jax.training.loop import FitResult
from lt_jax.training.optim import Sgd
from lt_jax.types import Params


class Row(NamedTuple):
    """A head of a table: which method, at which numbers, on which seeds."""

    method: str
    hyper: dict[str, Any]  # the method's entry in the config, with these values
    seeds: tuple[int, int]  # of stage 1 and of stage 2

    @property
    def title(self) -> str:
        """``los/0.2``, where the outcome of its method and seeds lies."""
        return f"{self.method}/{self.seeds[0]}.{self.seeds[1]}"

    @property
    def name(self) -> str:
        """``los lr=0.0005 delta=0.98 0.2``, which tells it from all others."""
        numbers = " ".join(f"{key}={value}" for key, value in self.hyper.items())
        return f"{self.method} {numbers} {self.seeds[0]}.{self.seeds[1]}"


class Frozen:
    """A representation that heads are fitted on, and its features."""

    def __init__(self, session: Session, seed: int, network: Weights):
        self.session = session
        self.seed = seed  # of stage 1
        self.network = network
        self._features: dict[str, Features] = {}

    def features(self, split: str) -> Features:
        """The features of ``train``, ``valid`` or ``test``, made where they lack."""
        views = evaluated_views(self.session.task.flip)
        if split == "train":
            views = random_views(self.session.config.method.views)
        return self._made(split, split, views)

    def plain(self) -> Features:
        """Those of the training images as they are, whatever heads are fitted on."""
        views = self.session.config.method.views
        name = "train" if random_views(views) == ("plain",) else "plain"
        return self._made(name, "train", ("plain",))

    def _made(self, name: str, split: str, views: tuple[str, ...]) -> Features:
        task, m = self.session.task, self.session.config.method
        if name not in self._features:
            self._features[name] = cached_features(
                task,
                *self.network,
                getattr(task.splits, split),
                Request(views, (3, self.seed), m.feature_dtype),
                self.session.workdir / "features" / f"{self.seed}" / f"{name}.npy",
                log=self.session.log,
                stop_requested=self.session.stop_requested,
            )
        return self._features[name]


def retrain_cached(session: Session, seed: int, network: Weights) -> None:
    """Fits what the config says of each method on the features of one stage 1."""
    frozen = Frozen(session, seed, network)
    rows = rows_of(session.config, seed, grid=False)
    there = [row.name for row in rows if session.finished(row.title)]
    by_name, diverged = {row.name: row for row in rows}, []
    for chunk, heads, seconds in fit_rows(frozen, rows, frozenset(there)):
        for job, fit in zip(chunk.jobs, heads, strict=True):
            if fit.diverged:
                where = f"the loss is no number at step {fit.diverged:,}"
                diverged.append(f"{job.run}: {where}")
            else:
                share = seconds / len(chunk.jobs)
                record(frozen, by_name[job.run], fit, share, folder="")
    if diverged:
        raise Diverged("; ".join(diverged))
    describe_stage1(frozen)


def fit_rows(
    frozen: Frozen, rows: Sequence[Row], there: frozenset[str]
) -> Iterator[tuple[Chunk, list[HeadFit], float]]:
    """Chunk after chunk of fitted rows, and the seconds each took.

    Args:
      there: names of rows that are fitted already. They are part of the plan all the
        same, so that the others run the very program that a whole sweep runs, and a
        killed one ends with the bits of one that was not.
    """
    if all(row.name in there for row in rows):
        return
    session, began = frozen.session, time.monotonic()
    m, info = session.config.method, session.log.info
    train = frozen.features("train")
    for split in ("valid", "test"):
        frozen.features(split)
    info(
        f"features of stage1/{frozen.seed}: {len(train.labels):,} x "
        f"{train.values.shape[-1]} to fit on, {_some(len(train.values), 'view')}, "
        f"{m.feature_dtype}, {duration(time.monotonic() - began)}"
    )
    job = _job_maker(frozen)
    budget = budget_of(session.config)
    planned = plan_chunks([job(row) for row in rows], m.batch, budget)
    left = [tuple(j for j in chunk.jobs if j.run not in there) for chunk in planned]
    chunks = [
        chunk._replace(jobs=jobs)
        for chunk, jobs in zip(planned, left, strict=True)
        if jobs
    ]
    jobs = [job for chunk in chunks for job in chunk.jobs]
    if any(job.method.correct and job.method.needs_features for job in jobs):
        frozen.plain()
    most = max(len(chunk.jobs) for chunk in chunks)
    info(
        f"{_some(len(jobs), 'head')} in {_some(len(chunks), 'chunk')} of at most "
        f"{most:,} (method.memory {m.memory} GiB), "
        f"{_some(count_programs(chunks), 'program')} to compile"
    )
    if not fits_in_memory(train, budget):
        info("the features are larger than the devices may hold, and stream from disk")
    total = sum(job.epochs for job in jobs)
    with _Progress(session.log, total, session.config.log.seconds) as progress:
        where = "the heads on cached features; finished chunks stay"

        def after_epoch(heads: int) -> None:
            progress.add(heads)
            session.raise_if_stopped(where)

        begun = time.monotonic()
        for chunk, fits in fit_heads(
            chunks, train, m.batch, budget, after_epoch, frozen.plain
        ):
            seconds, begun = time.monotonic() - begun, time.monotonic()
            yield chunk, fits, seconds
            begun = time.monotonic()
            session.raise_if_stopped(where)
    info(
        f"{_some(len(jobs), 'head')} fitted and measured in "
        f"{duration(time.monotonic() - began)}, features included"
    )


def _some(count: int, what: str) -> str:
    """``1 view``, ``2 views``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class _Progress:
    """Tells how much is done and when it will be over, on a terminal or in lines."""

    def __init__(self, log: Logger, total: int, seconds: float):
        self._log, self._total, self._every = log, total, seconds
        self._done, self._begun = 0, time.monotonic()
        self._told = self._begun
        self._bar = log.bar("heads", 0, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, heads: int) -> None:
        """One epoch of so many heads."""
        self._done += heads
        self._bar.update(heads)
        now = time.monotonic()
        if self._bar.disable and now - self._told > self._every:
            self._told, share = now, self._done / self._total
            left = (now - self._begun) * (1 - share) / share
            self._log.info(f"heads | {share:.0%} of the epochs | {duration(left)} left")


def _job_maker(frozen: Frozen) -> Callable[[Row], HeadJob]:
    """Rows to jobs; heads that start alike are made once."""
    session, c = frozen.session, frozen.session.config
    counts, m = session.task.splits.train.class_counts, c.method

    @functools.cache
    def started(init: Any, start: str, run: tuple[int, ...]) -> Params:
        like = Method(session.methods["stage1"].adjust, start=start)
        like = like._replace(head=like.head._replace(init=init))
        network = weights.with_head(
            session.task, c.model.init, frozen.network, like, run
        )
        return network.params["head"]

    def make(row: Row) -> HeadJob:
        method = make_method(c, row.method, counts, row.hyper)
        run, hyper = (2, *row.seeds), row.hyper
        epochs, images = hyper["epochs"], len(frozen.features("train").labels)
        rates = session.rates(hyper["lr"], epochs, m, images)
        return HeadJob(
            run=row.name,
            method=method,
            start=started(method.head.init, method.start, run),
            rates=rates,
            projects=projection_steps(method, epochs, len(rates) // max(epochs, 1)),
            epochs=epochs,
            sgd=Sgd(m.momentum, hyper["decay"], m.decay_on),
            order=run,
        )

    return make


def record(frozen: Frozen, row: Row, fit: HeadFit, seconds: float, folder: str) -> None:
    """Measures a head on the test set and marks the fit as finished."""
    session = frozen.session
    task, config = session.task, session.config
    counts = task.splits.train.class_counts
    method = make_method(config, row.method, counts, row.hyper)
    test, budget = frozen.features("test"), budget_of(config)
    (tally,) = measure_heads(method.head, [fit.head], test, task.eval_batch, budget)
    epochs, images = row.hyper["epochs"], len(frozen.features("train").labels)
    ended = FitResult(
        params={**frozen.network.params, "head": fit.head},
        batch_stats=frozen.network.batch_stats,
        step=epochs * -(-images // config.method.batch),
        seconds=seconds,
        images_per_second=epochs * images / seconds,
    )
    results.save_fit(
        session.workdir,
        task,
        ended,
        tally,
        title=folder + row.title,
        seeds=list(row.seeds),
        hyper=row.hyper,
        epochs=epochs,
        keep={"params": {"head": fit.head}},
        analysis=_analysis(frozen, method, fit.head),
    )


def describe_stage1(frozen: Frozen) -> None:
    """Adds to the outcome of stage 1 what its own head does, for comparison."""
    directory = frozen.session.workdir / "checkpoints" / "stage1" / f"{frozen.seed}"
    outcome = processes.from_process_zero(lambda: results.outcome(directory))
    if outcome and outcome.get("analysis") is None:
        method = frozen.session.methods["stage1"]
        head = frozen.network.params["head"]
        analysis = _analysis(frozen, method, head)
        results.save_outcome(directory, {**outcome, "analysis": analysis})


def _analysis(frozen: Frozen, method: Method, head: Params) -> dict[str, Any]:
    task = frozen.session.task
    valid, test = frozen.features("valid"), frozen.features("test")
    return analyse(method.head, head, valid, test, task.groups, task.eval_batch)


def rows_of(config: Config, stage1_seed: int, grid: bool) -> list[Row]:
    """All rows of a representation; without the grid those of the config's values."""
    own = own_values(config)
    return [
        Row(name, hyper, (stage1_seed, seed))
        for name in config.method.names
        for hyper in (config.method.entries[name].rows() if grid else [own[name]])
        for seed in seeds_of(config)
    ]


def own_values(config: Config) -> dict[str, dict[str, Any]]:
    """The config's own hyper-parameters of each method."""
    return {name: dict(config.method.entries[name].own) for name in config.method.names}


def seeds_of(config: Config) -> range:
    return range(config.seed, config.seed + config.method.repeats)


def budget_of(config: Config) -> float:
    """Bytes of each device for the features; as many again for the heads."""
    return config.method.memory * 2**30 / 2
