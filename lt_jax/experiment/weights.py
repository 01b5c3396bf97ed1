"""Networks to start from: freshly initialised, or loaded from a finished fit.

All processes use the finished fits that process 0 finds: on a shared file system the
others may see an older state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import models, seeds
from lt_jax.distributed import processes
from lt_jax.errors import InputError, one_of, suggest
from lt_jax.experiment import results
from lt_jax.experiment.config import make_method
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.session import Session
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.training import checkpoint
from lt_jax.training.loop import Task
from lt_jax.types import Params


class Weights(NamedTuple):
    """A network: what stage 1 ends with and stage 2 starts from."""

    params: Params  # {"backbone": ..., "head": ...}
    batch_stats: Params


class Source(NamedTuple):
    """A finished fit."""

    directory: Path
    outcome: Outcome

    def kept(self) -> Path:
        """Folder of its weights, which may be in another workdir."""
        return self.directory / self.outcome.get("weights", "")


def fresh(task: Task, init: str, run: tuple[int, ...]) -> Weights:
    """Initialise a network for stage 1."""
    key = seeds.key(run, "backbone")
    params, batch_stats = models.init(task.backbone, key, task.splits.train.shape)
    head = _new_head(task, linear, None, init, run)
    return Weights({"backbone": params, "head": head}, batch_stats)


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
    sizes = models.features_of(task.backbone), len(task.splits.full_class_counts)
    return head.init(seeds.key(run, "head"), start, *sizes, init)


def blank(
    backbone: Any, head: Head, shape: tuple[int, int, int], num_classes: int
) -> Weights:
    """Return shapes and dtypes of a network for examples of shape H, W, C."""
    params, batch_stats = models.shapes(backbone, shape)
    key, sizes = jax.random.key(0), (models.features_of(backbone), num_classes)
    own = jax.eval_shape(lambda: head.init(key, None, *sizes, "torch"))
    return Weights({"backbone": params, "head": own}, batch_stats)


def finished(path: Path) -> list[Source]:
    """Find the finished stage 1 of a workdir, by seed, or the one in this folder."""
    folders = [*(path / "checkpoints" / "stage1").glob("*"), path]
    found = _sources(lambda: [(f, results.outcome(f)) for f in folders])
    if not found:
        raise InputError(
            f"no finished stage 1 in {path}: expected checkpoints/stage1/SEED/"
            "outcome.json. Run `lt-jax train` with this config first, or give a "
            "workdir that has one with --config.init.path=..."
        )
    return sorted(found, key=lambda source: source.outcome["seeds"])


def fits(workdir: Path, folders: Sequence[str]) -> list[Source]:
    """Find the finished fits in these folders of the checkpoints, by seeds in each."""

    def find() -> list[tuple[Path, Outcome | None]]:
        return [
            (workdir / "checkpoints" / outcome["run"], outcome)
            for folder in folders
            for outcome in results.outcomes(workdir, folder)
        ]

    return _sources(find)


def find(workdir: Path, names: Sequence[str], seeds: str = "") -> Source:
    """Find a finished fit by name.

    Args:
      names: the first that is finished is taken. A method such as ``los``, as a sweep
        chose it if there was one; a folder such as ``fixed/los``; a fit such as
        ``los/0.2``; ``stage1`` or ``none``.
      seeds: as in ``0.2``; "" takes the first.

    Raises:
      InputError: there is none.
    """
    points = workdir / "checkpoints"
    for name in names:
        name = "stage1" if name == "none" else name
        for folder in (f"chosen/{name}", name, f"fixed/{name}"):
            if found := fits(workdir, [folder]):
                by_seeds = {source.directory.name: source for source in found}
                return by_seeds[one_of("seeds", seeds, by_seeds)] if seeds else found[0]
        if found := _sources(lambda at=points / name: [(at, results.outcome(at))]):
            return found[0]
    there = {file.parents[1] for file in points.glob("**/outcome.json")}
    known = sorted(folder.relative_to(points).as_posix() for folder in there)
    hint = suggest(names[0], known) if known else ": no fit has finished there"
    raise InputError(f"no finished fit of {names[0]!r} in {workdir}{hint}")


def _sources(find: Callable[[], list[tuple[Path, Outcome | None]]]) -> list[Source]:
    found = processes.from_process_zero(
        lambda: [(str(at), outcome) for at, outcome in find() if outcome is not None]
    )
    return [Source(Path(at), outcome) for at, outcome in found]


def head_of(outcome: Outcome) -> Head:
    """Return the kind of head that a fit trained."""
    *_, method, _ = outcome["run"].split("/")
    if method == "stage1":
        return linear
    counts = np.array(outcome["per_class"]["train_count"])
    return make_method(method, counts, outcome["hyper"]).head


def load_fit(
    source: Source, backbone: Any, shape: tuple[int, int, int], num_classes: int
) -> tuple[Head, Weights]:
    """Load a finished fit of any method; ``shape`` is H, W, C of the examples."""
    head = head_of(source.outcome)
    return head, load(source, blank(backbone, head, shape, num_classes))


def load(source: Source, like: Weights, skip: str = "") -> Weights:
    """Load the weights of a finished fit.

    Args:
      like: the network they are for.
      skip: regular expression over complete names such as ``head/kernel``; leaves that
        match keep their value in ``like``. "" skips none.

    Raises:
      InputError: the weights are gone, or are those of another network.
    """
    return checkpoint.merge_leaves(load_leaves(source), like, skip, str(source.kept()))


def load_leaves(source: Source) -> dict[str, Any]:
    """Load parameters and batch statistics by name."""
    found = _read(source)
    if source.outcome.get("backbone"):  # a head alone, fitted on cached features
        root = source.directory.parents[len(Path(source.outcome["run"]).parts) - 1]
        directory = root / source.outcome["backbone"]
        outcome = results.outcome(directory)
        if outcome is None:
            raise InputError(
                f"{source.directory} has only a head, and {directory}, which has its "
                "backbone, is gone: move it back"
            )
        stage1 = _read(Source(directory, outcome))
        rest = {n: a for n, a in stage1.items() if not n.startswith("params/head/")}
        found = {**rest, **found}
    return found


def _read(source: Source) -> dict[str, Any]:
    step = source.kept() / str(source.outcome["step"])
    if not step.is_dir():
        raise InputError(
            f"the weights of {source.outcome['run']} are no longer in {step}: move "
            "them back, or give their new place with --config.init.path=..."
        )
    return {
        name: leaf
        for name, leaf in checkpoint.load_leaves(step).items()
        if name.startswith(("params/", "batch_stats/"))
    }


def representations(session: Session) -> Iterator[tuple[int, Weights]]:
    """Load the networks that stage 2 starts from, with the seed of their stage 1.

    They are the workdir's own, or else those of ``init.path``. The latter are evaluated
    by this workdir's protocol and recorded in it.
    """
    c, task = session.config, session.task
    stage1 = fits(session.workdir, ["stage1"])
    own = any("adopted_for" not in source.outcome for source in stage1)
    path, skip = Path(c.init.path).expanduser(), c.init.skip
    if own or not c.init.path:
        path, skip = session.workdir, ""
    for source in finished(path):
        (seed,) = source.outcome["seeds"]
        network = load(source, fresh(task, c.model.init, (1, seed)), skip)
        if path != session.workdir and not session.finished(source.outcome["run"]):
            _adopt(session, source, network, skip)
        yield seed, network


def _adopt(session: Session, source: Source, network: Weights, skip: str) -> None:
    """Record another workdir's stage 1 in this one, evaluated by its protocol."""
    task, outcome = session.task, source.outcome
    examples = task.splits.train.hash
    if outcome["fitted_on"] != examples:
        session.log.info(
            f"NOTE: {source.directory} was fitted on another training set "
            f"({outcome['fitted_on']}, here it is {examples}); its training data may "
            "overlap this validation split"
        )
    tally = session.evaluate(linear, network, task.splits.test)
    directory = session.workdir / "checkpoints" / outcome["run"]
    kept = str(source.kept().resolve())
    if skip:  # the skipped leaves are not in the source
        kept = results.FINAL
        checkpoint.save_tree(directory / kept, outcome["step"], network._asdict())
    adopted = {
        **outcome,
        "weights": kept,
        "adopted_for": examples,
        **results.measured(task, tally, network.params["head"]),
        "analysis": None,
    }
    results.save_outcome(directory, adopted)
