"""Library interface: fit heads on features, evaluate logits; arrays in and out.

No config, no workdir, no files. The heads equal those of ``lt-jax retrain`` on the same
features: both use the engine of stage 2 on cached features.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import metrics, recipes, samplers, seeds
from lt_jax.data.sources.features import checked
from lt_jax.errors import InputError, in_range, located, one_of
from lt_jax.heads import Head
from lt_jax.methods import Method, make
from lt_jax.retraining import engine
from lt_jax.retraining.chunks import HeadJob, plan_chunks
from lt_jax.retraining.features import Features, standardise
from lt_jax.training import optim
from lt_jax.training.optim import Sgd
from lt_jax.types import Params

ROWS = 4096  # examples per block of logits


class Recipe(NamedTuple):
    """A method and its SGD hyperparameters; lr falls to 0 along a half cosine."""

    method: Method  # from lt_jax.methods, made with the class counts
    lr: float  # highest learning rate
    epochs: int  # passes over the examples; 0 for a method that trains nothing
    decay: float = 0.0  # weight decay, coupled as in PyTorch
    momentum: float = 0.9


def published(method: str, counts: Any, **changes: Any) -> Recipe:
    """Return the published recipe of a method, from ``recipes.py``.

    >>> published("los", [90, 30, 10]).lr
    0.0005

    Args:
      method: a key of ``methods.METHODS``.
      counts: int[K], training examples per class; smoothing follows K.
      changes: values that replace published ones, such as ``lr=0.1`` or ``delta=0.5``.

    Raises:
      InputError: an unknown method, or a value that it does not have.
    """
    case = recipes.Case(recipes.smoothing(len(counts)))
    made = recipes.RECIPES[one_of("method", method, recipes.RECIPES)](case)
    entry = recipes.own(made) | changes
    optimiser = {key: entry.pop(key) for key in ("lr", "epochs", "decay")}
    return Recipe(make(method, np.asarray(counts), entry), **optimiser)


def stage1(counts: Any) -> Recipe:
    """Return the recipe of the linear head that methods continue from.

    It is stage 1 of ``configs/features.py``: cross-entropy on all examples alike.
    """
    fresh = {"start": "fresh", "lr": 0.1, "epochs": 50, "decay": 5e-4}
    return published("ce", counts, **fresh)


class FittedHead(NamedTuple):
    """A trained classifier."""

    head: Head
    params: Params  # kernel float32[D, K], bias float32[K], ...
    diverged: int | None  # first step with a NaN or infinite loss
    # The parameters are those of ``(features - centre) * scale``.
    centre: Any = np.float32(0)
    scale: float = 1.0

    def logits(self, features: Any) -> np.ndarray:
        """Compute float32[N, K] from float[N, D]."""
        features = np.asarray(features)
        width = self.params["kernel"].shape[0]
        if features.shape[1:] != (width,) or features.dtype.kind not in "fiu":
            raise InputError(
                f"features are {features.dtype}{list(features.shape)}; expected "
                f"numbers [N, {width}]"
            )
        starts, apply = range(0, max(len(features), 1), ROWS), jax.jit(self.head.apply)
        parts = [features[i : i + ROWS].astype(np.float32) for i in starts]
        parts = [(part - self.centre) * np.float32(self.scale) for part in parts]
        return np.concatenate([np.asarray(apply(self.params, part)) for part in parts])


def fit_head(
    features: Any,
    labels: Any,
    recipe: Recipe | None = None,
    *,
    method: str = "",
    hyper: Mapping[str, Any] | None = None,
    start: FittedHead | Mapping[str, Any] | None = None,
    batch: int = 64,
    seed: int = 0,
    memory: float = 1.0,
) -> FittedHead:
    """Train one head by a recipe, or by the published recipe of a method.

    With ``method``, the class counts are those of the labels, and a method that
    continues from a trained head gets that of ``stage1`` if there is no ``start``.
    ``hyper`` replaces published values, such as ``{"lr": 0.1}``. Without a ``start``,
    features are centred and scaled, see ``standardise``.
    See ``fit_heads``, which trains many heads in little more time, for the rest.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], [90, 30, 10])
    >>> features = np.eye(3)[labels] + 0.2 * rng.normal(size=(130, 3))
    >>> head = fit_head(features, labels, method="los")
    >>> bool((head.logits(features).argmax(1) == labels).mean() > 0.9)
    True
    """
    if recipe is not None and method:
        raise InputError(f"expected a recipe or a method, got both: {method!r:.100}")
    how: Any = {"batch": batch, "seed": seed, "memory": memory}
    if method:
        features, labels = checked("input", np.asarray(features), np.asarray(labels))
        counts = np.bincount(labels)
        recipe = published(method, counts, **(hyper or {}))
        if start is None:
            values, centre, scale = standardise(features)
            if recipe.method.start != "fresh":
                start = fit_head(values, labels, stage1(counts), **how)
            fitted = fit_head(values, labels, recipe, start=start, **how)
            return fitted._replace(centre=centre, scale=scale)
    given: Any = {"": recipe}
    return fit_heads(features, labels, given, start=start, **how)[""]


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
    """Train heads in parallel on all devices, with one program per kind of head.

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
      labels: int[N] in 0 .. K-1, where K is the number of counts given to the methods.
      recipes: what to train, by names of your choice.
      start: initial head for methods with ``start="stage1"``: a fitted linear head, or
        its ``kernel`` float[D, K] and ``bias`` float[K]. From PyTorch:
        ``{"kernel": fc.weight.T, "bias": fc.bias}``, on the CPU.
      batch: examples per step.
      seed: seed of the order of examples, which all heads share, and of fresh heads.
      memory: GiB per device for features and heads together.

    Returns:
      The fitted heads, by the same names.
    """
    features, labels = checked("input", np.asarray(features), np.asarray(labels))
    if labels.min() == labels.max():
        raise InputError(f"labels must hold at least 2 classes, all are {labels[0]}")
    batch = min(in_range("batch", batch, "[1, 1e9]", integer=True), len(labels))
    memory = in_range("memory", memory, "[1e-6, 1e9]")
    in_range("seed", seed, "[0, 4294967295]", integer=True)
    linear = None if start is None else _linear(start, features.shape[1])
    jobs = []
    for name, recipe in recipes.items():
        with located(f"recipe {name!r}" if name else "recipe"):
            jobs.append(_job(name, recipe, features, labels, linear, batch, seed=seed))
    half = memory * 2**30 / 2
    chunks = plan_chunks(jobs, batch, half)
    cached = Features(features[None], labels)
    fitted = {}
    for chunk, fits in engine.fit_heads(chunks, cached, batch, half, lambda _: None):
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
    *,
    seed: int,
) -> HeadJob:
    """Check a recipe against the data and the start, and make its initial head."""
    if not isinstance(recipe, Recipe) or not isinstance(recipe.method, Method):
        raise InputError(f"expected a Recipe with a Method, got {recipe!r:.100}")
    method, classes = recipe.method, len(recipe.method.adjust.weight)
    decay = in_range("decay", recipe.decay, "[0, 1e6]")
    momentum = in_range("momentum", recipe.momentum, "[0, 1)")
    if labels.max() >= classes:
        raise InputError(
            f"the method was made with {classes} counts, but a label is "
            f"{labels.max()}; np.bincount(labels) gives the counts"
        )
    if method.start == "fresh":
        start = None
    elif start is None:
        raise InputError(
            "the method continues from a trained head: pass it as start=. To train "
            "one, use methods.ce(counts, start='fresh', sampler='instance')"
        )
    elif len(start["bias"]) != classes:
        raise InputError(f"start has {len(start['bias'])} classes, not {classes}")
    order = (2, 0, seed)  # as stage 2 on the first seed of stage 1
    key, steps = seeds.key(order, "head"), -(-len(labels) // batch)
    return HeadJob(
        run=name,
        method=method,
        start=method.head.init(key, start, features.shape[1], classes, "torch"),
        rates=optim.rates(recipe.lr, recipe.epochs, steps, 0.0, "epoch"),
        epochs=recipe.epochs,
        sgd=Sgd(momentum, decay, ".*"),
        order=order,
    )


def _linear(start: FittedHead | Mapping[str, Any], num_features: int) -> Params:
    """Copy the kernel and bias of a linear head, and check their shapes."""
    params = start.params if isinstance(start, FittedHead) else start
    if not isinstance(params, Mapping) or set(params) != {"kernel", "bias"}:
        found = reprlib.repr(list(params) if isinstance(params, Mapping) else params)
        raise InputError(
            f"start holds {found}; expected the kernel and bias of a linear head"
        )
    # A copy, because the compiled program donates its inputs.
    kernel, bias = (np.array(params[k], np.float32) for k in ("kernel", "bias"))
    bias = np.atleast_1d(bias)
    if kernel.shape != (num_features, *bias.shape) or bias.ndim != 1:
        raise InputError(
            f"start has a kernel {list(kernel.shape)} and a bias {list(bias.shape)}; "
            f"expected [{num_features}, K] and [K]"
        )
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise InputError("start holds values that are not finite")
    return {"kernel": kernel, "bias": bias}


def evaluate(
    logits: Any,
    labels: Any,
    counts: Any,
    *,
    many: int = 100,
    few: int = 20,
    group_average: str = "classes",
) -> dict[str, float]:
    """Compute every metric of ``metrics.summary`` for the logits of any classifier.

    >>> found = evaluate([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 1], [200, 5])
    >>> found["all"], found["many"], found["few"]
    (0.6666666666666666, 1.0, 0.5)

    Args:
      logits: float[N, K].
      labels: int[N].
      counts: int[K], training examples per class, which define the groups.
      many: classes with more training examples are many-shot.
      few: classes with fewer are few-shot.
      group_average: what the accuracy of a group averages over: ``classes``, as in the
        literature, or ``examples``.

    Returns:
      Fractions, not per cent; NaN for an empty group. See docs/reference/metrics.md.
    """
    logits, labels = checked("logits", np.asarray(logits), np.asarray(labels))
    counts = np.asarray(counts)
    num_classes = logits.shape[1]
    in_range("many", many, "[0, 1e9]")
    in_range("few", few, f"[0, {many}]")
    if counts.dtype.kind not in "iuf" or not (counts >= 0).all():
        raise InputError(f"counts must be at least 0, got {reprlib.repr(counts)}")
    if counts.shape != (num_classes,) or labels.max() >= num_classes:
        raise InputError(
            f"logits have {num_classes} classes, counts the shape "
            f"{list(counts.shape)}, labels a maximum of {labels.max()}; expected "
            "[N, K], [K] and less than K"
        )
    total = metrics.empty(num_classes)
    for rows in samplers.batch_indices(np.arange(len(labels)), min(ROWS, len(labels))):
        chosen, mask = np.maximum(rows, 0), (rows >= 0).astype(np.float32)
        total = metrics.merge(total, _tally(logits[chosen], labels[chosen], mask))
    groups = metrics.groups(counts, many, few)
    return metrics.summary(jax.device_get(total), groups, group_average)


_tally = jax.jit(metrics.tally)
