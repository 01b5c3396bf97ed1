"""Stochastic gradient descent: learning rates, momentum, weight decay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lt_jax import trees
from lt_jax.errors import InputError, in_range, one_of
from lt_jax.types import Params

# Steps per fit, whose learning rates take about 50 bytes each while they are made.
MAX_STEPS = 20_000_000


class Sgd(NamedTuple):
    """The settings of SGD besides the learning rate. Hashable: a cache key."""

    momentum: float
    # Coupled weight decay: added to the gradient before momentum. A number, or an array
    # within a compiled program.
    decay: Any
    decay_on: str  # regular expression for full parameter names
    prefix: str = ""  # of the full names, if the parameters are those of a head alone

    def transform(self) -> optax.GradientTransformation:
        """Map gradients to a direction; the step is ``params - rate * direction``.

        The update of ``torch.optim.SGD``: decay before momentum, rate after it.
        """
        return optax.chain(
            optax.add_decayed_weights(self.decay, mask=self._decay_mask),
            optax.trace(self.momentum),
        )

    def descend(
        self, grads: Params, opt_state: Any, params: Params, rate: jax.Array
    ) -> tuple[Params, Any]:
        """Take one step; return the parameters and the optimizer state."""
        direction, opt_state = self.transform().update(grads, opt_state, params)
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), opt_state

    def check(self, params: Params) -> None:
        """Raise InputError if the decay acts on none of these parameters."""
        mask = trees.leaves(self._decay_mask(params))
        if self.decay and not any(mask.values()):
            raise InputError(
                f"weight decay {self.decay} acts on nothing: no trained parameter "
                f"matches {self.decay_on!r}; they are: {', '.join(mask)}"
            )

    def _decay_mask(self, params: Params) -> Params:
        matches = re.compile(self.decay_on).fullmatch
        mask = {n: bool(matches(self.prefix + n)) for n in trees.leaves(params)}
        return trees.rebuild(params, mask)


def rates(
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    warmup: float,
    per: str,
    *,
    milestones: Sequence[float] = (),
    fall: float = 0.1,
) -> np.ndarray:
    """Compute the rate of every step: linear warm-up, then half a cosine to zero.

    Args:
      lr: the highest rate.
      epochs: length of the run, with the warm-up; 0 trains nothing.
      warmup: epochs of linear warm-up.
      per: ``step`` moves along the cosine every step, ``epoch`` every epoch: epoch t
        of T has ``lr (1 + cos(pi t / T)) / 2``, the authors' schedule.
      milestones: in place of the cosine, epochs from which on the rate is ``fall``
        times what it was before.

    Returns:
      float32[epochs * steps_per_epoch].

    >>> rates(2.0, 3, 1, 0, "epoch").round(3).tolist()
    [2.0, 1.5, 0.5]
    >>> rates(2.0, 3, 1, 0, "epoch", milestones=(1, 2), fall=0.5).tolist()
    [2.0, 1.0, 0.5]
    """
    one_of("schedule", per, ("step", "epoch"))
    if in_range("epochs", epochs, "[0, inf)", integer=True) == 0:
        return np.zeros(0, np.float32)
    if epochs * steps_per_epoch > MAX_STEPS:
        raise InputError(
            f"{epochs:,} epochs of {steps_per_epoch:,} steps are more than "
            f"{MAX_STEPS:,} steps: lower the epochs or raise the batch"
        )
    if in_range("warmup", warmup, "[0, inf)") >= epochs:
        raise InputError(f"warmup must be below {epochs} epochs, got {warmup}")
    in_range("the learning rate", lr, "(0, inf)")
    step = np.arange(epochs * steps_per_epoch)
    now = step / steps_per_epoch
    now = np.floor(now) if per == "epoch" else now
    decay = (1 + np.cos(np.pi * np.maximum(now - warmup, 0) / (epochs - warmup))) / 2
    if milestones:
        if max(milestones) >= epochs:
            raise InputError(f"milestones must be below {epochs} epochs: {milestones}")
        decay = fall ** np.searchsorted(np.sort(milestones), now, side="right")
    # The first step has a rate above zero, the last warm-up step the full rate.
    ramp = np.minimum((step + 1) / max(warmup * steps_per_epoch, 1), 1)
    return (lr * decay * ramp).astype(np.float32)
