"""The training step, and the only pmap of the package.

Every step is ``pmap(step, in_axes=(None, ..., 0), out_axes=None)``: only the batch has
a leading axis of devices. Replicated values enter and leave without it. Each device
sums over its examples, ``psum`` adds the devices, and one division follows. N devices
and ragged batches therefore compute what one device computes.

The ``make_*`` functions are cached by their arguments. Seeds, learning rates and the
loss vectors are arguments of the steps, so another seed or method compiles nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lt_jax import losses, models, trees
from lt_jax.data.augment import transforms as augmentation
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.heads import Head
from lt_jax.losses import Adjust, Loss
from lt_jax.methods import Project
from lt_jax.training.optim import Sgd
from lt_jax.types import Batch, Params, TrainState

# Whether batch norm uses the statistics of the batch and updates the running ones.
# "drift" equals "train" but names the authors' second stage, where the statistics move
# although the weights do not.
BATCH_NORM = {"train": True, "drift": True, "frozen": False}

Measured = dict[str, jax.Array]  # what a step measures, see `make_train_step`


class StepSpec(NamedTuple):
    """What a training step is compiled for. Hashable: a cache key."""

    backbone: Any  # a Backbone, which pyright considers unhashable
    head: Head
    loss: Loss
    project: Project | None  # applied after the steps in ``StepInputs.projects``
    sgd: Sgd
    trains: str  # regular expression for full parameter names
    batch_norm: str  # a key of BATCH_NORM
    augment: Augment
    micro_batches: int = 1
    mixup: float = 0.0  # alpha; 0: no mixup


class StepInputs(NamedTuple):
    """The values of a run that may change without another compilation."""

    key: jax.Array  # for augmentation; ``sharding.replicate`` turns it into key data
    rates: Any  # float32[steps], the learning rate of every step
    adjust: Adjust
    start: Params  # the initial head, for projections
    projects: Any  # bool[steps], whether to project after a step
    # See sharding.micro_batch_size; only read with several micro-batches.
    micro_batch_size: Any = 0


# Maps a step over all devices: axis 0 is sharded, None is replicated.
over_devices = functools.partial(jax.pmap, axis_name=sharding.AXIS, out_axes=None)
sum_devices = functools.partial(jax.lax.psum, axis_name=sharding.AXIS)
_max_devices = functools.partial(jax.lax.pmax, axis_name=sharding.AXIS)
_DEVICES = losses.Across(sum=sum_devices, max=_max_devices)


@functools.cache
def make_train_step(
    spec: StepSpec,
) -> Callable[[TrainState, Batch, StepInputs], tuple[TrainState, Measured]]:
    """Make one step of SGD on the parameters that ``spec.trains`` matches.

    Only those are differentiated: with ``head/.*`` no gradient enters the backbone. The
    loss is the mean over the global batch: the sum of losses over that of
    ``losses.divisors``.

    Micro-batches are computed one after the other, in the memory of one, and their
    gradients are added. The result is the same except where examples interact: batch
    norm and LADE's regulariser see one micro-batch at a time. Order the rows with
    ``sharding.arrange_micro_batches``.

    With mixup, every image is mixed with its neighbour in the batch, and the losses of
    both labels are mixed in the same proportion. For a cross-entropy this equals the
    loss of the mixed target.

    Returns:
      ``(state, batch, inputs) -> (state, measured)``; the state is donated. Measured
      over the global batch: the sums ``loss_sum`` and ``weight_sum``, the counts
      ``right`` (for the example's own label) and ``seen`` (int32), and whether the new
      parameters are ``finite``.
    """

    def step(
        state: TrainState, batch: Batch, inputs: StepInputs
    ) -> tuple[TrainState, Measured]:
        """Take one step; every device runs this on its part of the batch."""
        trained, fixed = trees.partition(state.params, spec.trains)
        stats, sums = _all_micro_batches(spec, state, inputs, batch)
        grads, measured = sum_devices(sums)
        # If every image failed to decode, the gradient is zero.
        total = measured["weight_sum"]
        grads = jax.tree.map(lambda g: jnp.where(total > 0, g / total, 0), grads)
        rate = inputs.rates[state.step]
        trained, opt_state = spec.sgd.descend(grads, state.opt_state, trained, rate)
        params = trees.join(trained, fixed)
        if spec.project is not None:
            projects = functools.partial(jnp.where, inputs.projects[state.step])
            projected = spec.project(params["head"], inputs.start)
            head = jax.tree.map(projects, projected, params["head"])
            params = {**params, "head": head}
        # A loss shows a bad update one step late, when it may have been saved already.
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trained)]
        measured = {**measured, "finite": jnp.all(jnp.stack(finite))}
        return TrainState(state.step + 1, params, stats, opt_state), measured

    return over_devices(step, in_axes=(None, 0, None), donate_argnums=(0,))


def _all_micro_batches(
    spec: StepSpec, state: TrainState, inputs: StepInputs, batch: Batch
) -> tuple[Params, tuple[Params, Measured]]:
    """Add up the results of all micro-batches of a device."""
    compute = functools.partial(_micro_batch, spec, state, inputs)
    count = spec.micro_batches
    if count == 1:
        return compute(state.batch_stats, 0, batch)
    split = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), batch)

    def add(carry: Any, numbered: Any) -> tuple[Any, None]:
        stats, sums = carry
        stats, more = compute(stats, *numbered)
        return (stats, jax.tree.map(jnp.add, sums, more)), None

    first = jax.tree.map(lambda a: a[0], split)
    _, shapes = jax.eval_shape(compute, state.batch_stats, 0, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    carry = state.batch_stats, zeros
    (stats, sums), _ = jax.lax.scan(add, carry, (jnp.arange(count), split))
    return stats, sums


def _micro_batch(
    spec: StepSpec,
    state: TrainState,
    inputs: StepInputs,
    stats: Params,
    index: Any,
    batch: Batch,
) -> tuple[Params, tuple[Params, Measured]]:
    """Compute the new statistics, and the sums of the gradients and of `Measured`."""
    label, mask = batch["label"], batch["mask"]
    images, weight, other, share = _augmented(spec, inputs, state.step, index, batch)
    trained, fixed = trees.partition(state.params, spec.trains)

    def total(trained: Params) -> tuple[jax.Array, Any]:
        params = trees.join(trained, fixed)
        features, updated = spec.backbone.apply(
            {"params": params["backbone"], "batch_stats": stats},
            images,
            mask,
            BATCH_NORM[spec.batch_norm],
            mutable=["batch_stats"],
        )
        logits = spec.head.apply(params["head"], features)
        each = spec.loss(logits, label, mask, inputs.adjust, _DEVICES)
        if spec.mixup:
            others = spec.loss(logits, other, mask, inputs.adjust, _DEVICES)
            each = share * each + (1 - share) * others
        return jnp.sum(mask * each), (updated["batch_stats"], logits)

    differentiate = jax.value_and_grad(total, has_aux=True)
    (loss_sum, (stats, logits)), grads = differentiate(trained)
    right = (mask > 0) & (jnp.argmax(logits, axis=1) == label)
    measured = {
        "loss_sum": loss_sum,
        "weight_sum": jnp.sum(mask * weight),
        "right": jnp.sum(right),
        "seen": jnp.sum(mask > 0),
    }
    return stats, (grads, measured)


def _augmented(
    spec: StepSpec, inputs: StepInputs, step: jax.Array, index: Any, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Augment, normalise and mix micro-batch number ``index``.

    Returns:
      The images, and per image: its weight in the mean loss, the label of the image
      mixed into it, and its own share of the mixture (1 without mixup).
    """
    label, mask = batch["label"], batch["mask"]
    # Positions count over the global batch, not per device, so that the number of
    # devices does not change the images.
    local = jax.lax.axis_index(sharding.AXIS) * len(mask) + jnp.arange(len(mask))
    position = index * inputs.micro_batch_size + local
    key = jax.random.fold_in(jax.random.wrap_key_data(inputs.key), step)
    images = augmentation.vary(spec.augment, key, position, batch["image"])
    images = augmentation.normalise(spec.augment, images)
    weight = losses.divisors(inputs.adjust, label)
    if not spec.mixup:
        return images, weight, label, jnp.ones(len(mask))
    other = augmentation.partner(label)
    share = augmentation.mix_shares(spec.mixup, key, position, mask)
    own = share[:, None, None, None]
    images = own * images + (1 - own) * augmentation.partner(images)
    others = losses.divisors(inputs.adjust, other)
    weight = share * weight + (1 - share) * others
    return images, weight, other, share


class CompiledStep(NamedTuple):
    """A step that was compiled before its first call."""

    run: Callable[..., Any]
    lower_seconds: float
    compile_seconds: float
    temporary_bytes: int  # per device, besides arguments and results; 0: unknown


def compile_step(step: Any, *arguments: Any) -> CompiledStep:
    """Compile a step for arguments like these, or find it in the cache."""
    # With several processes only pmap itself can build the global arrays. It finds the
    # program in the cache if that was compiled with the default options.
    single_process = jax.process_count() == 1
    begun = time.monotonic()
    lowered = step.lower(*arguments)
    lowered_at = time.monotonic()
    compiled = lowered.compile(models.compiler_options() if single_process else None)
    done = time.monotonic()
    size = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    run = compiled if single_process else step
    return CompiledStep(run, lowered_at - begun, done - lowered_at, size)


def init_state(
    params: Params, batch_stats: Params, sgd: Sgd, trains: str
) -> TrainState:
    """Build the state before the first step, on every device."""
    trained, _ = trees.partition(params, trains)
    step, opt_state = jnp.zeros((), jnp.int32), _opt_state(sgd, trained)
    return sharding.replicate(TrainState(step, params, batch_stats, opt_state))


@functools.partial(jax.jit, static_argnums=0)  # compiled once for fits that share it
def _opt_state(sgd: Sgd, trained: Params) -> Any:
    return sgd.transform().init(trained)
