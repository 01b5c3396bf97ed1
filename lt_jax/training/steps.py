"""The steps that devices run. Nothing else in the package knows pmap.

Every step is ``pmap(step, in_axes=(None, ..., 0), out_axes=None)``: what is replicated
goes in and comes out as one un-stacked tree, the batch alone has a leading axis of
devices. Sums are ``psum``-ed and divided once, so N devices and ragged batches compute
what one device computes.

The makers are cached on what they close over; seeds, learning rates and the vectors of
the loss are arguments, so another seed or method runs the same compiled step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lt_jax import metrics, models, trees
from lt_jax.data.augment import transforms as augmentation
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.heads import Head
from lt_jax.losses import Adjust, Loss
from lt_jax.metrics import Tally
from lt_jax.models import ResNet
from lt_jax.training.optim import Sgd
from lt_jax.types import Batch, Params, TrainState

# Whether batch norm uses, and moves, the statistics of the batch. "drift" computes what
# "train" does, but names the authors' second stage, where the statistics move under
# weights that do not.
BATCH_NORM = {"train": True, "drift": True, "frozen": False}


# What the feature step may look at: (augment, key, positions int32[B], images) ->
# images; the position of an image in its data set decides its random crop.
VIEWS: dict[str, Callable[[Augment, jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "plain": lambda augment, key, positions, images: images,
    "mirror": lambda augment, key, positions, images: augmentation.mirror(images),
    "random": augmentation.vary,
}


class StepSpec(NamedTuple):
    """What a train step is compiled for. Hashable: a cache key."""

    backbone: Any  # a ResNet, which pyright takes for unhashable
    head: Head
    loss: Loss
    # Maps the head's parameters after the steps that ``StepInputs.projects`` names.
    project: Callable[[Params, Params], Params] | None
    sgd: Sgd
    trains: str  # regular expression over whole names of parameters
    batch_norm: str  # a key of BATCH_NORM
    augment: Augment
    parts: int = 1  # micro-batches
    mixup: float = 0.0  # its alpha; 0: none


class StepInputs(NamedTuple):
    """What a run turns without another compilation."""

    key: jax.Array  # of the run's augmentation
    rates: Any  # float32[steps], the learning rate of every step
    adjust: Adjust
    start: Params  # the head that the run began with, which a projection may look at
    projects: Any  # bool[steps], after which steps the projection acts
    part: Any = 0  # rows of a micro-batch, see part_rows; read where there are several


@functools.cache
def _train_step(
    program: StepSpec,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """What one device does in a step, see `make_train_step`."""
    backbone, head, loss, project, sgd, trains, batch_norm, augment, *rest = program
    parts, mixup = rest
    moving = BATCH_NORM[batch_norm]
    sum_devices = functools.partial(jax.lax.psum, axis_name=sharding.AXIS)

    def one_part(
        state: TrainState, inputs: StepInputs, stats: Params, number: Any, batch: Batch
    ) -> tuple[Params, Any]:
        """The statistics after a micro-batch; its sums of gradients and measures."""
        label, mask = batch["label"], batch["mask"]
        # Augmentation goes by position in the global batch, not by device, so that
        # the number of devices does not change the images.
        here = jax.lax.axis_index(sharding.AXIS) * len(mask) + jnp.arange(len(mask))
        position = number * inputs.part + here
        key = jax.random.fold_in(_key(inputs.key), state.step)
        images = augmentation.vary(augment, key, position, batch["image"])
        images = augmentation.normalise(augment, images)
        weight = inputs.adjust.weight[label]
        other, share = label, jnp.ones(len(mask))
        if mixup:
            other = augmentation.partner(label)
            share = augmentation.mix_shares(mixup, key, position, mask)
            own = share[:, None, None, None]
            images = own * images + (1 - own) * augmentation.partner(images)
            weight = share * weight + (1 - share) * inputs.adjust.weight[other]
        trained, fixed = trees.partition(state.params, trains)

        def total(trained: Params) -> tuple[jax.Array, Any]:
            params = trees.join(trained, fixed)
            features, updated = backbone.apply(
                {"params": params["backbone"], "batch_stats": stats},
                images,
                mask,
                moving,
                mutable=["batch_stats"],
            )
            logits = head.apply(params["head"], features)
            each = loss(logits, label, mask, inputs.adjust, sum_devices)
            if mixup:
                others = loss(logits, other, mask, inputs.adjust, sum_devices)
                each = share * each + (1 - share) * others
            return jnp.sum(mask * each), (updated["batch_stats"], logits)

        (loss_sum, (stats, logits)), grads = jax.value_and_grad(total, has_aux=True)(
            trained
        )
        right = (mask > 0) & (jnp.argmax(logits, axis=1) == label)
        measured = {
            "loss_sum": loss_sum,
            "weight_sum": jnp.sum(mask * weight),
            "right": jnp.sum(right),
            "seen": jnp.sum(mask > 0),
        }
        return stats, (grads, measured)

    def all_parts(
        state: TrainState, inputs: StepInputs, batch: Batch
    ) -> tuple[Params, tuple[Params, dict[str, jax.Array]]]:
        part = functools.partial(one_part, state, inputs)
        if parts == 1:
            return part(state.batch_stats, 0, batch)
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)

        def add(carry: Any, now: Any) -> tuple[Any, None]:
            stats, sums = carry
            stats, more = part(stats, *now)
            return (stats, jax.tree.map(jnp.add, sums, more)), None

        one = jax.tree.map(lambda a: a[0], split)
        _, shapes = jax.eval_shape(part, state.batch_stats, 0, one)
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        begin = state.batch_stats, none
        (stats, sums), _ = jax.lax.scan(add, begin, (jnp.arange(parts), split))
        return stats, sums

    def step(
        state: TrainState, batch: Batch, inputs: StepInputs
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        trained, fixed = trees.partition(state.params, trains)
        stats, sums = all_parts(state, inputs, batch)
        grads, measured = sum_devices(sums)
        # Of a step none of whose images could be decoded there is no mean to follow.
        some = measured["weight_sum"] > 0
        grads = jax.tree.map(
            lambda g: jnp.where(some, g / measured["weight_sum"], 0), grads
        )
        rate = inputs.rates[state.step]
        trained, opt_state = sgd.descend(grads, state.opt_state, trained, rate)
        params = trees.join(trained, fixed)
        if project is not None:
            before = params["head"]
            acts = inputs.projects[state.step]
            after = project(before, inputs.start)
            head_now = jax.tree.map(functools.partial(jnp.where, acts), after, before)
            params = {**params, "head": head_now}
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=stats,
            opt_state=opt_state,
        )
        # The loss tells of a bad update one step late: by then it may have been saved.
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trained)]
        return state, {**measured, "finite": jnp.all(jnp.stack(finite))}

    return step


@functools.cache
def make_train_step(
    program: StepSpec,
) -> Callable[[TrainState, Batch, StepInputs], tuple[TrainState, dict[str, jax.Array]]]:
    """One step of SGD on the parameters that ``trains`` matches.

    Only those are differentiated: with ``head/.*`` no gradient passes the backbone.
    The loss is the mean over the global batch, ``sum of losses / sum of weights``.

    With ``parts`` above 1 the batch is computed in so many micro-batches one after the
    other, in the memory of one; rows must be put in order by ``arrange``. The gradients
    are added up, so the step is the same, but for what looks at several examples:
    moving batch norm has the statistics of each micro-batch, and the running ones move
    that many times; LADE's regulariser is of each micro-batch.

    With ``mixup`` above 0, its alpha, every image is mixed with its neighbour in the
    batch, and the loss is that of its label and of its neighbour's label, in the same
    shares: for a cross-entropy the very loss of the mixed target.

    Returns:
      ``(state, batch, inputs) -> (state, measured)``; the state is donated. Measured
      over the global batch: the sums ``loss_sum`` and ``weight_sum``, ``right`` (of the
      example's own label) and ``seen`` (int32), and whether the new parameters are
      ``finite``.
    """
    return jax.pmap(
        _train_step(program),
        axis_name=sharding.AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
    )


@functools.cache
def make_train_steps(
    program: StepSpec,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Several steps of `make_train_step` in one call, on images held by the devices.

    The batches are those of `load_batches`, to the bit. The body of a loop is another
    program than a step alone, so that sums may be rounded otherwise. Not for CPUs,
    whose compiler gives a loop's body one thread and plain loops.

    Returns:
      ``(state, held, rows, count, inputs) -> (state, measured)``; the state is donated.
      ``held``: ``{"image": [N, H, W, C], "label": int32[N]}``, all examples, on every
      device; ``rows``: int32[devices, T, B / devices] from ``shard_rows``; ``count``:
      int32[], of the T steps so many are taken. What is measured has a leading axis of
      T, its values from ``count`` on without meaning.
    """
    step = _train_step(program)

    def several(
        state: TrainState,
        held: Batch,
        rows: jax.Array,
        count: jax.Array,
        inputs: StepInputs,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(carry: Any) -> Any:
            number, state, measured = carry
            state, new = step(state, _picked(held, rows[number]), inputs)
            measured = jax.tree.map(lambda m, n: m.at[number].set(n), measured, new)
            return number + 1, state, measured

        batch = jax.eval_shape(_picked, held, rows[0])
        _, shapes = jax.eval_shape(step, state, batch, inputs)
        nothing = jax.tree.map(
            lambda a: jnp.zeros((len(rows), *a.shape), a.dtype), shapes
        )
        begin = jnp.zeros((), jnp.int32), state, nothing
        _, state, measured = jax.lax.while_loop(lambda c: c[0] < count, one, begin)
        return state, measured

    return jax.pmap(
        several,
        axis_name=sharding.AXIS,
        in_axes=(None, None, 0, None, None),
        out_axes=None,
        donate_argnums=0,
    )


@functools.cache
def make_pick() -> Callable[[Batch, jax.Array], Batch]:
    """``(held, int32[devices, 1, B / devices]) -> batch``, as ``shard`` places it."""
    return jax.pmap(
        lambda held, rows: _picked(held, rows[0]),
        axis_name=sharding.AXIS,
        in_axes=(None, 0),
    )


def _picked(held: Batch, rows: jax.Array) -> Batch:
    """The batch of these rows of all examples, -1 for padding, as in `load_batches`."""
    real = rows >= 0
    places = jnp.where(real, rows, 0)
    return {
        "image": jnp.where(real[:, None, None, None], held["image"][places], 0),
        "label": jnp.where(real, held["label"][places], 0),
        "mask": real.astype(jnp.float32),
    }


class CompiledStep(NamedTuple):
    """A step that was compiled before its first call."""

    run: Callable[..., Any]
    lower_seconds: float
    compile_seconds: float
    temporary_bytes: int  # per device, besides arguments and results; 0: unknown


def compile_step(step: Any, *arguments: Any) -> CompiledStep:
    """Compile a step for arguments like these, or find it in the cache."""
    # With several processes only pmap itself can build the global arrays. It then
    # finds the program in the cache, which holds those with default options.
    alone = jax.process_count() == 1
    begun = time.monotonic()
    lowered = step.lower(*arguments)
    lowered_at = time.monotonic()
    compiled = lowered.compile(models.compiler_options() if alone else None)
    done = time.monotonic()
    size = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    run = compiled if alone else step
    return CompiledStep(run, lowered_at - begun, done - lowered_at, size)


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
        return metrics.merge(tally, jax.lax.psum(new, sharding.AXIS))

    return jax.pmap(
        step, axis_name=sharding.AXIS, in_axes=(None, None, 0, None), out_axes=None
    )


@functools.cache
def make_feature_step(
    backbone: ResNet, augment: Augment, view: str
) -> Callable[[Params, Params, Batch, jax.Array, int], jax.Array]:
    """``(params, batch_stats, batch, key, first) -> float[B, D]`` of the global batch.

    Features of a view of the images, a name in ``VIEWS``, under frozen statistics;
    masked rows hold no meaning. ``key`` is that of the random crops, ``first`` the
    position of the batch's first image in its data set.
    """
    turn = VIEWS[view]

    def step(
        params: Params, stats: Params, batch: Batch, key: jax.Array, first: int
    ) -> jax.Array:
        size = len(batch["mask"])
        positions = first + jax.lax.axis_index(sharding.AXIS) * size + jnp.arange(size)
        images = turn(augment, _key(key), positions, batch["image"])
        features = _features(
            backbone, params, stats, augmentation.normalise(augment, images)
        )
        # Every process gets those of all.
        return jax.lax.all_gather(features, sharding.AXIS, tiled=True)

    return jax.pmap(
        step,
        axis_name=sharding.AXIS,
        in_axes=(None, None, 0, None, None),
        out_axes=None,
    )


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
    return sharding.replicate(
        TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=jax.jit(sgd.transform().init)(trained),
        )
    )


def _key(data: jax.Array) -> jax.Array:
    """The random key whose numbers ``replicate`` gave to the devices."""
    return jax.random.wrap_key_data(data)


def at_once(asked: int) -> int:
    """Steps in one call: as many as asked for; for 0 what is fastest here."""
    return asked or (1 if jax.default_backend() == "cpu" else 16)
