"""Saving and restoring, the only module that knows Orbax.

A checkpoint is a nested dict of numpy arrays (whatever tree was given, by the names of
its leaves) and a small JSON dict beside it, so that it can be read without knowing the
optimiser, the number of devices or this package. One leaf more, ``digest``, tells a
damaged checkpoint from a whole one: the file format alone does not find every flipped
bit.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lt_jax import trees
from lt_jax.distributed import processes
from lt_jax.errors import InputError

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


DIGEST = "digest"  # the leaf that holds the SHA-256 of all others


class Damaged(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


class Checkpoints:
    """The checkpoints of one run: the last two, and the one with the best score."""

    def __init__(self, directory: str | Path):
        self.directory = epath.Path(directory).resolve()
        # Not `best_fn` with `max_to_keep`: that would delete the newest checkpoint.
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(2),  # the newest may be damaged
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
            state=ocp.args.StandardSave(_nested(state, notes)),
            notes=ocp.args.JsonSave(notes),
        )
        metrics = {"score": NO_SCORE if score is None else score}
        with _writing(self.directory):
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def latest(self) -> int | None:
        """The newest step, None where nothing has been saved."""
        return self._manager.latest_step()

    def resume(self, like: Any, report: Callable[[str], None]) -> Any:
        """The newest checkpoint that is whole; damaged ones after it are removed.

        Args:
          like: see ``restore``.
          report: called with a line for each damaged checkpoint.

        Returns:
          ``(step, tree, notes)``; None where nothing has been saved.

        Raises:
          InputError: there are checkpoints and all of them are damaged; or see
            ``restore``.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, ""
            try:
                found = step, *self._load(step, like)
            except Damaged as error:
                reason = str(error)
            # All processes take the same one, also where one alone cannot read another.
            if processes.max_over_processes(bool(reason)):
                damaged[step] = reason or f"another process cannot read step {step:,}"
                continue
            for newer, reason in damaged.items():
                report(f"{reason}: removed, step {step:,} is used")
                self._manager.delete(newer)
            return found
        if damaged:
            raise InputError(
                "; ".join(damaged.values())
                + f". None is left: remove {self.directory} to begin this fit again"
            )
        return None

    def best(self) -> int | None:
        """The step of the highest score, of equal ones the last; None before a save."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The tree of that step in the structure of ``like``, and its notes.

        Raises:
          InputError: it is damaged; or leaves are missing, unexpected or of another
            shape; lists them.
        """
        try:
            return self._load(step, like)
        except Damaged as error:
            raise InputError(f"{error}: fit it again in another --workdir") from error

    def _load(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        where = f"{self.directory}/{step}"
        with _reading(where):
            loaded = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore()
                ),
            )
        found = _whole(trees.leaves(loaded["state"]), loaded["notes"], where)
        return _fitted(found, like, where), loaded["notes"]

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


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns whatever Orbax and the formats below it say of a bad file into ``Damaged``.

    There is no list of it: a flipped bit may meet any of JSON, protobuf or zstd.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"the checkpoint {where} is damaged ({error})") from error
    except (OSError, MemoryError):  # of this machine, not of the checkpoint
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise Damaged(f"the checkpoint {where} is damaged ({reason})") from error


def _nested(state: Any, notes: dict[str, Any]) -> dict[str, Any]:
    # Numpy on the host: with several processes Orbax refuses pmap's arrays.
    flat = trees.leaves(jax.device_get(state))
    flat[DIGEST] = _digest(flat, notes)
    return traverse_util.unflatten_dict(flat, sep="/")


def _digest(flat: dict[str, Any], notes: dict[str, Any]) -> np.ndarray:
    """uint8[32], SHA-256 of the leaves by name, and of the notes."""
    before = json.dumps(notes, sort_keys=True).encode()
    return np.frombuffer(trees.digest(flat, before), np.uint8)


def _whole(
    found: dict[str, Any], notes: dict[str, Any], where: str
) -> dict[str, np.ndarray]:
    """The leaves but the digest, which has to be theirs."""
    flat = {name: np.asarray(leaf) for name, leaf in found.items() if name != DIGEST}
    if not np.array_equal(found.get(DIGEST, ()), _digest(flat, notes)):
        raise Damaged(f"the checkpoint {where} is damaged (its content has changed)")
    return flat


def write(directory: str | Path, step: int, state: Any) -> None:
    """One tree of arrays for ``read``, over what was there; waits until it stands."""
    path = epath.Path(directory).resolve() / str(step) / "state"
    with _writing(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _nested(state, {}), force=True)


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
      step: the directory of one checkpoint, whose name is its step; its notes are read
        where it has some.

    Raises:
      InputError: it is damaged.
    """
    path = epath.Path(step).resolve()
    notes = path / "notes" / "metadata"
    try:
        with _reading(str(path)), ocp.StandardCheckpointer() as checkpointer:
            found = trees.leaves(checkpointer.restore(path / "state"))
            known = json.loads(notes.read_text()) if notes.exists() else {}
        return _whole(found, known, str(path))
    except Damaged as error:
        raise InputError(f"{error}: fit it again in another --workdir") from error


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
