"""Classifier re-training methods, each a small record of the parts it differs in.

``METHODS`` maps a name to a function of the class counts of the training set (int[K])
and of the method's own numbers, all by keyword. To add a method, write one such
function and one line in ``METHODS``; the command line, the configs and the common
tests find it there. Learning rate and number of epochs belong to a method too and
stand in the config beside these numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import losses
from lt_jax.heads import Head, linear
from lt_jax.losses import Adjust, adjusted_xent
from lt_jax.samplers import POWERS
from lt_jax.types import InputError, known, near

STARTS = ("stage1", "fresh")


class Method(NamedTuple):
    """What a method is, apart from its optimiser's numbers."""

    adjust: Adjust
    sampler: str = "instance"  # see samplers.POWERS
    start: str = "stage1"  # the head goes on from stage 1, or is "fresh"
    head: Head = linear
    # (logits float[B, K], labels int32[B], adjust) -> float[B], not reduced
    loss: Callable[[jax.Array, jax.Array, Adjust], jax.Array] = adjusted_xent


def ce(counts: np.ndarray, *, start: str, sampler: str) -> Method:
    """Cross-entropy, what every other method is measured against.

    From the stage-1 head under the instance sampler it is the plain continuation of
    joint training (Decoupling, ICLR 2020).
    """
    return Method(losses.cross_entropy(len(counts)), sampler, start)


def los(counts: np.ndarray, *, delta: float, start: str, sampler: str) -> Method:
    """Label over-smoothing ("Label Over-Smooth Can Balance", ICLR 2025).

    delta is the smoothing mass, spread over all K classes: 0.98 for CIFAR100-LT. The
    paper starts from the stage-1 head, samples naturally and takes a small learning
    rate; the gain depends on all three.
    """
    return Method(losses.over_smooth(len(counts), delta), sampler, start)


def crt(counts: np.ndarray) -> Method:
    """Classifier re-training (Decoupling, ICLR 2020): fresh head, class sampler."""
    return Method(losses.cross_entropy(len(counts)), sampler="class", start="fresh")


def reweight(counts: np.ndarray, *, power: float, start: str, sampler: str) -> Method:
    """Cross-entropy weighted by ``counts ** -power``.

    Power 1 is inverse frequency, the baseline of "Class-Balanced Loss", CVPR 2019.
    """
    return Method(losses.reweight(counts, power), sampler, start)


def class_balanced(
    counts: np.ndarray, *, beta: float, start: str, sampler: str
) -> Method:
    """Cross-entropy weighted by the effective number of samples (CVPR 2019)."""
    return Method(losses.class_balanced(counts, beta), sampler, start)


def logit_adjust(counts: np.ndarray, *, tau: float, start: str, sampler: str) -> Method:
    """Logit adjustment in the loss (ICLR 2021); tau 1 is Balanced Softmax."""
    return Method(losses.logit_adjust(counts, tau), sampler, start)


METHODS: dict[str, Callable[..., Method]] = {
    "ce": ce,
    "los": los,
    "crt": crt,
    "reweight": reweight,
    "class_balanced": class_balanced,
    "logit_adjust": logit_adjust,
}


def make(name: str, counts: np.ndarray, hyper: Mapping[str, Any]) -> Method:
    """The method of this name with these numbers.

    Raises:
      InputError: no such method; a number it does not read or that is missing; a value
        outside its range.
    """
    known("method", name, METHODS)
    wanted = [
        p.name
        for p in inspect.signature(METHODS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    for key in hyper:
        if key not in wanted:
            raise InputError(f"method {name!r} reads no {key!r}{near(key, wanted)}")
    for key in wanted:
        if key not in hyper:
            raise InputError(f"method {name!r} needs a value for {key!r}")
    method = METHODS[name](counts, **hyper)
    known("start of the head", method.start, STARTS)
    known("sampler", method.sampler, POWERS)
    return method
