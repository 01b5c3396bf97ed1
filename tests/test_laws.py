"""The algebra of the losses: which are the same, and where each one leads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax import losses
from lt_jax.losses import adjusted_xent, cross_entropy

K = 7
COUNTS = np.array([500, 120, 40, 9, 3, 3, 1])
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(0, 3, (20, K)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, K, 20), jnp.int32)


def assert_same_loss(one, other):
    """The same losses and the same gradients."""

    def value_and_gradient(adjust):
        weights = jnp.linspace(1, 2, len(LABELS))  # so that the examples differ
        total = lambda z: jnp.vdot(weights, adjusted_xent(z, LABELS, adjust))  # noqa: E731
        return adjusted_xent(LOGITS, LABELS, adjust), jax.grad(total)(LOGITS)

    for a, b in zip(value_and_gradient(one), value_and_gradient(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_cross_entropy_is_optax():
    np.testing.assert_allclose(
        adjusted_xent(LOGITS, LABELS, cross_entropy(K)),
        optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS),
        rtol=1e-5,
        atol=1e-6,
    )


def test_no_smoothing_is_cross_entropy():
    for one, other in zip(losses.over_smooth(K, 0.0), cross_entropy(K), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("delta", [0.1, 0.5, 0.98, 0.999])
def test_smoothing_is_that_of_optax(delta):
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, K), delta)
    np.testing.assert_allclose(
        adjusted_xent(LOGITS, LABELS, losses.over_smooth(K, delta)),
        optax.softmax_cross_entropy(LOGITS, targets),
        rtol=1e-5,
    )


def test_logit_adjustment_at_one_is_balanced_softmax():
    balanced = LOGITS + jnp.log(jnp.asarray(COUNTS, jnp.float32))[None, :]
    np.testing.assert_allclose(
        adjusted_xent(LOGITS, LABELS, losses.logit_adjust(COUNTS, 1.0)),
        optax.softmax_cross_entropy_with_integer_labels(balanced, LABELS),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: losses.reweight(n, 1.0),
        lambda n: losses.reweight(n, 0.5),
        lambda n: losses.class_balanced(n, 0.9999),
        lambda n: losses.logit_adjust(n, 1.0),
        lambda n: losses.logit_adjust(n, 2.5),
    ],
)
def test_equal_counts_make_it_cross_entropy(make, count):
    assert_same_loss(make(np.full(K, count)), cross_entropy(K))


@pytest.mark.parametrize(
    "adjust",
    [
        losses.reweight(COUNTS, 0.0),
        losses.class_balanced(COUNTS, 0.0),
        losses.logit_adjust(COUNTS, 0.0),
    ],
)
def test_neutral_numbers_make_it_cross_entropy(adjust):
    assert_same_loss(adjust, cross_entropy(K))


def test_beta_near_one_is_inverse_frequency():
    """The effective number of examples is then their number."""
    assert_same_loss(
        losses.class_balanced(COUNTS, 1 - 1e-9), losses.reweight(COUNTS, 1.0)
    )


def test_a_constant_offset_changes_nothing():
    adjust = losses.logit_adjust(COUNTS, 1.5)._replace(
        smooth=jnp.full(K, 0.3), scale=jnp.linspace(0.5, 2, K)
    )
    assert_same_loss(adjust, adjust._replace(offset=adjust.offset + 5.0))


def descend(loss, logits, rate, steps=400):
    """Free logits after gradient descent on the sum of a loss."""
    gradient = jax.grad(lambda z: jnp.sum(loss(z)))
    step = jax.jit(lambda z: z - rate * gradient(z))
    for _ in range(steps):
        logits = step(logits)
    return np.asarray(logits, np.float64)


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("delta", [0.9, 0.98])
def test_over_smoothing_drives_the_logits_to_the_gap(num_classes, delta):
    labels = jnp.arange(num_classes)
    adjust = losses.over_smooth(num_classes, delta)
    start = jax.random.normal(jax.random.key(0), (num_classes, num_classes))
    # The curvature at the optimum is at most the target of the true class.
    rate = 1 / (1 - delta + delta / num_classes)
    logits = descend(lambda z: adjusted_xent(z, labels, adjust), start, rate)
    gaps = np.diag(logits)[:, None] - logits
    gaps = gaps[~np.eye(num_classes, dtype=bool)]
    expected = np.log(1 + num_classes * (1 - delta) / delta)
    np.testing.assert_allclose(gaps, expected, atol=1e-4)
    assert losses.smoothing_gap(num_classes, delta) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("num_classes", "gap"), [(100, 1.112), (1000, 3.064), (8142, 5.119)]
)
def test_the_gap_of_the_paper(num_classes, gap):
    assert losses.smoothing_gap(num_classes, 0.98) == pytest.approx(gap, abs=5e-4)


def test_the_targets_of_the_paper():
    """The gradient at logits of zero is 1/K - t, so it shows the target."""
    adjust = losses.over_smooth(100, 0.98)
    total = lambda z: jnp.sum(adjusted_xent(z, jnp.array([3]), adjust))  # noqa: E731
    target = 0.01 - jax.grad(total)(jnp.zeros((1, 100)))[0]
    assert target[3] == pytest.approx(0.0298, abs=1e-6)
    np.testing.assert_allclose(np.delete(target, 3), 0.0098, atol=1e-6)
    assert np.log(target[3] / target[0]) == pytest.approx(1.112, abs=5e-4)


@pytest.mark.parametrize(
    ("adjust", "power"),
    [
        (cross_entropy(3), 1.0),  # logits learn the prior ...
        (losses.logit_adjust(np.array([60, 30, 10]), 1.0), 0.0),  # ... not any more
        (losses.reweight(np.array([60, 30, 10]), 1.0), 0.0),
        (losses.reweight(np.array([60, 30, 10]), 0.5), 0.5),
        (losses.logit_adjust(np.array([60, 30, 10]), 0.5), 0.5),
    ],
)
def test_what_a_prior_does_to_logits_without_features(adjust, power):
    counts = np.array([60, 30, 10])
    labels = jnp.asarray(np.repeat(np.arange(3), counts))

    def loss(logits):
        everyone = jnp.broadcast_to(logits[None, :], (100, 3))
        return adjusted_xent(everyone, labels, adjust) / 100

    logits = descend(loss, jnp.zeros(3), rate=2.0)
    expected = power * np.log(counts)
    np.testing.assert_allclose(
        logits - logits.mean(), expected - expected.mean(), atol=1e-4
    )


def test_mapped_over_equals_one_by_one():
    adjusts = [
        cross_entropy(K),
        losses.over_smooth(K, 0.98),
        losses.class_balanced(COUNTS, 0.9999),
        losses.logit_adjust(COUNTS, 1.0)._replace(margin=jnp.linspace(0, 1, K)),
    ]
    stacked = jax.tree.map(lambda *vectors: jnp.stack(vectors), *adjusts)

    def loss_and_gradient(adjust):
        total = lambda z: jnp.sum(adjusted_xent(z, LABELS, adjust))  # noqa: E731
        return adjusted_xent(LOGITS, LABELS, adjust), jax.grad(total)(LOGITS)

    found = jax.vmap(loss_and_gradient)(stacked)
    for i, adjust in enumerate(adjusts):
        for one, other in zip(found, loss_and_gradient(adjust), strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-5, atol=1e-6)
