"""Agreement between the processes of a run.

Every process must call these functions, at the same place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lt_jax.errors import InputError

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


def is_sync_step(step: int, count: int = 1) -> bool:
    """Check whether the processes should synchronise after this step.

    Several processes wait for each other, so they do it every 16 steps only.

    Args:
      count: steps since the last call.
    """
    every = STEPS_BETWEEN_SYNCS
    return jax.process_count() == 1 or step // every > (step - count) // every


def on_process_zero(work: Callable[[], None]) -> None:
    """Run file operations on process 0 while the others wait.

    If they fail, process 0 raises the error and the others raise an InputError.
    """
    failed: Exception | None = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            failed = error
    if max_over_processes(failed is not None):
        raise failed or InputError("process 0 failed to write files; see its message")


def from_process_zero(find: Callable[[], Any]) -> Any:
    """Compute a JSON value on process 0 and return it in all processes.

    Decisions that depend on files need this: on a shared file system, other processes
    may see an older state.
    """
    if jax.process_count() == 1:
        return find()
    value = find() if jax.process_index() == 0 else None
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    return json.loads(text.tobytes())
