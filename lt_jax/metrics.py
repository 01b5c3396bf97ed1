"""Metrics as additive sums: jitted in every eval step, divided once, on the host.

Tallies add up (over batches with ``merge``, over devices with ``psum``), so any split
of the examples into batches and devices gives the same integers. ``summary`` and
``per_class`` are the only places that divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_jax.errors import one_of

GROUPS = ("many", "medium", "few")
GROUP_AVERAGES = ("classes", "examples")
RSD = ("row_true", "row_false", "col_true", "col_false")  # see ``per_class``
# Criteria of a sweep, and whether the highest (1) or the lowest (-1) is best.
CHOOSE = {
    **dict.fromkeys(("all", *GROUPS, "balanced", "worst", "top5"), 1),
    **dict.fromkeys(("nll", "ece", "balanced_nll"), -1),
}
# Criteria that only heads of a sweep are measured by, and what compares methods then:
# docs/benchmarks/choice.md.
COMPARED = {"balanced_nll": "balanced"}
NUM_BINS = 15  # for the calibration error (Guo et al., ICML 2017)

Array = Any  # jax on the devices, numpy on the host; type checkers cannot follow both


class Tally(NamedTuple):
    """Sums over examples; [K] is by true class unless marked as column."""

    seen: Array  # int32[K], examples
    right: Array  # int32[K], examples predicted correctly
    right5: Array  # int32[K], examples with the true class among the top five logits
    loss_sum: Array  # float32[K], cross-entropy of the plain softmax, in nats
    true_sum: Array  # float32[K], the true class's logit ...
    true_sq: Array  # float32[K], ... and its square
    row_sum: Array  # float32[K], all K logits of the example ...
    row_sq: Array  # float32[K], ... and their squares
    col_sum: Array  # float32[K], logit k over all examples (column) ...
    col_sq: Array  # float32[K], ... and its square
    bin_seen: Array  # int32[NUM_BINS], by confidence of the prediction
    bin_right: Array  # int32[NUM_BINS]
    bin_conf: Array  # float32[NUM_BINS], sum of the confidences


def empty(num_classes: int) -> Tally:
    """Return the tally of no examples: the identity of ``merge``."""
    ints, floats = np.zeros(num_classes, np.int32), np.zeros(num_classes, np.float32)
    return Tally(
        *([ints] * 3 + [floats] * 7),
        bin_seen=np.zeros(NUM_BINS, np.int32),
        bin_right=np.zeros(NUM_BINS, np.int32),
        bin_conf=np.zeros(NUM_BINS, np.float32),
    )


def merge(one: Tally, other: Tally) -> Tally:
    """Add two tallies."""
    return jax.tree.map(jnp.add, one, other)


def tally(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Tally:
    """Compute the tally of one batch.

    Args:
      logits: float[B, K].
      labels: int32[B]; ignored where the mask is 0.
      mask: float32[B], 1 for an example and 0 for padding.
    """
    num_classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    counted = mask > 0
    labels = jnp.where(counted, labels, 0)
    # A masked row may hold NaN, and 0 * NaN is NaN.
    logits = jnp.where(counted[:, None], logits, 0.0)

    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    # Rank of the true class with ties broken by index, as argmax does: top-1 is rank 0,
    # and the K logits need no sort. Count the classes at or behind the true one, itself
    # included, so that NaN logits (a diverged run) are never right.
    index = jnp.arange(num_classes)[None, :]
    tied = (logits == true[:, None]) & (index > labels[:, None])
    # Find the true class by index, not by value: a compiler that computes a logit twice
    # may round it differently.
    own = (index == labels[:, None]) & ~jnp.isnan(logits)
    behind = own | (logits < true[:, None]) | tied
    rank = num_classes - jnp.sum(behind, axis=1)
    confidence = jnp.max(jax.nn.softmax(logits), axis=1)
    # Bins (0, 1/n], (1/n, 2/n], ...
    bins = jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1
    bins = jnp.clip(bins, 0, NUM_BINS - 1)

    ones = counted.astype(jnp.int32)
    right = ones * (rank == 0)

    def by(where: jax.Array, values: jax.Array, size: int) -> jax.Array:
        return jnp.zeros(size, values.dtype).at[where].add(values)

    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Tally(
        seen=by(labels, ones, num_classes),
        right=by(labels, right, num_classes),
        right5=by(labels, ones * (rank < min(5, num_classes)), num_classes),
        loss_sum=by(labels, mask * nll, num_classes),
        true_sum=by(labels, true, num_classes),
        true_sq=by(labels, true**2, num_classes),
        row_sum=by(labels, jnp.sum(logits, axis=1), num_classes),
        row_sq=by(labels, jnp.sum(logits**2, axis=1), num_classes),
        col_sum=jnp.sum(logits, axis=0),
        col_sq=jnp.sum(logits**2, axis=0),
        bin_seen=by(bins, ones, NUM_BINS),
        bin_right=by(bins, right, NUM_BINS),
        bin_conf=by(bins, mask * confidence, NUM_BINS),
    )


def group_limits(counts: np.ndarray) -> tuple[int, int]:
    """Return the limits ``many`` and ``few`` of ``groups`` for these class counts.

    Those of the literature, 100 and 20, if each group then has a tenth of the classes.
    Else a third of the classes are many-shot and a third few-shot, as far as equal
    counts permit.

    >>> group_limits(np.array([900, 200, 60, 9])), group_limits(np.array([40, 8, 3]))
    ((100, 20), (8, 8))
    """
    sizes = [where.sum() for where in groups(counts, 100, 20).values()]
    if min(sizes) >= max(1, len(counts) / 10):
        return 100, 20
    ordered, third = np.sort(counts)[::-1], len(counts) // 3
    return int(ordered[third]), int(ordered[-1 - third])


def groups(counts: np.ndarray, many: int, few: int) -> dict[str, np.ndarray]:
    """Group classes, bool[K] per group, by their number of training examples.

    Classes with more than ``many`` examples are many-shot, with fewer than ``few``
    few-shot, all others medium-shot. Liu et al., CVPR 2019, use 100 and 20.
    """
    medium = (counts >= few) & (counts <= many)
    return dict(zip(GROUPS, (counts > many, medium, counts < few), strict=True))


def per_class(tally: Tally) -> dict[str, np.ndarray]:
    """Compute each metric per class, float64[K]; NaN for a class without examples.

    ``loma_row`` and ``loma_col`` are the two readings of Logits Magnitude: the mean of
    the true logits minus that of the false ones. ``rsd_*`` is the standard deviation of
    either, divided by that magnitude. The true logits are the class's on its own
    examples. The false ones are the other logits of these examples (row) or the class's
    logit on other examples (column).
    """
    t = Tally(*(np.asarray(a, np.float64) for a in tally))
    n, num_classes = t.seen, len(t.seen)
    with np.errstate(divide="ignore", invalid="ignore"):
        true = _moments(t.true_sum, t.true_sq, n)
        others = n * (num_classes - 1)  # logits of the other classes
        row = _moments(t.row_sum - t.true_sum, t.row_sq - t.true_sq, others)
        col = _moments(t.col_sum - t.true_sum, t.col_sq - t.true_sq, n.sum() - n)
        loma_row, loma_col = true[0] - row[0], true[0] - col[0]
        return {
            "accuracy": t.right / n,
            "nll": t.loss_sum / n,
            "loma_row": loma_row,
            "loma_col": loma_col,
            "rsd_row_true": true[1] / loma_row,
            "rsd_row_false": row[1] / loma_row,
            "rsd_col_true": true[1] / loma_col,
            "rsd_col_false": col[1] / loma_col,
        }


def _moments(
    total: np.ndarray, squares: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the population standard deviation."""
    mean = total / count
    # The sums are rounded to float32, so a variance of zero may come out negative.
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0.0))


def summary(
    tally: Tally, groups: Mapping[str, np.ndarray], group_average: str = "classes"
) -> dict[str, float]:
    """Compute every metric of an evaluation, in float64; fractions, not per cent.

    ``all`` is the accuracy over examples. ``many`` etc. are the mean accuracy of the
    group's ``classes``, as ``shot_acc`` of Decoupling's code, or the accuracy over its
    ``examples``; both are equal on a balanced set. ``balanced`` is the mean and
    ``worst`` the lowest of the class accuracies, over classes with examples. ``loma_*``
    and ``rsd_*`` are means over classes, ``loma_*_many`` etc. over the classes of a
    group. ``loma_*_spread`` is the standard deviation over classes divided by the mean:
    0 is perfectly balanced. An empty group is NaN.
    """
    t = Tally(*(np.asarray(a, np.float64) for a in tally))
    classes = per_class(tally)
    held = t.seen > 0
    # float[K] each: the numerator and the divisor of an accuracy.
    right, seen = t.right, t.seen
    if one_of("group average", group_average, GROUP_AVERAGES) == "classes":
        right, seen = np.where(held, classes["accuracy"], 0.0), held
    result = {
        "all": _ratio(t.right.sum(), t.seen.sum()),
        **{g: _ratio(right[w].sum(), seen[w].sum()) for g, w in groups.items()},
        "balanced": _mean(classes["accuracy"][held]),
        "worst": float(np.min(classes["accuracy"][held])) if held.any() else np.nan,
        "top5": _ratio(t.right5.sum(), t.seen.sum()),
        "nll": _ratio(t.loss_sum.sum(), t.seen.sum()),
        "ece": _ratio(np.abs(t.bin_right - t.bin_conf).sum(), t.seen.sum()),
    }
    for name in ("loma_row", "loma_col"):
        values = classes[name]
        result[name] = _mean(values[held])
        for g, where in groups.items():
            result[f"{name}_{g}"] = _mean(values[where & held])
        result[f"{name}_spread"] = _ratio(
            np.std(values[held]) if held.any() else np.nan, abs(result[name])
        )
    for part in RSD:
        result[f"rsd_{part}"] = _mean(classes[f"rsd_{part}"][held])
    return result


def _ratio(part: Any, total: Any) -> float:
    return float(part / total) if total else np.nan


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else np.nan
