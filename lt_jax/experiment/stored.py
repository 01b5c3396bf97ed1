"""Finished fits: how they are found in a workdir, and their weights.

All processes use those that process 0 finds: on a shared file system the others may see
an older state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import models
from lt_jax.distributed import processes
from lt_jax.errors import InputError, one_of, suggest
from lt_jax.experiment import results
from lt_jax.experiment.checks import make_method
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.schemas import MEASURED
from lt_jax.files import check, is_inside
from lt_jax.heads import Head, linear
from lt_jax.training import checkpoint
from lt_jax.types import Weights


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


def blank(
    backbone: Any, head: Head, shape: tuple[int, int, int], num_classes: int
) -> Weights:
    """Return shapes and dtypes of a network for examples of shape H, W, C."""
    params, batch_stats = models.shapes(backbone, shape)
    key, sizes = jax.random.key(0), (backbone.num_features, num_classes)
    own = jax.eval_shape(lambda: head.init(key, None, *sizes, "torch"))
    return Weights({"backbone": params, "head": own}, batch_stats)


def stage1(path: Path) -> list[Source]:
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
        outcome = results.outcome(directory)
        if outcome is None:
            raise InputError(
                f"{source.directory} has only a head, and {directory}, which has its "
                "backbone, is gone: move it back"
            )
        rest = _read(Source(directory, outcome)).items()
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
