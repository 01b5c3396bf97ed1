"""Losses: numbers by hand, a NumPy oracle, gradients, permutations, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax import losses
from lt_jax.errors import InputError
from lt_jax.losses import Adjust, cross_entropy

LN2 = np.log(2)
COUNTS = np.array([500, 120, 40, 9, 3, 3, 1])


def adjusted_xent(logits, labels, adjust):
    """Call with None for the mask and the total, which would fail if it read them."""
    return losses.adjusted_xent(logits, labels, None, adjust, None)  # pyright: ignore


CONSTRUCTORS = {
    "cross_entropy": lambda n: losses.cross_entropy(len(n)),
    "over_smooth": lambda n: losses.over_smooth(len(n), 0.98),
    "reweight": lambda n: losses.reweight(n, 1.0),
    "class_balanced": lambda n: losses.class_balanced(n, 0.9999),
    "logit_adjust": lambda n: losses.logit_adjust(n, 1.0),
    "vs": lambda n: losses.vs(n, 0.2, 1.2),
    "ldam": lambda n: losses.ldam(n, 0.5, 30.0),
    "label_aware_smoothing": lambda n: losses.label_aware_smoothing(n, 0.4, 0.1),
}
WITHOUT_COUNTS = {"cross_entropy", "over_smooth"}


def any_adjust(num_classes, seed=0):
    """Return five non-neutral vectors that differ per class."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return jnp.asarray(rng.uniform(low, high, num_classes), jnp.float32)

    return Adjust(
        scale=draw(0.5, 2),
        offset=draw(-2, 2),
        margin=draw(0, 1),
        weight=draw(0.1, 3),
        smooth=draw(0, 0.99),
        extra=jnp.array([0.5, 0.2]),
    )


def any_batch(size, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (size, num_classes)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, num_classes, size), int)


def by_hand(logits, labels, adjust):
    """Compute the definition, one example and one class at a time."""
    z = np.asarray(logits, np.float64)
    a = Adjust(*(np.asarray(v, np.float64) for v in adjust))
    found = []
    for row, y in zip(z, np.asarray(labels), strict=True):
        size = len(row)
        new = [
            a.scale[k] * (row[k] - a.margin[k] * (k == y)) + a.offset[k]
            for k in range(size)
        ]
        total = np.log(np.sum(np.exp(np.array(new) - max(new)))) + max(new)
        target = [
            (1 - a.smooth[y]) * (k == y) + a.smooth[y] / size for k in range(size)
        ]
        found.append(
            -a.weight[y]
            * sum(t * (v - total) for t, v in zip(target, new, strict=True))
        )
    return np.array(found)


@pytest.mark.parametrize(
    ("adjust", "logits", "label", "expected"),
    [
        # ln(1 + e^-2)
        (cross_entropy(2), [2, 0], 0, 0.126928),
        (cross_entropy(2), [2, 0], 1, 2.126928),
        (cross_entropy(4), [0, 0, 0, 0], 3, 2 * LN2),
        # target (0.75, 0.25)
        (losses.over_smooth(2, 0.5), [2, 0], 0, 0.126928 + 0.25 * 2),
        # target (0.625, 0.125, 0.125, 0.125); ln(3 + e) - (0.625 + 0 + 0 + 0)
        (losses.over_smooth(4, 0.5), [1, 0, 0, 0], 0, 1.743668 - 0.625),
        (losses.over_smooth(4, 0.5), [1, 0, 0, 0], 1, 1.743668 - 0.125),
        # prior (3/4, 1/4)
        (losses.logit_adjust(np.array([3, 1]), 1.0), [0, 0], 0, np.log(4 / 3)),
        (losses.logit_adjust(np.array([3, 1]), 1.0), [0, 0], 1, np.log(4)),
        # z' has the gap 2 ln 3, so p = 9/10
        (losses.logit_adjust(np.array([3, 1]), 2.0), [0, 0], 0, np.log(10 / 9)),
        # weights 1 : 1/3, mean 1
        (losses.reweight(np.array([1, 3]), 1.0), [0, 0], 0, 1.5 * LN2),
        (losses.reweight(np.array([1, 3]), 1.0), [0, 0], 1, 0.5 * LN2),
        # weights 1 : 1/2, mean 1
        (losses.reweight(np.array([1, 4]), 0.5), [0, 0], 0, 4 / 3 * LN2),
        # weights 1/2 / 1/2 = 1 and 1/2 / 3/4 = 2/3, mean 1
        (losses.class_balanced(np.array([1, 2]), 0.5), [0, 0], 0, 1.2 * LN2),
        (losses.class_balanced(np.array([1, 2]), 0.5), [0, 0], 1, 0.8 * LN2),
        # scale (1, 1/2), prior (4/5, 1/5): z' = (2 + ln 4, 1), p = 4e / (4e + 1)
        (losses.vs(np.array([4, 1]), 0.5, 1.0), [2, 2], 0, np.log1p(0.25 / np.e)),
        # logits 2 cos of cosines (0.5, 0) and margins (0.25, 0.5) of the cosines: the
        # gap is 2 (0.5 - 0.25) for the first label ...
        (losses.ldam(np.array([16, 1]), 0.5, 2.0), [1, 0], 0, 0.474077),
        # ... and 2 (-0.5 - 0.5) for the second
        (losses.ldam(np.array([16, 1]), 0.5, 2.0), [1, 0], 1, 2.126928),
        # smoothing 0.5 of the largest class, 0 of the smallest
        (losses.label_aware_smoothing(np.array([9, 1]), 0.5, 0.0), [2, 0], 0, 0.626928),
        (losses.label_aware_smoothing(np.array([9, 1]), 0.5, 0.0), [2, 0], 1, 2.126928),
    ],
)
def test_numbers_by_hand(adjust, logits, label, expected):
    loss = adjusted_xent(jnp.array([logits], jnp.float32), jnp.array([label]), adjust)
    np.testing.assert_allclose(loss, [expected], rtol=2e-6)


@pytest.mark.parametrize(
    ("vectors", "label", "expected"),
    [
        ({"margin": [1, 5]}, 0, 0.313262),  # z' = (1, 0): the margin of the label only
        ({"scale": [2, 1]}, 0, 0.018150),  # z' = (4, 0)
        ({"scale": [2, 1], "margin": [1, 0]}, 0, 0.126928),  # (2, 0): margin first
        ({"scale": [2, 1], "offset": [0, 1]}, 0, 0.048587),  # (4, 1): offset last
        ({"weight": [3, 7]}, 1, 7 * 2.126928),
        ({"smooth": [0.5, 0]}, 1, 2.126928),  # the smoothing of the label only
    ],
)
def test_each_vector_by_hand(vectors, label, expected):
    vectors = {name: jnp.array(v, jnp.float32) for name, v in vectors.items()}
    adjust = cross_entropy(2)._replace(**vectors)
    loss = adjusted_xent(jnp.array([[2.0, 0.0]]), jnp.array([label]), adjust)
    np.testing.assert_allclose(loss, [expected], rtol=3e-5)


def test_all_five_at_once_by_hand():
    vectors = ([2, 1], [0, 1], [1, 0], [3, 1], [0.5, 0])
    adjust = Adjust(*(jnp.array(v, jnp.float32) for v in vectors), extra=jnp.zeros(2))
    loss = adjusted_xent(jnp.array([[2.0, 0.0]] * 2), jnp.array([0, 1]), adjust)
    # Label 0: z' = (2, 1), t = (3/4, 1/4): 3 (3/4 0.313262 + 1/4 1.313262).
    # Label 1: z' = (4, 1), t = (0, 1): ln(1 + e^3).
    np.testing.assert_allclose(loss, [1.689785, 3.048587], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 13])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_adjusted_xent_equals_a_numpy_oracle(size, num_classes):
    logits, labels = any_batch(size, num_classes)
    adjust = any_adjust(num_classes)
    loss = adjusted_xent(logits, labels, adjust)
    np.testing.assert_allclose(loss, by_hand(logits, labels, adjust), rtol=1e-5)


def test_losses_are_per_example():
    """Losses are not reduced and do not depend on other examples in the batch."""
    logits, labels = any_batch(13, 7)
    adjust = any_adjust(7)
    together = adjusted_xent(logits, labels, adjust)
    assert together.shape == (13,)
    assert together.dtype == jnp.float32
    single = [
        adjusted_xent(logits[i : i + 1], labels[i : i + 1], adjust)[0]
        for i in range(13)
    ]
    np.testing.assert_allclose(together, np.array(single), rtol=1e-6)


def test_jit_equals_eager():
    logits, labels = any_batch(13, 7)
    adjust = any_adjust(7)
    np.testing.assert_allclose(
        jax.jit(adjusted_xent)(logits, labels, adjust),
        adjusted_xent(logits, labels, adjust),
        rtol=1e-6,
    )


def test_all_losses_share_one_program():
    traced = []

    @jax.jit
    def loss(logits, labels, adjust):
        traced.append(1)
        return adjusted_xent(logits, labels, adjust)

    logits, labels = any_batch(5, 7)
    for make in CONSTRUCTORS.values():
        loss(logits, labels, make(COUNTS))
    assert len(traced) == 1


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("name", [*CONSTRUCTORS, "any"])
def test_loss_and_gradient_are_finite(name, level):
    adjust = any_adjust(7) if name == "any" else CONSTRUCTORS[name](COUNTS)
    signs = np.sign(np.random.default_rng(0).normal(size=(14, 7)))
    logits = jnp.asarray(level * signs, jnp.float32)
    labels = jnp.arange(14) % 7

    def total(logits, adjust):
        return jnp.sum(adjusted_xent(logits, labels, adjust))

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(logits, adjust)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.any(grads[0] != 0)


def test_gradient_equals_the_oracle():
    logits, labels = any_batch(4, 5)
    adjust = any_adjust(5)
    found = jax.grad(lambda z: jnp.sum(adjusted_xent(z, labels, adjust)))(logits)
    step = 1e-4
    for i, k in np.ndindex(*logits.shape):
        shift = np.zeros(logits.shape)
        shift[i, k] = step
        z = np.asarray(logits, np.float64)
        slope = by_hand(z + shift, labels, adjust) - by_hand(z - shift, labels, adjust)
        np.testing.assert_allclose(
            found[i, k], slope.sum() / (2 * step), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("level", [1.0, 100.0])
def test_value_and_gradients_equal_those_of_optax(level):
    """The derivative is written out; that of optax's loss is JAX's own."""
    logits, labels = any_batch(13, 7)
    adjust = any_adjust(7)

    def ours(logits, adjust):
        return adjusted_xent(level * logits, labels, adjust)

    def optaxs(logits, adjust):
        onehot = jax.nn.one_hot(labels, 7)
        margined = level * logits - adjust.margin[None, :] * onehot
        adjusted = adjust.scale[None, :] * margined + adjust.offset[None, :]
        targets = optax.smooth_labels(onehot, adjust.smooth[labels][:, None])
        return adjust.weight[labels] * optax.softmax_cross_entropy(adjusted, targets)

    def both(loss):
        each, gradients = jax.vjp(loss, logits, adjust)
        return each, gradients(jnp.linspace(-1, 2, 13))

    # Without differentiation it is optax's function itself.
    np.testing.assert_allclose(both(ours)[0], ours(logits, adjust), rtol=1e-5)
    for found, expected in zip(
        jax.tree.leaves(both(ours)), jax.tree.leaves(both(optaxs)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_masked_logits_have_a_finite_loss_and_gradient():
    """The usual value of a masked logit is the least number; two have no mean."""
    logits = jnp.zeros((1, 5)).at[0, 2:].set(jnp.finfo(jnp.float32).min)
    value, slope = jax.value_and_grad(
        lambda z: adjusted_xent(z, jnp.array([1]), cross_entropy(5))[0]
    )(logits)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(slope, [[0.5, -0.5, 0, 0, 0]], atol=1e-6)


def test_gradient_of_heads_on_several_devices():
    """The logits differ between devices, labels and vectors do not."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("heads",))
    spec = jax.sharding.PartitionSpec("heads")
    labels, adjust = jnp.arange(5) % 3, any_adjust(3)
    slope = jax.grad(lambda z: adjusted_xent(z, labels, adjust).sum())
    logits = jax.random.normal(jax.random.key(0), (jax.device_count(), 5, 3))
    found = jax.shard_map(jax.vmap(slope), mesh=mesh, in_specs=spec, out_specs=spec)(
        logits
    )
    np.testing.assert_allclose(found, jax.vmap(slope)(logits), rtol=1e-5, atol=1e-6)


def test_permuting_the_classes_commutes():
    logits, labels = any_batch(13, 7)
    adjust = any_adjust(7)
    order = np.random.default_rng(1).permutation(7)
    found = adjusted_xent(
        logits[:, order],
        jnp.asarray(np.argsort(order))[labels],
        Adjust(*(vector[order] for vector in adjust[:5]), extra=adjust.extra),
    )
    np.testing.assert_allclose(found, adjusted_xent(logits, labels, adjust), rtol=1e-5)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors_commute_with_permuting(name):
    order = np.random.default_rng(1).permutation(len(COUNTS))
    one, other = CONSTRUCTORS[name](COUNTS), CONSTRUCTORS[name](COUNTS[order])
    for vector, permuted in zip(one[:5], other[:5], strict=True):
        np.testing.assert_allclose(vector[order], permuted, rtol=1e-6)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors_give_five_float32_vectors(name):
    adjust = CONSTRUCTORS[name](COUNTS)
    for vector in adjust[:5]:
        assert vector.shape == COUNTS.shape
        assert vector.dtype == jnp.float32
    assert adjust.extra.dtype == jnp.float32
    np.testing.assert_array_equal(adjust.extra, [0, 0])


@pytest.mark.parametrize(
    "adjust",
    [
        losses.reweight(COUNTS, 1.0),
        losses.reweight(COUNTS, 0.5),
        losses.class_balanced(COUNTS, 0.9999),
        losses.reweight(np.array([437_000, 1]), 1.0),
        losses.class_balanced(np.array([437_000, 1]), 0.9999),
    ],
)
def test_weights_have_mean_one_and_decrease_with_the_count(adjust):
    weight = np.asarray(adjust.weight, np.float64)
    np.testing.assert_allclose(weight.mean(), 1, rtol=1e-6)
    assert (weight > 0).all()
    assert (np.diff(weight) >= 0).all()
    assert weight[0] < weight[-1]


@pytest.mark.parametrize("delta", [1, 1.5, -0.1, float("nan"), None])
def test_delta_out_of_range(delta):
    with pytest.raises(InputError, match=rf"delta must be .*, got {delta}"):
        losses.over_smooth(10, delta)


@pytest.mark.parametrize("beta", [1, 1.5, -0.1, float("nan")])
def test_beta_out_of_range(beta):
    with pytest.raises(InputError, match=rf"beta must be .*, got {beta}"):
        losses.class_balanced(COUNTS, beta)


@pytest.mark.parametrize("name", sorted(set(CONSTRUCTORS) - WITHOUT_COUNTS))
def test_error_lists_empty_classes(name):
    with pytest.raises(InputError, match=r"classes \[1, 3\] have none"):
        CONSTRUCTORS[name](np.array([5, 0, 2, 0]))


@pytest.mark.parametrize("name", sorted(WITHOUT_COUNTS))
def test_empty_classes_do_not_matter_without_counts(name):
    CONSTRUCTORS[name](np.array([5, 0, 2, 0]))


def test_smoothing_gap_without_smoothing_is_infinite():
    assert losses.smoothing_gap(10, 0) == float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: losses.vs(COUNTS, -0.1, 1.0),
            "gamma must be in .*, got -0.1",
        ),
        (lambda: losses.vs(COUNTS, 0.1, float("nan")), "tau must be in .*, got nan"),
        (lambda: losses.ldam(COUNTS, -1.0, 30.0), "max_margin must be"),
        (lambda: losses.ldam(COUNTS, 0.5, -1.0), "scale must be"),
        (lambda: losses.label_aware_smoothing(COUNTS, 1.4, 0.1), r"head .*in \[0, 1\]"),
        (lambda: losses.label_aware_smoothing(COUNTS, 0.4, -0.1), "tail must be"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_ldam_margins():
    margin = np.asarray(losses.ldam(COUNTS, 0.5, 30.0).margin, np.float64)
    assert margin.max() == 15 == margin[-1]  # 0.5 in cosines, times 30
    np.testing.assert_allclose(margin * COUNTS**0.25, 15, rtol=1e-6)


def test_label_aware_smoothing_between_its_ends():
    counts = np.array([101, 51, 1])
    smooth = losses.label_aware_smoothing(counts, 0.4, 0.1).smooth
    np.testing.assert_allclose(smooth, [0.4, 0.1 + 0.3 * np.sqrt(0.5), 0.1], rtol=1e-6)


def with_extra(*numbers):
    return cross_entropy(7)._replace(extra=jnp.array(numbers))


def test_focal_by_hand():
    logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0]]))  # p = 3/4 and 1/4
    adjust = cross_entropy(2)._replace(extra=jnp.array([2.0, 0.0]))
    found = losses.focal(logits, jnp.array([0, 0]), jnp.ones(2), adjust)
    expected = [np.log(4 / 3) / 16, np.log(4) * 9 / 16]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_at_zero_is_the_cross_entropy():
    logits, labels = any_batch(13, 7)
    adjust = any_adjust(7)._replace(extra=jnp.zeros(2))
    found = losses.focal(logits, labels, jnp.ones(13), adjust)
    np.testing.assert_array_equal(found, adjusted_xent(logits, labels, adjust))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [-1e4, -200.0, 0.0, 20.0, 200.0, 1e4])
def test_focal_gradient_is_finite_where_p_is_one(gamma, gap):
    logits = jnp.zeros((1, 7)).at[0, 0].set(gap)

    def total(logits, gamma):
        adjust = with_extra(gamma, 0.0)
        return losses.focal(logits, jnp.array([0]), jnp.ones(1), adjust)[0]

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(logits, gamma)
    assert np.isfinite(value)
    assert np.isfinite(grads[0]).all()
    assert np.isfinite(grads[1])


def lade_by_hand(logits, labels, mask, counts, alpha, square):
    """Compute the paper's formula in float64 on the unmasked examples."""
    z = np.asarray(logits, np.float64)[np.asarray(mask) > 0]
    y = np.asarray(labels)[np.asarray(mask) > 0]
    prior = counts / counts.sum()
    regulariser = 0.0
    for c, p in enumerate(prior):
        first = z[y == c, c].mean() if np.any(y == c) else 0.0
        t = np.log(np.mean(np.exp(z[:, c] - np.log(p) - np.log(len(counts)))))
        regulariser += p * (-first + t + square * t**2)
    shifted = z + np.log(prior)
    xent = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return xent + alpha * regulariser


def test_lade_equals_the_formula():
    logits, labels = any_batch(13, 7)
    labels = labels.at[labels == 3].set(2)  # a class absent from the batch
    mask = jnp.ones(13).at[10:].set(0)
    adjust = losses.logit_adjust(COUNTS, 1.0)._replace(extra=jnp.array([0.5, 0.2]))
    found = losses.lade(logits, labels, mask, adjust)[:10]
    expected = lade_by_hand(logits, labels, mask, COUNTS, 0.5, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # The content of padded rows changes nothing.
    other = losses.lade(logits.at[10:].set(50.0), labels, mask, adjust)[:10]
    np.testing.assert_allclose(found, other, rtol=1e-5)


def test_lade_counts_its_regulariser_once():
    """The weighted mean over a batch contains R once, for any weights."""
    logits, labels = any_batch(13, 7)
    base = losses.logit_adjust(COUNTS, 1.0)._replace(
        weight=losses.reweight(COUNTS, 1.0).weight
    )
    means = []
    for alpha in (0.0, 1.0):
        adjust = base._replace(extra=jnp.array([alpha, 0.2]))
        found = losses.lade(logits, labels, jnp.ones(13), adjust)
        means.append(found.sum() / adjust.weight[labels].sum())
    plain = losses.logit_adjust(COUNTS, 1.0)
    ones = [
        losses.lade(
            logits, labels, jnp.ones(13), plain._replace(extra=jnp.array([a, 0.2]))
        ).mean()
        for a in (0.0, 1.0)
    ]
    np.testing.assert_allclose(means[1] - means[0], ones[1] - ones[0], rtol=1e-4)


@pytest.mark.parametrize("above", [0.0, 85.0, 1000.0])
def test_lade_has_no_limit_above_the_mean(above):
    """A logit far above its class's mean has the gradient of float64."""
    logits = jnp.zeros((6, 7)).at[0, 3].set(above)
    labels, mask = jnp.arange(6), jnp.ones(6)
    adjust = losses.logit_adjust(COUNTS, 1.0)._replace(extra=jnp.array([1.0, 0.1]))

    def total(z):
        value = losses.lade(z, labels, mask, adjust)
        return jnp.mean(value - adjusted_xent(z, labels, adjust))

    found = jax.grad(total)(logits)[0, 3]
    z = np.asarray(logits, np.float64)[:, 3]
    prior = COUNTS[3] / COUNTS.sum()
    share = 1 / np.exp(z - z[0]).sum()
    t = z[0] - np.log(share) - np.log(6 * prior * 7)
    expected = prior * share * (1 + 2 * 0.1 * t)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 0


def test_lade_of_a_batch_of_padding_adds_nothing():
    logits, labels = any_batch(4, 7)
    adjust = losses.logit_adjust(COUNTS, 1.0)._replace(extra=jnp.array([1.0, 0.1]))

    def total(z):
        return jnp.sum(losses.lade(z, labels, jnp.zeros(4), adjust) * 0.0)

    value, gradient = jax.value_and_grad(total)(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("mean", "expected"), [("weights", "weights"), ("examples", 1)]
)
def test_divisors(mean, expected):
    """The mean of torch's weighted loss, and that of the class-balanced code."""
    adjust = losses.class_balanced(COUNTS, 0.999, mean)
    labels = jnp.arange(7)
    expected = adjust.weight if expected == "weights" else np.ones(7)
    np.testing.assert_array_equal(losses.divisors(adjust, labels), expected)
    with pytest.raises(InputError, match=r"mean of the loss 'example'.*'examples'"):
        losses.class_balanced(COUNTS, 0.999, "example")


@pytest.mark.parametrize("loss", [losses.focal, losses.lade])
def test_focal_and_lade_at_zero_and_jitted(loss):
    logits, labels = any_batch(13, 7)
    mask, adjust = jnp.ones(13), any_adjust(7)
    np.testing.assert_allclose(
        jax.jit(loss, static_argnums=4)(
            logits, labels, mask, adjust, losses.one_device
        ),
        loss(logits, labels, mask, adjust),
        rtol=1e-5,
    )
    neutral = adjust._replace(extra=jnp.zeros(2))
    np.testing.assert_allclose(
        loss(logits, labels, mask, neutral),
        adjusted_xent(logits, labels, neutral),
        rtol=1e-6,
    )


def test_the_least_loss_is_that_of_logits_which_fit_the_labels():
    """By smoothing, weights and frequencies of the classes, against such logits."""
    counts = np.array([50, 20, 5])
    adjust = losses.label_aware_smoothing(counts, 0.4, 0.1)
    for by_weight in (0.0, 1.0):
        adjust = adjust._replace(
            weight=jnp.array([0.5, 1.0, 1.5]), by_weight=np.float32(by_weight)
        )
        labels = np.repeat(np.arange(3), counts)
        smooth = np.asarray(adjust.smooth)[labels][:, None]
        target = (1 - smooth) * np.eye(3)[labels] + smooth / 3
        mask = jnp.ones(len(labels))
        each = losses.adjusted_xent(jnp.log(target), jnp.array(labels), mask, adjust)
        mean = each.sum() / losses.divisors(adjust, jnp.array(labels)).sum()
        assert losses.least(adjust, counts) == pytest.approx(float(mean), rel=1e-5)
    assert losses.least(losses.cross_entropy(3), counts) == 0.0
