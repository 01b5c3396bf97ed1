"""Saving and restoring; the only module that uses Orbax.

A checkpoint is a nested dict of NumPy arrays, named like the leaves of the saved tree,
and a small JSON dict of notes. It can be read without knowing the optimiser, the number
of devices or this package. One more leaf, ``digest``, detects damage: the file format
alone misses some flipped bits.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lt_jax import trees
from lt_jax.distributed import processes
from lt_jax.errors import InputError
from lt_jax.files import LARGEST, parse_json, read

NO_SCORE = -1.0  # Orbax needs a score for every checkpoint; accuracies are above it
DIGEST = "digest"  # the leaf with the SHA-256 of all others

# Messages of the operating system, found in the text of Orbax's errors.
UNWRITABLE = ("No space left on device", "Disk quota exceeded", "File too large")
UNWRITABLE += ("Read-only file system", "Permission denied")
# ... and those of a folder that was deleted or moved.
GONE = ("No such file or directory", "NOT_FOUND")


class Damaged(InputError):
    """A checkpoint cannot be read, or its content has changed."""

    def __init__(self, where: Path, reason: str):
        self.reason = f"checkpoint {where} is damaged ({reason})"
        super().__init__(f"{self.reason}: train again in another --workdir")


class Checkpoints:
    """The checkpoints of one run: the last two and the one with the best score."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).resolve()
        score = operator.itemgetter("score")
        # Not `best_fn` with `max_to_keep`, which would delete the newest checkpoint.
        keep = [
            preservation_policy.LatestN(2),  # the newest may be damaged
            preservation_policy.BestN(get_metric_fn=score, n=1),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                best_fn=score,
            ),
        )

    def save(
        self, step: int, state: Any, notes: dict[str, Any], score: float | None
    ) -> None:
        """Save in the background; the state may be donated as soon as this returns."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_nested(state, notes)),
            notes=ocp.args.JsonSave(notes),
        )
        metrics = {"score": NO_SCORE if score is None else score}
        with _explain_unwritable(self.directory):
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def latest(self) -> int | None:
        """Return the newest step, None if nothing has been saved."""
        return self._manager.latest_step()

    def resume(self, like: Any, report: Callable[[str], None]) -> Any:
        """Load ``(step, tree, notes)`` of the newest intact checkpoint, or None.

        Damaged ones after it are deleted, and reported. If none is intact, they are
        moved aside: the fit starts again.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, ""
            try:
                found = step, *self.restore(step, like)
            except Damaged as error:
                reason = error.reason
            # All processes use the same one, even if only one cannot read another.
            if not processes.max_over_processes(bool(reason)):
                for newer, reason in damaged.items():
                    report(f"{reason}: deleted it, using step {step:,}")
                    self._manager.delete(newer)
                return found
            damaged[step] = reason or f"another process cannot read step {step:,}"
        for step, reason in damaged.items():
            place = self.directory / str(step)
            aside = place.with_name(f"{step}.damaged.{secrets.token_hex(2)}")
            processes.on_process_zero(functools.partial(os.rename, place, aside))
            report(f"{reason}: moved to {aside.name}, this fit starts again")
        self._manager.reload()
        return None

    def best(self) -> int | None:
        """Return the step with the highest score, the last one of a tie."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Load the tree of a step in the structure of ``like``, and its notes.

        InputError: it is damaged, or leaves are missing, unexpected or reshaped.
        """
        where = self.directory / str(step)
        with _detect_damage(where):
            loaded = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(), notes=ocp.args.JsonRestore()
                ),
            )
        notes = loaded["notes"]
        found = _verified(trees.leaves(loaded["state"]), notes, where)
        return _matched(found, like, str(where)), notes

    def close(self) -> None:
        """Wait until everything is written; raises if a write failed."""
        with _explain_unwritable(self.directory):
            self._manager.wait_until_finished()
            self._manager.close()


def save_tree(directory: str | Path, step: int, state: Any) -> None:
    """Save a tree of arrays for ``load_leaves``, replacing an older one."""
    path = Path(directory).resolve() / str(step) / "state"
    with _explain_unwritable(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _nested(state, {}), force=True)


def load_leaves(step: str | Path) -> dict[str, np.ndarray]:
    """Load the arrays of a checkpoint by name, without knowing its structure.

    ``step`` is the directory of one checkpoint; its name is the step.
    """
    path = Path(step).resolve()
    notes_file = path / "notes" / "metadata"
    with _detect_damage(path), ocp.StandardCheckpointer() as checkpointer:
        _check_files(path)
        found = trees.leaves(checkpointer.restore(path / "state"))
        notes = parse_json(read(notes_file)) if notes_file.exists() else {}
    return _verified(found, notes, path)


def merge_leaves(found: dict[str, Any], fresh: Any, skip: str, where: str) -> Any:
    """Build a tree from a checkpoint's leaves, by name.

    Those whose full names match ``skip`` keep their values of ``fresh``; "" skips none.

    Raises:
      InputError: another leaf is missing, unexpected or of another shape.
    """

    def skips(name: str) -> bool:
        return bool(skip and re.fullmatch(skip, name.removeprefix("params/")))

    named = trees.leaves(fresh)
    skipped = {name: leaf for name, leaf in named.items() if skips(name)}
    if skip and not skipped:
        names = ", ".join(name.removeprefix("params/") for name in named)
        raise InputError(
            f"init.skip {skip!r} matches no parameter; the parameters are: {names}"
        )
    kept = {name: leaf for name, leaf in found.items() if not skips(name)}
    return _matched({**kept, **skipped}, fresh, where)


@contextlib.contextmanager
def _explain_unwritable(directory: Path) -> Iterator[None]:
    """Raise an InputError for a full or read-only disk.

    Writing happens in the background, so an error may appear at the next save.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = next((t for t in (*GONE, *UNWRITABLE) if t in str(error)), None)
        if reason is None:
            raise
        problem = f"cannot write checkpoints in {directory}: {reason}. Older ones are "
        problem += "intact; make room and rerun the same command"
        if reason in GONE:
            problem = f"{directory} was deleted or moved while this job wrote to it. "
            problem += "Rerun the same command"
        raise InputError(problem) from error


@contextlib.contextmanager
def _detect_damage(where: Path) -> Iterator[None]:
    """Raise ``Damaged`` for anything that Orbax and its formats raise for a bad file.

    The possible errors cannot be listed: a flipped bit may hit JSON, protobuf or zstd.
    """
    try:
        yield
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError | MemoryError) and not missing:
            raise  # caused by this machine, not by the checkpoint
        raise Damaged(where, str(error).partition("\n")[0][:200]) from error


def _check_files(folder: Path) -> None:
    """Raise ValueError for files that Orbax would wait for or read without limit."""
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):  # a pipe, or a link to a device
            raise ValueError(f"{path.name} is not a regular file")
        # Arrays are in folders d, everything else is small.
        if path.parent.name != "d" and path.is_file() and path.stat().st_size > LARGEST:
            raise ValueError(f"{path.name} has more than {LARGEST:,} bytes")


def _nested(state: Any, notes: dict[str, Any]) -> dict[str, Any]:
    # NumPy on the host: with several processes Orbax refuses pmap's arrays.
    flat = trees.leaves(jax.device_get(state))
    flat[DIGEST] = _digest(flat, notes)
    return traverse_util.unflatten_dict(flat, sep="/")


def _digest(flat: dict[str, Any], notes: dict[str, Any]) -> np.ndarray:
    """Hash notes and leaves: uint8[32]."""
    text = json.dumps(notes, sort_keys=True).encode()
    return np.frombuffer(trees.digest(flat, text), np.uint8)


def _verified(
    found: dict[str, Any], notes: dict[str, Any], where: Path
) -> dict[str, np.ndarray]:
    """Return the leaves without the digest, which must match them."""
    flat = {name: np.asarray(leaf) for name, leaf in found.items() if name != DIGEST}
    if not np.array_equal(found.get(DIGEST, ()), _digest(flat, notes)):
        raise Damaged(where, "its content has changed")
    return flat


def _matched(found: dict[str, Any], like: Any, where: str) -> Any:
    """Return the leaves in the structure of ``like``."""
    if lines := trees.differences(found, trees.leaves(like)):
        raise InputError(
            f"checkpoint {where} belongs to another network or optimizer:\n  "
            + "\n  ".join(lines)
            + "\nUse the config that made it, or skip leaves with config.init.skip."
        )
    return trees.rebuild(like, found)
