"""Multinomial logistic regression, fitted to convergence: no rate and no epochs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lt_jax import losses
from lt_jax.heads import Blocks, linear
from lt_jax.losses import Adjust
from lt_jax.types import Params

ITERATIONS = 200  # of L-BFGS; about 30 to 100 are needed
# Epochs of a head that SGD trains, 12 at a time, that a fit takes about as long as: 30
# to 90 evaluations of the loss, each as long as two. 100 with 4 or 20 classes, 160 with
# 100, on two CPU cores.
PASSES = 120


def fit(
    blocks: Blocks,
    labels: np.ndarray,
    shape: tuple[int, int],
    adjust: Adjust,
    penalty: float,
) -> Params:
    """Minimise the mean adjusted cross-entropy plus ``penalty / (2 N) |W|^2``.

    W multiplies features that are centred and divided by their root mean square
    distance from the centre, so that a penalty means the same for features of any
    norm and, as a Gaussian prior, for any number N of examples. The bias is free. The
    result is the equal head on the features as they are.

    Args:
      blocks: the features, float[N, D] in blocks; read once per iteration.
      labels: int32[N].
      shape: D, K.
      adjust: of ``losses.adjusted_xent``.
      penalty: at least 0.
    """
    num_features, num_classes = shape
    size = num_features * num_classes
    total = sum(np.asarray(v, np.float64).sum(axis=0) for v in blocks())
    centre = np.asarray(total / len(labels), np.float32)
    square = sum(np.sum((np.asarray(v, np.float64) - centre) ** 2) for v in blocks())
    scale = np.float32(max(float(np.sqrt(square / len(labels))), 1e-12))
    strength = penalty / len(labels)
    divisor = float(np.sum(losses.divisors(adjust, jnp.asarray(labels))))

    def unpack(flat: np.ndarray) -> Params:
        kernel = flat[:size].reshape(shape).astype(np.float32)
        return {"kernel": kernel, "bias": flat[size:].astype(np.float32)}

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        params, loss, grad, first = unpack(flat), 0.0, np.zeros_like(flat), 0
        for values in blocks():
            own = labels[first : first + len(values)]
            first += len(values)
            each, grads = _sum(params, values, own, centre, scale, adjust)
            loss += float(each)
            grad += np.concatenate([grads["kernel"].ravel(), grads["bias"]])
        loss, grad = loss / divisor, grad / divisor
        grad[:size] += strength * flat[:size]
        return loss + strength / 2 * float(flat[:size] @ flat[:size]), grad

    from scipy.optimize import minimize  # slow to import

    # The sums are float32: a smaller tolerance would follow their rounding.
    options = {"maxiter": ITERATIONS, "ftol": 1e-7}
    start = np.zeros(size + num_classes)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    params = unpack(found.x)
    kernel = params["kernel"] / scale
    return {"kernel": kernel, "bias": params["bias"] - centre @ kernel}


@jax.jit
@jax.value_and_grad
def _sum(
    params: Params,
    values: Array,
    labels: Array,
    centre: Array,
    scale: Array,
    adjust: Adjust,
) -> Array:
    """Add up the losses of a block."""
    scaled = (values.astype(jnp.float32) - centre[None, :]) / scale
    logits = linear.apply(params, scaled)
    return losses.adjusted_xent(logits, labels, jnp.ones(len(labels)), adjust).sum()
