"""Heads: initial parameters, logits and norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads
from lt_jax.errors import InputError

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


def test_torch_init_is_uniform_within_the_fan_in_bound():
    bound = 1 / np.sqrt(D)
    several = [fresh("torch", seed) for seed in range(10)]  # one bias is too short
    for name, tolerance in (("kernel", 0.01), ("bias", 0.03)):
        leaf = np.array([params[name] for params in several], np.float64)
        assert 0.99 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        assert np.abs(leaf.mean()) < tolerance * bound
        # A uniform distribution has the variance b²/3 and the fourth moment b⁴/5.
        assert np.mean(leaf**2) == pytest.approx(bound**2 / 3, rel=tolerance)
        assert np.mean(leaf**4) == pytest.approx(bound**4 / 5, rel=2 * tolerance)
    # Kernel and bias use different random numbers.
    kernel, bias = several[0]["kernel"], several[0]["bias"]
    assert np.abs(np.corrcoef(kernel[0], bias)[0, 1]) < 0.1


def test_flax_init_is_lecun_normal_and_zeros():
    params = fresh("flax")
    kernel = np.asarray(params["kernel"], np.float64)
    assert np.abs(kernel.mean()) < 0.01 / np.sqrt(D)
    assert kernel.std() == pytest.approx(1 / np.sqrt(D), rel=0.01)
    # Truncated at two standard deviations; truncation scales the deviation by 0.8796.
    assert np.abs(kernel).max() <= 2 / 0.8796 / np.sqrt(D) * 1.001
    np.testing.assert_array_equal(params["bias"], 0)


@pytest.mark.parametrize("init", ["torch", "flax"])
def test_init_depends_on_the_key_only(init):
    one, same, other = fresh(init, 0), fresh(init, 0), fresh(init, 1)
    np.testing.assert_array_equal(one["kernel"], same["kernel"])
    assert np.mean(one["kernel"] == other["kernel"]) < 0.01


@pytest.mark.parametrize("init", ["torch", "flax"])
def test_init_copies_the_start(init):
    """Only the linear leaves: the stage-1 head may have been of another kind."""
    start = {**fresh("torch", 7), "scale": jnp.ones(K)}
    params = heads.linear.init(jax.random.key(0), start, D, K, init)
    assert params.keys() == {"kernel", "bias"}
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, start[name])
    params["bias"] = None  # the result is a new dict
    assert start["bias"] is not None


def test_class_vectors_are_columns():
    kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 4.0]])
    params = {"kernel": kernel, "bias": jnp.array([10.0, 20.0, 30.0])}
    logits = heads.linear.apply(params, jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    # Unit features select rows of the kernel: class k has column k.
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


def test_cosine_by_hand():
    """Features (3, 4) and (0, 2) against the vectors (5, 0) and (6, 8), times 10."""
    start = {"kernel": jnp.array([[5.0, 6.0], [0.0, 8.0]]), "bias": jnp.ones(2)}
    head = heads.cosine(10.0)
    params = head.init(jax.random.key(0), start, 2, 2, "torch")
    assert params.keys() == {"kernel", "scale"}
    assert params["scale"].shape == ()
    logits = head.apply(params, jnp.array([[3.0, 4.0], [0.0, 2.0]]))
    np.testing.assert_allclose(logits, [[6, 10], [0, 8]], rtol=1e-6, atol=1e-6)
    assert heads.cosine(10.0) == head
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="scale must be in"):
            heads.cosine(scale)


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        ({"bias": [100.0, 100.0]}, [5, 2]),
        ({"bias": [100.0, 100.0], "scale": [2.0, -3.0]}, [10, 6]),  # scaled
        ({"bias": [1.0, 1.0], "omega": [2.0, -3.0], "beta": [9.0, 9.0]}, [10, 6]),
        (  # blended, at a confidence of 1/2: (1 + s) / 2 = 3/2 and -1
            {"bias": [1.0, 1.0], "scale": [2.0, -3.0], "confidence": [7.0, 7.0]},
            [7.5, 2],
        ),
        (  # aligned, likewise: 1 + s / 2 = 2 and -1/2
            {"bias": [1.0, 1.0], "scale": [2.0, -3.0], "confidence": [7.0, 7.0]}
            | {"confidence_bias": 5.0},
            [10, 1],
        ),
        ({"scale": 30.0}, [30, 30]),  # cosine
        ({"bias": [1.0, 1.0], "centre": [8.0, 8.0]}, [5, 2]),
    ],
)
def test_effective_norms(leaves, expected):
    params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])}
    params |= {name: jnp.asarray(value) for name, value in leaves.items()}
    found = heads.effective_norms(params)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_effective_norms_match_the_logits():
    """Without biases and offsets a logit is at most the norm of its class vector."""
    start = {"kernel": jax.random.normal(jax.random.key(1), (5, 4))}
    start["bias"] = jnp.zeros(4)
    for head in (heads.linear, heads.scaled, heads.marc, heads.cosine(7.0)):
        params = head.init(jax.random.key(0), start, 5, 4, "torch")
        for name in ("scale", "omega"):
            if name in params and params[name].ndim:
                params[name] = jnp.array([0.5, -2.0, 3.0, 1.0])
        # Features along the class vectors, of length 1.
        along = start["kernel"] / heads.class_norms(start)[None, :]
        logits = jnp.diag(head.apply(params, along.T))
        np.testing.assert_allclose(
            jnp.abs(logits), heads.effective_norms(params), rtol=1e-5
        )


def test_head_is_a_cache_key():
    """Steps are compiled per head: an equal head must not compile again."""
    assert hash(heads.linear) == hash(heads.Head(*heads.linear))


def test_unknown_initialiser():
    with pytest.raises(InputError, match=r"initialiser 'trch'.*did you mean 'torch'"):
        fresh("trch")
