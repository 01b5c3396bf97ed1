"""Saving and restoring, the only module that knows Orbax.

A checkpoint is a nested dict of numpy arrays (whatever tree was given, by the names of
its leaves) and a small JSON dict beside it, so that it can be read without knowing the
optimiser, the number of devices or this package.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lt_jax import trees
from lt_jax.types import InputError

# Orbax wants a score with every checkpoint; accuracies are never below it.
NO_SCORE = -1.0

# What the operating system says, found in the text of Orbax's errors.
UNWRITABLE = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
)


class Checkpoints:
    """The checkpoints of one run: the last one, and the one with the best score."""

    def __init__(self, directory: str | Path):
        self.directory = epath.Path(directory).resolve()
        # Not `best_fn` with `max_to_keep`: that would delete the newest checkpoint.
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["score"],
                    n=1,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                cleanup_tmp_directories=True,
                best_fn=lambda metrics: metrics["score"],
                best_mode="max",
            ),
        )

    def save(
        self, step: int, state: Any, notes: dict[str, Any], score: float | None
    ) -> None:
        """Writes in the background; the state may be donated as soon as this returns.

        Args:
          step: optimiser steps taken.
          state: a tree of arrays.
          notes: JSON values that belong to it.
          score: decides which checkpoint is the best; higher is better.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_nested(state)), notes=ocp.args.JsonSave(notes)
        )
        metrics = {"score": NO_SCORE if score is None else score}
        with _writing(self.directory):
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def latest(self) -> int | None:
        """The newest step, None where nothing has been saved."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the highest score, of equal ones the last; None before a save."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The tree of that step in the structure of ``like``, and its notes.

        Raises:
          InputError: leaves are missing, unexpected or of another shape; lists them.
        """
        loaded = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore()
            ),
        )
        where = f"{self.directory}/{step}"
        return _fitted(trees.leaves(loaded["state"]), like, where), loaded["notes"]

    def close(self) -> None:
        """Waits until everything is written; a failed write raises here."""
        with _writing(self.directory):
            self._manager.wait_until_finished()
            self._manager.close()


@contextlib.contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """Tells a full or read-only disk in a line.

    The write goes on in the background, so it fails here at the next save.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        for reason in UNWRITABLE:
            if reason in str(error):
                raise InputError(
                    f"cannot write checkpoints in {directory}: {reason}. The older "
                    "ones are whole; make room and run the same command again"
                ) from error
        raise


def _nested(state: Any) -> dict[str, Any]:
    # Numpy on the host: with several processes Orbax refuses pmap's arrays.
    flat = trees.leaves(jax.device_get(state))
    return traverse_util.unflatten_dict(flat, sep="/")


def write(directory: str | Path, step: int, state: Any) -> None:
    """One tree of arrays for ``read``, over what was there; waits until it stands."""
    path = epath.Path(directory).resolve() / str(step) / "state"
    with _writing(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _nested(state), force=True)


def _fitted(found: dict[str, Any], like: Any, where: str) -> Any:
    expected = trees.leaves(like)
    lines = trees.differences(found, expected)
    if lines:
        raise InputError(
            f"the checkpoint {where} is of another network or optimiser:\n  "
            + "\n  ".join(lines)
            + "\nGive the config that made it, or skip leaves with config.init.skip."
        )
    return trees.rebuild(like, found)


def read(step: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, whatever structure they had.

    Args:
      step: the directory of one checkpoint, whose name is its step.
    """
    path = epath.Path(step).resolve() / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        return trees.leaves(checkpointer.restore(path))


def merge(found: dict[str, Any], fresh: Any, skip: str, where: str) -> Any:
    """A tree whose leaves come from a checkpoint, but for those named by ``skip``.

    Args:
      found: arrays by name.
      fresh: the tree as initialised.
      skip: regular expression over whole names, as in ``head/kernel``, of leaves that
        keep their fresh value; "" skips none.
      where: names the checkpoint in an error.

    Raises:
      InputError: any other leaf is missing, unexpected or of another shape.
    """

    def skips(name: str) -> bool:
        return bool(skip and re.fullmatch(skip, name.removeprefix("params/")))

    skipped = {n: leaf for n, leaf in trees.leaves(fresh).items() if skips(n)}
    if skip and not skipped:
        names = ", ".join(n.removeprefix("params/") for n in trees.leaves(fresh))
        raise InputError(f"init.skip {skip!r} matches no parameter; there are: {names}")
    kept = {name: leaf for name, leaf in found.items() if not skips(name)}
    return _fitted({**kept, **skipped}, fresh, where)
