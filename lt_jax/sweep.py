"""Stage 2 on cached features: every method at its settings, or a whole grid of them.

A row is a method with its hyper-parameters and seeds. A sweep fits all rows, measures
each on validation, chooses a setting for each method there, and measures the chosen
rows and those at the config's own values on the test set.

    workdir/features/SEED/SPLIT.npy              what the backbone of stage 1 sees
    workdir/sweep/SEED/CHUNK/                    fitted heads and rows.json
    workdir/checkpoints/METHOD/SEED.SEED         retrain, with cached features
    workdir/checkpoints/chosen/METHOD/SEED.SEED  sweep, chosen on validation
    workdir/checkpoints/fixed/METHOD/SEED.SEED   sweep, at the config's own values
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lt_jax import checkpoint, grids, outcomes, processes, results, weights
from lt_jax.analysis import analyse
from lt_jax.checks import CHOOSE, make_method
from lt_jax.features import (
    Features,
    Request,
    cached_features,
    fingerprint,
    random_views,
)
from lt_jax.log import Log, duration, plain, write_whole
from lt_jax.loop import Fitted
from lt_jax.meter import Diverged
from lt_jax.methods import Method, projects
from lt_jax.optim import Sgd
from lt_jax.retrain import (
    Chunk,
    Fit,
    Job,
    fit_heads,
    measure_heads,
    plan_chunks,
    programs_of,
    resident,
)
from lt_jax.session import Session
from lt_jax.stopping import Interrupted
from lt_jax.types import Config, Params
from lt_jax.weights import Weights


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
        views = ("plain", "mirror") if self.session.task.flip else ("plain",)
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
                self.session.log,
                self.session.stopped,
            )
        return self._features[name]


def retrain_cached(session: Session, seed: int, network: Weights) -> None:
    """Fits what the config says of each method on the features of one stage 1."""
    frozen = Frozen(session, seed, network)
    rows = _rows(session.config, seed, grid=False)
    there = [row.name for row in rows if outcomes.done(session, row.title)]
    by_name, diverged = {row.name: row for row in rows}, []
    for chunk, heads, seconds in _fit_rows(frozen, rows, frozenset(there)):
        for job, fit in zip(chunk.jobs, heads, strict=True):
            if fit.diverged:
                where = f"the loss is no number at step {fit.diverged:,}"
                diverged.append(f"{job.run}: {where}")
            else:
                share = seconds / len(chunk.jobs)
                _record(frozen, by_name[job.run], fit, share, folder="")
    if diverged:
        raise Diverged("; ".join(diverged))
    _describe_stage1(frozen)


def sweep(session: Session) -> dict[str, Any]:
    """Fits the whole grid; returns what was chosen, for ``result.json``."""
    config, say = session.config, session.log.say
    found: list[dict[str, Any]] = []
    kept = []
    for seed, network in weights.representations(session):
        frozen = Frozen(session, seed, network)
        kept.append(frozen)
        found += _sweep_one(frozen)
    chosen = choose(found, config.eval.choose)
    fixed = own_values(config)
    for frozen in kept:
        rows = [
            (folder, Row(name, values[name], (frozen.seed, seed)))
            for name in chosen
            for seed in _seeds(config)
            for folder, values in (("chosen/", chosen), ("fixed/", fixed))
        ]
        _record_stored(frozen, rows, found)
        _describe_stage1(frozen)
    diverged = sum(row["diverged"] is not None for row in found)
    metric = config.eval.choose
    say(
        f"chosen of {len(found):,} heads ({diverged:,} diverged) by the mean {metric} "
        f"on {len(session.task.splits.valid):,} validation images:"
    )
    scores = _scores(found, metric)
    for name, hyper in chosen.items():
        moving = [k for k in config.method[name].grid if k in hyper]
        numbers = ", ".join(f"{k} {hyper[k]}" for k in moving)
        means = list(scores[name].values())
        alike = means.count(max(means))
        tied = f" (the first of {alike} of {len(means)} settings with the best mean)"
        say(f"  {name}: {numbers or 'nothing to choose'}{tied if alike > 1 else ''}")
    return {
        "chosen": chosen,
        "fixed": fixed,
        "sweep": {
            "choose": metric,
            "curves": config.eval.curves,
            "heads": len(found),
            "diverged": diverged,
            "valid": {
                name: results.spread(
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


def choose(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """The hyper-parameters of each method with the best mean over its seeds.

    Reads validation alone. A setting that diverged under a seed is never chosen; of
    equal ones the first is.

    Args:
      rows: as in ``rows.json``.
      metric: of ``metrics.summary``.

    Raises:
      Diverged: all settings of a method did.
    """
    chosen = {}
    for method, means in _scores(rows, metric).items():
        best = max(means, key=lambda setting: means[setting])
        if not np.isfinite(means[best]):
            raise Diverged(f"every setting of {method} in the sweep diverged")
        chosen[method] = json.loads(best)
    return chosen


def _scores(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, dict[str, float]]:
    """What `choose` compares: by method and setting, as text, the mean over seeds."""
    sign = CHOOSE[metric]
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        value = row["metrics"]["valid"][metric] if row["diverged"] is None else None
        settings = scores.setdefault(row["method"], {})
        score = -np.inf if value is None else sign * value
        settings.setdefault(_text(row["hyper"]), []).append(score)
    return {
        method: {setting: float(np.mean(each)) for setting, each in settings.items()}
        for method, settings in scores.items()
    }


def evaluate_rows(session: Session, split: str, pattern: str) -> dict[str, Any]:
    """The metrics of the stored heads of a sweep whose name the pattern matches."""
    found = {}
    everything = processes.as_first(lambda: results.rows(session.workdir))
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
    rows = _rows(session.config, frozen.seed, grid=True)
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
        for stored in processes.as_first(lambda: results.rows(session.workdir))
        if stored["origin"] == origin and set(splits) <= set(stored["metrics"])
    }
    by_name = {row.name: row for row in rows}
    if have := len(by_name.keys() & there.keys()):
        session.log.say(
            f"sweep on stage1/{frozen.seed}: {have:,} of {len(rows):,} heads are there "
            "already"
        )
    for chunk, heads, seconds in _fit_rows(frozen, rows, frozenset(there)):
        own = [by_name[job.run] for job in chunk.jobs]
        made = _keep_chunk(frozen, own, chunk, heads, seconds, splits, origin)
        there |= {_row(stored).name: stored for stored in made}
    return [there[row.name] for row in rows]


def _keep_chunk(
    frozen: Frozen,
    rows: Sequence[Row],
    chunk: Chunk,
    fits: Sequence[Fit],
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
    processes.first_does(lambda: (folder / "rows.json").unlink(missing_ok=True))
    checkpoint.write(folder, 0, {"heads": stacked})
    made = [
        plain(
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
    text = json.dumps({"origin": origin, "rows": made}, indent=1)
    write_whole(folder / "rows.json", text + "\n")
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
        _budget(session.config),
    )
    with np.errstate(invalid="ignore", over="ignore"):  # of heads that diverged
        return [
            outcomes.summary(session, tally, head)
            for tally, head in zip(tallies, heads, strict=True)
        ]


def _measure_stored(
    frozen: Frozen, rows: Sequence[Row], split: str, stored: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Rows by name, those of one chunk, which are of one kind of head, together."""
    config, counts = frozen.session.config, frozen.session.task.splits.train.counts
    by_name = {}
    for group in _by_chunk([_find(row, stored) for row in rows]):
        _stop_if_asked(frozen.session, "the heads of the sweep")
        first = _row(group[0])
        method = make_method(config, first.method, counts, first.hyper)
        values = _measure(frozen, method, stored_heads(group), split)
        by_name |= {_row(s).name: v for s, v in zip(group, values, strict=True)}
    return {row.name: by_name[row.name] for row in rows}


def _by_chunk(stored: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of ``results.rows`` by the folder that holds their heads."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in stored:
        groups.setdefault(row["folder"], []).append(row)
    return list(groups.values())


def stored_heads(stored: Sequence[dict[str, Any]]) -> list[Params]:
    """The parameters of rows of one chunk of ``results.rows``, which is read once."""
    leaves = checkpoint.read(Path(stored[0]["folder"]) / "0")
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
            session.log.say(
                f"{folder}{row.title} diverged at step {step:,}: no figures"
            )
    whole = [entry for entry in due if entry[2]["diverged"] is None]
    for group in _by_chunk([stored for *_, stored in whole]):
        indices = [stored["index"] for stored in group]
        heads = dict(zip(indices, stored_heads(group), strict=True))
        for folder, row, stored in whole:
            if stored["folder"] == group[0]["folder"]:
                _stop_if_asked(session, "the chosen heads; those measured stay")
                fit = Fit(heads[stored["index"]], None)
                _record(frozen, row, fit, stored["seconds"], folder)


def _is_due(session: Session, title: str, row: Row) -> bool:
    """Whether a row has not been measured under this title yet."""
    directory = session.workdir / "checkpoints" / title
    outcome = processes.as_first(lambda: results.outcome(directory))
    if not (outcome and outcomes.done(session, title)):
        return True
    if outcome["hyper"] == plain(row.hyper):
        return False
    session.log.say(f"{title}: another setting is chosen now, measured again")
    return True


def _stop_if_asked(session: Session, where: str) -> None:
    """Raises ``Interrupted`` where a signal has come; of all processes together."""
    if by := session.stopped():
        raise Interrupted(where, by)


def _record(frozen: Frozen, row: Row, fit: Fit, seconds: float, folder: str) -> None:
    """Measures a head on the test set and marks the fit as finished."""
    session = frozen.session
    task, config = session.task, session.config
    counts = task.splits.train.counts
    method = make_method(config, row.method, counts, row.hyper)
    test, budget = frozen.features("test"), _budget(config)
    (tally,) = measure_heads(method.head, [fit.head], test, task.eval_batch, budget)
    epochs, images = row.hyper["epochs"], len(frozen.features("train").labels)
    ended = Fitted(
        {**frozen.network.params, "head": fit.head},
        frozen.network.batch_stats,
        epochs * -(-images // config.method.batch),
        seconds,
        epochs * images / seconds,
    )
    outcomes.save(
        session,
        folder + row.title,
        list(row.seeds),
        ended,
        tally,
        hyper=row.hyper,
        epochs=epochs,
        keeps="head",
        analysis=_analysis(frozen, method, fit.head),
    )


def _analysis(frozen: Frozen, method: Method, head: Params) -> dict[str, Any]:
    task = frozen.session.task
    valid, test = frozen.features("valid"), frozen.features("test")
    return analyse(method.head, head, valid, test, task.groups, task.eval_batch)


def _describe_stage1(frozen: Frozen) -> None:
    """Adds to the outcome of stage 1 what its own head does, for comparison."""
    directory = frozen.session.workdir / "checkpoints" / "stage1" / f"{frozen.seed}"
    outcome = processes.as_first(lambda: results.outcome(directory))
    if outcome and outcome.get("analysis") is None:
        method = frozen.session.methods["stage1"]
        head = frozen.network.params["head"]
        analysis = _analysis(frozen, method, head)
        results.save_outcome(directory, {**outcome, "analysis": analysis})


def _fit_rows(
    frozen: Frozen, rows: Sequence[Row], there: frozenset[str] = frozenset()
) -> Iterator[tuple[Chunk, list[Fit], float]]:
    """Chunk after chunk of fitted rows, and the seconds each took.

    Args:
      there: names of rows that are fitted already. They are part of the plan all the
        same, so that the others run the very program that a whole sweep runs, and a
        killed one ends with the bits of one that was not.
    """
    if all(row.name in there for row in rows):
        return
    session, began = frozen.session, time.monotonic()
    m, say = session.config.method, session.log.say
    train = frozen.features("train")
    for split in ("valid", "test"):
        frozen.features(split)
    say(
        f"features of stage1/{frozen.seed}: {len(train.labels):,} x "
        f"{train.values.shape[-1]} to fit on, {_some(len(train.values), 'view')}, "
        f"{m.feature_dtype}, {duration(time.monotonic() - began)}"
    )
    job = _job_maker(frozen)
    budget = _budget(session.config)
    planned = plan_chunks([job(row) for row in rows], m.batch, budget)
    left = [tuple(j for j in chunk.jobs if j.run not in there) for chunk in planned]
    chunks = [
        chunk._replace(jobs=jobs)
        for chunk, jobs in zip(planned, left, strict=True)
        if jobs
    ]
    jobs = [job for chunk in chunks for job in chunk.jobs]
    if any(job.method.correct and job.method.looks for job in jobs):
        frozen.plain()
    most = max(len(chunk.jobs) for chunk in chunks)
    say(
        f"{_some(len(jobs), 'head')} in {_some(len(chunks), 'chunk')} of at most "
        f"{most:,} (method.memory {m.memory} GiB), "
        f"{_some(programs_of(chunks), 'program')} to compile"
    )
    if not resident(train, budget):
        say("the features are larger than the devices may hold, and stream from disk")
    total = sum(job.epochs for job in jobs)
    with _Progress(session.log, total, session.config.log.seconds) as progress:
        where = "the heads on cached features; finished chunks stay"

        def after_epoch(heads: int) -> None:
            progress.add(heads)
            _stop_if_asked(session, where)

        begun = time.monotonic()
        for chunk, fits in fit_heads(
            chunks, train, m.batch, budget, after_epoch, frozen.plain
        ):
            seconds, begun = time.monotonic() - begun, time.monotonic()
            yield chunk, fits, seconds
            begun = time.monotonic()
            _stop_if_asked(session, where)
    say(
        f"{_some(len(jobs), 'head')} fitted and measured in "
        f"{duration(time.monotonic() - began)}, features included"
    )


def _some(count: int, what: str) -> str:
    """``1 view``, ``2 views``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class _Progress:
    """Tells how much is done and when it will be over, on a terminal or in lines."""

    def __init__(self, log: Log, total: int, seconds: float):
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
            self._log.say(f"heads | {share:.0%} of the epochs | {duration(left)} left")


def _job_maker(frozen: Frozen) -> Callable[[Row], Job]:
    """Rows to jobs; heads that start alike are made once."""
    session, c = frozen.session, frozen.session.config
    counts, m = session.task.splits.train.counts, c.method

    @functools.cache
    def started(init: Any, start: str, run: tuple[int, ...]) -> Params:
        like = Method(session.methods["stage1"].adjust, start=start)
        like = like._replace(head=like.head._replace(init=init))
        network = weights.with_head(
            session.task, c.model.init, frozen.network, like, run
        )
        return network.params["head"]

    def make(row: Row) -> Job:
        method = make_method(c, row.method, counts, row.hyper)
        run, hyper = (2, *row.seeds), row.hyper
        epochs, images = hyper["epochs"], len(frozen.features("train").labels)
        rates = session.rates(hyper["lr"], epochs, m, images)
        return Job(
            row.name,
            method,
            started(method.head.init, method.start, run),
            rates,
            projects(method, epochs, len(rates) // max(epochs, 1)),
            epochs,
            Sgd(m.momentum, m.nesterov, hyper["decay"], m.decay_on),
            run,
        )

    return make


def _rows(config: Config, stage1_seed: int, grid: bool) -> list[Row]:
    """All rows of a representation; without the grid those of the config's values."""
    own = own_values(config)
    return [
        Row(name, hyper, (stage1_seed, seed))
        for name in config.method.names
        for hyper in (grids.expand(config.method[name]) if grid else [own[name]])
        for seed in _seeds(config)
    ]


def own_values(config: Config) -> dict[str, dict[str, Any]]:
    """The config's own hyper-parameters of each method."""
    return {name: grids.own(config.method[name]) for name in config.method.names}


def _seeds(config: Config) -> range:
    return range(config.seed, config.seed + config.method.repeats)


def _budget(config: Config) -> float:
    """Bytes of each device for the features; as many again for the heads."""
    return config.method.memory * 2**30 / 2


def _text(hyper: dict[str, Any]) -> str:
    return json.dumps(plain(hyper), sort_keys=True)


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
