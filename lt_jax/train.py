"""The commands: train, retrain, both in one run, evaluate.

Here a config becomes the values that the loop works with. Both stages are fits of the
same loop; stage 2 differs in where it starts, in what it trains and in its method.

    workdir/checkpoints/stage1/SEED        one representation for each seed
    workdir/checkpoints/METHOD/SEED.SEED   stage-1 seed, stage-2 seed
    .../corrected                          what the method made of it after training
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import checkpoint, loop, metrics, models, optim, results, trees
from lt_jax.heads import Head, class_norms, linear
from lt_jax.log import duration, overview
from lt_jax.loop import Interrupted, Stage, evaluate, fit
from lt_jax.methods import Method
from lt_jax.optim import Sgd
from lt_jax.session import Session, open_session
from lt_jax.types import Config, Dataset, InputError, Params

CORRECTED = "corrected"


class Weights(NamedTuple):
    """A network: what stage 1 ends with and stage 2 starts from."""

    params: Params
    batch_stats: Params


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 1. Returns the content of ``result.json``."""
    return _command(config, workdir, _stage1)


def retrain(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 2 on the finished stage 1 of ``init.path``, or else of this workdir."""
    source = Path(config.init.path) if config.init.path else workdir
    return _command(config, workdir, lambda session: _stage2(session, source))


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Both stages; what is finished already is not done again."""
    return _command(config, workdir, _stage1, lambda session: _stage2(session, workdir))


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

    Args:
      split: ``train`` (the fitted examples, not augmented), ``valid`` or ``test``.

    Returns:
      The summary by run, for example ``los/0.2``.
    """
    _finished(workdir)
    with open_session(config, workdir, talks=False) as session:
        dataset = getattr(session.task.splits, split)
        if not len(dataset):
            raise InputError(f"the split {split!r} is empty: config.data.valid is 0")
        found = {}
        for name, method in session.methods.items():
            for outcome in results.outcomes(workdir, name):
                directory = workdir / "checkpoints" / outcome["run"]
                directory = directory / outcome.get("weights", "")
                fresh = _with_head(session, _fresh(session, 0), method, 0)
                weights = _loaded(directory, outcome, fresh, skip="")
                measured = _measure(session, method.head, weights, dataset)
                found[outcome["run"]] = measured["metrics"]
        return found


def _stage1(session: Session) -> None:
    c, o = session.config, session.config.optim
    for seed in range(c.seed, c.seed + o.repeats):
        if _done(session, f"stage1/{seed}"):
            continue
        start = _fresh(session, seed)
        if c.init.path:
            directory, outcome = _finished(Path(c.init.path))[0]
            start = _loaded(directory, outcome, start, c.init.skip)
        stage = Stage(
            title=f"stage1/{seed}",
            seed=seed,
            method=session.methods["stage1"],
            epochs=o.epochs,
            batch=o.batch,
            rates=_rates(session, o.lr, o.epochs, o),
            sgd=Sgd(o.momentum, o.nesterov, o.decay, o.decay_on),
            trains=o.trains,
            batch_norm=o.batch_norm,
        )
        _fit(session, stage, [seed], start)


def _stage2(session: Session, source: Path) -> None:
    c, m = session.config, session.config.method
    for directory, outcome in _finished(source):
        (stage1_seed,) = outcome["seeds"]
        fresh = _fresh(session, stage1_seed)
        stage1 = _loaded(directory, outcome, fresh, c.init.skip)
        if not _done(session, f"stage1/{stage1_seed}"):
            _adopt(session, directory, outcome, stage1)
        for name in m.names:
            method = session.methods[name]
            for seed in range(c.seed, c.seed + m.repeats):
                title = f"{name}/{stage1_seed}.{seed}"
                if _done(session, title):
                    continue
                stage = Stage(
                    title=title,
                    seed=seed,
                    method=method,
                    epochs=m[name].epochs,
                    batch=m.batch,
                    rates=_rates(session, m[name].lr, m[name].epochs, m),
                    sgd=Sgd(m.momentum, m.nesterov, m[name].decay, m.decay_on),
                    trains=f"head/(?:{method.head.trains})",
                    batch_norm=m.batch_norm,
                )
                start = _with_head(session, stage1, method, seed)
                _fit(session, stage, [stage1_seed, seed], start)


def _fit(session: Session, stage: Stage, seeds: list[int], start: Weights) -> None:
    """Fits, evaluates on the test set, and marks the fit as finished."""
    trained, _ = trees.partition(start.params, stage.trains)
    text = overview(start.params, trained)
    say = session.log.say
    say(text if stage.title.startswith("stage1") else text.splitlines()[-1])
    directory = session.workdir / "checkpoints" / stage.title
    fitted = fit(session.task, stage, *start, directory, session.log, session.stopped)
    pace = f"{fitted.images_per_second:,.0f} img/s" if stage.epochs else "untrained"
    say(
        f"{stage.title}: {stage.epochs} epochs in {duration(fitted.seconds)}, {pace}; "
        f"step {fitted.step:,} is kept"
    )
    weights, kept = Weights(fitted.params, fitted.batch_stats), ""
    if (correct := stage.method.correct) is not None:
        train = session.task.splits.train
        seen = jnp.asarray(loop.features(session.task, *weights, train))
        head = jax.device_get(weights.params["head"])
        head = correct(head, seen, jnp.asarray(train.labels))
        weights = weights._replace(params={**weights.params, "head": head})
        # Beside what was trained, not over it: a stopped run corrects only once.
        kept = CORRECTED
        checkpoint.write(directory / kept, fitted.step, weights)
    outcome = {
        "run": stage.title,
        "weights": kept,
        "seeds": seeds,
        "step": fitted.step,
        "epochs": stage.epochs,
        "fitted_on": session.task.splits.train.hash,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
        **_measure(session, stage.method.head, weights, session.task.splits.test),
    }
    results.save_outcome(directory, outcome)


def _measure(
    session: Session, head: Head, weights: Weights, dataset: Dataset
) -> dict[str, Any]:
    """``{"metrics": by name, "per_class": [K] by name}`` of a network on a split."""
    tally = evaluate(session.task, head, *weights, dataset)
    norms = np.asarray(class_norms(weights.params["head"]), np.float64)
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
    return results.outcome(session.workdir / "checkpoints" / title) is not None


def _finished(source: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Where the finished stage 1 of a workdir lie, or the one in this directory.

    Raises:
      InputError: there is none.
    """
    stage1 = sorted((source / "checkpoints" / "stage1").glob("*"))
    found = []
    for directory in stage1 or [source]:
        if (outcome := results.outcome(directory)) is not None:
            found.append((directory / outcome.get("weights", ""), outcome))
    if not found:
        raise InputError(
            f"no finished stage 1 in {source}: expected checkpoints/stage1/SEED/"
            "outcome.json there; run `lt-jax train` with this config first, or name "
            "the workdir of one with --config.init.path=..."
        )
    return found


def _adopt(
    session: Session, directory: Path, outcome: dict[str, Any], stage1: Weights
) -> None:
    """Measures a representation of another workdir by this one's protocol."""
    if outcome["fitted_on"] != session.task.splits.train.hash:
        session.log.say(
            f"NOTE: {directory} was fitted on other examples "
            f"({outcome['fitted_on']}) than are fitted here "
            f"({session.task.splits.train.hash}); it may have seen what is held out"
        )
    measured = _measure(session, linear, stage1, session.task.splits.test)
    results.save_outcome(
        session.workdir / "checkpoints" / outcome["run"],
        {**outcome, "weights": str(directory.resolve()), **measured},
    )


def _loaded(
    directory: Path, outcome: dict[str, Any], fresh: Weights, skip: str
) -> Weights:
    """The weights that a finished fit kept, in the structure of ``fresh``."""
    found = {
        name: leaf
        for name, leaf in checkpoint.read(directory, outcome["step"]).items()
        if name.startswith(("params/", "batch_stats/"))
    }
    where = f"{directory}/{outcome['step']}"
    return checkpoint.merge(found, fresh, skip, where)


def _fresh(session: Session, seed: int) -> Weights:
    """A network as initialised for stage 1."""
    task = session.task
    keys = jax.random.split(jax.random.key(seed))
    backbone, batch_stats = models.init(task.backbone, keys[0], task.splits.train.shape)
    head = _head(session, linear, None, keys[1])
    return Weights({"backbone": backbone, "head": head}, batch_stats)


def _with_head(session: Session, stage1: Weights, method: Method, seed: int) -> Weights:
    """The network of stage 1 with the head that a method starts from."""
    start = stage1.params["head"] if method.start == "stage1" else None
    head = _head(session, method.head, start, jax.random.key(seed))
    return stage1._replace(params={**stage1.params, "head": head})


def _head(session: Session, head: Head, start: Params | None, key: jax.Array) -> Params:
    num_features = models.features_of(session.task.backbone)
    num_classes = len(session.task.splits.counts)
    return head.init(key, start, num_features, num_classes, session.config.model.init)


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
            "features": "online",
            "select": task.select,
            "flip": task.flip,
            "group_limits": {"many": c.data.many, "few": c.data.few},
            "interrupted": interrupted,
        },
        methods={name: c.method[name].to_dict() for name in c.method.names},
    )
    report = results.write(session.workdir, result)
    fits = result["protocol"]["seeds"]
    say("")
    say(f"test set, mean ± standard deviation over {len(fits)} seeds, per cent:")
    say(results.table(result))
    say(f"report: {report}")
    return result
