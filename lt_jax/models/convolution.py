"""oneDNN convolutions on x86 CPUs: everything this package knows about them.

XLA's own CPU convolutions run at 0.4 to 0.9 times the speed of PyTorch's, which are
oneDNN's. jaxlib for x86 contains oneDNN and a custom call for its forward convolution.
XLA emits that call only behind a flag, and only for graphs without gradients. This file
emits the call itself. The gradient with respect to the input is another forward
convolution, with the kernel rotated. The gradient with respect to the kernel, grouped
convolutions, other dtypes and other devices stay with XLA.

The call is internal to XLA and its fields have changed before. `onednn_works` therefore
tries it once per process and compares values and gradients with XLA's.
"""

from __future__ import annotations

import functools
import json
import platform
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TARGET = "__onednn$convolution"
LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.cache
def onednn_works() -> bool:
    """Return whether this CPU's jaxlib has the call and agrees with XLA on a trial."""
    if jax.default_backend() != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    # A program with this call cannot be serialized, so JAX's cache skips it.
    warnings.filterwarnings(
        "ignore", "Error writing persistent compilation cache entry.*bad_alloc"
    )
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 9, 9, 16), np.float32)
    kernel = rng.standard_normal((3, 3, 16, 32), np.float32)

    @jax.jit
    def trial(x: jax.Array, w: jax.Array) -> Any:
        def total(convolve: Any, x: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.sum(convolve(x, w, 2, 1) ** 2)

        gradients = jax.value_and_grad(total, (1, 2))
        return gradients(_convolve, x, w), gradients(_xla, x, w)

    try:
        ours, xlas = jax.device_get(trial(images, kernel))
    except jax.errors.JaxRuntimeError:
        return False
    same = jax.tree.map(lambda a, b: np.allclose(a, b, 1e-3, 1e-2), ours, xlas)
    return all(jax.tree.leaves(same))


def fastest_engine() -> str:
    """Return the `engine` of a `ResNet` that suits the devices."""
    return "onednn" if onednn_works() else "xla"


def compiler_options() -> dict[str, Any] | None:
    """Return the XLA options for training steps, None for the defaults.

    XLA's CPU compiler drops the barriers of the backward pass below. It then recomputes
    the activations of a complete stage for every kernel gradient, which costs a third
    of the speed. Other compilers keep barriers.
    """
    passes = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return passes if onednn_works() else None


def convolver(engine: str, dtype: Any, groups: int) -> Any:
    """Return the argument `conv_general_dilated` of `flax.linen.Conv`; None: XLA's."""
    if engine == "onednn" and dtype == jnp.float32 and groups == 1:
        return _onednn
    return None


def _onednn(
    x: jax.Array, w: jax.Array, strides: Any, padding: Any, **_: Any
) -> jax.Array:
    # The other arguments are neutral, and strides and padding alike on all sides: see
    # `resnet.convolution`.
    return _convolve(x, w, strides[0], padding[0][0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, w: jax.Array, stride: int, pad: int) -> jax.Array:
    """[B, H, W, C] by [k, k, C, F] -> [B, H', W', F]."""
    batch, *sides, _ = x.shape
    sides = [(side + 2 * pad - len(w)) // stride + 1 for side in sides]
    shape = batch, *sides, w.shape[3]
    return _call(x, w, shape, stride=stride, pads=[(pad, pad)] * 2)


def _backward(
    stride: int, pad: int, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    # Keeps XLA from recomputing everything since the last sum, see `compiler_options`.
    x, grad = lax.optimization_barrier((x, grad))
    _, kernel_gradient = jax.vjp(lambda w: _xla(x, w, stride, pad), w)
    (to_kernel,) = kernel_gradient(grad)
    # The gradient of an input pixel sums over the outputs that used it: convolve the
    # outputs, `stride` apart, with the rotated kernel, its channels swapped.
    low = len(w) - 1 - pad
    pads = []
    for side, out in zip(x.shape[1:3], grad.shape[1:3], strict=True):
        pads.append((low, side + 2 * pad - len(w) - (out - 1) * stride + low))
    if stride > 1:
        gap = (0, 0, stride - 1)
        grad = lax.pad(grad, np.float32(0), ((0, 0, 0), gap, gap, (0, 0, 0)))
    rotated = jnp.flip(w, (0, 1))
    to_input = _call(grad, rotated, x.shape, stride=1, pads=pads, swapped=True)
    return to_input, to_kernel


_convolve.defvjp(
    lambda x, w, stride, pad: (_convolve(x, w, stride, pad), (x, w)), _backward
)


def _xla(x: jax.Array, w: jax.Array, stride: int, pad: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=LAYOUT
    )


def _call(
    x: jax.Array,
    w: jax.Array,
    shape: tuple[int, ...],
    *,
    stride: int,
    pads: Sequence[tuple[int, int]],
    swapped: bool = False,
) -> jax.Array:
    """Call oneDNN's forward convolution; ``swapped``: the kernel is [k, k, out, in]."""
    images = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
    filters = {
        "input_feature_dim": "3" if swapped else "2",
        "output_feature_dim": "2" if swapped else "3",
        "spatial_dims": ["0", "1"],
    }
    settings = {
        "dims": "4",
        "feature_groups": "1",
        "input": {"data": images},
        "kernel": {"filter": filters},
        "output": {"data": images},
        "window": {
            "pad_left": [str(low) for low, _ in pads],
            "pad_right": [str(high) for _, high in pads],
            "strides": [str(stride)] * 2,
            "window_dilations": ["1", "1"],
        },
    }
    return jax.ffi.ffi_call(
        TARGET,
        jax.ShapeDtypeStruct(shape, x.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": settings}),
    )(x, w)
