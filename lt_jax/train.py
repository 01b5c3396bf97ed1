"""The commands: train, retrain, both in one run, evaluate.

Both stages are fits of the same loop; stage 2 differs in where it starts, in what it
trains and in its method.

    workdir/checkpoints/stage1/SEED        one representation for each seed
    workdir/checkpoints/METHOD/SEED.SEED   stage-1 seed, stage-2 seed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import grids, metrics, optim, results, trees, weights
from lt_jax.checkpoint import write
from lt_jax.heads import effective_norms, linear
from lt_jax.log import duration, overview
from lt_jax.loop import Fitted, Interrupted, Stage, evaluate, fit
from lt_jax.metrics import Tally
from lt_jax.optim import Sgd
from lt_jax.retrain import (
    Features,
    Job,
    cached_features,
    corrected,
    extract,
    fit_heads,
    measure_heads,
)
from lt_jax.session import Session, open_session
from lt_jax.types import Config, InputError, Params
from lt_jax.weights import Source, Weights


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 1. Returns the content of ``result.json``."""
    return _command(config, workdir, _stage1)


def retrain(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 2 on the stage 1 that this workdir trained, or else on ``init.path``'s."""
    return _command(config, workdir, _stage2)


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Both stages; what is finished already is not done again."""
    return _command(config, workdir, _stage1, _stage2)


def _command(
    config: Config, workdir: Path, *stages: Callable[[Session], None]
) -> dict[str, Any]:
    with open_session(config, workdir) as session:
        try:
            for stage in stages:
                stage(session)
        except Interrupted:
            _finish(session, interrupted=True)
            raise
        return _finish(session)


def evaluate_all(
    config: Config, workdir: Path, split: str
) -> dict[str, dict[str, float]]:
    """The metrics of every finished fit of a workdir on one of its splits.

    Writes nothing.

    Args:
      split: ``train`` (the fitted examples, not augmented), ``valid`` or ``test``.

    Returns:
      The summary by run, for example ``los/0.2``.
    """
    weights.finished(workdir)
    with open_session(config, workdir, talks=False) as session:
        task, init = session.task, config.model.init
        dataset = getattr(task.splits, split)
        if not len(dataset):
            raise InputError(f"the split {split!r} is empty: config.data.valid is 0")
        like = weights.fresh(task, init, (1, 0))
        found = {}
        for name in ("stage1", *config.method.names):
            method = session.methods[name]
            for outcome in results.outcomes(workdir, name):
                source = Source(workdir / "checkpoints" / outcome["run"], outcome)
                shaped = weights.with_head(task, init, like, method, (1, 0))
                network = weights.loaded(source, shaped, outcome.get("skip", ""))
                tally = evaluate(task, method.head, *network, dataset)
                measured = _figures(session, tally, network.params["head"])
                found[outcome["run"]] = measured["metrics"]
        return found


def _stage1(session: Session) -> None:
    c, o, init = session.config, session.config.optim, session.config.model.init
    told = False
    for seed in range(c.seed, c.seed + o.repeats):
        run = (1, seed)
        if _done(session, f"stage1/{seed}"):
            continue
        start = weights.fresh(session.task, init, run)
        if c.init.path:
            source = weights.finished(Path(c.init.path).expanduser())[0]
            session.log.say(f"stage1/{seed} starts from {source.directory}")
            start = weights.loaded(source, start, c.init.skip)
        if not told:
            trained, _ = trees.partition(start.params, o.trains)
            session.log.say(overview(start.params, trained))
            told = True
        stage = Stage(
            title=f"stage1/{seed}",
            run=run,
            method=session.methods["stage1"],
            epochs=o.epochs,
            batch=o.batch,
            rates=_rates(session, o.lr, o.epochs, o),
            sgd=Sgd(o.momentum, o.nesterov, o.decay, o.decay_on),
            trains=o.trains,
            batch_norm=o.batch_norm,
        )
        _fit(session, stage, [seed], start)


def _stage2(session: Session) -> None:
    c, m, init = session.config, session.config.method, session.config.model.init
    for source, stage1 in _representations(session):
        (stage1_seed,) = source.outcome["seeds"]
        stages = [
            Stage(
                title=f"{name}/{stage1_seed}.{seed}",
                run=(2, stage1_seed, seed),
                method=session.methods[name],
                epochs=m[name].epochs,
                batch=m.batch,
                rates=_rates(session, m[name].lr, m[name].epochs, m),
                sgd=Sgd(m.momentum, m.nesterov, m[name].decay, m.decay_on),
                trains=f"head/(?:{session.methods[name].head.trains})",
                batch_norm=m.batch_norm,
            )
            for name in m.names
            for seed in range(c.seed, c.seed + m.repeats)
            if not _done(session, f"{name}/{stage1_seed}.{seed}")
        ]
        starts = [
            weights.with_head(session.task, init, stage1, stage.method, stage.run)
            for stage in stages
        ]
        if m.features == "cached" and stages:
            _fit_cached(session, stages, stage1_seed, stage1, starts)
            continue
        for stage, start in zip(stages, starts, strict=True):
            _fit(session, stage, [stage1_seed, stage.run[-1]], start)


def _representations(session: Session) -> list[tuple[Source, Weights]]:
    """The networks that stage 2 starts from, measured by this workdir's protocol."""
    c, task = session.config, session.task
    stage1 = results.outcomes(session.workdir, "stage1")
    own = [outcome for outcome in stage1 if "adopted_for" not in outcome]
    path, skip = Path(c.init.path).expanduser(), c.init.skip
    if own or not c.init.path:
        path, skip = session.workdir, ""
    found = []
    for source in weights.finished(path):
        outcome = source.outcome
        like = weights.fresh(task, c.model.init, (1, *outcome["seeds"]))
        network = weights.loaded(source, like, skip)
        found.append((source, network))
        if path == session.workdir or _done(session, outcome["run"]):
            continue
        if outcome["fitted_on"] != task.splits.train.hash:
            session.log.say(
                f"NOTE: {source.directory} was fitted on other examples "
                f"({outcome['fitted_on']}) than are fitted here "
                f"({task.splits.train.hash}); it may have seen what is held out"
            )
        tally = evaluate(task, linear, *network, task.splits.test)
        adopted = {
            **outcome,
            "weights": str(source.kept().resolve()),
            "skip": skip,
            "adopted_for": task.splits.train.hash,
            **_figures(session, tally, network.params["head"]),
        }
        directory = session.workdir / "checkpoints" / outcome["run"]
        results.save_outcome(directory, adopted)
    return found


def _fit(session: Session, stage: Stage, seeds: list[int], start: Weights) -> None:
    """Fits, evaluates on the test set, and marks the fit as finished."""
    if session.stopped():
        raise Interrupted(f"{stage.title}, which has not begun")
    task, say = session.task, session.log.say
    directory = session.workdir / "checkpoints" / stage.title
    fitted = fit(task, stage, *start, directory, session.log, session.stopped)
    pace = f"{fitted.images_per_second:,.0f} img/s" if stage.epochs else "untrained"
    say(
        f"{stage.title}: {stage.epochs} epochs in {duration(fitted.seconds)}, {pace}; "
        f"step {fitted.step:,} is kept"
    )
    if stage.method.correct is not None:
        network = fitted.params, fitted.batch_stats
        seen = extract(task, *network, task.splits.train, "plain")
        train = Features(seen[None], task.splits.train.labels)
        head = corrected(stage.method, fitted.params["head"], train)
        fitted = fitted._replace(params={**fitted.params, "head": head})
    tally = evaluate(
        task, stage.method.head, fitted.params, fitted.batch_stats, task.splits.test
    )
    _save_outcome(session, stage, seeds, fitted, tally)


def _fit_cached(
    session: Session,
    stages: list[Stage],
    stage1_seed: int,
    stage1: Weights,
    starts: list[Weights],
) -> None:
    """Fits the heads of all stages side by side on the features of one backbone."""
    task, say, began = session.task, session.log.say, time.monotonic()
    folder = session.workdir / "features" / f"{stage1_seed}"

    def features(split: str, views: list[str]) -> Features:
        file = folder / f"{split}.npy"
        dataset = getattr(task.splits, split)
        return cached_features(task, *stage1, dataset, views, file, session.log)

    train = features("train", ["plain"])
    test = features("test", ["plain", "mirror"] if task.flip else ["plain"])
    say(
        f"features of stage1/{stage1_seed}: {len(train.labels):,} x "
        f"{train.values.shape[-1]} to fit on, {duration(time.monotonic() - began)}"
    )
    jobs = [
        Job(s.title, s.method, start.params["head"], s.rates, s.epochs, s.sgd, s.run)
        for s, start in zip(stages, starts, strict=True)
    ]
    began = time.monotonic()
    examples = sum(stage.epochs for stage in stages) * len(train.labels)
    with session.log.bar("heads", 0, examples) as bar:

        def after_epoch(heads: int) -> None:
            bar.update(heads * len(train.labels))
            if session.stopped():
                raise Interrupted("the heads on cached features, which begin anew")

        fitted = fit_heads(jobs, train, stages[0].batch, after_epoch)
    seconds = time.monotonic() - began
    say(f"{len(jobs)} heads on cached features: {duration(seconds)}")
    for stage, head in zip(stages, fitted, strict=True):
        (tally,) = measure_heads(stage.method.head, [head], test, task.eval_batch)
        params, step = {**stage1.params, "head": head}, len(stage.rates)
        ended = Fitted(
            params, stage1.batch_stats, step, seconds / len(jobs), examples / seconds
        )
        _save_outcome(session, stage, [stage1_seed, stage.run[-1]], ended, tally)


def _save_outcome(
    session: Session, stage: Stage, seeds: list[int], fitted: Fitted, tally: Tally
) -> None:
    """Marks a fit as finished, with what came of it.

    Weights that no checkpoint holds (of a head that was corrected after training, or
    fitted on cached features) are written beside the checkpoints first.
    """
    directory = session.workdir / "checkpoints" / stage.title
    cached = session.config.method.features == "cached" and len(seeds) > 1
    kept = ""
    if cached or stage.method.correct is not None:
        kept = weights.FINAL
        network = Weights(fitted.params, fitted.batch_stats)
        write(directory / kept, fitted.step, network._asdict())
    outcome = {
        "run": stage.title,
        "weights": kept,
        "seeds": seeds,
        "step": fitted.step,
        "epochs": stage.epochs,
        "fitted_on": session.task.splits.train.hash,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
        **_figures(session, tally, fitted.params["head"]),
    }
    results.save_outcome(directory, outcome)


def _figures(session: Session, tally: Tally, head: Params) -> dict[str, Any]:
    """``{"metrics": by name, "per_class": [K] by name}``."""
    norms = np.asarray(effective_norms(head), np.float64)
    return {
        "metrics": {
            **metrics.summary(tally, session.task.groups),
            "weight_norm": float(norms.mean()),
            "weight_norm_spread": float(norms.std() / norms.mean()),
        },
        "per_class": {
            "class": list(session.task.splits.train.classes),
            "train_count": session.task.splits.counts,
            **metrics.per_class(tally),
            "weight_norm": norms,
        },
    }


def _done(session: Session, title: str) -> bool:
    """Whether this fit has finished here, on these examples."""
    directory = session.workdir / "checkpoints" / title
    outcome = results.outcome(directory)
    if outcome is None:
        return False
    now = session.task.splits.train.hash
    if (before := outcome.get("adopted_for", outcome["fitted_on"])) != now:
        raise InputError(
            f"{directory} was finished on other examples ({before}) than the data now "
            f"hold ({now}); use another --workdir"
        )
    return True


def _rates(session: Session, lr: float, epochs: int, group: Config) -> np.ndarray:
    per_epoch = -(-len(session.task.splits.train) // group.batch)
    return optim.rates(lr, epochs, per_epoch, group.warmup, group.schedule)


def _finish(session: Session, interrupted: bool = False) -> dict[str, Any]:
    """Writes ``result.json`` and the report from what has finished; shows the table."""
    c, task, say = session.config, session.task, session.log.say
    result = results.build(
        session.workdir,
        session.dataset,
        protocol={
            "batch_norm": c.method.batch_norm,
            "features": c.method.features,
            "select": task.select,
            "flip": task.flip,
            "group_limits": {"many": c.data.many, "few": c.data.few},
            "interrupted": interrupted,
        },
        methods={name: grids.own(c.method[name]) for name in c.method.names},
    )
    report = results.write(session.workdir, result)
    say("")
    say(results.caption(result))
    say(results.table(result))
    say(f"report: {report}")
    return result
