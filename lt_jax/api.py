"""Heads on one's own features and metrics of one's own logits: arrays in and out.

No config, no workdir, no files. It is the engine of cached stage 2, so what comes out
is what ``lt-jax retrain`` finds on the same features (a test compares them).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import metrics, samplers, seeds
from lt_jax.data.sources.features import checked
from lt_jax.errors import InputError
from lt_jax.heads import Head
from lt_jax.methods import Method, projection_steps
from lt_jax.retraining import engine
from lt_jax.retraining.features import Features
from lt_jax.training import optim
from lt_jax.training.optim import Sgd
from lt_jax.types import Params

ROWS = 4096  # examples that logits are computed for at once


class Recipe(NamedTuple):
    """A method and the numbers of its optimiser, SGD with half a cosine to zero."""

    method: Method  # of lt_jax.methods, made of the class counts
    lr: float  # the highest learning rate
    epochs: int  # passes over the examples; 0 for what trains nothing
    decay: float = 0.0  # of the weights, coupled as in PyTorch
    momentum: float = 0.9


class FittedHead(NamedTuple):
    """A classifier after training."""

    head: Head
    params: Params  # kernel float32[D, K], bias float32[K], ...
    diverged: int | None  # the first step whose loss was not a number

    def logits(self, features: Any) -> np.ndarray:
        """float32[N, K] for float[N, D].

        Raises:
          InputError: features of another shape.
        """
        features = np.asarray(features)
        wide = self.params["kernel"].shape[0]
        if features.ndim != 2 or features.shape[1] != wide:
            raise InputError(
                f"features have the shape {list(features.shape)}; expected [N, {wide}]"
            )
        blocks = range(0, max(len(features), 1), ROWS)
        parts = [features[i : i + ROWS].astype(np.float32) for i in blocks]
        return np.concatenate([np.asarray(self._apply(part)) for part in parts])

    def _apply(self, features: np.ndarray) -> jax.Array:
        return _compiled(self.head)(self.params, features)


@functools.cache
def _compiled(head: Head) -> Any:
    return jax.jit(head.apply)


def fit_head(
    features: Any,
    labels: Any,
    recipe: Recipe,
    *,
    start: FittedHead | Mapping[str, Any] | None = None,
    batch: int = 64,
    seed: int = 0,
    memory: float = 1.0,
) -> FittedHead:
    """Trains one head; see ``fit_heads``, which does many in hardly more time."""
    alone = {"": recipe}
    return fit_heads(
        features, labels, alone, start=start, batch=batch, seed=seed, memory=memory
    )[""]


def fit_heads(
    features: Any,
    labels: Any,
    recipes: Mapping[str, Recipe],
    *,
    start: FittedHead | Mapping[str, Any] | None = None,
    batch: int = 64,
    seed: int = 0,
    memory: float = 1.0,
) -> dict[str, FittedHead]:
    """Trains heads side by side, on all devices, in one program for each kind of head.

    >>> from lt_jax import methods
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], [90, 30, 10])
    >>> features = np.eye(3)[labels] + 0.2 * rng.normal(size=(130, 3))
    >>> counts = np.bincount(labels)
    >>> ce = methods.ce(counts, start="fresh", sampler="instance")
    >>> head = fit_head(features, labels, Recipe(ce, lr=0.1, epochs=5))
    >>> head.logits(features).shape
    (130, 3)

    Args:
      features: float[N, D] of the training examples.
      labels: int[N], 0 .. K-1; K is the number of counts the methods were made of.
      recipes: what to train, by a name of the caller's.
      start: the head that methods of ``start="stage1"`` go on from (all that do not
        say "fresh"): a fitted linear head, or its ``kernel`` float[D, K] and ``bias``
        float[K]. Of PyTorch: ``{"kernel": fc.weight.T, "bias": fc.bias}``, on the CPU.
      batch: examples of a step.
      seed: decides the order of examples, which all share, and fresh heads.
      memory: GiB of each device for features and heads at once.

    Returns:
      The heads by the same names.

    Raises:
      InputError: features, labels, numbers or a start that do not fit, named.
    """
    features, labels = checked("input", np.asarray(features), np.asarray(labels))
    if batch < 1 or not memory > 0:
        raise InputError(
            f"expected a batch and a memory above 0, got {batch} and {memory}"
        )
    begin = None if start is None else _linear(start, features.shape[1])
    run = (2, 0, seed)  # as stage 2 on the first seed of stage 1
    jobs = [
        _job(name, recipe, features, labels, begin, batch, run)
        for name, recipe in recipes.items()
    ]
    half = memory * 2**30 / 2
    chunks = engine.plan_chunks(jobs, batch, half)
    seen = Features(features[None], labels)
    fitted: dict[str, FittedHead] = {}
    for chunk, fits in engine.fit_heads(chunks, seen, batch, half, lambda heads: None):
        for job, fit in zip(chunk.jobs, fits, strict=True):
            head = jax.tree.map(np.asarray, fit.head)
            fitted[job.run] = FittedHead(job.method.head, head, fit.diverged)
    return {name: fitted[name] for name in recipes}


def _job(
    name: str,
    recipe: Recipe,
    features: np.ndarray,
    labels: np.ndarray,
    start: Params | None,
    batch: int,
    run: tuple[int, ...],
) -> engine.HeadJob:
    """Checks a recipe and makes its start.

    Raises:
      InputError: it does not fit the examples or the start.
    """
    method, label = recipe.method, f"recipe {name!r}: " if name else ""
    num_classes = len(method.adjust.weight)
    if labels.max() >= num_classes:
        raise InputError(
            f"{label}the method was made of {num_classes} counts, but there is a label "
            f"{labels.max()}; np.bincount(labels) gives the counts"
        )
    if method.start == "stage1" and start is None:
        raise InputError(
            f"{label}the method goes on from a trained head: give it as start=, from "
            "a first fit_head with methods.ce(counts, start='fresh', "
            "sampler='instance') if there is none"
        )
    if start is not None and start["kernel"].shape[1] != num_classes:
        raise InputError(
            f"{label}the start has {start['kernel'].shape[1]} classes, the method "
            f"{num_classes}"
        )
    if not (recipe.decay >= 0 and np.isfinite(recipe.decay)):
        raise InputError(f"{label}decay must be at least 0, got {recipe.decay}")
    steps = -(-len(labels) // batch)
    try:
        rates = optim.rates(recipe.lr, recipe.epochs, steps, 0.0, "epoch")
    except InputError as error:
        raise InputError(f"{label}{error}") from error
    params = method.head.init(
        seeds.key(run, "head"),
        start if method.start == "stage1" else None,
        features.shape[1],
        num_classes,
        "torch",
    )
    return engine.HeadJob(
        name,
        method,
        params,
        rates,
        projection_steps(method, recipe.epochs, steps),
        recipe.epochs,
        Sgd(recipe.momentum, recipe.decay, ".*"),
        run,
    )


def _linear(start: FittedHead | Mapping[str, Any], num_features: int) -> Params:
    """The kernel and bias of a linear head, checked.

    Raises:
      InputError: they are not these.
    """
    params = start.params if isinstance(start, FittedHead) else start
    if set(params) != {"kernel", "bias"}:
        raise InputError(
            f"start holds {', '.join(sorted(params))}; expected the kernel and bias of "
            "a linear head"
        )
    # A copy: the compiled program takes over what it is given.
    kernel, bias = (np.array(params[k], np.float32) for k in ("kernel", "bias"))
    bias = np.atleast_1d(bias)
    if (
        kernel.ndim != 2
        or len(kernel) != num_features
        or bias.shape != kernel.shape[1:]
    ):
        raise InputError(
            f"start has a kernel {list(kernel.shape)} and a bias {list(bias.shape)}; "
            f"expected [{num_features}, K] and [K]"
        )
    return {"kernel": kernel, "bias": bias}


def evaluate(
    logits: Any, labels: Any, counts: Any, *, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Every metric of ``metrics.summary`` for logits of whatever classifier.

    >>> found = evaluate([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 1], [200, 5])
    >>> found["all"], found["many"], found["few"]
    (0.6666666666666666, 1.0, 0.5)

    Args:
      logits: float[N, K].
      labels: int[N].
      counts: int[K], training examples of each class, which decide the groups.
      many, few: more than ``many`` is many-shot, fewer than ``few`` few-shot.

    Returns:
      Fractions, not per cent; nan for an empty group. See docs/metrics.md.

    Raises:
      InputError: arrays that do not fit, named.
    """
    logits, labels = checked("logits", np.asarray(logits), np.asarray(labels))
    counts = np.asarray(counts)
    num_classes = logits.shape[1]
    if counts.shape != (num_classes,) or labels.max() >= num_classes:
        raise InputError(
            f"logits of {num_classes} classes, counts of shape {list(counts.shape)} "
            f"and labels up to {labels.max()}; expected [N, K], [K] and less than K"
        )
    total = metrics.empty(num_classes)
    for rows in samplers.batch_indices(np.arange(len(labels)), min(ROWS, len(labels))):
        chosen, mask = np.maximum(rows, 0), (rows >= 0).astype(np.float32)
        total = metrics.merge(total, _tally(logits[chosen], labels[chosen], mask))
    return metrics.summary(jax.device_get(total), metrics.groups(counts, many, few))


_tally = jax.jit(metrics.tally)
