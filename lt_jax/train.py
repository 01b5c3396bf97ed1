"""The commands: train, retrain, both in one run, evaluate.

Here a config becomes the values that the loop works with. Both stages are fits of the
same loop; stage 2 differs in where it starts, in what it trains and in its method.

    workdir/checkpoints/stage1/SEED        one representation for each seed
    workdir/checkpoints/METHOD/SEED.SEED   stage-1 seed, stage-2 seed
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import (
    checkpoint,
    data,
    losses,
    methods,
    metrics,
    models,
    optim,
    results,
    samplers,
    steps,
    trees,
)
from lt_jax.data.augment import Augment
from lt_jax.heads import Head, class_norms, linear
from lt_jax.log import Log, duration, overview, plain, write_whole
from lt_jax.loop import Interrupted, Stage, Task, evaluate, fit
from lt_jax.methods import Method
from lt_jax.optim import Sgd
from lt_jax.types import Config, Dataset, InputError, Params, Splits, known

# May change between two commands in one workdir: no result depends on them.
FREE = ("data.dir", "save.", "log.", "eval.batch")

# What a method's entry in the config holds beside the numbers the method itself reads.
RECIPE = ("lr", "epochs")

SELECT = ("last", "validation", "test")


class Session(NamedTuple):
    """A command at work in a workdir."""

    config: Config
    workdir: Path
    task: Task
    dataset: dict[str, Any]  # as in result.json
    log: Log
    stopped: Callable[[], bool]  # whether Ctrl-C was pressed


class Weights(NamedTuple):
    """A network: what stage 1 ends with and stage 2 starts from."""

    params: Params
    batch_stats: Params


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 1. Returns the content of ``result.json``."""
    with _session(config, workdir) as session:
        _stage1(session)
        return _finish(session)


def retrain(config: Config, workdir: Path) -> dict[str, Any]:
    """Stage 2 on the finished stage 1 of ``init.path``, or else of this workdir."""
    with _session(config, workdir) as session:
        _stage2(session, Path(config.init.path) if config.init.path else workdir)
        return _finish(session)


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Both stages; what is finished already is not done again."""
    with _session(config, workdir) as session:
        _stage1(session)
        _stage2(session, workdir)
        return _finish(session)


def load_splits(config: Config) -> tuple[Splits, dict[str, np.ndarray]]:
    """The data of a config and the groups of its classes."""
    c = config.data
    splits = data.load(
        c.name,
        dir=c.dir,
        imbalance=c.imbalance,
        split=c.split,
        valid=c.valid,
        seed=c.valid_seed,
    )
    if not 0 <= c.few <= c.many:
        raise InputError(
            f"group limits must satisfy 0 <= few <= many, got {c.few} and {c.many}"
        )
    return splits, metrics.groups(splits.counts, c.many, c.few)


def evaluate_all(
    config: Config, workdir: Path, split: str
) -> dict[str, dict[str, float]]:
    """The metrics of every finished fit of a workdir on one of its splits.

    Args:
      split: ``train`` (the fitted examples, not augmented), ``valid`` or ``test``.

    Returns:
      The summary by run, for example ``los/0.2``.
    """
    with _session(config, workdir) as session:
        dataset = getattr(session.task.splits, split)
        if not len(dataset):
            raise InputError(f"the split {split!r} is empty: config.data.valid is 0")
        _finished(workdir)
        found = {}
        for name in ("stage1", *config.method.names):
            method = (
                _stage1_method(session) if name == "stage1" else _method(session, name)
            )
            for outcome in results.outcomes(workdir, name):
                directory = workdir / "checkpoints" / outcome["run"]
                directory = Path(outcome.get("weights", directory))
                fresh = _with_head(session, _fresh(session, 0), method, 0)
                weights = _loaded(directory, outcome, fresh, skip="")
                measured = _measure(session, method.head, weights, dataset)
                found[outcome["run"]] = measured["metrics"]
        return found


@contextlib.contextmanager
def _session(config: Config, workdir: Path) -> Iterator[Session]:
    """Checks everything that can be checked before the long work starts."""
    splits, groups = load_splits(config)
    c = config
    known("eval.select", c.eval.select, SELECT)
    known("optim.batch_norm", c.optim.batch_norm, steps.BATCH_NORM)
    known("method.batch_norm", c.method.batch_norm, steps.BATCH_NORM)
    known("optim.sampler", c.optim.sampler, samplers.POWERS)
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    log = Log(workdir)
    _check_same_config(c, workdir)
    task = Task(
        splits=splits,
        groups=groups,
        backbone=models.create(
            c.model.name,
            stem=c.model.stem,
            width=c.model.width,
            zero_init=c.model.zero_init,
            init=c.model.init,
            dtype=c.model.dtype,
            axis_name=steps.AXIS,
        ),
        augment=Augment(
            pad=c.data.pad,
            flip=c.data.flip,
            mean=tuple(c.data.mean),
            std=tuple(c.data.std),
        ),
        flip=c.eval.flip,
        eval_batch=c.eval.batch,
        eval_every=c.eval.every,
        save_every=c.save.every,
        select=c.eval.select,
        log_seconds=c.log.seconds,
    )
    dataset = results.describe(c.data.name, splits, groups)
    with _listening(log) as stopped:
        session = Session(c, workdir, task, dataset, log, stopped)
        for name in c.method.names:
            _method(session, name)  # so that a wrong number is told now
        _announce(session)
        try:
            yield session
        except Interrupted:
            _finish(session, interrupted=True)
            raise


@contextlib.contextmanager
def _listening(log: Log) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag; the second one stops at once."""
    pressed = False

    def note(_signal: int, _frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        log.say("Ctrl-C: stops after this step and saves; once more stops at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _check_same_config(config: Config, workdir: Path) -> None:
    """Stores the config, or refuses one that would mix two experiments."""
    file = workdir / "config.json"
    new = plain(config.to_dict())
    if file.exists():
        old = _flat(json.loads(file.read_text(encoding="utf-8")))
        now = _flat(new)
        lines = [
            f"  {key}: {old.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted(old.keys() | now.keys())
            if old.get(key) != now.get(key) and not key.startswith(FREE)
        ]
        if lines:
            raise InputError(
                f"{workdir} holds a run of another config:\n"
                + "\n".join(lines)
                + "\nUse another --workdir; a stage 1 is shared by --config.init.path."
            )
    write_whole(file, json.dumps(new, indent=1) + "\n")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _announce(session: Session) -> None:
    task, d, say = session.task, session.dataset, session.log.say
    config = session.config
    say(
        f"{d['name']}: {d['num_train']:,} training images ({d['num_valid']:,} held out "
        f"for validation), {d['num_test']:,} test images, {d['num_classes']} classes "
        f"of {d['counts_min']} to {d['counts_max']}, split {d['split_hash']}"
    )
    say(
        f"groups by training images: many > {config.data.many} "
        f"({d['groups']['many']} classes), medium ({d['groups']['medium']}), "
        f"few < {config.data.few} ({d['groups']['few']})"
    )
    kept = {
        "last": "the last checkpoint is kept",
        "validation": "the best checkpoint on validation is kept",
        "test": "THE TEST SET PICKS THE CHECKPOINT, as in the authors' code",
    }
    mirror = "averages over mirror images" if task.flip else "sees each image once"
    say(
        f"protocol: {kept[task.select]}; evaluation {mirror}; stage-2 batch norm "
        f"{config.method.batch_norm}; {steps.device_name()}"
    )


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
            method=_stage1_method(session),
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
            method = _method(session, name)
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
                    sgd=Sgd(m.momentum, m.nesterov, m.decay, m.decay_on),
                    trains="head/" + method.head.trains,
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
    say(
        f"{stage.title}: {stage.epochs} epochs in {duration(fitted.seconds)}, "
        f"{fitted.images_per_second:,.0f} img/s; step {fitted.step:,} is kept"
    )
    outcome = {
        "run": stage.title,
        "seeds": seeds,
        "step": fitted.step,
        "epochs": stage.epochs,
        "fitted_on": session.task.splits.train.hash,
        "seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
        **_measure(
            session,
            stage.method.head,
            Weights(fitted.params, fitted.batch_stats),
            session.task.splits.test,
        ),
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
            found.append((Path(outcome.get("weights", directory)), outcome))
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
    measured = _measure(session, linear(), stage1, session.task.splits.test)
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
    head = linear(session.config.model.init).init(
        keys[1],
        None,
        models.features_of(task.backbone),
        len(task.splits.counts),
    )
    return Weights({"backbone": backbone, "head": head}, batch_stats)


def _with_head(session: Session, stage1: Weights, method: Method, seed: int) -> Weights:
    """The network of stage 1 with the head that a method starts from."""
    head = method.head.init(
        jax.random.key(seed),
        stage1.params["head"] if method.start == "stage1" else None,
        models.features_of(session.task.backbone),
        len(session.task.splits.counts),
    )
    return stage1._replace(params={**stage1.params, "head": head})


def _stage1_method(session: Session) -> Method:
    """Stage 1 is cross-entropy on a fresh head."""
    return Method(
        losses.cross_entropy(len(session.task.splits.counts)),
        sampler=session.config.optim.sampler,
        start="fresh",
        head=linear(session.config.model.init),
    )


def _method(session: Session, name: str) -> Method:
    entries = session.config.method
    if name not in entries:
        raise InputError(
            f"config.method.names has {name!r}, but there is no config.method.{name}"
        )
    return methods.make(name, session.task.splits.train.counts, _hyper(entries[name]))


def _hyper(entry: Config) -> dict[str, Any]:
    return {key: entry[key] for key in entry if key not in RECIPE}


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
