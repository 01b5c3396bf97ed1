"""Where a network comes from: fresh, or from a finished fit of any workdir."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lt_jax import checkpoint, models, results, seeds
from lt_jax.heads import Head, linear
from lt_jax.loop import Task
from lt_jax.methods import Method
from lt_jax.types import InputError, Params


class Weights(NamedTuple):
    """What stage 1 ends with and stage 2 starts from."""

    params: Params  # {"backbone": ..., "head": ...}
    batch_stats: Params


FINAL = "final"  # the folder of final weights that no checkpoint holds


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
    num_classes = len(task.splits.counts)
    return head.init(seeds.key(run, "head"), start, num_features, num_classes, init)


def finished(path: Path) -> list[Source]:
    """The finished stage 1 of a workdir, by seed, or the one in this directory.

    Raises:
      InputError: there is none.
    """
    found = []
    for directory in [*(path / "checkpoints" / "stage1").glob("*"), path]:
        if (outcome := results.outcome(directory)) is not None:
            found.append(Source(directory, outcome))
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
    step = source.kept() / str(source.outcome["step"])
    if not step.is_dir():
        raise InputError(
            f"the weights of {source.outcome['run']} are no longer at {step}: move "
            "them back, or start again from where they are with --config.init.path=..."
        )
    found = {
        name: leaf
        for name, leaf in checkpoint.read(step).items()
        if name.startswith(("params/", "batch_stats/"))
    }
    return checkpoint.merge(found, like, skip, str(step))
