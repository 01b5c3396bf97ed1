"""Fits many heads at once on cached features: cached stage 2 and sweeps.

One compiled program scans over the steps and maps over heads of one kind. Learning
rate, weight decay and the loss vectors are arrays, so other values reuse the program.
Each device holds a part of the heads and a part of the features. Examples come in the
order of online training (``samplers.plan``). Without augmentation a head therefore
equals the online result up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import metrics, samplers, trees
from lt_jax.distributed import sharding
from lt_jax.heads import Blocks, Head
from lt_jax.losses import Adjust, Loss, divisors, one_device
from lt_jax.methods import Method, Project, projection_steps
from lt_jax.metrics import Tally
from lt_jax.retraining.chunks import Chunk, max_heads, program_of
from lt_jax.retraining.features import Apply, Features, mean_logits
from lt_jax.training.optim import Sgd
from lt_jax.types import Params


class HeadFit(NamedTuple):
    """A fitted head."""

    head: Params
    diverged: int | None  # the first step whose loss was NaN or infinite


State = tuple[Params, Any]  # parameters and optimizer state


class Settings(NamedTuple):
    """What differs between heads; every leaf has a leading axis of heads, H."""

    start: Params  # the parameters before the first epoch
    rates: jax.Array  # float32[H, S]
    projects: jax.Array  # bool[H, S]
    decay: jax.Array  # float32[H]
    adjust: Adjust


@functools.cache
def make_fit(
    apply: Apply, trains: str, loss: Loss, project: Project | None, sgd: Sgd
) -> Callable[..., tuple[State, jax.Array]]:
    """Make S steps of H heads at once, on the same examples.

    Returns:
      ``(state, settings, values, labels, rows) -> (state, loss float32[H, S])``. Leaves
      of state and settings have a leading axis of H, sharded over the devices.
      ``values`` is float[N, D], sharded; ``labels`` int32[N]; ``rows`` int32[S, B], -1
      for padding. The state is donated.
    """

    def step(state: State, settings: Settings, batch: Any) -> tuple[State, jax.Array]:
        """Take one step of one head; the settings are those of this head and step."""
        (params, opt_state), (features, label, mask) = state, batch
        trained, fixed = trees.partition(params, trains)
        adjust = settings.adjust

        def total(trained: Params) -> jax.Array:
            logits = apply(_flip(trees.join(trained, fixed)), features)
            return jnp.sum(mask * loss(logits, label, mask, adjust, one_device))

        loss_sum, grads = jax.value_and_grad(total)(trained)
        weight_sum = jnp.sum(mask * divisors(adjust, label))
        grads = jax.tree.map(lambda g: g / weight_sum, grads)
        own = sgd._replace(decay=settings.decay)
        trained, opt_state = own.descend(grads, opt_state, trained, settings.rates)
        params = trees.join(trained, fixed)
        if project is not None:
            choose = functools.partial(jnp.where, settings.projects)
            projected = _flip(project(_flip(params), settings.start))
            params = jax.tree.map(choose, projected, params)
        return (params, opt_state), loss_sum / weight_sum

    # The batch is gathered once for all heads. For small heads, separate orders would
    # cost more than the arithmetic.
    all_heads = jax.vmap(step, in_axes=(0, 0, None))

    def run(
        state: State, settings: Settings, values: Any, labels: Any, rows: Any
    ) -> tuple[State, jax.Array]:
        def body(state: State, at_step: Any) -> tuple[State, jax.Array]:
            indices, rates, projects = at_step
            chosen = jnp.maximum(indices, 0)
            mask = (indices >= 0).astype(jnp.float32)
            features = sharding.gather_rows(values, chosen)
            now = settings._replace(rates=rates, projects=projects)
            return all_heads(state, now, (features, labels[chosen], mask))

        steps = rows, settings.rates.T, settings.projects.T
        state, losses = jax.lax.scan(body, jax.vmap(_flip)(state), steps)
        return jax.vmap(_flip)(state), losses.T

    sharded = (True, True, True, False, False)
    return sharding.jit_over_devices(run, sharded, donate=(0,))


def _flip(tree: Any) -> Any:
    """Transpose the kernels in a tree of one head.

    While steps are taken, class vectors lie in rows. With columns, each step would copy
    all kernels and gradients into another order: a quarter of its time on a CPU.
    """
    return jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 else leaf, tree)


def fit_heads(
    chunks: Sequence[Chunk],
    features: Features,
    batch: int,
    memory: float,
    after_epoch: Callable[[int], None],
    plain: Callable[[], Features] | None = None,
) -> Iterator[tuple[Chunk, list[HeadFit]]]:
    """Fit one chunk after the other; yield it and its heads, in the order of its jobs.

    Args:
      features: of the training examples; epoch e uses view e modulo V.
      batch: examples per step.
      memory: bytes per device for features. Larger ones are read from their file.
      after_epoch: called with the number of heads that finished an epoch, and with the
        ``Method.passes`` of a corrected head.
      plain: returns the features without augmentation, for corrections; None:
        ``features`` are these.
    """
    if fits_in_memory(features, memory):
        pieces = _held_pieces(features)
    else:
        pieces = functools.partial(_file_pieces, features, memory)
    labels, plain = features.labels, plain or (lambda: features)
    for chunk in chunks:
        heads, losses = _fit_chunk(chunk, labels, batch, pieces, after_epoch)
        fits = []
        for i, job in enumerate(chunk.jobs):
            head = apply_correction(job.method, _unstack(heads, i), labels, plain)
            after_epoch(job.method.passes)
            bad = ~np.isfinite(losses[i])
            fits.append(HeadFit(head, int(bad.argmax()) + 1 if bad.any() else None))
        yield chunk, fits


# (view, int32[S, B]) -> features, labels and rows of them, each for some of the steps.
Pieces = Callable[[int, np.ndarray], Iterator[tuple[Any, Any, Any]]]


def _fit_chunk(
    chunk: Chunk,
    labels: np.ndarray,
    batch: int,
    pieces: Pieces,
    after_epoch: Callable[[int], None],
) -> tuple[Params, np.ndarray]:
    """Fit the heads of a chunk; return them stacked, and float32[H, steps] losses."""
    jobs = [*chunk.jobs, *[chunk.jobs[-1]] * (chunk.width - len(chunk.jobs))]
    one = jobs[0]
    fit = make_fit(*program_of(one))
    starts = _stack([job.start for job in jobs])
    trained, _ = trees.partition(starts, one.method.head.trains)
    # Zeros from the host, as the momentum of all heads may not fit on one device.
    shapes = jax.eval_shape(one.sgd.transform().init, trained)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    start, state = _shard(starts), _shard((starts, zeros))  # which is donated
    decays = sharding.shard_globally(np.array([j.sgd.decay for j in jobs], np.float32))
    rates = np.stack([job.rates for job in jobs])  # [H, steps]
    per_epoch = rates.shape[1] // max(one.epochs, 1)
    projects = [projection_steps(job.method, job.epochs, per_epoch) for job in jobs]
    arrays = rates, np.stack(projects)
    deferred_from = [round(job.method.defer * job.epochs) for job in jobs]
    adjusts: Any = None
    losses = [np.zeros((len(jobs), 0), np.float32)]
    for epoch in range(one.epochs):
        if epoch == 0 or epoch in deferred_from:
            now = [
                (epoch >= first and job.method.deferred) or job.method.adjust
                for job, first in zip(jobs, deferred_from, strict=True)
            ]
            adjusts = _shard(_stack(now))
        rows = samplers.plan(labels, one.method.sampler, batch, one.order, epoch)
        step = epoch * len(rows)
        for values, piece_labels, local in pieces(epoch, rows):
            steps = slice(step, step + len(local))
            step += len(local)
            now = (sharding.shard_globally(a[:, steps]) for a in arrays)
            settings = Settings(start, *now, decay=decays, adjust=adjusts)
            state, loss = fit(state, settings, values, piece_labels, local)
            losses.append(sharding.fetch_global(loss))
        after_epoch(len(chunk.jobs))
    return sharding.fetch_global(state[0]), np.concatenate(losses, axis=1)


def fits_in_memory(features: Features, memory: float) -> bool:
    """Return whether features fit into ``memory`` bytes per device, and stay there."""
    return features.values.nbytes / sharding.padded_size(1) <= memory


def _held_pieces(features: Features) -> Pieces:
    """Keep all features on the devices."""
    views = [sharding.shard_globally(np.asarray(view)) for view in features.values]
    labels = sharding.replicate_globally(features.labels)
    return lambda epoch, rows: iter([(views[epoch % len(views)], labels, rows)])


def _file_pieces(
    features: Features, memory: float, epoch: int, rows: np.ndarray
) -> Iterator[tuple[Any, Any, Any]]:
    """Read the examples of a few steps at a time."""
    view = features.values[epoch % len(features.values)]
    bytes_per_step = rows.shape[1] * view.shape[1] * view.itemsize
    steps = max(1, int(memory / (bytes_per_step / sharding.padded_size(1))))
    for first in range(0, len(rows), steps):
        piece = rows[first : first + steps]
        chosen = np.maximum(piece, 0).ravel()
        local = np.where(piece >= 0, np.arange(chosen.size).reshape(piece.shape), -1)
        values = sharding.shard_globally(view[chosen])
        yield values, features.labels[chosen], local.astype(np.int32)


def apply_correction(
    method: Method, head: Params, labels: np.ndarray, plain: Callable[[], Features]
) -> Params:
    """Apply the correction of a method, if it has one, to a fitted head.

    ``plain`` returns the features of the training examples, for methods that use them.
    """
    if method.correct is None:
        return head
    if not method.needs_features:
        return jax.device_get(method.correct(head, lambda: iter(()), labels))
    features = plain()
    corrected = method.correct(head, feature_blocks(features), features.labels)
    return jax.device_get(corrected)


def feature_blocks(features: Features, rows: int = 4096) -> Blocks:
    """Iterate over the first view, ``rows`` examples at a time."""
    values = features.values[0]
    return lambda: (values[i : i + rows] for i in range(0, len(values), rows))


def measure_heads(
    head: Head, many: Sequence[Params], features: Features, batch: int, memory: float
) -> list[Tally]:
    """Compute the tally of every head on a split, logits averaged over its views.

    ``batch`` counts examples at a time, ``memory`` is in bytes per device for heads.
    """
    step = _make_measure(head.apply)
    limit = max_heads(memory, many[0], batch)
    num_classes, tallies = many[0]["kernel"].shape[1], []
    for first in range(0, len(many), limit):
        part = many[first : first + limit]
        params = _shard(_stack(part))
        width = sharding.padded_size(len(part))
        tally = _shard(_stack([metrics.empty(num_classes)] * width))
        for each in features.batches(batch):
            tally = step(params, tally, each)
        tally = sharding.fetch_global(tally)
        tallies += [_unstack(tally, i) for i in range(len(part))]
    return tallies


@functools.cache
def _make_measure(apply: Apply) -> Callable[..., Tally]:
    def measure(params: Params, tally: Tally, batch: Any) -> Tally:
        values, label, mask = batch
        logits = mean_logits(apply, params, values)
        return metrics.merge(tally, metrics.tally(logits, label, mask))

    all_heads = jax.vmap(measure, in_axes=(0, 0, None))
    return sharding.jit_over_devices(all_heads, (True, True, False), donate=(1,))


def _stack(trees_: Sequence[Any]) -> Any:
    """Stack trees on the host along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(trees_)))


def _shard(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: sharding.shard_globally(np.array(leaf)), stacked)


def _unstack(stacked: Any, index: int) -> Any:
    """Take one tree out of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)
