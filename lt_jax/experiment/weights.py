"""Networks to start from: freshly initialised, or loaded from a finished fit.

All processes use the finished fits that process 0 finds: on a shared file system the
others may see an older state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import models, seeds
from lt_jax.distributed import processes
from lt_jax.errors import InputError, one_of, suggest
from lt_jax.experiment import results
from lt_jax.experiment.checks import make_method
from lt_jax.experiment.records import Config
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.schemas import MEASURED
from lt_jax.experiment.session import Session
from lt_jax.files import check, is_inside
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.pretrained import load as pretrained
from lt_jax.retraining.features import standardise
from lt_jax.retraining.selection import number
from lt_jax.training import checkpoint
from lt_jax.training.loop import FitResult, Task, evaluate
from lt_jax.types import Params, Weights


class Source(NamedTuple):
    """A finished fit."""

    directory: Path
    outcome: Outcome

    @property
    def checkpoints(self) -> Path:
        """Folder of the fits of its workdir; its own parent if it is in none."""
        named = (p for p in self.directory.parents if p.name == "checkpoints")
        return next(named, self.directory.parent)

    @property
    def title(self) -> str:
        """For example ``los/0.2``; never read from a file, as it is used in paths."""
        return self.directory.relative_to(self.checkpoints).as_posix()

    @property
    def step(self) -> Path:
        """Folder of its weights."""
        kept = Path(self.outcome.get("weights", ""))
        # Older versions named the weights of an adopted stage 1 by their place.
        if str(kept) not in (".", results.FINAL) and not (
            kept.is_absolute() and "adopted_for" in self.outcome
        ):
            raise InputError(
                f"{self.directory}/outcome.json: weights must be '' or "
                f"{results.FINAL!r}, got {str(kept)!r}"
            )
        return self.directory / kept / str(self.outcome["step"])


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
        source = finished(Path(path).expanduser())[0]
        return load(source, like, skip), None, f"{source.directory}"
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


def blank(
    backbone: Any, head: Head, shape: tuple[int, int, int], num_classes: int
) -> Weights:
    """Return shapes and dtypes of a network for examples of shape H, W, C."""
    params, batch_stats = models.shapes(backbone, shape)
    key, sizes = jax.random.key(0), (backbone.num_features, num_classes)
    own = jax.eval_shape(lambda: head.init(key, None, *sizes, "torch"))
    return Weights({"backbone": params, "head": own}, batch_stats)


def finished(path: Path) -> list[Source]:
    """Find the finished stage 1 of a workdir, by seed, or the one in this folder."""
    found = _sources(lambda: [path, *(path / "checkpoints" / "stage1").glob("*")])
    if not found:
        raise InputError(
            f"no finished stage 1 in {path}: expected checkpoints/stage1/SEED/"
            "outcome.json. Run `lt-jax train` with this config first, or give a "
            "workdir that has one with --config.init.path=..."
        )
    return found


def fits(workdir: Path, folders: Sequence[str]) -> list[Source]:
    """Find the finished fits in these folders of the checkpoints, by seeds in each."""
    points = workdir / "checkpoints"
    return [
        source
        for folder in folders
        for source in _sources(lambda at=points / folder: at.glob("*"))
    ]


def find(workdir: Path, names: Sequence[str], seeds: str = "") -> Source:
    """Find a finished fit by name; raise InputError if there is none.

    Args:
      names: the first that is finished is taken. A method such as ``los``, as a sweep
        chose it if there was one; a folder such as ``fixed/los``; a fit such as
        ``los/0.2``; ``stage1`` or ``none``.
      seeds: as in ``0.2``; "" takes the first.
    """
    points = workdir / "checkpoints"
    for name in names:
        name = "stage1" if name == "none" else name
        if not is_inside(points / name, points):
            raise InputError(f"{name!r} is not the name of a fit: it leaves {points}")
        for folder in (f"chosen/{name}", name, f"fixed/{name}"):
            if found := fits(workdir, [folder]):
                by_seeds = {source.directory.name: source for source in found}
                return by_seeds[one_of("seeds", seeds, by_seeds)] if seeds else found[0]
        if found := _sources(lambda at=points / name: [at]):
            return found[0]
    there = {file.parents[1] for file in points.glob("**/outcome.json")}
    known = sorted(folder.relative_to(points).as_posix() for folder in there)
    hint = suggest(names[0], known) if known else ": no fit has finished there"
    raise InputError(f"no finished fit of {names[0]!r} in {workdir}{hint}")


def _sources(folders: Callable[[], Iterable[Path]]) -> list[Source]:
    """Find the finished fits among folders that process 0 lists, by seeds."""
    found = processes.from_process_zero(
        lambda: [(str(at), results.outcome(at)) for at in folders()]
    )
    sources = [Source(Path(at), outcome) for at, outcome in found if outcome]
    return sorted(sources, key=lambda source: source.outcome["seeds"])


def head_of(source: Source) -> Head:
    """Return the kind of head that a fit trained."""
    folder = Path(source.title).parent.name
    if folder in ("stage1", ""):
        return linear
    outcome, file = source.outcome, f"{source.directory / 'outcome.json'}"
    check(outcome, MEASURED, file, results.REMEDY)
    counts = np.array(outcome["per_class"]["train_count"])
    return make_method(folder, counts, outcome["hyper"]).head


def load_fit(
    source: Source, backbone: Any, shape: tuple[int, int, int], num_classes: int
) -> tuple[Head, Weights]:
    """Load a finished fit of any method; ``shape`` is H, W, C of the examples."""
    head = head_of(source)
    return head, load(source, blank(backbone, head, shape, num_classes))


def load(source: Source, like: Weights, skip: str = "") -> Weights:
    """Load the weights of a finished fit for the network ``like``.

    Leaves whose name, such as ``head/kernel``, matches ``skip`` keep their value in it.
    Raises InputError if the weights are gone, or are those of another network.
    """
    where = str(source.step.parent)
    return checkpoint.merge_leaves(load_leaves(source), like, skip, where)


def load_leaves(source: Source) -> dict[str, Any]:
    """Load parameters and batch statistics by name."""
    found = _read(source)
    if source.outcome.get("backbone"):  # a head alone, fitted on cached features
        seed = source.outcome["seeds"][0]
        directory = source.checkpoints / "stage1" / f"{seed}"
        stage1 = results.outcome(directory)
        if stage1 is None:
            raise InputError(
                f"{source.directory} has only a head, and {directory}, which has its "
                "backbone, is gone: move it back"
            )
        rest = _read(Source(directory, stage1)).items()
        found |= {n: a for n, a in rest if not n.startswith("params/head/")}
    return found


def _read(source: Source) -> dict[str, Any]:
    if not source.step.is_dir():
        raise InputError(
            f"the weights of {source.title} are no longer in {source.step}: move them "
            "back, or give their new place with --config.init.path=..."
        )
    return {
        name: leaf
        for name, leaf in checkpoint.load_leaves(source.step).items()
        if name.startswith(("params/", "batch_stats/"))
    }


def origin(config: Config, workdir: Path) -> tuple[Path, str]:
    """Where stage 2 finds stage 1, and what it skips there."""
    own = (s for s in fits(workdir, ["stage1"]) if "adopted_for" not in s.outcome)
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
    like = blank(task.backbone, linear, task.splits.train.shape, num_classes)
    if not stage1:
        path, skip = origin(config, workdir)
        for source in finished(path):
            processes.together(functools.partial(load, source, like, skip))
    elif config.init.path:
        processes.together(functools.partial(_given, config, task, like))


def representations(session: Session) -> Iterator[tuple[int, Weights]]:
    """Load the networks that stage 2 starts from, with the seed of their stage 1.

    They are the workdir's own, or else those of ``init.path``. The latter are evaluated
    by this workdir's protocol and recorded in it.
    """
    c, task = session.config, session.task
    path, skip = origin(c, session.workdir)
    for source in finished(path):
        seed = source.outcome["seeds"][0]
        network = load(source, fresh(task, c.model.init, (1, seed)), skip)
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
