"""Where a network comes from: fresh, or from a finished fit of any workdir."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lt_jax import models, seeds
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.experiment import results
from lt_jax.experiment.session import Session
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.training import checkpoint
from lt_jax.training.loop import Task, evaluate
from lt_jax.types import Params


class Weights(NamedTuple):
    """What stage 1 ends with and stage 2 starts from."""

    params: Params  # {"backbone": ..., "head": ...}
    batch_stats: Params


class Source(NamedTuple):
    """A finished fit: where it was recorded, and what."""

    directory: Path
    outcome: dict[str, Any]

    def kept(self) -> Path:
        """Where its weights lie; an absolute path names another workdir's."""
        return self.directory / self.outcome.get("weights", "")


def fresh(task: Task, init: str, run: tuple[int, ...]) -> Weights:
    """A network as initialised for stage 1."""
    params, batch_stats = models.init(
        task.backbone, seeds.key(run, "backbone"), task.splits.train.shape
    )
    head = _head(task, linear, None, init, run)
    return Weights({"backbone": params, "head": head}, batch_stats)


def blank(
    backbone: Any, head: Head, shape: tuple[int, int, int], num_classes: int
) -> Weights:
    """The shapes of a network for examples of this shape, to load weights into."""
    sizes = models.features_of(backbone), num_classes

    def make() -> Weights:
        key = jax.random.key(0)
        params, batch_stats = models.init(backbone, key, shape)
        own = head.init(key, None, *sizes, "torch")
        return Weights({"backbone": params, "head": own}, batch_stats)

    return jax.eval_shape(make)


def with_head(
    task: Task, init: str, stage1: Weights, method: Method, run: tuple[int, ...]
) -> Weights:
    """The network of stage 1 with the head that a method starts from."""
    start = stage1.params["head"] if method.start == "stage1" else None
    head = _head(task, method.head, start, init, run)
    return stage1._replace(params={**stage1.params, "head": head})


def _head(
    task: Task, head: Head, start: Params | None, init: str, run: tuple[int, ...]
) -> Params:
    num_features = models.features_of(task.backbone)
    num_classes = len(task.splits.full_class_counts)
    return head.init(seeds.key(run, "head"), start, num_features, num_classes, init)


def finished(path: Path) -> list[Source]:
    """The finished stage 1 of a workdir, by seed, or the one in this directory.

    What process 0 finds: all of them have to call this.

    Raises:
      InputError: there is none.
    """

    def find() -> list[tuple[str, dict[str, Any]]]:
        folders = [*(path / "checkpoints" / "stage1").glob("*"), path]
        each = [(str(folder), results.outcome(folder)) for folder in folders]
        return [(folder, outcome) for folder, outcome in each if outcome is not None]

    found = [Source(Path(folder), o) for folder, o in processes.from_process_zero(find)]
    if not found:
        raise InputError(
            f"no finished stage 1 in {path}: expected checkpoints/stage1/SEED/"
            "outcome.json there; run `lt-jax train` with this config first, or name "
            "the workdir of one with --config.init.path=..."
        )
    return sorted(found, key=lambda source: source.outcome["seeds"])


def loaded(source: Source, like: Weights, skip: str) -> Weights:
    """The weights that a finished fit kept.

    Args:
      like: the network they are for; leaves whose name ``skip`` matches keep its value.
      skip: regular expression over whole names, as in ``head/kernel``; "" skips none.

    Raises:
      InputError: they are gone, or of another network; lists the leaves.
    """
    return checkpoint.merge(kept_leaves(source), like, skip, str(source.kept()))


def kept_leaves(source: Source) -> dict[str, Any]:
    """Parameters and batch statistics by name, a head alone with its backbone's.

    Raises:
      InputError: they are gone.
    """
    found = _kept(source)
    if source.outcome.get("backbone"):  # a head alone, fitted on cached features
        root = source.directory.parents[len(Path(source.outcome["run"]).parts) - 1]
        directory = root / source.outcome["backbone"]
        outcome = results.outcome(directory)
        if outcome is None:
            raise InputError(
                f"{source.directory} holds a head alone, its backbone should be that "
                f"of {directory}, which is gone: move it back"
            )
        whole = _kept(Source(directory, outcome))
        rest = {n: a for n, a in whole.items() if not n.startswith("params/head/")}
        found = {**rest, **found}
    return found


def _kept(source: Source) -> dict[str, Any]:
    """The parameters and batch statistics of a finished fit by name."""
    step = source.kept() / str(source.outcome["step"])
    if not step.is_dir():
        raise InputError(
            f"the weights of {source.outcome['run']} are no longer at {step}: move "
            "them back, or start again from where they are with --config.init.path=..."
        )
    return {
        name: leaf
        for name, leaf in checkpoint.read(step).items()
        if name.startswith(("params/", "batch_stats/"))
    }


def representations(session: Session) -> Iterator[tuple[int, Weights]]:
    """The networks that stage 2 starts from, by the seed of their stage 1.

    Those of this workdir, else those of ``init.path``, which are measured by this
    workdir's protocol and noted in it.

    Raises:
      InputError: there are none, or of another network.
    """
    c, task = session.config, session.task
    stage1 = processes.from_process_zero(
        lambda: results.outcomes(session.workdir, "stage1")
    )
    own = [outcome for outcome in stage1 if "adopted_for" not in outcome]
    path, skip = Path(c.init.path).expanduser(), c.init.skip
    if own or not c.init.path:
        path, skip = session.workdir, ""
    for source in finished(path):
        outcome = source.outcome
        (seed,) = outcome["seeds"]
        network = loaded(source, fresh(task, c.model.init, (1, seed)), skip)
        if path != session.workdir and not session.finished(outcome["run"]):
            _adopt(session, source, network, skip)
        yield seed, network


def _adopt(session: Session, source: Source, network: Weights, skip: str) -> None:
    """Notes another workdir's stage 1 in this one, measured by this one's protocol."""
    task, outcome = session.task, source.outcome
    if outcome["fitted_on"] != task.splits.train.hash:
        session.log.info(
            f"NOTE: {source.directory} was fitted on other examples "
            f"({outcome['fitted_on']}) than are fitted here "
            f"({task.splits.train.hash}); it may have seen what is held out"
        )
    test, log = task.splits.test, session.log
    tally = evaluate(task, linear, *network, test, log, session.stop_requested)
    directory = session.workdir / "checkpoints" / outcome["run"]
    kept = str(source.kept().resolve())
    if skip:  # what was skipped lies nowhere else
        kept = results.FINAL
        checkpoint.write(directory / kept, outcome["step"], network._asdict())
    adopted = {
        **outcome,
        "weights": kept,
        "adopted_for": task.splits.train.hash,
        **results.measured(task, tally, network.params["head"]),
        "analysis": None,
    }
    results.save_outcome(directory, adopted)
