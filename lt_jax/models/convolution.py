"""Convolutions on a CPU by oneDNN, which jaxlib carries but XLA does not call.

XLA's own convolutions on a CPU run at 0.4 to 0.9 of the rate of PyTorch's, which are
oneDNN's. jaxlib for x86 holds the library and a custom call for its forward
convolution, which XLA's rewriter emits behind a flag for graphs that are not trained.
Here that call is written down by hand, and the gradient with respect to the input is a
forward convolution with the kernel turned around; that with respect to the kernel is
left to XLA. On other devices, in other dtypes and with groups nothing of this is used.

The call is internal to XLA and its fields have changed before, so it is used with the
versions of jaxlib it was tested with, `TESTED`, and only if a trial agrees with XLA.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import lax

TESTED = ("0.10.2",)
TARGET = "__onednn$convolution"
LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.cache
def onednn_works() -> bool:
    """Whether the devices are CPUs whose jaxlib has the call, and it is right."""
    if (
        jax.default_backend() != "cpu"
        or platform.machine() not in ("x86_64", "AMD64")
        or jaxlib.version.__version__ not in TESTED
    ):
        return False
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 9, 9, 16), np.float32)
    kernel = rng.standard_normal((3, 3, 16, 32), np.float32)

    def both(convolve: Any) -> Any:
        def total(x: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.sum(convolve(x, w) ** 2)

        return jax.jit(jax.value_and_grad(total, (0, 1)))(images, kernel)

    try:
        ours = both(lambda x, w: _convolve(x, w, 2, 1))
    except jax.errors.JaxRuntimeError:
        return False
    plain = both(lambda x, w: _plain(x, w, 2, 1))
    same = jax.tree.map(lambda a, b: np.allclose(a, b, 1e-3, 1e-2), ours, plain)
    return all(jax.tree.leaves(same))


def by_onednn(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    precision: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for what `flax.linen.Conv` asks of it.

    What oneDNN does not do here, grouped convolutions and other dtypes than float32,
    XLA does.
    """
    stride, pad = window_strides[0], padding[0][0]
    if lhs.dtype == rhs.dtype == jnp.float32 and feature_group_count == 1:
        return _convolve(lhs, rhs, stride, pad)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, w: jax.Array, stride: int, pad: int) -> jax.Array:
    """[B, H, W, C] by [k, k, C, F] -> [B, H', W', F]."""
    batch, *sides, _ = x.shape
    sides = [(side + 2 * pad - len(w)) // stride + 1 for side in sides]
    return _call(x, w, (batch, *sides, w.shape[3]), False, stride, [(pad, pad)] * 2)


def _forward(x: jax.Array, w: jax.Array, stride: int, pad: int) -> tuple[Any, Any]:
    return _convolve(x, w, stride, pad), (x, w)


def _backward(
    stride: int, pad: int, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    # Not to be computed anew, for which XLA takes everything since the last sum.
    x, grad = lax.optimization_barrier((x, grad))
    _, kernel_gradient = jax.vjp(lambda w: _plain(x, w, stride, pad), w)
    (to_kernel,) = kernel_gradient(grad)
    # Each input pixel collects from the outputs that saw it: the outputs, `stride`
    # apart, under the kernel turned around, its channels in each other's place.
    low = len(w) - 1 - pad
    pads = []
    for side, out in zip(x.shape[1:3], grad.shape[1:3], strict=True):
        pads.append((low, side + 2 * pad - len(w) - (out - 1) * stride + low))
    if stride > 1:
        gap = (0, 0, stride - 1)
        grad = lax.pad(grad, np.float32(0), ((0, 0, 0), gap, gap, (0, 0, 0)))
    to_input = _call(grad, jnp.flip(w, (0, 1)), x.shape, True, 1, pads)
    return to_input, to_kernel


_convolve.defvjp(_forward, _backward)


def _plain(x: jax.Array, w: jax.Array, stride: int, pad: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=LAYOUT
    )


def _call(
    x: jax.Array,
    w: jax.Array,
    shape: tuple[int, ...],
    turned: bool,
    stride: int,
    pads: Sequence[tuple[int, int]],
) -> jax.Array:
    """oneDNN's forward convolution; ``turned``: the kernel is [k, k, out, in]."""

    def texts(*numbers: int) -> list[str]:
        return [str(number) for number in numbers]

    images = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": texts(1, 2)}
    places = {
        "input_feature_dim": "3" if turned else "2",
        "output_feature_dim": "2" if turned else "3",
        "spatial_dims": texts(0, 1),
    }
    numbers = {
        "dims": "4",
        "feature_groups": "1",
        "input": {"data": images},
        "kernel": {"filter": places},
        "output": {"data": images},
        "window": {
            "pad_left": texts(*(low for low, _ in pads)),
            "pad_right": texts(*(high for _, high in pads)),
            "strides": texts(stride, stride),
            "window_dilations": texts(1, 1),
        },
    }
    return jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(shape, x.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": numbers}),
    )(x, w)
