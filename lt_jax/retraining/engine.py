"""Many heads at once on cached features: the engine of cached stage 2 and of sweeps.

Heads of one kind are mapped over by one compiled program that scans over the steps;
learning rate, weight decay and the vectors of the loss are arrays, so another value is
not another program. On several devices each holds a part of the heads and a part of
the features. The order of examples is the online one (``samplers.plan``), so on one
un-augmented view a head comes out as the online loop fits it, up to rounding.
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
from lt_jax.losses import Adjust, Loss, single_device
from lt_jax.methods import Method
from lt_jax.metrics import Tally
from lt_jax.retraining.features import Apply, Features, mean_logits
from lt_jax.training.optim import Sgd
from lt_jax.types import Params

# Arrays of the size of a head, and of its logits on a batch, that exist at one time
# while it is fitted or measured: parameters, start, momentum, gradient, temporaries.
COPIES = 6


class HeadJob(NamedTuple):
    """A head to fit."""

    run: str  # names it, for example los/0.2
    method: Method
    start: Params
    rates: np.ndarray  # float32[steps]
    projects: np.ndarray  # bool[steps], see methods.projection_steps
    epochs: int
    sgd: Sgd
    order: tuple[int, ...]  # names the run whose order of examples it follows


class HeadFit(NamedTuple):
    """A head after training."""

    head: Params
    diverged: int | None  # the first step whose loss was not a number


class Chunk(NamedTuple):
    """Heads that are fitted at once, on one order of examples."""

    jobs: tuple[HeadJob, ...]
    width: int  # heads the program takes; what is missing is filled up with repeats


def plan_chunks(jobs: Sequence[HeadJob], batch: int, memory: float) -> list[Chunk]:
    """Cuts jobs into chunks that fit the memory; one program runs all of a kind.

    Args:
      batch: rows of a step.
      memory: bytes of each device that heads may take.
    """
    programs: dict[Any, dict[Any, list[HeadJob]]] = {}
    for job in jobs:
        orders = programs.setdefault(_program(job), {})
        key = job.method.sampler, job.epochs, job.order
        orders.setdefault(key, []).append(job)
    chunks = []
    for orders in programs.values():
        widest = max(map(len, orders.values()))
        one = next(iter(orders.values()))[0]
        limit = heads_within(memory, one.start, batch)
        width = sharding.padded_size(-(-widest // -(-widest // limit)))
        for group in orders.values():
            chunks += [
                Chunk(tuple(group[i : i + width]), width)
                for i in range(0, len(group), width)
            ]
    return chunks


def heads_within(memory: float, head: Params, batch: int) -> int:
    """Heads that fit at once on the devices, at least one on each."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(head))
    num_classes = head["kernel"].shape[1]
    bytes_each = 4 * COPIES * (size + batch * num_classes)
    return max(1, int(memory / bytes_each)) * sharding.padded_size(1)


def programs_of(chunks: Sequence[Chunk]) -> int:
    """The number of programs that are compiled to fit these."""
    return len({_program(c.jobs[0]) for c in chunks if c.jobs[0].epochs})


def _program(job: HeadJob) -> tuple[Any, ...]:
    """What a program is compiled for."""
    head, method = job.method.head, job.method
    return head.apply, head.trains, method.loss, method.project, job.sgd.program()


@functools.cache
def make_fit(
    apply: Apply,
    trains: str,
    loss: Loss,
    project: Callable[[Params, Params], Params] | None,
    sgd: Sgd,
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Some steps of H heads at once, on one order of examples that they share.

    Args:
      sgd: its decay is not read, each head has its own.

    Returns:
      ``(params, opt_state, start, rates, projects, decay, adjust, values, labels,
      rows) -> (params, opt_state, loss float32[H, S])``. The leaves of params,
      opt_state, start (the parameters before the first epoch) and adjust have a leading
      axis of H, which is divided over the devices; rates float32[H, S]; projects
      bool[H, S]; decay float32[H]; values float[N, D], divided over the devices; labels
      int32[N]; rows int32[S, B], -1 is padding. params and opt_state are donated.
    """

    def step(
        params: Params,
        opt_state: Any,
        start: Params,
        rate: jax.Array,
        acts: jax.Array,
        decay: jax.Array,
        adjust: Adjust,
        features: jax.Array,
        label: jax.Array,
        mask: jax.Array,
    ) -> tuple[Params, Any, jax.Array]:
        trained, fixed = trees.partition(params, trains)

        def total(trained: Params) -> jax.Array:
            logits = apply(trees.join(trained, fixed), features)
            return jnp.sum(mask * loss(logits, label, mask, adjust, single_device))

        loss_sum, grads = jax.value_and_grad(total)(trained)
        weight_sum = jnp.sum(mask * adjust.weight[label])
        grads = jax.tree.map(lambda g: g / weight_sum, grads)
        own = sgd._replace(decay=decay)
        trained, opt_state = own.descend(grads, opt_state, trained, rate)
        params = trees.join(trained, fixed)
        if project is not None:
            projected = project(params, start)
            params = jax.tree.map(functools.partial(jnp.where, acts), projected, params)
        return params, opt_state, loss_sum / weight_sum

    # The batch is gathered once for all heads: an order of its own for each would cost
    # more than the arithmetic of a small head.
    many = jax.vmap(step, in_axes=(0,) * 7 + (None,) * 3)

    def run(
        params: Params,
        opt_state: Any,
        start: Params,
        rates: jax.Array,
        projects: jax.Array,
        decay: jax.Array,
        adjust: Adjust,
        values: jax.Array,
        labels: jax.Array,
        rows: jax.Array,
    ) -> tuple[Params, Any, jax.Array]:
        def body(carry: Any, now: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            indices, rate, acts = now
            chosen = jnp.maximum(indices, 0)
            mask = (indices >= 0).astype(jnp.float32)
            batch = sharding.gather_rows(values, chosen), labels[chosen], mask
            params, opt_state = carry
            *carry, losses = many(
                params, opt_state, start, rate, acts, decay, adjust, *batch
            )
            return tuple(carry), losses

        moving = rows, rates.T, projects.T
        carry, losses = jax.lax.scan(body, (params, opt_state), moving)
        return *carry, losses.T

    over = (True,) * 8 + (False,) * 2
    return sharding.jit_over_devices(run, over, donate=(0, 1))


def fit_heads(
    chunks: Sequence[Chunk],
    features: Features,
    batch: int,
    memory: float,
    after_epoch: Callable[[int], None],
    plain: Callable[[], Features] | None = None,
) -> Iterator[tuple[Chunk, list[HeadFit]]]:
    """Fits chunk after chunk; the heads of each in the order of its jobs.

    Args:
      features: of the training examples; epoch e sees view e modulo V.
      batch: rows of a step.
      memory: bytes of each device that features may take; beyond it, they are read
        from their file as the steps go on.
      after_epoch: called with the number of heads whose epoch is over.
      plain: gives the features of the same images as they are, which corrections look
        at; None: ``features`` are these.
    """
    if resident(features, memory):
        pieces = _held(features)
    else:
        pieces = functools.partial(_read, features, memory)
    for chunk in chunks:
        filled = [*chunk.jobs, *[chunk.jobs[-1]] * (chunk.width - len(chunk.jobs))]
        one, decays = filled[0], np.array([j.sgd.decay for j in filled], np.float32)
        fit = make_fit(*_program(one))
        stacked = _stack([job.start for job in filled])
        start, params = (_spread(stacked) for _ in range(2))  # the second is donated
        opt_state = _make_begin(one.sgd.program(), one.method.head.trains)(start)
        rates = np.stack([job.rates for job in filled])  # [H, steps]
        projects = np.stack([job.projects for job in filled])
        adjusts, losses = _Adjusts(filled), []
        for epoch in range(one.epochs):
            rows = samplers.plan(
                features.labels, one.method.sampler, batch, one.order, epoch
            )
            view, at = epoch % len(features.values), epoch * len(rows)
            for values, labels, local in pieces(view, rows):
                now = slice(at, at + len(local))
                at += len(local)
                params, opt_state, loss = fit(
                    params,
                    opt_state,
                    start,
                    sharding.shard_globally(rates[:, now]),
                    sharding.shard_globally(projects[:, now]),
                    sharding.shard_globally(decays),
                    adjusts.at(epoch),
                    values,
                    labels,
                    local,
                )
                losses.append(sharding.fetch_global(loss))
            after_epoch(len(chunk.jobs))
        heads, bad = sharding.fetch_global(params), _first_bad(losses, len(filled))
        seen = plain or (lambda: features)
        fits = [
            HeadFit(corrected(job.method, _at(heads, i), features.labels, seen), bad[i])
            for i, job in enumerate(chunk.jobs)
        ]
        yield chunk, fits


@functools.cache
def _make_begin(sgd: Sgd, trains: str) -> Callable[[Params], Any]:
    """The optimiser's state before the first step, made where the heads lie."""

    def begin(params: Params) -> Any:
        trained, _ = trees.partition(params, trains)
        return sgd.transform().init(trained)

    return sharding.jit_over_devices(begin, (True,))


def resident(features: Features, memory: float) -> bool:
    """Whether features fit into so many bytes of each device, and so stay there."""
    return features.values.nbytes / sharding.padded_size(1) <= memory


# (view, int32[S, B]) -> features, labels and rows into them, for some steps each.
Pieces = Callable[[int, np.ndarray], Iterator[tuple[Any, Any, Any]]]


def _held(features: Features) -> Pieces:
    """Features that stay on the devices."""
    views = [sharding.shard_globally(np.asarray(view)) for view in features.values]
    labels = sharding.replicate_globally(features.labels)
    return lambda view, rows: iter([(views[view], labels, rows)])


def _read(
    features: Features, memory: float, view: int, rows: np.ndarray
) -> Iterator[tuple[Any, Any, Any]]:
    """The examples of some steps after the other, out of the file, each time anew."""
    batch, (_, _, num_features) = rows.shape[1], features.values.shape
    row_bytes = (
        batch * num_features * features.values.itemsize / sharding.padded_size(1)
    )
    at_once = max(1, int(memory / row_bytes))
    for first in range(0, len(rows), at_once):
        piece = rows[first : first + at_once]
        chosen = np.maximum(piece, 0).ravel()
        local = np.where(piece >= 0, np.arange(chosen.size).reshape(piece.shape), -1)
        yield (
            sharding.shard_globally(features.values[view][chosen]),
            features.labels[chosen],
            local.astype(np.int32),
        )


class _Adjusts:
    """The vectors of the losses of some jobs in an epoch; some methods defer theirs."""

    def __init__(self, jobs: Sequence[HeadJob]):
        self._jobs = jobs
        self._late: tuple[bool, ...] | None = None
        self._placed: Any = None

    def at(self, epoch: int) -> Adjust:
        """Leaves of [H, ...], placed anew only where they change."""
        late = tuple(
            job.method.deferred is not None
            and epoch >= round(job.method.defer * job.epochs)
            for job in self._jobs
        )
        if late != self._late:
            each = [
                job.method.deferred if now else job.method.adjust
                for job, now in zip(self._jobs, late, strict=True)
            ]
            self._late = late
            self._placed = _spread(_stack(each))
        return self._placed


def _first_bad(losses: Sequence[np.ndarray], heads: int) -> list[int | None]:
    """The first step, counted from 1, at which a head's loss was not a number."""
    if not losses:
        return [None] * heads
    bad = ~np.isfinite(np.concatenate(losses, axis=1)[:heads])
    return [int(row.argmax()) + 1 if row.any() else None for row in bad]


def corrected(
    method: Method, head: Params, labels: np.ndarray, plain: Callable[[], Features]
) -> Params:
    """The head as the method leaves it: some change it once after training.

    Args:
      labels: int32[N], of the examples that were fitted.
      plain: gives the features of these, un-augmented; called only where the method
        looks at them.
    """
    if method.correct is None:
        return head
    blocks: Blocks = lambda: iter(())  # noqa: E731
    if method.needs_features:
        seen = plain()
        blocks, labels = in_blocks(seen), seen.labels
    return jax.device_get(method.correct(head, blocks, labels))


def in_blocks(features: Features, rows: int = 4096) -> Blocks:
    """The first view, so many rows at a time."""
    values = features.values[0]
    return lambda: (values[i : i + rows] for i in range(0, len(values), rows))


def measure_heads(
    head: Head, many: Sequence[Params], features: Features, batch: int, memory: float
) -> list[Tally]:
    """The tally of every head on a split, logits averaged over its views.

    Args:
      memory: bytes of each device that heads may take.
    """
    step = _make_measure(head.apply)
    limit = heads_within(memory, many[0], batch)
    num_classes, found = many[0]["kernel"].shape[1], []
    for first in range(0, len(many), limit):
        part = many[first : first + limit]
        params = _spread(_stack(part))
        width = sharding.padded_size(len(part))
        tally = _spread(_stack([metrics.empty(num_classes)] * width))
        for values, labels, mask in features.batches(batch):
            tally = step(params, tally, values, labels, mask)
        tally = sharding.fetch_global(tally)
        found += [_at(tally, i) for i in range(len(part))]
    return found


@functools.cache
def _make_measure(apply: Apply) -> Callable[..., Tally]:
    def one(
        params: Params,
        so_far: Tally,
        values: jax.Array,
        label: jax.Array,
        mask: jax.Array,
    ) -> Tally:
        logits = mean_logits(apply, params, values)
        return metrics.merge(so_far, metrics.tally(logits, label, mask))

    many = jax.vmap(one, in_axes=(0, 0, None, None, None))
    return sharding.jit_over_devices(
        many, (True, True, False, False, False), donate=(1,)
    )


def _stack(many: Sequence[Any]) -> Any:
    """Trees of the same structure as one on the host, along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(many)))


def _spread(stacked: Any) -> Any:
    """A stack divided over the devices."""
    return jax.tree.map(lambda leaf: sharding.shard_globally(np.array(leaf)), stacked)


def _at(stacked: Any, index: int) -> Any:
    """One of the trees of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)
