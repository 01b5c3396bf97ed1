"""Networks to start from: freshly initialised, or loaded from a finished fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lt_jax import models, seeds
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment import results, stored
from lt_jax.experiment.records import Config
from lt_jax.experiment.session import Session
from lt_jax.experiment.stored import Source
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.pretrained import load as pretrained
from lt_jax.retraining.features import standardise
from lt_jax.retraining.selection import number
from lt_jax.training import checkpoint
from lt_jax.training.loop import evaluate
from lt_jax.training.stage import FitResult, Task
from lt_jax.types import Params, Weights


def fresh(task: Task, init: str, run: tuple[int, ...]) -> Weights:
    """Initialise a network for stage 1."""
    key = seeds.key(run, "backbone")
    params, batch_stats = models.init(task.backbone, key, task.splits.train.shape)
    head = _new_head(task, linear, None, init, run)
    return Weights({"backbone": params, "head": head}, batch_stats)


def initial(
    session: Session, run: tuple[int, ...]
) -> tuple[Weights, dict[str, Any] | None]:
    """Make the network that stage 1 starts from; return it with its provenance."""
    c, task = session.config, session.task
    start, origin = fresh(task, c.model.init, run), None
    if c.data.norm:
        train = task.splits.train
        values = train.read(np.arange(len(train))).reshape(len(train), -1)
        _, centre, scale = standardise(values, c.data.norm)
        stats = {"centre": centre, "scale": np.float32(scale)}
        start = start._replace(batch_stats=stats)
    if c.init.path:
        start, origin, place = _given(c, task, start)
        session.log.info(f"stage 1 starts from {place}")
    return start, origin


def _given(
    config: Config, task: Task, like: Weights
) -> tuple[Weights, dict[str, Any] | None, str]:
    """Load what ``init.path`` gives to stage 1, its provenance, and a name for it."""
    path, skip = config.init.path, config.init.skip
    if not pretrained.is_weights(path):
        source = stored.stage1(Path(path).expanduser())[0]
        return stored.load(source, like, skip), None, f"{source.directory}"
    found = pretrained.find(path, config.init.sha256)
    channels = task.splits.train.shape[2]
    leaves = pretrained.backbone(found, config.model.name, task.backbone, channels)
    skip = "|".join(filter(None, ["head/.*", skip]))
    network = checkpoint.merge_leaves(leaves, like, skip, path)
    return network, {"initial": found.notes}, f"{path}, SHA-256 {found.notes['sha256']}"


def with_head(
    task: Task, init: str, stage1: Weights, method: Method, run: tuple[int, ...]
) -> Weights:
    """Replace the head of stage 1 by the one that a method starts from."""
    start = stage1.params["head"] if method.start == "stage1" else None
    head = _new_head(task, method.head, start, init, run)
    return stage1._replace(params={**stage1.params, "head": head})


def _new_head(
    task: Task, head: Head, start: Params | None, init: str, run: tuple[int, ...]
) -> Params:
    sizes = task.backbone.num_features, len(task.splits.full_class_counts)
    return head.init(seeds.key(run, "head"), start, *sizes, init)


def origin(config: Config, workdir: Path) -> tuple[Path, str]:
    """Where stage 2 finds stage 1, and what it skips there."""
    own = (
        s for s in stored.fits(workdir, ["stage1"]) if "adopted_for" not in s.outcome
    )
    if any(own) or not config.init.path:
        return workdir, ""
    if pretrained.is_weights(config.init.path):
        raise InputError(
            f"{config.init.path} is a backbone without a trained head: use `lt-jax "
            "run`, whose stage 1 trains one (and no more, with "
            "--config.optim.trains='head/.*')"
        )
    return Path(config.init.path).expanduser(), config.init.skip


def check_start(config: Config, task: Task, workdir: Path, stage1: bool) -> None:
    """Load what a command starts from, before it writes a config to its workdir.

    Raises InputError if there is none, or if it is that of another network. ``stage1``
    is whether the command trains stage 1.
    """
    num_classes = len(task.splits.full_class_counts)
    like = stored.blank(task.backbone, linear, task.splits.train.shape, num_classes)
    if not stage1:
        path, skip = origin(config, workdir)
        for source in stored.stage1(path):
            processes.together(functools.partial(stored.load, source, like, skip))
    elif config.init.path:
        processes.together(functools.partial(_given, config, task, like))


def representations(session: Session) -> Iterator[tuple[int, Weights]]:
    """Load the networks that stage 2 starts from, with the seed of their stage 1.

    They are the workdir's own, or else those of ``init.path``. The latter are evaluated
    by this workdir's protocol and recorded in it.
    """
    c, task = session.config, session.task
    path, skip = origin(c, session.workdir)
    for source in stored.stage1(path):
        seed = source.outcome["seeds"][0]
        network = stored.load(source, fresh(task, c.model.init, (1, seed)), skip)
        if path != session.workdir and not session.finished(f"stage1/{seed}"):
            _adopt(session, source, network)
        yield seed, network


def _adopt(session: Session, source: Source, network: Weights) -> None:
    """Copy another workdir's stage 1 to this one, evaluated by its protocol."""
    task, outcome = session.task, source.outcome
    examples, seed = task.splits.train.hash, outcome["seeds"][0]
    if outcome["fitted_on"] != examples:
        session.log.info(
            f"NOTE: {source.directory} was fitted on another training set "
            f"({outcome['fitted_on']}, here it is {examples}); its training data may "
            "overlap this validation split"
        )
    results.save_fit(
        session.workdir,
        task,
        FitResult(
            network,
            step=outcome["step"],
            seconds=number(outcome.get("seconds")),
            images_per_second=number(outcome.get("images_per_second")),
        ),
        evaluate(task, linear, network, task.splits.test),
        title=f"stage1/{seed}",
        hyper={},
        epochs=outcome.get("epochs"),
        valid=session.validate(linear, network),
        keep=network._asdict(),
        origin={"fitted_on": outcome["fitted_on"], "adopted_for": examples},
    )
