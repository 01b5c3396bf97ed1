"""The commands that fit: train, retrain, both in one run, sweep.

Both stages are fits of the same training loop, each described by a ``Stage``. Stage 1
trains a network with cross-entropy; stage 2 starts from it and trains the head with a
method. On cached features, heads are fitted without the loop: see ``cached.py``.

    workdir/checkpoints/stage1/SEED        stage 1
    workdir/checkpoints/METHOD/SEED.SEED   stage 2, by the seeds of both stages
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lt_jax import metrics, models, samplers, trees
from lt_jax.distributed import processes, sharding
from lt_jax.errors import Diverged, Interrupted, first_few
from lt_jax.experiment import (
    cached,
    checks,
    result_json,
    results,
    stored,
    tables,
    weights,
)
from lt_jax.experiment import sweep as sweeping
from lt_jax.experiment.checks import rates
from lt_jax.experiment.config import UserConfig
from lt_jax.experiment.records import Config
from lt_jax.experiment.session import Session, open_session
from lt_jax.files import jsonable
from lt_jax.retraining.engine import apply_correction
from lt_jax.retraining.features import plain_features
from lt_jax.training.log import Logger, duration, parameter_table
from lt_jax.training.loop import evaluate, fit
from lt_jax.training.optim import Sgd
from lt_jax.training.stage import Stage, Task
from lt_jax.types import Weights


def train(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Train stage 1; return the content of ``result.json``."""
    return _command(config, workdir, _stage1)


def retrain(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Train stage 2, from the workdir's own stage 1 or that of ``init.path``."""
    return _command(config, workdir, _stage2)


def run(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Train both stages; skip fits that are finished."""
    return _command(config, workdir, _stage1, _stage2)


def sweep(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Train stage 2 at every point of the methods' grids, on cached features."""
    return _command(config, workdir, _stage1_on_features, sweeping.sweep)


def _command(
    config: UserConfig,
    workdir: Path,
    *stages: Callable[[Session], dict[str, Any] | None],
) -> dict[str, Any]:
    """Run stages one after the other, then write ``result.json`` and the tables."""
    sweeps = sweeping.sweep in stages

    def trains_stage1(c: Config, task: Task) -> bool:
        alone = isinstance(task.backbone, models.Identity) and not c.init.path
        return alone or _stage1 in stages

    def check(c: Config, task: Task) -> None:
        weights.check_start(c, task, workdir, stage1=trains_stage1(c, task))

    with open_session(config, workdir, sweeps=sweeps, check=check) as session:
        try:
            _plan(session, trains_stage1(session.config, session.task), stages[-1])
            found = [stage(session) for stage in stages]
        except Interrupted:
            _finish(session, interrupted=True)
            raise
        return _finish(session, sweep=found[-1])


def _plan(session: Session, stage1: bool, last: Callable[..., Any]) -> None:
    """Log the fits that are to be trained, by whether stage 1 is, and the last stage.

    The log counts the time that is left by the epochs of those on images.
    """
    c, grid, rows = session.config, last is sweeping.sweep, list[cached.Row]()
    seeds = [*range(c.seed, c.seed + c.optim.repeats)]
    if not stage1:
        path, _ = weights.origin(c, session.workdir)
        seeds = [source.outcome["seeds"][0] for source in stored.stage1(path)]
    titles = [f"stage1/{seed}" for seed in seeds if stage1]
    first = {t: c.optim.epochs for t in titles if not session.finished(t)}
    if last is not _stage1:
        rows = [row for seed in seeds for row in cached.rows_of(c, seed, grid)]
        rows = [row for row in rows if grid or not session.finished(row.title)]
    rows *= 1 + c.eval.folds
    epochs = [row.hyper["epochs"] for row in rows]
    online = c.method.features == "online" and not grid
    heads = zip((row.title for row in rows), epochs, strict=True)
    session.log.plan(first | dict(heads) if online else first)
    parts = [
        f"{len(each):,} x {name} ({sum(each):,} epochs)"
        for name, each in (("stage 1", first.values()), ("stage 2", epochs))
        if each
    ]
    if parts:
        devices = sharding.device_name()
        session.log.info(f"plan: {', '.join(parts)}, on {devices}")


def _stage1(session: Session) -> None:
    """Train the network of every seed that is not finished."""
    c, log = session.config, session.log
    titles = [f"stage1/{seed}" for seed in range(c.seed, c.seed + c.optim.repeats)]
    due = [title for title in titles if not session.finished(title)]
    for title in due:
        stage = first_stage(session, int(title.removeprefix("stage1/")))
        start, origin = weights.initial(session, stage.run)
        if title == due[0]:
            trained, _ = trees.partition(start.params, c.optim.trains)
            table, total = parameter_table(start.params, trained)
            log.detail(table)
            log.info(f"{total} (details: {session.workdir / 'log.txt'})")
        _fit(session, stage, start, {}, origin)


def first_stage(session: Session, seed: int) -> Stage:
    """Return stage 1 of a seed as configured."""
    o, size = session.config.optim, len(session.task.splits.train)
    images = samplers.examples_per_epoch(size, o.batch, o.drop_last)
    return Stage(
        title=f"stage1/{seed}",
        run=(1, seed),
        method=session.methods["stage1"],
        epochs=o.epochs,
        batch=o.batch,
        rates=rates(o, o.lr, o.epochs, images),
        sgd=Sgd(o.momentum, o.decay, o.decay_on),
        trains=o.trains,
        batch_norm=o.batch_norm,
        accumulate=o.accumulate,
        mixup=o.mixup,
    )


def _stage1_on_features(session: Session) -> None:
    """Train stage 1 if the data are features: it is only a linear head then."""
    no_backbone = isinstance(session.task.backbone, models.Identity)
    if no_backbone and not session.config.init.path:
        _stage1(session)


def _stage2(session: Session) -> None:
    """Train the head of every method and pair of seeds that is not finished."""
    c = session.config
    _stage1_on_features(session)
    for stage1_seed, stage1 in weights.representations(session):
        if c.method.features == "cached":
            cached.retrain_cached(session, stage1_seed, stage1)
            continue
        for row in cached.rows_of(c, stage1_seed, grid=False):
            stage = _second_stage(session, row)
            if not session.finished(stage.title):
                given = session.task, c.model.init, stage1, stage.method, stage.run
                _fit(session, stage, weights.with_head(*given), row.hyper)


def _second_stage(session: Session, row: cached.Row) -> Stage:
    """Return stage 2 of a method and two seeds as configured."""
    m, hyper, method = session.config.method, row.hyper, session.methods[row.method]
    images = len(session.task.splits.train)
    return Stage(
        title=row.title,
        run=(2, *row.seeds),
        method=method,
        epochs=hyper["epochs"],
        batch=m.batch,
        rates=rates(m, hyper["lr"], hyper["epochs"], images),
        sgd=Sgd(m.momentum, hyper["decay"], m.decay_on),
        trains=f"head/(?:{method.head.trains})",
        batch_norm=m.batch_norm,
        accumulate=m.accumulate,
        mixup=0.0,
    )


def _fit(
    session: Session,
    stage: Stage,
    start: Weights,
    hyper: dict[str, Any],
    origin: dict[str, Any] | None = None,
) -> None:
    """Train, evaluate on the test set, and save the fit as finished.

    For ``origin`` see `results.save_fit`.
    """
    session.raise_if_stopped(f"before {stage.title}")
    task, log = session.task, session.log
    fitted = fit(task, stage, start, session.workdir / "checkpoints" / stage.title)
    pace = f"{fitted.images_per_second:,.0f} img/s" if stage.epochs else "untrained"
    log.info(
        f"{stage.title}: {stage.epochs} epochs in {duration(fitted.seconds)}, {pace}; "
        f"kept step {fitted.step:,}"
    )
    network, train = fitted.network, task.splits.train
    keep = None  # the checkpoint has the weights, unless they are corrected
    if stage.method.correct is not None:
        head = apply_correction(
            stage.method,
            network.params["head"],
            train.labels,
            lambda: plain_features(task, network, train),
        )
        network = Weights({**network.params, "head": head}, network.batch_stats)
        keep, fitted = network._asdict(), fitted._replace(network=network)
    tally = evaluate(task, stage.method.head, network, task.splits.test)
    results.save_fit(
        session.workdir,
        task,
        fitted,
        tally,
        title=stage.title,
        hyper=hyper,
        epochs=stage.epochs,
        valid=session.validate(stage.method.head, network),
        keep=keep,
        origin=origin,
    )


def _finish(
    session: Session,
    interrupted: bool = False,
    sweep: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``result.json`` and the tables from all finished fits; log the table."""
    c, workdir, info = session.config, session.workdir, session.log.info
    before = interrupted and processes.from_process_zero(
        lambda: result_json.swept(workdir)
    )
    if before:
        info(f"{workdir / 'result.json'} still holds the previous sweep")
        return before
    protocol = {
        "batch_norm": c.method.batch_norm,
        "features": "cached" if sweep else c.method.features,
        "select": c.eval.select,
        "flip": c.eval.flip,
        "group_limits": {"many": c.data.many, "few": c.data.few},
        "group_average": c.eval.group_average,
        "interrupted": interrupted,
    }
    build = functools.partial(
        result_json.build,
        *(workdir, session.dataset, protocol),
        counts=checks.validated(c, session.task.splits),
        metric=metrics.COMPARED.get(c.eval.choose, c.eval.choose),
        margin=c.eval.margin,
        folds=c.eval.folds,
    )
    if sweep:
        result = build(sweep["chosen"], "chosen/")
        fixed = build(sweep["fixed"], "fixed/")
        result |= {"fixed": fixed["methods"], "sweep": sweep["sweep"]}
        if c.method.refit and not c.eval.folds and (best := result["recommended"]):
            _refit(session, best)
    else:
        result = build(cached.own_values(c))
    report = result_json.write(workdir, result)
    if not any(found["all"]["values"] for found in result["methods"].values()):
        info("no finished fits yet")
        return result
    info("")
    session.log.result(tables.text(result), functools.partial(tables.drawing, result))
    test = session.task.splits.test
    if unseen := [test.classes[k] for k in (test.class_counts == 0).nonzero()[0]]:
        info(
            f"classes without a test example have no accuracy: {first_few(unseen)}; "
            "a group of only such classes is nan"
        )
    info(f"tables: {report}")
    if not session.log.worked:
        info("nothing was left to do: every fit was finished")
    return result


def _refit(session: Session, best: dict[str, Any]) -> None:
    """Fit the recommended head and its stage 1 on training and validation examples."""
    c, name, folder = session.config, best["method"], session.workdir / results.REFIT
    splits, log = session.task.splits.joined(), Logger(folder, enabled=False)
    entries = {**c.method.entries, name: best["hyper"]}
    method: Any = {"names": (name,), "repeats": 1, "features": "cached"}
    method = dataclasses.replace(c.method, entries=entries, **method)
    optim = dataclasses.replace(c.optim, repeats=1)
    inner = session._replace(
        config=dataclasses.replace(c, method=method, optim=optim),
        workdir=folder,
        task=session.task._replace(splits=splits, log=log),
        log=log,
    )
    stage, first = (
        (_stage2, name) if name != "none" else (_stage1_on_features, "stage1")
    )
    title = f"{first}/{best['fit'].rpartition('/')[2]}"
    outcome, info = inner.finished(title), session.log.info
    if outcome is None or outcome["hyper"] != jsonable(best["hyper"]):
        file = folder / "checkpoints" / title / "outcome.json"
        processes.on_process_zero(lambda: file.unlink(missing_ok=True))
        info(f"fitting {name} again on all {len(splits.train):,} examples, to predict")
        try:
            stage(inner)
        except Diverged as error:
            info(f"WARNING: {error}; `lt-jax predict` uses the head from before")
            return
        session.log.worked = True
    again = stored.find(folder, [title]).outcome
    best |= {"refit": True, "test": result_json.on_test(again)}
