"""Laws of the losses, heads and methods: equalities and optima."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax import heads, losses, methods
from lt_jax.losses import cross_entropy

K = 7
COUNTS = np.array([500, 120, 40, 9, 3, 3, 1])
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(0, 3, (20, K)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, K, 20), jnp.int32)


def adjusted_xent(logits, labels, adjust):
    return losses.adjusted_xent(logits, labels, jnp.ones(len(labels)), adjust)


def assert_same_loss(one, other):
    """Check that losses and gradients agree."""

    def value_and_gradient(adjust):
        weights = jnp.linspace(1, 2, len(LABELS))  # examples differ
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
        lambda n: losses.vs(n, 0.3, 1.0),
        lambda n: losses.ldam(n, 0.0, 1.0),
        lambda n: losses.label_aware_smoothing(n, 0.4, 0.0),
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
        losses.vs(COUNTS, 0.0, 0.0),
        losses.ldam(COUNTS, 0.0, 1.0),
        losses.label_aware_smoothing(COUNTS, 0.0, 0.0),
    ],
)
def test_neutral_numbers_make_it_cross_entropy(adjust):
    assert_same_loss(adjust, cross_entropy(K))


def test_beta_near_one_is_inverse_frequency():
    """The effective number of examples approaches their number."""
    assert_same_loss(
        losses.class_balanced(COUNTS, 1 - 1e-9), losses.reweight(COUNTS, 1.0)
    )


def test_a_constant_offset_changes_nothing():
    adjust = losses.logit_adjust(COUNTS, 1.5)._replace(
        smooth=jnp.full(K, 0.3), scale=jnp.linspace(0.5, 2, K)
    )
    assert_same_loss(adjust, adjust._replace(offset=adjust.offset + 5.0))


def descend(loss, logits, rate, steps=400):
    """Minimise the sum of a loss over free logits by gradient descent."""
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
def test_gaps_of_the_paper(num_classes, gap):
    assert losses.smoothing_gap(num_classes, 0.98) == pytest.approx(gap, abs=5e-4)


def test_targets_of_the_paper():
    """The gradient at zero logits is 1/K - t, which gives the target t."""
    adjust = losses.over_smooth(100, 0.98)
    total = lambda z: jnp.sum(adjusted_xent(z, jnp.array([3]), adjust))  # noqa: E731
    target = 0.01 - jax.grad(total)(jnp.zeros((1, 100)))[0]
    assert target[3] == pytest.approx(0.0298, abs=1e-6)
    np.testing.assert_allclose(np.delete(target, 3), 0.0098, atol=1e-6)
    assert np.log(target[3] / target[0]) == pytest.approx(1.112, abs=5e-4)


@pytest.mark.parametrize(
    ("adjust", "power"),
    [
        (cross_entropy(3), 1.0),  # logits learn the prior
        (losses.logit_adjust(np.array([60, 30, 10]), 1.0), 0.0),
        (losses.reweight(np.array([60, 30, 10]), 1.0), 0.0),
        (losses.reweight(np.array([60, 30, 10]), 0.5), 0.5),
        (losses.logit_adjust(np.array([60, 30, 10]), 0.5), 0.5),
    ],
)
def test_logits_without_features_converge_to_a_power_of_the_prior(adjust, power):
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


def test_vmapped_losses_equal_single_ones():
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


@pytest.mark.parametrize("count", [1, 50])
def test_equal_counts_give_every_class_the_same_margin(count):
    """LDAM becomes the additive-margin softmax."""
    margin = losses.ldam(np.full(K, count), 0.5, 30.0).margin
    np.testing.assert_array_equal(margin, np.full(K, 15, np.float32))


def test_ldam_equals_the_formula_of_its_paper():
    """CE of scale (cos_k - m_y [k = y]), with its gradient for the class vectors."""
    scale, root = 7.0, COUNTS**-0.25
    margin = jnp.asarray(0.5 * root / root.max(), jnp.float32)
    params = heads.cosine(scale).init(jax.random.key(0), START, D, K, "torch")

    def ours(kernel):
        logits = heads.cosine(scale).apply(params | {"kernel": kernel}, FEATURES)
        return adjusted_xent(logits, LABELS, losses.ldam(COUNTS, 0.5, scale))

    def paper(kernel):
        lengths = jnp.linalg.norm(FEATURES, axis=1, keepdims=True)
        cosines = (FEATURES / lengths) @ (
            kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        )
        own = jax.nn.one_hot(LABELS, K) * margin[None, :]
        return optax.softmax_cross_entropy_with_integer_labels(
            scale * (cosines - own), LABELS
        )

    kernel = START["kernel"]
    np.testing.assert_allclose(ours(kernel), paper(kernel), rtol=1e-4, atol=1e-5)
    one, other = (jax.grad(lambda k, f=f: f(k).sum())(kernel) for f in (ours, paper))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_vs_without_gamma_is_logit_adjustment():
    assert_same_loss(losses.vs(COUNTS, 0.0, 1.5), losses.logit_adjust(COUNTS, 1.5))


def test_constant_label_aware_smoothing_is_label_smoothing():
    one = losses.label_aware_smoothing(COUNTS, 0.3, 0.3)
    assert_same_loss(one, losses.over_smooth(K, 0.3))


def test_lade_regulariser_without_features_has_its_minimum_at_the_prior():
    """T_c = z_c - log p_c - log K, and R = lambda sum_c p_c T_c ** 2 + const."""
    counts = np.array([60, 30, 10])
    labels = jnp.asarray(np.repeat(np.arange(3), counts))
    adjust = losses.logit_adjust(counts, 1.0)._replace(extra=jnp.array([1.0, 1.0]))

    def regulariser(logits):
        everyone = jnp.broadcast_to(logits[None, :], (100, 3))
        total = losses.lade(everyone, labels, jnp.ones(100), adjust)
        return (total - adjusted_xent(everyone, labels, adjust)) / 100

    logits = descend(regulariser, jnp.array([1.0, 0.0, -1.0]), rate=0.5)
    np.testing.assert_allclose(logits, np.log(3 * counts / 100), atol=1e-4)


D = 5
FEATURES = jnp.asarray(RNG.normal(0, 1, (20, D)), jnp.float32)
START = {
    "kernel": jnp.asarray(RNG.normal(0, 1, (D, K)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(0, 1, K), jnp.float32),
}


@pytest.mark.parametrize("name", ["scaled", "scaled_all", "blended", "marc", "aligned"])
def test_other_heads_start_like_the_linear_one(name):
    """DisAlign's classification form does at the scale 0; its official start is 1."""
    head = getattr(heads, name)
    params = head.init(jax.random.key(0), START, D, K, "torch")
    if name == "aligned":
        np.testing.assert_array_equal(params["scale"], 1)
        params["scale"] = jnp.zeros(K)
    np.testing.assert_allclose(
        head.apply(params, FEATURES), heads.linear.apply(START, FEATURES), rtol=1e-5
    )
    # At the neutral point DisAlign's confidence does not matter.
    if "confidence" in params:
        params["confidence"] = jnp.linspace(-3, 3, D)
        np.testing.assert_allclose(
            head.apply(params, FEATURES), heads.linear.apply(START, FEATURES), rtol=1e-5
        )


def test_the_forms_of_disalign_differ_by_one_in_the_scale():
    one, other = (
        head.init(jax.random.key(0), START, D, K, "torch")
        for head in heads.ALIGNED.values()
    )
    shared = {"offset": jnp.linspace(-1, 1, K), "confidence": jnp.linspace(-3, 3, D)}
    one |= shared | {"scale": jnp.linspace(-1, 2, K)}
    other |= shared | {"scale": 1 + one["scale"]}
    np.testing.assert_allclose(
        heads.aligned.apply(one, FEATURES),
        heads.blended.apply(other, FEATURES),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        heads.effective_norms(one), heads.effective_norms(other), rtol=1e-5
    )


def test_tau_zero_keeps_the_vectors_and_tau_one_gives_unit_vectors():
    none, full = heads.tau_norm(START, 0.0), heads.tau_norm(START, 1.0)
    np.testing.assert_allclose(none["kernel"], START["kernel"], rtol=1e-6)
    np.testing.assert_allclose(heads.class_norms(full), 1, rtol=1e-6)
    some = heads.tau_norm(START, 0.7)
    cosines = jnp.sum(some["kernel"] * START["kernel"], axis=0)
    cosines = cosines / heads.class_norms(some) / heads.class_norms(START)
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)
    np.testing.assert_allclose(
        heads.class_norms(some), heads.class_norms(START) ** 0.3, rtol=1e-5
    )
    for params in (none, some, full):
        np.testing.assert_array_equal(params["bias"], 0)


def test_max_norm_is_the_projection_onto_the_ball():
    norms = np.asarray(heads.class_norms(START), np.float64)
    radius = heads.max_norm_radius(START, 0.1)
    assert float(radius) == pytest.approx(0.9 * norms.min() + 0.1 * norms.max())
    once = heads.max_norm(START, radius)
    np.testing.assert_allclose(
        heads.class_norms(once), np.minimum(norms, radius), rtol=1e-6
    )
    inside = norms <= float(radius)
    assert inside.any()
    kernel = np.asarray(START["kernel"])
    np.testing.assert_array_equal(once["kernel"][:, inside], kernel[:, inside])
    np.testing.assert_array_equal(once["bias"], START["bias"])
    twice = heads.max_norm(once, radius)
    np.testing.assert_allclose(twice["kernel"], once["kernel"], rtol=1e-6)
    # No point of the ball is closer.
    for seed in range(20):
        point = jax.random.normal(jax.random.key(seed), (D, K))
        point = point / jnp.maximum(jnp.linalg.norm(point, axis=0) / radius, 1)[None, :]
        near = jnp.linalg.norm(START["kernel"] - once["kernel"], axis=0)
        far = jnp.linalg.norm(START["kernel"] - point, axis=0)
        assert np.all(near <= far + 1e-5)


@pytest.mark.parametrize("kind", ["raw", "l2", "cl2"])
def test_nearest_mean_predicts_the_nearest_class_mean(kind):
    labels = np.arange(20) % K
    pieces = FEATURES[:7], FEATURES[7:19], FEATURES[19:]  # in unequal blocks
    params = heads.nearest_mean(lambda: iter(pieces), labels, (D, K), kind)
    queries = jax.random.normal(jax.random.key(1), (50, D)) + 0.5
    found = np.argmax(heads.NEAREST[kind].apply(params, queries), axis=1)

    def transform(x):
        x = np.asarray(x, np.float64)
        if kind == "cl2":
            x = x - np.asarray(FEATURES, np.float64).mean(0)
        return x if kind == "raw" else x / np.linalg.norm(x, axis=1, keepdims=True)

    fitted, points = transform(FEATURES), transform(queries)
    means = np.stack([fitted[labels == k].mean(0) for k in range(K)])
    distances = np.linalg.norm(points[:, None] - means[None], axis=2)
    np.testing.assert_array_equal(found, distances.argmin(1))


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_posthoc_logit_adjustment_subtracts_the_prior(tau):
    method = methods.make("logit_adjust_posthoc", COUNTS, {"tau": tau})
    labels = np.repeat(np.arange(K), COUNTS)
    assert method.correct is not None
    params = method.correct(START, lambda: iter(()), labels)  # reads no features
    logits = heads.linear.apply(START, FEATURES)
    expected = logits - (tau * np.log(COUNTS / COUNTS.sum()))[None, :].astype("f")
    np.testing.assert_allclose(
        heads.linear.apply(params, FEATURES), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("loss", [losses.focal, losses.lade])
def test_vmapped_focal_and_lade_equal_single_ones(loss):
    base, mask = losses.logit_adjust(COUNTS, 1.0), jnp.ones(len(LABELS)).at[3].set(0)
    adjusts = [base._replace(extra=jnp.array([a, 0.1])) for a in (0.0, 0.5, 2.0)]
    stacked = jax.tree.map(lambda *vectors: jnp.stack(vectors), *adjusts)
    found = jax.vmap(lambda adjust: loss(LOGITS, LABELS, mask, adjust))(stacked)
    for one, adjust in zip(found, adjusts, strict=True):
        expected = loss(LOGITS, LABELS, mask, adjust)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
