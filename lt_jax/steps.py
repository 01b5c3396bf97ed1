"""The steps that devices run. Nothing else in the package knows of devices or pmap.

Every step is ``pmap(step, in_axes=(None, ..., 0), out_axes=None)``: what is replicated
goes in and comes out as one un-stacked tree, the batch alone has a leading axis of
devices. Sums are ``psum``-ed and divided once, so N devices and ragged batches compute
what one device computes.

The makers are cached on what they close over; seeds, learning rates and the vectors of
the loss are arguments, so another seed or method runs the same compiled step.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lt_jax import metrics, trees
from lt_jax.data import augment as augmentation
from lt_jax.data.augment import Augment
from lt_jax.heads import Head
from lt_jax.losses import Adjust, Loss
from lt_jax.metrics import Tally
from lt_jax.models import ResNet
from lt_jax.optim import Sgd
from lt_jax.types import Batch, InputError, Params, TrainState

AXIS = "batch"

# Whether batch norm uses, and moves, the statistics of the batch. "drift" computes what
# "train" does, but names the authors' second stage, where the statistics move under
# weights that do not.
BATCH_NORM = {"train": True, "drift": True, "frozen": False}


# What the feature step may look at: (augment, key, positions int32[B], images) ->
# images; the position of an image in its data set decides its random crop.
VIEWS: dict[str, Callable[[Augment, jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "plain": lambda augment, key, positions, images: images,
    "mirror": lambda augment, key, positions, images: augmentation.mirror(images),
    "random": augmentation.crop_flip,
}


class Knobs(NamedTuple):
    """What a run turns without another compilation."""

    key: jax.Array  # of the run's augmentation
    rates: Any  # float32[steps], the learning rate of every step
    adjust: Adjust
    start: Params  # the head that the run began with, which a projection may look at
    projects: Any  # bool[steps], after which steps the projection acts


@functools.cache
def make_train_step(
    backbone: ResNet,
    head: Head,
    loss: Loss,
    project: Callable[[Params, Params], Params] | None,
    sgd: Sgd,
    trains: str,
    batch_norm: str,
    augment: Augment,
) -> Callable[[TrainState, Batch, Knobs], tuple[TrainState, dict[str, jax.Array]]]:
    """One step of SGD on the parameters that ``trains`` matches.

    Only those are differentiated: with ``head/.*`` no gradient passes the backbone.
    The loss is the mean over the global batch, ``sum of losses / sum of weights``.
    ``project`` maps the head's parameters after the steps that ``projects`` names.

    Returns:
      ``(state, batch, knobs) -> (state, measured)``; the state is donated. Measured
      over the global batch: the sums ``loss_sum`` and ``weight_sum``, ``right`` and
      ``seen`` (int32), and whether the new parameters are ``finite``.
    """
    moving = BATCH_NORM[batch_norm]
    sum_devices = functools.partial(jax.lax.psum, axis_name=AXIS)

    def step(
        state: TrainState, batch: Batch, knobs: Knobs
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        label, mask = batch["label"], batch["mask"]
        # Augmentation goes by position in the global batch, not by device, so that
        # the number of devices does not change the images.
        position = jax.lax.axis_index(AXIS) * len(mask) + jnp.arange(len(mask))
        key = jax.random.fold_in(knobs.key, state.step)
        images = augmentation.crop_flip(augment, key, position, batch["image"])
        images = augmentation.normalise(augment, images)
        trained, fixed = trees.partition(state.params, trains)

        def total(trained: Params) -> tuple[jax.Array, Any]:
            params = trees.join(trained, fixed)
            features, updated = backbone.apply(
                {"params": params["backbone"], "batch_stats": state.batch_stats},
                images,
                mask,
                moving,
                mutable=["batch_stats"],
            )
            logits = head.apply(params["head"], features)
            each = loss(logits, label, mask, knobs.adjust, sum_devices)
            return jnp.sum(mask * each), (updated, logits)

        (loss_sum, (updated, logits)), grads = jax.value_and_grad(total, has_aux=True)(
            trained
        )
        right = (mask > 0) & (jnp.argmax(logits, axis=1) == label)
        measured = {
            "loss_sum": loss_sum,
            "weight_sum": jnp.sum(mask * knobs.adjust.weight[label]),
            "right": jnp.sum(right),
            "seen": jnp.sum(mask > 0),
        }
        grads, measured = sum_devices((grads, measured))
        # Of a step none of whose images could be decoded there is no mean to follow.
        some = measured["weight_sum"] > 0
        grads = jax.tree.map(
            lambda g: jnp.where(some, g / measured["weight_sum"], 0), grads
        )
        rate = knobs.rates[state.step]
        trained, opt_state = sgd.descend(grads, state.opt_state, trained, rate)
        params = trees.join(trained, fixed)
        if project is not None:
            before = params["head"]
            acts = knobs.projects[state.step]
            after = project(before, knobs.start)
            head_now = jax.tree.map(functools.partial(jnp.where, acts), after, before)
            params = {**params, "head": head_now}
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=updated["batch_stats"],
            opt_state=opt_state,
        )
        # The loss tells of a bad update one step late: by then it may have been saved.
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trained)]
        return state, {**measured, "finite": jnp.all(jnp.stack(finite))}

    return jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0
    )


@functools.cache
def make_eval_step(
    backbone: ResNet, head: Head, augment: Augment, flip: bool
) -> Callable[[Params, Params, Batch, Tally], Tally]:
    """``(params, batch_stats, batch, tally) -> tally`` with the batch added.

    With ``flip`` the logits are averaged over the image and its mirror image.
    """

    def step(params: Params, stats: Params, batch: Batch, tally: Tally) -> Tally:
        images = augmentation.normalise(augment, batch["image"])
        views = [images, augmentation.mirror(images)] if flip else [images]
        logits = [
            head.apply(params["head"], _features(backbone, params, stats, view))
            for view in views
        ]
        mean = jnp.mean(jnp.stack(logits), axis=0)
        new = metrics.tally(mean, batch["label"], batch["mask"])
        return metrics.merge(tally, jax.lax.psum(new, AXIS))

    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0, None), out_axes=None)


@functools.cache
def make_feature_step(
    backbone: ResNet, augment: Augment, view: str
) -> Callable[[Params, Params, Batch, jax.Array, int], jax.Array]:
    """``(params, batch_stats, batch, key, first) -> float[devices, B / devices, D]``.

    Features of a view of the images, a name in ``VIEWS``, under frozen statistics;
    masked rows hold no meaning. ``key`` is that of the random crops, ``first`` the
    position of the batch's first image in its data set.
    """
    turn = VIEWS[view]

    def step(
        params: Params, stats: Params, batch: Batch, key: jax.Array, first: int
    ) -> jax.Array:
        size = len(batch["mask"])
        positions = first + jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        images = turn(augment, key, positions, batch["image"])
        return _features(
            backbone, params, stats, augmentation.normalise(augment, images)
        )

    return jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0, None, None))


def _features(
    backbone: ResNet, params: Params, stats: Params, images: jax.Array
) -> jax.Array:
    """float[B, D] under frozen statistics, where no row looks at another."""
    variables = {"params": params["backbone"], "batch_stats": stats}
    features: Any = backbone.apply(variables, images, jnp.ones(len(images)), False)
    return features


def init_state(
    params: Params, batch_stats: Params, sgd: Sgd, trains: str
) -> TrainState:
    """The state before the first step, on every device."""
    trained, _ = trees.partition(params, trains)
    return replicate(
        TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=jax.jit(sgd.transform().init)(trained),
        )
    )


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(_mesh(), spec)


def replicate(tree: Any) -> Any:
    """Copies of the arrays on every device of this process.

    Always copies: the train step donates its state, and a caller's array must not
    vanish with it; ``device_put`` alone may share the memory.
    """
    own = jax.tree.map(lambda a: a.copy() if isinstance(a, jax.Array) else a, tree)
    return jax.device_put(own, _sharding(PartitionSpec()))


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

    return jax.device_put(jax.tree.map(split, batch), _sharding(PartitionSpec(AXIS)))


def padded(batch: int) -> int:
    """The smallest multiple of the number of devices that holds this many rows."""
    devices = jax.device_count()
    return -(-batch // devices) * devices


def divided(
    fun: Callable[..., Any], over: Sequence[bool], donate: Sequence[int] = ()
) -> Callable[..., Any]:
    """Compiles a function that every device of this process runs on its own part.

    Args:
      fun: what one device computes; its results have a leading axis, along which those
        of all devices are put together.
      over: for each argument whether its leading axis is divided over the devices
        (a multiple of their number, see ``whole``) or every device sees all of it.
      donate: places of the arguments whose memory the results may take.
    """
    split, copied = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        fun,
        mesh=_mesh(),
        in_specs=tuple(split if each else copied for each in over),
        out_specs=split,
    )
    return jax.jit(mapped, donate_argnums=tuple(donate))


def spread(array: np.ndarray) -> jax.Array:
    """An array divided over the devices along its first axis, filled up with zeros."""
    missing = whole(len(array)) - len(array)
    if missing:
        filler = np.zeros((missing, *array.shape[1:]), array.dtype)
        array = np.concatenate([array, filler])
    return jax.device_put(array, _sharding(PartitionSpec(AXIS)))


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


def whole(size: int) -> int:
    """The smallest multiple of this process's number of devices from ``size`` on."""
    devices = jax.local_device_count()
    return -(-size // devices) * devices


def throttle(ahead: int = 16) -> Callable[[Any], None]:
    """Bounds how far the host runs ahead of the devices.

    Returns a function to call with a result of every step; it waits for the result of
    ``ahead`` steps before. Without a bound the queue holds every batch it was given,
    and several virtual CPU devices on few cores dead-lock.
    """
    queue: collections.deque[Any] = collections.deque()

    def wait(result: Any) -> None:
        queue.append(result)
        if len(queue) > ahead:
            jax.block_until_ready(queue.popleft())

    return wait


def device_name() -> str:
    """Kind and number of the devices in use, for example ``2 x NVIDIA H100``."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
