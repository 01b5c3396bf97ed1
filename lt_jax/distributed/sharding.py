"""Where arrays lie: rows dealt out over the devices of all processes, and copies.

``replicate`` and ``shard`` place what goes into ``pmap``; ``spread`` and ``everywhere``
what goes into a function that is ``divided`` over the devices.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lt_jax.errors import InputError
from lt_jax.types import Batch

AXIS = "batch"
AHEAD = 16  # steps that the host may be ahead of the devices


def _here(spec: PartitionSpec) -> NamedSharding:
    """Over the devices of this process, for what goes into ``pmap``."""
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), spec)


def _everywhere(spec: PartitionSpec) -> NamedSharding:
    """Over the devices of all processes, for what goes into ``divided``."""
    return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), spec)


def replicate(tree: Any) -> Any:
    """Copies of the arrays on every device of this process.

    Always copies: the train step donates its state, and a caller's array must not
    vanish with it; ``device_put`` alone may share the memory.
    """

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # pmap sends a typed key through the host at each call of several processes.
            return jax.random.key_data(leaf)
        return leaf.copy()

    return jax.device_put(jax.tree.map(own, tree), _here(PartitionSpec()))


def part(rows: np.ndarray) -> np.ndarray:
    """The columns of a plan that this process reads and gives to ``shard``.

    Every process has the whole plan and takes its part of each batch in the order of
    the processes, as ``pmap`` numbers their devices: positions in the batch, and with
    them the augmentation, do not depend on how many processes there are.

    Args:
      rows: int32[S, B] of indices; -1 is padding.

    Returns:
      int32[S, padded(B) / processes].
    """
    missing = padded(rows.shape[1]) - rows.shape[1]
    wide = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return np.split(wide, jax.process_count(), axis=1)[jax.process_index()]


def shard(batch: Batch) -> Batch:
    """This process's part of a batch, int/float[B, ...] -> [devices, B / devices, ...].

    Raises:
      InputError: B is not divisible by the number of devices.
    """
    devices = jax.local_device_count()

    def split(array: np.ndarray) -> np.ndarray:
        if len(array) % devices:
            raise InputError(
                f"a batch of {len(array)} rows does not divide over {devices} devices; "
                f"pad it to {padded(len(array))} rows with mask 0"
            )
        return array.reshape(devices, -1, *array.shape[1:])

    return jax.device_put(jax.tree.map(split, batch), _here(PartitionSpec(AXIS)))


def shard_rows(rows: np.ndarray) -> jax.Array:
    """int32[T, B], this process's part of T steps -> [devices, T, B / devices]."""
    dealt = rows.reshape(len(rows), jax.local_device_count(), -1).swapaxes(0, 1)
    return jax.device_put(np.ascontiguousarray(dealt), _here(PartitionSpec(AXIS)))


def part_rows(batch: int, parts: int, pairs: bool) -> int:
    """Rows of each of the micro-batches that a batch is cut into, but for the last.

    ``pairs``: whether the rows 0 and 1, 2 and 3, ... have to stay together.
    """
    unit = 2 if pairs else 1
    return -(-batch // (parts * unit)) * unit


def arrange(rows: np.ndarray, parts: int, pairs: bool) -> np.ndarray:
    """A plan in the order in which ``shard`` deals its rows out to the devices.

    A step is cut into ``parts`` micro-batches of neighbours (``part_rows``), and each
    of these is padded and divided over the devices; so a micro-batch holds the same
    examples on any number of devices.

    Args:
      rows: int32[steps, B] of indices; -1 is padding.
      parts: micro-batches of a step, at least 1.
      pairs: whether the rows 0 and 1, 2 and 3, ... have to stay on one device.

    Returns:
      int32[steps, W], W the least that divides; what was missing is -1.
    """
    count, batch = rows.shape
    devices, each = jax.device_count(), part_rows(batch, parts, pairs)
    unit = devices * (2 if pairs else 1)
    filled = np.full((count, parts * each), -1, np.int32)
    filled[:, :batch] = rows
    dealt = np.full((count, parts, -(-each // unit) * unit), -1, np.int32)
    dealt[:, :, :each] = filled.reshape(count, parts, each)
    return dealt.reshape(count, parts, devices, -1).swapaxes(1, 2).reshape(count, -1)


def padded(batch: int) -> int:
    """The smallest multiple of the number of devices that holds this many rows."""
    devices = jax.device_count()
    return -(-batch // devices) * devices


def divided(
    fun: Callable[..., Any], over: Sequence[bool], donate: Sequence[int] = ()
) -> Callable[..., Any]:
    """Compiles a function that every device of all processes runs on its own part.

    Args:
      fun: what one device computes; its results have a leading axis, along which those
        of all devices are put together.
      over: for each argument whether its leading axis is divided over the devices (it
        comes from ``spread``) or every device sees all of it (an array of NumPy, the
        same in every process, or from ``everywhere``).
      donate: places of the arguments whose memory the results may take.
    """
    split, copied = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        fun,
        mesh=_everywhere(split).mesh,
        in_specs=tuple(split if each else copied for each in over),
        out_specs=split,
    )
    return jax.jit(mapped, donate_argnums=tuple(donate))


def spread(array: np.ndarray) -> jax.Array:
    """An array divided over all devices along its first axis, filled up with zeros."""
    missing = padded(len(array)) - len(array)
    if missing:
        filler = np.zeros((missing, *array.shape[1:]), array.dtype)
        array = np.concatenate([array, filler])
    return _placed(array, PartitionSpec(AXIS))


def everywhere(array: np.ndarray) -> jax.Array:
    """An array of which every device of all processes holds a copy."""
    return _placed(array, PartitionSpec())


def _placed(array: np.ndarray, spec: PartitionSpec) -> jax.Array:
    # Not device_put, which sends the array around to compare it in every process.
    return jax.make_array_from_callback(
        array.shape, _everywhere(spec), lambda index: array[index]
    )


def fetch(tree: Any) -> Any:
    """Arrays of NumPy from what ``divided`` gave, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def rows_of(values: jax.Array, indices: jax.Array) -> jax.Array:
    """float32[B, D], rows of a ``spread`` array, on every device.

    Within ``divided``: each device gives the rows that it holds.

    Args:
      values: float[N / devices, D], this device's part.
      indices: int32[B] into all N rows.
    """
    here = indices - jax.lax.axis_index(AXIS) * len(values)
    held = (here >= 0) & (here < len(values))
    rows = values[jnp.clip(here, 0, len(values) - 1)].astype(jnp.float32)
    return jax.lax.psum(jnp.where(held[:, None], rows, 0.0), AXIS)


def throttle() -> Callable[[Any], None]:
    """Bounds how far the host runs ahead of the devices.

    Returns a function to call with a result of every step; it waits for the result of
    ``AHEAD`` steps before. Without a bound the queue holds every batch it was given,
    and several virtual CPU devices on few cores dead-lock.
    """
    queue: collections.deque[Any] = collections.deque()

    def wait(result: Any) -> None:
        queue.append(result)
        if len(queue) > AHEAD:
            jax.block_until_ready(queue.popleft())

    return wait


def device_name() -> str:
    """Kind and number of the devices in use, for example ``2 x NVIDIA H100``."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
