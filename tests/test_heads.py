"""The heads: how they start and what they compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads
from lt_jax.types import InputError

D, K = 64, 1000


def fresh(init, seed=0):
    return heads.linear.init(jax.random.key(seed), None, D, K, init)


@pytest.mark.parametrize("init", ["torch", "flax"])
def test_shapes(init):
    params = fresh(init)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "kernel": (D, K),
        "bias": (K,),
    }
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())


def test_torch_is_uniform_up_to_the_root_of_the_fan_in():
    bound = 1 / np.sqrt(D)
    several = [
        fresh("torch", seed) for seed in range(10)
    ]  # a bias alone is few numbers
    for name, tolerance in (("kernel", 0.01), ("bias", 0.03)):
        leaf = np.array([params[name] for params in several], np.float64)
        assert 0.99 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        assert np.abs(leaf.mean()) < tolerance * bound
        # Of a uniform distribution: variance b²/3, fourth moment b⁴/5.
        assert np.mean(leaf**2) == pytest.approx(bound**2 / 3, rel=tolerance)
        assert np.mean(leaf**4) == pytest.approx(bound**4 / 5, rel=2 * tolerance)
    # Kernel and bias do not come from the same numbers.
    kernel, bias = several[0]["kernel"], several[0]["bias"]
    assert np.abs(np.corrcoef(kernel[0], bias)[0, 1]) < 0.1


def test_flax_is_lecun_normal_and_zeros():
    params = fresh("flax")
    kernel = np.asarray(params["kernel"], np.float64)
    assert np.abs(kernel.mean()) < 0.01 / np.sqrt(D)
    assert kernel.std() == pytest.approx(1 / np.sqrt(D), rel=0.01)
    # Truncated at two deviations of the normal before truncation, whose deviation
    # after it is 0.8796 of that before.
    assert np.abs(kernel).max() <= 2 / 0.8796 / np.sqrt(D) * 1.001
    np.testing.assert_array_equal(params["bias"], 0)


@pytest.mark.parametrize("init", ["torch", "flax"])
def test_the_key_decides(init):
    one, same, other = fresh(init, 0), fresh(init, 0), fresh(init, 1)
    np.testing.assert_array_equal(one["kernel"], same["kernel"])
    assert np.mean(one["kernel"] == other["kernel"]) < 0.01


@pytest.mark.parametrize("init", ["torch", "flax"])
def test_start_is_taken_over(init):
    """Its own leaves alone: the stage-1 head may have been of another kind."""
    start = {**fresh("torch", 7), "scale": jnp.ones(K)}
    params = heads.linear.init(jax.random.key(0), start, D, K, init)
    assert params.keys() == {"kernel", "bias"}
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, start[name])
    params["bias"] = None  # a dict of its own
    assert start["bias"] is not None


def test_class_vectors_are_columns():
    kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 4.0]])
    params = {"kernel": kernel, "bias": jnp.array([10.0, 20.0, 30.0])}
    logits = heads.linear.apply(params, jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    # A feature of its own reads the kernel row by row: class k has column k.
    np.testing.assert_array_equal(logits, [[11, 20, 32], [10, 23, 34]])


def test_apply_equals_numpy():
    params = fresh("torch")
    features = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
    expected = features @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    logits = jax.jit(heads.linear.apply)(params, features)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_class_norms():
    params = {"kernel": jnp.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])}
    params["bias"] = jnp.array([100.0, 100.0, 100.0])
    np.testing.assert_allclose(heads.class_norms(params), [5, 2, 1], rtol=1e-6)


def test_is_a_cache_key():
    """Steps are compiled by head: the same one again must not compile again."""
    assert hash(heads.linear) == hash(heads.Head(*heads.linear))


def test_unknown_initialiser():
    with pytest.raises(InputError, match=r"initialiser 'trch'.*did you mean 'torch'"):
        fresh("trch")
