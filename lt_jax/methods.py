"""Classifier re-training methods: each is a small record of how it differs.

``METHODS`` maps a name to a function of the class counts of the training set, int[K],
and of the method's own hyperparameters, all keyword-only. To add a method, write such
a function, one line in ``METHODS`` and a recipe in ``recipes.py``, which also has the
learning rate and the number of epochs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lt_jax import heads, logistic, losses
from lt_jax.errors import InputError, in_range, one_of, suggest
from lt_jax.heads import Blocks, Head, linear
from lt_jax.losses import Adjust, Loss, adjusted_xent, require_examples
from lt_jax.samplers import POWERS
from lt_jax.types import Params

STARTS = ("stage1", "fresh")
PROJECT_EVERY = ("step", "epoch")

# (current params of the head, params it started with) -> params
Project = Callable[[Params, Params], Params]
# (params of the head, features in blocks, labels int32[N]) -> params of the same shapes
Correct = Callable[[Params, Blocks, np.ndarray], Params]


class Method(NamedTuple):
    """A method, apart from the hyperparameters of its optimiser.

    Steps are compiled for a ``head``, ``loss`` and ``project``: equal hyperparameters
    must give equal ones. Other numbers of ``adjust`` need no compilation.
    """

    adjust: Adjust
    sampler: str = "instance"  # a key of samplers.POWERS
    start: str = "stage1"  # continue from the stage-1 head, or start "fresh"
    head: Head = linear
    loss: Loss = adjusted_xent
    deferred: Adjust | None = None  # replaces adjust ...
    defer: float = 1.0  # ... after this fraction of the epochs
    project: Project | None = None  # applied after every step or epoch
    project_every: str = "step"
    # Applied once after training, to all fitted examples without augmentation.
    correct: Correct | None = None
    needs_features: bool = True  # whether ``correct`` reads the features
    passes: int = 0  # epochs that ``correct`` takes about as long as


def projection_steps(method: Method, epochs: int, per_epoch: int) -> np.ndarray:
    """Return bool[epochs * per_epoch]: the steps after which the head is projected."""
    steps = np.arange(1, epochs * per_epoch + 1)
    every = {"step": 1, "epoch": per_epoch}[method.project_every]
    return (steps % every == 0) & (method.project is not None)


@functools.cache  # equal quantiles give the same function, and so the same program
def _max_norm(quantile: float) -> Project:
    in_range("quantile", quantile, "[0, 1]")

    def project(params: Params, start: Params) -> Params:
        return heads.max_norm(params, heads.max_norm_radius(start, quantile))

    return project


# --- losses on the linear head -----------------------------------------------


def ce(counts: np.ndarray, *, start: str, sampler: str) -> Method:
    """Cross-entropy, the baseline of every other method (Decoupling, ICLR 2020).

    With the stage-1 head and the instance sampler, it continues joint training.
    """
    return Method(losses.cross_entropy(len(counts)), sampler, start)


def label_smoothing(
    counts: np.ndarray, *, delta: float, start: str, sampler: str
) -> Method:
    """Label smoothing with a small delta ("Rethinking the Inception ...", CVPR 2016).

    The loss is that of ``los``; the usual delta is 0.1.
    """
    return Method(losses.over_smooth(len(counts), delta), sampler, start)


def los(counts: np.ndarray, *, delta: float, start: str, sampler: str) -> Method:
    """Label over-smoothing ("Label Over-Smooth Can Balance", ICLR 2025).

    delta is the smoothing mass, spread over all K classes: 0.98 for CIFAR100-LT. The
    paper starts from the stage-1 head, samples naturally and uses a small learning
    rate; the gain depends on all three.
    """
    return Method(losses.over_smooth(len(counts), delta), sampler, start)


def reweight(counts: np.ndarray, *, power: float, start: str, sampler: str) -> Method:
    """Cross-entropy weighted by ``counts ** -power``.

    Power 1 is inverse frequency, the baseline of "Class-Balanced Loss", CVPR 2019.
    """
    return Method(losses.reweight(counts, power), sampler, start)


def class_balanced(
    counts: np.ndarray, *, beta: float, mean: str, start: str, sampler: str
) -> Method:
    """Cross-entropy weighted by the effective number of samples (CVPR 2019, eq. 2).

    The official code averages over ``examples``, that of LDAM-DRW over ``weights``.
    """
    return Method(losses.class_balanced(counts, beta, mean), sampler, start)


def focal(counts: np.ndarray, *, gamma: float, start: str, sampler: str) -> Method:
    """Focal loss, ``(1 - p_y) ** gamma`` times cross-entropy (ICCV 2017, eq. 4).

    This is the softmax form, as in the code of LDAM-DRW, which uses gamma 1. There a
    class weight enters p_y as well; here there is none.
    """
    extra = jnp.array([in_range("gamma", gamma, "[0, inf)"), 0], jnp.float32)
    adjust = losses.cross_entropy(len(counts))._replace(extra=extra)
    return Method(adjust, sampler, start, loss=losses.focal)


def balanced_softmax(counts: np.ndarray, *, start: str, sampler: str) -> Method:
    """CE of ``z + log counts`` ("Balanced Meta-Softmax", NeurIPS 2020, eq. 4)."""
    return Method(losses.logit_adjust(counts, 1.0), sampler, start)


def logit_adjust(counts: np.ndarray, *, tau: float, start: str, sampler: str) -> Method:
    """Logit adjustment in the loss (ICLR 2021, eq. 10); tau 1 is Balanced Softmax."""
    return Method(losses.logit_adjust(counts, tau), sampler, start)


def vs(
    counts: np.ndarray, *, gamma: float, tau: float, start: str, sampler: str
) -> Method:
    """Vector-scaling loss, CE of ``(n_k / max) ** gamma z_k + tau log prior_k``.

    The paper of ``losses.vs`` (NeurIPS 2021) and its code agree. gamma 0 is logit
    adjustment; tau 0 is CDT.
    """
    return Method(losses.vs(counts, gamma, tau), sampler, start)


def lade(
    counts: np.ndarray, *, alpha: float, square: float, start: str, sampler: str
) -> Method:
    """Balanced Softmax plus alpha times the LADE regulariser, see ``losses.lade``.

    ``square`` is the paper's lambda, the weight of T ** 2 (CVPR 2021). The official
    commands set alpha and lambda to 0.1 and 0.01 for CIFAR100-LT at IR 100, and to 0.05
    and 0.5 for ImageNet-LT and iNaturalist 2018.
    """
    extra = in_range("alpha", alpha, "[0, inf)"), in_range("square", square, "[0, inf)")
    adjust = losses.logit_adjust(counts, 1.0)
    adjust = adjust._replace(extra=jnp.array(extra, jnp.float32))
    return Method(adjust, sampler, start, loss=losses.lade)


# --- other heads -------------------------------------------------------------


def cosine(counts: np.ndarray, *, scale: float, start: str, sampler: str) -> Method:
    """CE of ``scale cos(w_k, f)``: features and class vectors normalised, no bias.

    "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018, with its scale
    held fixed. The scale belongs to the head, so its logits are the scaled cosines.
    """
    adjust = losses.cross_entropy(len(counts))
    return Method(adjust, sampler, start, heads.cosine(scale))


def ldam(
    counts: np.ndarray,
    *,
    max_margin: float,
    scale: float,
    beta: float,
    defer: float,
    start: str,
    sampler: str,
) -> Method:
    """LDAM-DRW (NeurIPS 2019), CE of ``scale (cos_k - m_y [k = y])``.

    The margins m are proportional to ``n ** -1/4``, the largest is ``max_margin``.
    After the fraction ``defer`` of the epochs, CE is also weighted by the effective
    number of samples; defer 1 is plain LDAM. The official code uses 0.5, 30, 0.9999 and
    epoch 160 of 200, and trains the network from scratch. Re-training only the
    classifier with this loss is our variant.
    """
    adjust = losses.ldam(counts, max_margin, scale)
    weight = losses.class_balanced(counts, beta, "weights").weight
    deferred, defer = adjust._replace(weight=weight), in_range("defer", defer, "[0, 1]")
    head = heads.cosine(scale)
    return Method(adjust, sampler, start, head, deferred=deferred, defer=defer)


def crt(counts: np.ndarray) -> Method:
    """Classifier re-training (Decoupling, ICLR 2020): fresh head, class sampler."""
    return Method(losses.cross_entropy(len(counts)), sampler="class", start="fresh")


def lws(counts: np.ndarray) -> Method:
    """Learnable weight scaling, CE of ``s_k (w_k f + b_k)`` (Decoupling, ICLR 2020).

    Only s is trained, from 1, under the class sampler. The paper scales w only; the
    official code, which we follow, scales the bias too.
    """
    adjust = losses.cross_entropy(len(counts))
    return Method(adjust, sampler="class", head=heads.scaled)


def disalign(counts: np.ndarray, *, power: float, form: str, sampler: str) -> Method:
    """DisAlign, CE of ``(1 + c s_k) z_k + c o_k`` (CVPR 2021).

    With the confidence ``c = sigma(v f + b)`` and weights ``counts ** -power``
    ("Distribution Alignment", whose ImageNet-LT config has power 1.2). s, o, v and b
    are trained, from 1, 0, 0.1 and 0; in the official code b starts at random. Decay
    pulls the factor of a logit to 1. The form ``segmentation`` of the official code is
    ``c (s_k z_k + o_k) + (1 - c) z_k`` without b, which has the same logits where its s
    is 1 larger. Decay pulls its factor to 1 - c, and it starts as the linear head.
    """
    head = heads.ALIGNED[one_of("form of DisAlign", form, heads.ALIGNED)]
    return Method(losses.reweight(counts, power), sampler, head=head)


def marc(counts: np.ndarray, *, power: float, sampler: str) -> Method:
    """MARC, CE of ``omega_k z_k + beta_k |w_k|`` (ACML 2022).

    "Margin Calibration for Long-Tailed Visual Recognition": omega and beta are trained,
    from 1 and 0. Weights ``counts ** -power`` as in DisAlign; all official configs have
    power 1.2. Power 0 switches them off.
    """
    return Method(losses.reweight(counts, power), sampler, head=heads.marc)


def label_aware_smoothing(
    counts: np.ndarray, *, head: float, tail: float, sampler: str
) -> Method:
    """Label-aware smoothing, stage 2 of MiSLAS ("Improving Calibration", CVPR 2021).

    Smoothing rises from ``tail`` to ``head`` along a sine of the count, the concave
    shape of all official configs; their code also has linear, convex and power shapes.
    The logits are ``s_k (w_k f + b_k)``. The official code trains s at the rate 0.1 and
    W, b at a fraction of it: for CIFAR100-LT 0.2 at IR 100 and 0.1 at IR 50 and 10, for
    CIFAR10-LT 0.5 and 0.2, for ImageNet-LT and iNaturalist 2018 0.05. It has a
    class-balanced sampler and lets the batch norms shift, except for CIFAR10-LT. Here
    one rate trains the head, that of W and b, and the config decides about batch norm.
    """
    adjust = losses.label_aware_smoothing(counts, head, tail)
    return Method(adjust, sampler, head=heads.scaled_all)


# --- constraints and corrections ---------------------------------------------


def weight_balancing(
    counts: np.ndarray,
    *,
    beta: float,
    mean: str,
    quantile: float,
    every: str,
    sampler: str,
) -> Method:
    """Weight balancing: class-balanced loss, weight decay and max-norm (CVPR 2022).

    After every ``step`` or ``epoch`` (official), class vectors are shortened to the
    radius ``min + quantile (max - min)`` of the class norms of the start head. As in
    the official code, the bias is decayed but not constrained.

    The loss is the paper's softmax cross-entropy. The official code has a *binary*
    cross-entropy of the softmax, averaged over examples and classes. Its lr 0.01 and
    decay 0.1 at K = 100 are lr 1e-4 and decay 10 here, with the ``mean`` over
    ``examples``. No rate makes up for a mean over ``weights``, whose divisor changes
    from batch to batch. The official schedule steps before each epoch, so its last
    epoch has the rate 0; ours has not.
    """
    adjust, project = losses.class_balanced(counts, beta, mean), _max_norm(quantile)
    return Method(adjust, sampler, project=project, project_every=every)


def tau_norm(counts: np.ndarray, *, tau: float) -> Method:
    """``w_k / |w_k| ** tau``, bias dropped (Decoupling, ICLR 2020); nothing is trained.

    The code of weight balancing (CVPR 2022) keeps the bias; we do not.
    """
    in_range("tau", tau, "(-inf, inf)")

    def correct(params: Params, blocks: Blocks, labels: np.ndarray) -> Params:
        return heads.tau_norm(params, tau)

    adjust = losses.cross_entropy(len(counts))
    return Method(adjust, correct=correct, needs_features=False)


def ncm(counts: np.ndarray, *, kind: str) -> Method:
    """Nearest class mean of the features (Decoupling, ICLR 2020); nothing is trained.

    kind: ``raw`` features, ``l2``-normalised ones, or ``cl2``: centred, then
    L2-normalised. As in the official code, the means are not normalised.
    """
    head = heads.NEAREST[one_of("kind of nearest mean", kind, heads.NEAREST)]

    def correct(params: Params, blocks: Blocks, labels: np.ndarray) -> Params:
        return heads.nearest_mean(blocks, labels, params["kernel"].shape, kind)

    adjust = losses.cross_entropy(len(require_examples(counts)))
    return Method(adjust, head=head, correct=correct)


def logit_adjust_posthoc(counts: np.ndarray, *, tau: float) -> Method:
    """``argmax z - tau log prior`` (ICLR 2021, eq. 9); nothing is trained.

    The correction shifts the bias of the stage-1 head.
    """
    in_range("tau", tau, "(-inf, inf)")

    def correct(params: Params, blocks: Blocks, labels: np.ndarray) -> Params:
        seen = jnp.bincount(jnp.asarray(labels), length=len(params["bias"]))
        shift = -tau * jnp.log(seen / len(labels))
        return {**params, "bias": params["bias"] + shift}

    adjust = losses.cross_entropy(len(require_examples(counts)))
    return Method(adjust, correct=correct, needs_features=False)


def logistic_regression(
    counts: np.ndarray, *, power: float, tau: float, penalty: float
) -> Method:
    """Logistic regression with an L2 penalty, weights and logit adjustment.

    The minimum of CE of ``z + tau log prior``, weighted by ``counts ** -power``, from
    a fresh head: no rate, no epochs. Power 1 and tau 0 are scikit-learn's
    ``LogisticRegression(class_weight="balanced")``. Power 0 and tau 1 are Balanced
    Softmax (NeurIPS 2020) at its minimum. See ``logistic.fit`` for the penalty.
    """
    weight = losses.reweight(counts, power).weight
    adjust = losses.logit_adjust(counts, tau)._replace(weight=weight)
    penalty = in_range("penalty", penalty, "[0, inf)")

    def correct(params: Params, blocks: Blocks, labels: np.ndarray) -> Params:
        shape = params["kernel"].shape
        return logistic.fit(blocks, labels, shape, adjust, penalty)

    passes = logistic.PASSES
    return Method(adjust, start="fresh", correct=correct, passes=passes)


# --- compositions -------------------------------------------------------------


def los_balanced_softmax(
    counts: np.ndarray, *, delta: float, start: str, sampler: str
) -> Method:
    """LOS (ICLR 2025) on the logits of Balanced Softmax (NeurIPS 2020)."""
    smooth = losses.over_smooth(len(counts), delta).smooth
    adjust = losses.logit_adjust(counts, 1.0)._replace(smooth=smooth)
    return Method(adjust, sampler, start)


def los_max_norm(
    counts: np.ndarray, *, delta: float, quantile: float, every: str, sampler: str
) -> Method:
    """LOS (ICLR 2025) under the max-norm of weight balancing (CVPR 2022)."""
    adjust, project = losses.over_smooth(len(counts), delta), _max_norm(quantile)
    return Method(adjust, sampler, project=project, project_every=every)


def los_tau_norm(
    counts: np.ndarray, *, delta: float, tau: float, start: str, sampler: str
) -> Method:
    """LOS (ICLR 2025), then tau-normalisation (ICLR 2020)."""
    after = tau_norm(counts, tau=tau)
    method = los(counts, delta=delta, start=start, sampler=sampler)
    return method._replace(correct=after.correct, needs_features=False)


METHODS: dict[str, Callable[..., Method]] = {f.__name__: f for f in (
    ce, label_smoothing, los, reweight, class_balanced, focal, balanced_softmax,
    logit_adjust, vs, lade, cosine, ldam, crt, lws, disalign, marc,
    label_aware_smoothing, weight_balancing, tau_norm, ncm, logit_adjust_posthoc,
)}  # fmt: skip
METHODS |= dict.fromkeys(("logistic", "logistic_balanced"), logistic_regression)
# LOS again, each with its own recipe, grid and row in the tables.
METHODS |= {"los_fresh": los, "los_resampled": los}
METHODS |= {f.__name__: f for f in (los_balanced_softmax, los_max_norm, los_tau_norm)}

# Hyperparameters that workdirs of earlier versions lack, and what those versions did.
ADDED = {"mean": "weights", "form": "segmentation"}


def make(name: str, counts: np.ndarray, hyperparameters: Mapping[str, Any]) -> Method:
    """Build the method ``name``; the hyperparameters are its keywords.

    Only those in ``ADDED`` may be missing.
    """
    build = METHODS[one_of("method", name, METHODS)]
    _, *wanted = inspect.signature(build).parameters
    added = {key: value for key, value in ADDED.items() if key in wanted}
    hyperparameters = {**added, **hyperparameters}
    for key in hyperparameters:
        if key not in wanted:
            raise InputError(f"method {name!r} has no {key!r}{suggest(key, wanted)}")
    for key in wanted:
        if key not in hyperparameters:
            raise InputError(f"method {name!r} needs a value for {key!r}")
    method = build(counts, **hyperparameters)
    one_of("start of the head", method.start, STARTS)
    one_of("sampler", method.sampler, POWERS)
    one_of("time of a projection", method.project_every, PROJECT_EVERY)
    return method
