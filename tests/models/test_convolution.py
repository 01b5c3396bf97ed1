"""oneDNN's convolutions against XLA's: values and both gradients."""

from __future__ import annotations

import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import models
from lt_jax.models import convolution, resnet

WORKS = convolution.onednn_works()


def test_the_trial_decides():
    """jaxlib 0.7.0 fails the trial; the versions in constraints.txt pass it."""
    cpu = jax.default_backend() == "cpu" and platform.machine() == "x86_64"
    assert WORKS == cpu or jax.__version_info__ < (0, 10, 2)
    assert models.fastest_engine() == ("onednn" if WORKS else "xla")
    assert (models.compiler_options() is None) != WORKS


@pytest.mark.skipif(not WORKS, reason="XLA computes the convolutions")
def test_a_wrong_result_fails_the_trial(monkeypatch):
    def wrong(x, w, stride, pad):
        return 1.01 * convolution._xla(x, w, stride, pad)

    monkeypatch.setattr(convolution, "_convolve", wrong)
    assert not convolution.onednn_works.__wrapped__()


@pytest.mark.skipif(not WORKS, reason="XLA computes the convolutions")
def test_a_missing_call_fails_the_trial(monkeypatch):
    monkeypatch.setattr(convolution, "TARGET", "__onednn$renamed")
    assert not convolution.onednn_works.__wrapped__()


def check(convolve, shape, kernel, tolerance):
    """Compare values and gradients of two convolutions under one weighted sum."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape, np.float32))
    w = jnp.asarray(rng.standard_normal(kernel, np.float32))
    values = {}
    for name, fun in convolve.items():
        y, pull = jax.vjp(jax.jit(fun), x, w)
        weights = np.random.default_rng(1).standard_normal(y.shape, np.float32)
        values[name] = [y, *pull(jnp.asarray(weights))]
    for one, other in zip(values["onednn"], values["xla"], strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance)


@pytest.mark.skipif(not WORKS, reason="XLA computes the convolutions")
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(
    ("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2), (7, 2)], ids=str
)
@pytest.mark.parametrize(("inner", "outer"), [(3, 16), (16, 16), (5, 7)], ids=str)
def test_values_and_gradients_match_xla(side, size, stride, inner, outer):
    """The layers of all networks, odd and even sides, odd numbers of channels."""
    pad = (size - 1) // 2
    both = {
        "onednn": lambda x, w: convolution._convolve(x, w, stride, pad),
        "xla": lambda x, w: convolution._xla(x, w, stride, pad),
    }
    check(both, (2, side, side, inner), (size, size, inner, outer), 1e-5)


@pytest.mark.skipif(not WORKS, reason="XLA computes the convolutions")
@pytest.mark.parametrize(
    ("dtype", "groups", "called"),
    [("float32", 1, True), ("float32", 2, False), ("bfloat16", 1, False)],
)
def test_groups_and_other_dtypes_use_xla(dtype, groups, called):
    layer = resnet.convolution(
        4, 3, 2, groups, init_name="torch", dtype=jnp.dtype(dtype), engine="onednn"
    )
    x = jnp.ones((1, 8, 8, 4), dtype)
    params = layer.init(jax.random.key(0), x)
    text = jax.jit(layer.apply).lower(params, x).as_text()
    assert (convolution.TARGET in text) == called
    assert ("stablehlo.convolution" in text) != called


@pytest.mark.skipif(not WORKS, reason="XLA computes the convolutions")
def test_a_network_gives_the_same_features():
    made = models.create("resnet8", "cifar", 8)
    params, stats = models.init(made, jax.random.key(0), (16, 16, 3))
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = {"params": params, "batch_stats": stats}
    features = [
        made.clone(engine=engine).apply(variables, images, jnp.ones(4), False)
        for engine in ("xla", "onednn")
    ]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
