"""Placement of arrays on the devices of one or all processes.

``replicate`` and ``shard_batch`` place the arguments of ``pmap``: local devices only.
``replicate_globally`` and ``shard_globally`` place those of ``jit_over_devices``.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lt_jax.errors import InputError

AXIS = "batch"
MAX_STEPS_AHEAD = 16  # how far the host may run ahead of the devices


def _sharding(devices: Sequence[Any], split: bool) -> NamedSharding:
    spec = PartitionSpec(AXIS) if split else PartitionSpec()
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), spec)


def replicate(tree: Any) -> Any:
    """Copy arrays to every local device."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # With several processes, pmap sends a typed key through the host each call.
            return jax.random.key_data(leaf)
        return leaf.copy()

    # Without the copy, ``device_put`` may share memory with the caller's arrays, which
    # the training step invalidates: it donates its state.
    copies = jax.tree.map(copy, tree)
    return jax.device_put(copies, _sharding(jax.local_devices(), split=False))


def process_part(indices: np.ndarray) -> np.ndarray:
    """Select this process's columns of a plan, int32[S, B], padded with -1.

    The parts of a batch are in process order, as ``pmap`` numbers the devices. So an
    example's position, and its augmentation, do not depend on the number of processes.
    """
    missing = padded_size(indices.shape[1]) - indices.shape[1]
    wide = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return np.split(wide, jax.process_count(), axis=1)[jax.process_index()]


def shard_batch(batch: Any) -> Any:
    """Split arrays [B, ...] of this process into [devices, B / devices, ...]."""
    devices = jax.local_device_count()

    def split(array: np.ndarray) -> np.ndarray:
        if len(array) % devices:
            raise InputError(
                f"a batch of {len(array)} rows is not divisible by {devices} devices; "
                f"pad it to {padded_size(len(array))} rows with mask 0"
            )
        return array.reshape(devices, -1, *array.shape[1:])

    target = _sharding(jax.local_devices(), split=True)
    return jax.device_put(jax.tree.map(split, batch), target)


def micro_batch_size(batch: int, parts: int, pairs: bool) -> int:
    """Return the rows per micro-batch; the last one may have fewer.

    ``pairs`` keeps rows 0 and 1, 2 and 3, ... together.
    """
    unit = 2 if pairs else 1
    return -(-batch // (parts * unit)) * unit


def arrange_micro_batches(indices: np.ndarray, parts: int, pairs: bool) -> np.ndarray:
    """Reorder a plan, int32[S, B], so that ``shard_batch`` gives devices their parts.

    Cuts each batch into ``parts`` micro-batches of neighbours, then each of these into
    one piece per device. So the examples of a micro-batch do not depend on the number
    of devices. ``pairs`` keeps rows 0 and 1, 2 and 3, ... on one device. Returns
    int32[S, W] with the smallest W that divides evenly, padded with -1.
    """
    steps, batch = indices.shape
    devices, size = jax.device_count(), micro_batch_size(batch, parts, pairs)
    unit = devices * (2 if pairs else 1)
    filled = np.full((steps, parts * size), -1, np.int32)
    filled[:, :batch] = indices
    padded = np.full((steps, parts, -(-size // unit) * unit), -1, np.int32)
    padded[:, :, :size] = filled.reshape(steps, parts, size)
    by_device = padded.reshape(steps, parts, devices, -1).swapaxes(1, 2)
    return by_device.reshape(steps, -1)


def padded_size(batch: int) -> int:
    """Round a number of rows up to a multiple of the number of devices."""
    devices = jax.device_count()
    return -(-batch // devices) * devices


def jit_over_devices(
    fun: Callable[..., Any], sharded: Sequence[bool], donate: Sequence[int] = ()
) -> Callable[..., Any]:
    """Compile ``fun`` for every device of all processes; concatenate along axis 0.

    ``sharded`` marks the arguments from ``shard_globally``. Others come from
    ``replicate_globally``, or are equal NumPy arrays in all processes.
    """
    split, copied = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        fun,
        mesh=Mesh(np.array(jax.devices()), (AXIS,)),
        in_specs=tuple(split if each else copied for each in sharded),
        out_specs=split,
    )
    return jax.jit(mapped, donate_argnums=tuple(donate))


def shard_globally(array: np.ndarray) -> jax.Array:
    """Split an array over all devices along axis 0, padded with zeros."""
    if missing := padded_size(len(array)) - len(array):
        array = np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])
    return _place(array, split=True)


def replicate_globally(array: np.ndarray) -> jax.Array:
    """Copy an array to every device of all processes."""
    return _place(array, split=False)


def _place(array: np.ndarray, split: bool) -> jax.Array:
    # Not device_put: it compares the array between all processes.
    target = _sharding(jax.devices(), split)
    return jax.make_array_from_callback(array.shape, target, array.__getitem__)


def fetch_global(tree: Any) -> Any:
    """Copy results of ``jit_over_devices`` to the host of every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def gather_rows(values: jax.Array, indices: jax.Array) -> jax.Array:
    """Gather rows of a ``shard_globally`` array, inside ``jit_over_devices``.

    From this device's part, float[N / devices, D], and int32[B] into all N rows, to
    float32[B, D], equal on all devices.
    """
    local = indices - jax.lax.axis_index(AXIS) * len(values)
    held = (local >= 0) & (local < len(values))
    rows = values[jnp.clip(local, 0, len(values) - 1)].astype(jnp.float32)
    return jax.lax.psum(jnp.where(held[:, None], rows, 0.0), AXIS)


def dispatch_limiter() -> Callable[[Any], None]:
    """Make a function that waits for the result of ``MAX_STEPS_AHEAD`` calls ago.

    Without it, every batch is held in memory, and several virtual CPU devices on few
    cores dead-lock.
    """
    queue: collections.deque[Any] = collections.deque()

    def wait(result: Any) -> None:
        queue.append(result)
        if len(queue) > MAX_STEPS_AHEAD:
            jax.block_until_ready(queue.popleft())

    return wait


def device_memory() -> int:
    """Return the bytes that each local device can use."""
    devices = jax.local_devices()
    # CPU devices share the memory of the machine.
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (devices[0].memory_stats() or {}).get("bytes_limit") or total // len(devices)


def device_name() -> str:
    """Return number and kind of all devices, such as ``2 x NVIDIA H100``."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
