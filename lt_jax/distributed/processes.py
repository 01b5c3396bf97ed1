"""Agreement between the processes of a run.

Every process must call these functions, at the same place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lt_jax.errors import InputError, first_few

T = TypeVar("T")

STEPS_BETWEEN_SYNCS = 16


def max_over_processes(value: int) -> int:
    """Return the largest value that any process passes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int64(value)).max())


def any_process(mask: np.ndarray) -> np.ndarray:
    """Combine bool[N] masks: true where any process has true."""
    if jax.process_count() == 1:
        return mask
    return multihost_utils.process_allgather(mask).any(axis=0)


def is_sync_step(step: int) -> bool:
    """Check whether the processes should synchronise after this step.

    Several processes wait for each other, so they do it every 16 steps only.
    """
    return jax.process_count() == 1 or step % STEPS_BETWEEN_SYNCS == 0


def together(
    work: Callable[[], T], same: Callable[[T], dict[str, Any]] | None = None
) -> T:
    """Call ``work`` in every process; if it fails in one, raise in all.

    Raises:
      InputError: ``work`` failed in another process, or a process has other values, by
        name, of ``same(result)`` than process 0. All raise the same message.
    """
    if jax.process_count() == 1:
        return work()
    failed: Exception | None = None
    found: Any = None
    try:
        found = work()
        given = same(found) if same else {}
    except Exception as error:
        failed, given = error, str(error)
    text = json.dumps(given, sort_keys=True)
    # Of one size, whatever the processes have: usually nothing more is exchanged.
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    if not (digests == digests[0]).all():
        everyone = [json.loads(each) for each in _gather(text)]
        raise failed or InputError(_difference(everyone))
    if failed:
        raise failed
    return found


def _difference(everyone: list[Any]) -> str:
    """Describe what ``together`` found, per process: an error's text, or values."""
    for i, given in enumerate(everyone):
        if isinstance(given, str):
            return f"process {i} failed: {given}"
    parts, first = [], everyone[0]
    for i, given in enumerate(everyone):
        names = [n for n in {**first, **given} if first.get(n) != given.get(n)]
        if names:
            values = [f"{n} is {given.get(n)!r}, not {first.get(n)!r}" for n in names]
            parts.append(f"process {i} differs from process 0: {first_few(values)}")
    return f"{'; '.join(parts)}. Start all processes with the same command and code"


def _gather(text: str) -> list[str]:
    """Return the texts of all processes."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(len(own)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [r[:size].tobytes().decode() for r, size in zip(rows, sizes, strict=True)]


def on_process_zero(work: Callable[[], None]) -> None:
    """Run file operations on process 0 while the others wait; see ``together``."""
    together(lambda: work() if jax.process_index() == 0 else None)


def from_process_zero(find: Callable[[], Any]) -> Any:
    """Compute a JSON value on process 0 and return it in all processes.

    On a shared file system, other processes may see an older state of files.
    """
    if jax.process_count() == 1:
        return find()
    value = together(lambda: find() if jax.process_index() == 0 else None)
    return json.loads(_gather(json.dumps(value))[0])
