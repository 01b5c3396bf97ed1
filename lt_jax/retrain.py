"""Stage 2 on cached features: the backbone runs once, many heads are fitted at once.

With a frozen backbone every head sees the same features, so they are computed once and
kept on disk with their provenance; heads that share their kind, their order of examples
and their number of epochs are then fitted side by side in one compiled program. The
order is the online one (``samplers.plan``), so on one un-augmented view a head comes
out as the online loop fits it, up to rounding.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import metrics, samplers, steps, trees
from lt_jax.data.feed import feed
from lt_jax.heads import Head
from lt_jax.log import Log, write_whole
from lt_jax.loop import Task
from lt_jax.losses import Adjust, Loss, alone
from lt_jax.meter import Diverged
from lt_jax.methods import Method
from lt_jax.metrics import Tally
from lt_jax.optim import Sgd
from lt_jax.types import Dataset, Params


class Features(NamedTuple):
    """A split as a frozen backbone sees it."""

    values: np.ndarray  # float32[V, N, D], one slice for each view of the images
    labels: np.ndarray  # int32[N]


class Job(NamedTuple):
    """A head to fit."""

    run: str  # names it, for example los/0.2
    method: Method
    start: Params
    rates: np.ndarray  # float32[steps]
    epochs: int
    sgd: Sgd
    order: tuple[int, ...]  # names the run whose order of examples it follows


def cached_features(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    views: Sequence[str],
    file: Path,
    log: Log,
) -> Features:
    """The features of a split, from the file if it holds these very ones.

    Args:
      views: of each image, names in ``steps.VIEWS``.
      file: ``.npy`` of float32[V, N, D]; its provenance lies beside it.
    """
    provenance = {
        "network": fingerprint({"backbone": params["backbone"], "stats": batch_stats}),
        "split": dataset.hash,
        "order": hashlib.sha256("\n".join(map(str, dataset.ids)).encode()).hexdigest(),
        "augment": json.loads(json.dumps(task.augment._asdict())),
        "views": list(views),
    }
    note = file.with_suffix(".json")
    if file.exists() and note.exists():
        if json.loads(note.read_text(encoding="utf-8")) == provenance:
            return Features(np.load(file, allow_pickle=False), dataset.labels)
        log.say(f"{file}: of another network, split or augmentation; made again")
    values = np.stack(
        [extract(task, params, batch_stats, dataset, view) for view in views]
    )
    note.unlink(missing_ok=True)  # no provenance, no use: a kill leaves nothing stale
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values, allow_pickle=False)
    write_whole(note, json.dumps(provenance, indent=1) + "\n")
    return Features(values, dataset.labels)


def fingerprint(tree: Any) -> str:
    """SHA-256 of the names, shapes and bytes of the leaves of a tree."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.leaves(jax.device_get(tree)).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def extract(
    task: Task, params: Params, batch_stats: Params, dataset: Dataset, view: str
) -> np.ndarray:
    """float32[N, D], in the order of the data set."""
    step = steps.make_feature_step(task.backbone, task.augment, view)
    params, batch_stats = steps.replicate((params, batch_stats))
    rows = samplers.in_rows(np.arange(len(dataset)), task.eval_batch)
    width, wait, parts = steps.padded(task.eval_batch), steps.throttle(), []
    for batch in feed(dataset, rows, width, steps.shard):
        parts.append(step(params, batch_stats, batch))
        wait(parts[-1])
    blocks = [np.asarray(part).reshape(width, -1)[: rows.shape[1]] for part in parts]
    return np.concatenate(blocks)[: len(dataset)].astype(np.float32)


@functools.cache
def make_fit(
    head: Head,
    loss: Loss,
    project: Callable[[Params, Params], Params] | None,
    sgd: Sgd,
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """An epoch of H heads at once, on one order of examples that they share.

    Returns:
      ``(params, opt_state, start, rates, adjust, values, labels, rows) -> (params,
      opt_state, loss float32[S, H])``. The leaves of params, opt_state, start (the
      parameters before the first epoch) and adjust have a leading axis of H; rates
      float32[S, H]; values float32[N, D]; labels int32[N]; rows int32[S, B], -1 is
      padding. params and opt_state are donated.
    """

    def step(
        params: Params,
        opt_state: Any,
        start: Params,
        rate: jax.Array,
        adjust: Adjust,
        features: jax.Array,
        label: jax.Array,
        mask: jax.Array,
    ) -> tuple[Params, Any, jax.Array]:
        trained, fixed = trees.partition(params, head.trains)

        def total(trained: Params) -> jax.Array:
            logits = head.apply(trees.join(trained, fixed), features)
            return jnp.sum(mask * loss(logits, label, mask, adjust, alone))

        loss_sum, grads = jax.value_and_grad(total)(trained)
        weight_sum = jnp.sum(mask * adjust.weight[label])
        grads = jax.tree.map(lambda g: g / weight_sum, grads)
        trained, opt_state = sgd.descend(grads, opt_state, trained, rate)
        params = trees.join(trained, fixed)
        if project is not None:
            params = project(params, start)
        return params, opt_state, loss_sum / weight_sum

    # The batch is gathered once for all heads: an order of its own for each would cost
    # more than the arithmetic of a small head.
    many = jax.vmap(step, in_axes=(0, 0, 0, 0, 0, None, None, None))

    def epoch(
        params: Params,
        opt_state: Any,
        start: Params,
        rates: jax.Array,
        adjust: Adjust,
        values: jax.Array,
        labels: jax.Array,
        rows: jax.Array,
    ) -> tuple[Params, Any, jax.Array]:
        def body(carry: Any, now: tuple[jax.Array, jax.Array]) -> Any:
            indices, rate = now
            mask = (indices >= 0).astype(jnp.float32)
            chosen = jnp.maximum(indices, 0)
            batch = values[chosen], labels[chosen], mask
            params, opt_state = carry
            params, opt_state, losses = many(
                params,
                opt_state,
                start,
                rate,
                adjust,
                *batch,
            )
            return (params, opt_state), losses

        carry, losses = jax.lax.scan(body, (params, opt_state), (rows, rates))
        return *carry, losses

    return jax.jit(epoch, donate_argnums=(0, 1))


def fit_heads(
    jobs: Sequence[Job],
    features: Features,
    batch: int,
    after_epoch: Callable[[int], None],
) -> list[Params]:
    """The heads of all jobs after training, in the order of the jobs.

    Args:
      jobs: any number; those that can share a program do.
      features: of the training examples; epoch e sees view e modulo V.
      batch: rows of a step.
      after_epoch: called with the number of heads whose epoch is over.
    """
    fitted: dict[str, Params] = {}
    labels = jnp.asarray(features.labels)
    values = [jnp.asarray(view) for view in features.values]
    for group in _groups(jobs):
        method, epochs, order = group[0].method, group[0].epochs, group[0].order
        fit = make_fit(method.head, method.loss, method.project, group[0].sgd)
        start = _stack([job.start for job in group])
        params = jax.tree.map(jnp.copy, start)  # these are donated, the start is not
        trained, _ = trees.partition(params, method.head.trains)
        opt_state = group[0].sgd.transform().init(trained)
        rates = np.stack([job.rates for job in group], axis=1)  # [steps, H]
        for epoch in range(epochs):
            rows = samplers.plan(features.labels, method.sampler, batch, order, epoch)
            before = epoch * len(rows)
            params, opt_state, losses = fit(
                params,
                opt_state,
                start,
                rates[before : before + len(rows)],
                _stack([_adjust_at(job.method, epoch, epochs) for job in group]),
                values[epoch % len(values)],
                labels,
                rows,
            )
            _check(group, np.asarray(losses), before)
            after_epoch(len(group))
        for i, job in enumerate(group):
            fitted[job.run] = corrected(job.method, _at(params, i), features)
    return [fitted[job.run] for job in jobs]


def _adjust_at(method: Method, epoch: int, epochs: int) -> Adjust:
    """The vectors of the loss in an epoch; some methods defer theirs."""
    late = epoch >= round(method.defer * epochs)
    return method.deferred if late and method.deferred else method.adjust


def corrected(method: Method, head: Params, features: Features) -> Params:
    """The head as the method leaves it: some change it once after training."""
    if method.correct is None:
        return head
    seen, labels = jnp.asarray(features.values[0]), jnp.asarray(features.labels)
    return jax.device_get(method.correct(head, seen, labels))


def measure_heads(
    head: Head, many: Sequence[Params], features: Features, batch: int
) -> list[Tally]:
    """The tally of every head on a split, logits averaged over its views."""
    step = _make_measure(head)
    num_classes = many[0]["kernel"].shape[1]
    params = _stack(many)
    tally = _stack([metrics.empty(num_classes)] * len(many))
    for rows in samplers.in_rows(np.arange(len(features.labels)), batch):
        mask = (rows >= 0).astype(np.float32)
        indices = np.maximum(rows, 0)
        tally = step(
            params, features.values[:, indices], features.labels[indices], mask, tally
        )
    tally = jax.device_get(tally)
    return [_at(tally, i) for i in range(len(many))]


@functools.cache
def _make_measure(head: Head) -> Callable[..., Tally]:
    def one(
        params: Params,
        values: jax.Array,
        label: jax.Array,
        mask: jax.Array,
        so_far: Tally,
    ) -> Tally:
        logits = jnp.mean(
            jax.vmap(head.apply, in_axes=(None, 0))(params, values), axis=0
        )
        return metrics.merge(so_far, metrics.tally(logits, label, mask))

    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None, 0)))


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that one program fits on one order of examples."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        method = job.method
        program = (method.head, method.loss, method.project, job.sgd)
        key = (*program, method.sampler, job.epochs, job.order)
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def _stack(many: Sequence[Any]) -> Any:
    """Trees of the same structure as one, along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)


def _at(stacked: Any, index: int) -> Any:
    """One of the trees of a stack, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), stacked)


def _check(group: Sequence[Job], losses: np.ndarray, before: int) -> None:
    """Raises ``Diverged`` for the first step of a head whose loss is not a number."""
    bad = np.argwhere(~np.isfinite(losses))
    if len(bad):
        step, head = bad[0]
        raise Diverged(
            f"{group[head].run}: the loss is {losses[step, head]} at step "
            f"{before + step + 1:,}"
        )
