"""The commands: train, retrain, both in one run, sweep, evaluate.

Both stages are fits of the same loop; stage 2 differs in where it starts, in what it
trains and in its method. On cached features, see ``cached``, heads are fitted without
the loop.

    workdir/checkpoints/stage1/SEED        one representation for each seed
    workdir/checkpoints/METHOD/SEED.SEED   stage-1 seed, stage-2 seed
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import metrics, models, samplers, trees
from lt_jax.distributed import processes
from lt_jax.errors import InputError, Interrupted
from lt_jax.experiment import cached, results, tables, weights
from lt_jax.experiment import sweep as sweeping
from lt_jax.experiment.config import UserConfig, check_sweep
from lt_jax.experiment.session import Session, open_session, workdir_lock
from lt_jax.experiment.weights import Weights
from lt_jax.metrics import Tally
from lt_jax.retraining.engine import apply_correction
from lt_jax.retraining.features import Features, plain_features
from lt_jax.training.log import duration, parameter_table
from lt_jax.training.loop import Stage, evaluate, fit
from lt_jax.training.optim import Sgd


def train(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Stage 1. Returns the content of ``result.json``."""
    return _command(config, workdir, _stage1)


def retrain(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Stage 2 on the stage 1 that this workdir trained, or else on ``init.path``'s."""
    return _command(config, workdir, _stage2)


def run(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Both stages; what is finished already is not done again."""
    return _command(config, workdir, _stage1, _stage2)


def sweep(config: UserConfig, workdir: Path) -> dict[str, Any]:
    """Stage 2 at every point of the methods' grids, on cached features."""
    with open_session(config, workdir, check=check_sweep) as session:
        try:
            _probe(session)
            made = sweeping.sweep(session)
        except Interrupted:
            _finish(session, interrupted=True)
            raise
        return _finish(session, sweep=made)


def _command(
    config: UserConfig, workdir: Path, *stages: Callable[[Session], None]
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
    config: UserConfig, workdir: Path, split: str, heads: str = ""
) -> dict[str, dict[str, Any]]:
    """The metrics of every finished fit of a workdir on one of its splits.

    Writes nothing, but for features of the split where ``heads`` needs them.

    Args:
      split: ``train`` (the fitted examples, not augmented), ``valid`` or ``test``.
      heads: regular expression; instead of the fits, the heads of the sweep whose name
        it matches, as in ``los lr=0.005.*delta=0.98``.

    Returns:
      The summary by run, for example ``los/0.2``; of fits also ``lowest``: names and
      accuracies of the classes that are recognised least.
    """
    weights.finished(workdir)
    with open_session(config, workdir, writes=False) as session:
        task = session.task
        dataset = getattr(task.splits, split)
        if not len(dataset):
            raise InputError(f"the split {split!r} is empty: config.data.valid is 0")
        if heads:
            with workdir_lock(workdir):  # features may have to be made
                return sweeping.evaluate_rows(session, split, heads)
        names = session.config.method.names
        kinds = [f"{kind}/{name}" for kind in ("chosen", "fixed") for name in names]
        fits = weights.fits(workdir, ["stage1", *names, *kinds])
        session.log.warning(f"evaluating {len(fits)} fits on {len(dataset):,} images")
        found = {}
        sizes = task.splits.train.shape, len(task.splits.full_class_counts)
        for source in fits:
            head, network = weights.load_fit(source, task.backbone, *sizes)
            tally = evaluate(
                task,
                head,
                *network,
                dataset,
                log=session.log,
                stop_requested=session.stop_requested,
            )
            found[source.outcome["run"]] = {
                **results.summary(task, tally, network.params["head"]),
                "lowest": _lowest(tally, dataset.classes),
            }
        return found


def _lowest(tally: Tally, classes: tuple[str, ...]) -> list[tuple[str, float]]:
    """The three classes of lowest accuracy among those that have examples."""
    accuracy = metrics.per_class(tally)["accuracy"]
    order = np.argsort(accuracy, kind="stable")  # nan comes last
    return [(classes[k], float(accuracy[k])) for k in order[:3] if accuracy[k] >= 0]


def _stage1(session: Session) -> None:
    c, o, init = session.config, session.config.optim, session.config.model.init
    told = False
    for seed in range(c.seed, c.seed + o.repeats):
        run = (1, seed)
        if session.finished(f"stage1/{seed}"):
            continue
        start = weights.fresh(session.task, init, run)
        if c.init.path:
            source = weights.finished(Path(c.init.path).expanduser())[0]
            session.log.info(f"stage1/{seed} starts from {source.directory}")
            start = weights.load(source, start, c.init.skip)
        if not told:
            trained, _ = trees.partition(start.params, o.trains)
            table, sums = parameter_table(start.params, trained)
            session.log.detail(table)
            session.log.info(f"{sums} (each: {session.workdir / 'log.txt'})")
            told = True
        _fit(session, first_stage(session, seed), [seed], start, {})


def first_stage(session: Session, seed: int) -> Stage:
    """Stage 1 of a seed as the config has it."""
    o, size = session.config.optim, len(session.task.splits.train)
    images = samplers.examples_per_epoch(size, o.batch, o.drop_last)
    return Stage(
        title=f"stage1/{seed}",
        run=(1, seed),
        method=session.methods["stage1"],
        epochs=o.epochs,
        batch=o.batch,
        rates=session.rates(o.lr, o.epochs, o, images),
        sgd=Sgd(o.momentum, o.decay, o.decay_on),
        trains=o.trains,
        batch_norm=o.batch_norm,
        accumulate=o.accumulate,
        mixup=o.mixup,
        drop_last=o.drop_last,
    )


def _probe(session: Session) -> None:
    """Stage 1 where it has nothing to learn but the head: features from elsewhere."""
    bare = isinstance(session.task.backbone, models.Identity)
    if bare and not session.config.init.path:
        _stage1(session)


def _stage2(session: Session) -> None:
    c, m, init = session.config, session.config.method, session.config.model.init
    _probe(session)
    for stage1_seed, stage1 in weights.representations(session):
        if m.features == "cached":
            cached.retrain_cached(session, stage1_seed, stage1)
            continue
        for name in m.names:
            for seed in range(c.seed, c.seed + m.repeats):
                title, method = f"{name}/{stage1_seed}.{seed}", session.methods[name]
                entry = m.entries[name]
                if session.finished(title):
                    continue
                stage = Stage(
                    title=title,
                    run=(2, stage1_seed, seed),
                    method=method,
                    epochs=entry.epochs,
                    batch=m.batch,
                    rates=session.rates(
                        entry.lr, entry.epochs, m, len(session.task.splits.train)
                    ),
                    sgd=Sgd(m.momentum, entry.decay, m.decay_on),
                    trains=f"head/(?:{method.head.trains})",
                    batch_norm=m.batch_norm,
                    accumulate=m.accumulate,
                    mixup=0.0,
                    drop_last=False,
                )
                start = weights.with_head(session.task, init, stage1, method, stage.run)
                hyper = cached.own_values(c)[name]
                _fit(session, stage, [stage1_seed, seed], start, hyper)


def _fit(
    session: Session,
    stage: Stage,
    seeds: list[int],
    start: Weights,
    hyper: dict[str, Any],
) -> None:
    """Fits, evaluates on the test set, and marks the fit as finished."""
    session.raise_if_stopped(f"{stage.title}, which has not begun")
    task, info = session.task, session.log.info
    directory = session.workdir / "checkpoints" / stage.title
    fitted = fit(
        task,
        stage,
        *start,
        directory,
        log=session.log,
        stop_requested=session.stop_requested,
    )
    pace = f"{fitted.images_per_second:,.0f} img/s" if stage.epochs else "untrained"
    info(
        f"{stage.title}: {stage.epochs} epochs in {duration(fitted.seconds)}, {pace}; "
        f"step {fitted.step:,} is kept"
    )
    keep = None
    if stage.method.correct is not None:
        network = fitted.params, fitted.batch_stats

        def plain() -> Features:
            return plain_features(
                task,
                *network,
                task.splits.train,
                log=session.log,
                stop_requested=session.stop_requested,
            )

        head, labels = fitted.params["head"], task.splits.train.labels
        head = apply_correction(stage.method, head, labels, plain)
        fitted = fitted._replace(params={**fitted.params, "head": head})
        keep = {"params": fitted.params, "batch_stats": fitted.batch_stats}
    head, test = stage.method.head, task.splits.test
    ended = fitted.params, fitted.batch_stats
    tally = evaluate(
        task, head, *ended, test, log=session.log, stop_requested=session.stop_requested
    )
    results.save_fit(
        session.workdir,
        task,
        fitted,
        tally,
        title=stage.title,
        seeds=seeds,
        hyper=hyper,
        epochs=stage.epochs,
        keep=keep,
    )


def _finish(
    session: Session,
    interrupted: bool = False,
    sweep: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes ``result.json`` and the report from what has finished; shows the table."""
    c, task, info = session.config, session.task, session.log.info
    before = processes.from_process_zero(lambda: results.swept(session.workdir))
    if interrupted and before:
        info(f"{session.workdir / 'result.json'} still holds the previous sweep")
        return before

    def build(hyper: dict[str, Any], folder: str) -> dict[str, Any]:
        return results.build(
            session.workdir,
            session.dataset,
            protocol={
                "batch_norm": c.method.batch_norm,
                "features": "cached" if sweep else c.method.features,
                "select": task.select,
                "flip": task.flip,
                "group_limits": {"many": c.data.many, "few": c.data.few},
                "interrupted": interrupted,
            },
            methods=hyper,
            folder=folder,
        )

    if sweep:
        result = build(sweep["chosen"], "chosen/")
        fixed = build(sweep["fixed"], "fixed/")["methods"]
        result |= {"fixed": fixed, "sweep": sweep["sweep"]}
    else:
        result = build(cached.own_values(c), "")
    report = results.write(session.workdir, result)
    if not any(found["all"]["values"] for found in result["methods"].values()):
        info("no fit has ended so far, so there is nothing to show")
        return result
    info("")
    info(tables.text(result))
    info(f"tables: {report}")
    return result
