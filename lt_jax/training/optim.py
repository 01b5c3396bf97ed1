"""Stochastic gradient descent as the field uses it: rates, momentum, decay."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lt_jax import trees
from lt_jax.errors import InputError, one_of
from lt_jax.types import Params


class Sgd(NamedTuple):
    """The numbers of SGD other than the learning rate. Hashable: a cache key."""

    momentum: float
    # Of the weights, coupled: added to the gradient before momentum. A number, or an
    # array within a program.
    decay: Any
    decay_on: str  # regular expression over whole names of parameters

    def transform(self) -> optax.GradientTransformation:
        """gradients -> direction; the step is ``params - rate * direction``.

        The same update as ``torch.optim.SGD``: decay before momentum, rate after it.
        """
        return optax.chain(
            optax.add_decayed_weights(self.decay, mask=self._decayed),
            optax.trace(self.momentum),
        )

    def descend(
        self, grads: Params, opt_state: Any, params: Params, rate: jax.Array
    ) -> tuple[Params, Any]:
        """The parameters and the optimiser's state after one step."""
        direction, opt_state = self.transform().update(grads, opt_state, params)
        stepped = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return stepped, opt_state

    def program(self) -> Sgd:
        """The same but for the decay, which a compiled program may take as an array."""
        return self._replace(decay=0.0)

    def check(self, params: Params) -> None:
        """Raises ``InputError`` where there is a decay that acts on none of these."""
        chosen = trees.leaves(self._decayed(params))
        if self.decay and not any(chosen.values()):
            raise InputError(
                f"weight decay {self.decay} acts on nothing: no trained parameter "
                f"matches {self.decay_on!r}; there are: {', '.join(chosen)}"
            )

    def _decayed(self, params: Params) -> Params:
        chosen = {
            name: re.fullmatch(self.decay_on, name) is not None
            for name in trees.leaves(params)
        }
        return trees.rebuild(params, chosen)


def scaled(lr: float, batch: int, base: int) -> float:
    """The learning rate of a batch, in proportion to that of the batch ``base``.

    "Accurate, Large Minibatch SGD", arXiv 1706.02677, which warms up for 5 epochs
    where the batch is large.

    >>> scaled(0.2, 1024, 512)
    0.4
    """
    return lr * batch / base


def rates(
    lr: float, epochs: int, steps_per_epoch: int, warmup: float, per: str
) -> np.ndarray:
    """The learning rate of every step: linear warm-up, then half a cosine to zero.

    Args:
      lr: the highest rate.
      epochs, steps_per_epoch: length of the run; 0 epochs train nothing.
      warmup: epochs of linear warm-up, included in ``epochs``; 0 for none.
      per: ``step`` moves along the cosine every step, ``epoch`` every epoch: epoch t
        of T has ``lr (1 + cos(pi t / T)) / 2``, the authors' schedule.

    Returns:
      float32[epochs * steps_per_epoch].

    >>> rates(2.0, 3, 1, 0, "epoch").round(3).tolist()
    [2.0, 1.5, 0.5]
    """
    one_of("schedule", per, ("step", "epoch"))
    if epochs == 0:
        return np.zeros(0, np.float32)
    if epochs < 0 or not 0 <= warmup < epochs:
        raise InputError(
            f"expected 0 epochs or more and a warm-up shorter than that, got "
            f"{epochs} epochs and a warm-up of {warmup}"
        )
    if not lr > 0:
        raise InputError(f"the learning rate must be positive, got {lr}")
    step = np.arange(epochs * steps_per_epoch)
    now = step / steps_per_epoch
    now = np.floor(now) if per == "epoch" else now
    cosine = (1 + np.cos(np.pi * np.maximum(now - warmup, 0) / (epochs - warmup))) / 2
    # The first step has a rate above zero, the last one of the warm-up the whole rate.
    ramp = np.minimum((step + 1) / max(warmup * steps_per_epoch, 1), 1)
    return (lr * cosine * ramp).astype(np.float32)
