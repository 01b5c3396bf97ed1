"""Batch norm: the mask, the devices and PyTorch's running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import enable_x64

from lt_jax.models.norm import BatchNorm

DEVICES, ROWS, C = 4, 3, 5
MASKS = {
    "full": np.ones((DEVICES, ROWS)),
    "ragged": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0]]),
    "empty device": np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]]),
}


def images(shape=(DEVICES * ROWS, 4, 3, C), dtype=np.float32, seed=0):
    """Every row has its own mean and scale, so that a missing row is visible."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(shape[0], 1, 1, 1)) + 2
    return (level + level * rng.normal(size=shape)).astype(dtype)


def variables(dtype=np.float32, channels=C):
    rng = np.random.default_rng(1)
    draw = lambda low: rng.uniform(low, low + 1, channels).astype(dtype)  # noqa: E731
    return (
        {"scale": draw(0.5), "bias": draw(-0.5)},
        {"mean": draw(-0.5), "var": draw(0.5)},
    )


def apply(module, params, stats, x, mask, moving=True):
    out, new = module.apply(
        {"params": params, "batch_stats": stats}, x, mask, moving, mutable=True
    )
    return out, new["batch_stats"]


def by_hand(params, stats, x, mask):
    """Compute torch.nn.BatchNorm2d in NumPy, on the unmasked rows."""
    x = np.asarray(x, np.float64)
    pixels = x[np.asarray(mask) > 0].reshape(-1, x.shape[-1])
    mean, var = pixels.mean(0), pixels.var(0)
    y = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    return y, {
        "mean": 0.9 * stats["mean"] + 0.1 * mean,
        "var": 0.9 * stats["var"] + 0.1 * pixels.var(0, ddof=1),
    }


def close(actual, expected, tol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tol, atol=tol),
        actual,
        expected,
    )


@pytest.mark.parametrize("name", ["full", "ragged"])
def test_values_and_running_statistics_match_torch(name):
    x, mask, (params, stats) = images(), MASKS[name].reshape(-1), variables()
    y, new = apply(BatchNorm(None), params, stats, x, mask.astype(np.float32))
    expected, expected_new = by_hand(params, stats, x, mask)
    close(y, expected)
    close(new, expected_new)


def test_running_variance_is_unbiased():
    # Two pixels, 0 and 2: mean 1, variance 1, unbiased variance 2.
    x = np.array([0, 2], np.float32).reshape(1, 1, 2, 1)
    params, stats = (
        {"scale": np.ones(1), "bias": np.zeros(1)},
        {
            "mean": np.zeros(1),
            "var": np.ones(1),
        },
    )
    y, new = apply(BatchNorm(None), params, stats, x, np.ones(1, np.float32))
    close(np.ravel(y), np.array([-1.0, 1.0]))
    close(new, {"mean": np.array([0.1]), "var": np.array([0.9 + 0.1 * 2])})


def test_masked_rows_equal_leaving_them_out():
    x, mask, (params, stats) = images(), MASKS["ragged"].reshape(-1), variables()
    kept = mask > 0
    short = np.ones(kept.sum(), np.float32)
    y, new = apply(BatchNorm(None), params, stats, x, mask.astype(np.float32))
    y_short, new_short = apply(BatchNorm(None), params, stats, x[kept], short)
    close(y[kept], y_short, 1e-6)
    close(new, new_short, 1e-6)


@pytest.mark.parametrize("name", MASKS)
def test_devices_equal_one(name):
    """Values, running statistics, gradients of the parameters and of the input."""
    x, mask, (params, stats) = images(), MASKS[name], variables()
    mask = mask.astype(np.float32)
    target = images(seed=2)

    def loss(params, x, mask, target, module):
        y, new = apply(module, params, stats, x, mask)
        error = jnp.sum((y - target) ** 2 * jnp.cos(y), (1, 2, 3))
        return jnp.sum(mask * error), (y, new)

    def run(axis_name, params, x, mask, target):
        grad = jax.grad(loss, (0, 1), has_aux=True)
        (dp, dx), (y, new) = grad(params, x, mask, target, BatchNorm(axis_name))
        if axis_name:
            dp = jax.lax.psum(dp, axis_name)
        return dp, dx, y, new

    one = jax.jit(functools.partial(run, None))(params, x, mask.reshape(-1), target)
    split = lambda a: a.reshape(DEVICES, ROWS, *a.shape[1:])  # noqa: E731
    many = jax.pmap(
        functools.partial(run, "batch"),
        axis_name="batch",
        in_axes=(None, 0, 0, 0),
        out_axes=(None, 0, 0, None),
    )(params, split(x), mask, split(target))
    dp, dx, y, new = jax.device_get(many)
    joined = dp, dx.reshape(x.shape), y.reshape(x.shape), new
    close(joined, jax.device_get(one), 3e-5)
    assert np.abs(one[1]).max() > 0.1
    padded = mask.reshape(-1) == 0
    assert not np.any(joined[1][padded])


def test_evaluation_uses_the_running_statistics_and_keeps_them():
    x, mask, (params, stats) = images(), np.ones(12, np.float32), variables()
    module = BatchNorm(None)
    y, new = apply(module, params, stats, x, mask, moving=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    close(y, expected * params["scale"] + params["bias"])
    jax.tree.map(np.testing.assert_array_equal, new, stats)
    # Nothing is written, so the collection may be immutable; the mask is not used.
    fixed = {"params": params, "batch_stats": stats}
    np.testing.assert_array_equal(module.apply(fixed, x, mask * 0, moving=False), y)


def test_an_empty_batch_leaves_the_running_statistics():
    x, mask, (params, stats) = images(), np.zeros(12, np.float32), variables()
    y, new = apply(BatchNorm(None), params, stats, x, mask)
    jax.tree.map(np.testing.assert_array_equal, new, stats)
    assert np.all(np.isfinite(y))


def test_init_needs_no_axis_and_no_statistics():
    made = BatchNorm("batch").init(
        jax.random.key(0), images(), np.ones(12, np.float32), moving=True
    )
    assert np.all(made["params"]["scale"] == 1)
    assert not np.any(made["params"]["bias"])
    assert not np.any(made["batch_stats"]["mean"])
    assert np.all(made["batch_stats"]["var"] == 1)


def test_a_constant_channel_stays_finite():
    # 1000.1 is not a float32: E[x^2] - E[x]^2 rounds to a number of either sign.
    x = np.full((64, 5, 5, 1), 1000.1, np.float32)
    params, stats = variables(channels=1)
    y, new = apply(BatchNorm(None), params, stats, x, np.ones(64, np.float32))
    assert np.all(np.isfinite(y))
    assert np.all(new["var"] >= 0.9 * stats["var"])


def test_bfloat16_sums_in_float32():
    """A sum in bfloat16 would stop growing at a few hundred."""
    x = jnp.asarray(images((64, 8, 8, C)), jnp.bfloat16)
    mask, (params, stats) = np.ones(64, np.float32), variables()
    y, new = apply(BatchNorm(None, dtype=jnp.bfloat16), params, stats, x, mask)
    expected, expected_new = by_hand(params, stats, x.astype(jnp.float32), mask)
    assert y.dtype == jnp.bfloat16
    assert new["mean"].dtype == new["var"].dtype == jnp.float32
    close(new, expected_new)
    close(y.astype(jnp.float32), expected, 2e-2)


def test_float64_is_kept():
    with enable_x64(True):
        x, mask = images(dtype=np.float64), MASKS["ragged"].reshape(-1)
        params, stats = variables(np.float64)
        module = BatchNorm(None, dtype=jnp.float64)
        y, new = apply(module, params, stats, x, mask.astype(np.float32))
    assert y.dtype == new["var"].dtype == np.float64
    expected, expected_new = by_hand(params, stats, x, mask)
    close(y, expected, 1e-12)
    close(new, expected_new, 1e-12)
