"""How the processes of a run agree on what one of them was asked, or has found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lt_jax.errors import InputError


def agreed(asked: int) -> int:
    """The largest number of all processes; all have to call it, at the same place."""
    if jax.process_count() == 1:
        return asked
    return int(multihost_utils.process_allgather(np.int64(asked)).max())


def anywhere(mask: np.ndarray) -> np.ndarray:
    """bool[N], true where it is in any process; all have to call it."""
    if jax.process_count() == 1:
        return mask
    return multihost_utils.process_allgather(mask).any(axis=0)


def meets_at(step: int, count: int = 1) -> bool:
    """Whether processes agree after this step: not each, as all have to wait for it.

    ``count`` steps were taken since it was last asked.
    """
    return jax.process_count() == 1 or step // 16 > (step - count) // 16


def first_does(work: Callable[[], None]) -> None:
    """Process 0 does something to files; the others wait until it stands.

    Raises:
      InputError: in the others, where process 0 failed, which raises its own error.
    """
    failed: Exception | None = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            failed = error
    if agreed(failed is not None):
        raise failed or InputError("process 0 could not write, its message says why")


def as_first(find: Callable[[], Any]) -> Any:
    """What process 0 finds, a value of JSON; all of them have to call it.

    For what is read from files and decides what is done next: a shared file system may
    show the others an older state.
    """
    if jax.process_count() == 1:
        return find()
    value = find() if jax.process_index() == 0 else None
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    padded_text = np.resize(text, size) if len(text) else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(padded_text).tobytes())
