"""Checks that every entry of METHODS passes, and the errors of ``make``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads, losses, methods, samplers, trees
from lt_jax.errors import InputError
from lt_jax.losses import adjusted_xent
from lt_jax.methods import METHODS, Method

K, D = 7, 5
COUNTS = np.array([500, 120, 40, 9, 3, 3, 1])
# A value for every hyperparameter. A new hyperparameter goes here too.
NUMBERS = {
    "start": "stage1",
    "sampler": "instance",
    "delta": 0.98,
    "power": 1.0,
    "beta": 0.9999,
    "tau": 1.0,
    "gamma": 0.3,
    "alpha": 0.1,
    "square": 0.1,
    "scale": 30.0,
    "max_margin": 0.5,
    "defer": 0.8,
    "head": 0.4,
    "tail": 0.1,
    "quantile": 0.1,
    "kind": "cl2",
    "penalty": 1e-3,
    "every": "epoch",
    "mean": "examples",
    "form": "classification",
}
# Methods with a fixed sampler and start, and methods with a fixed start.
FIXED = {
    *("crt", "lws", "tau_norm", "ncm", "logit_adjust_posthoc"),
    *("logistic", "logistic_balanced"),
}
STAGE1 = FIXED | {
    "disalign",
    "marc",
    "label_aware_smoothing",
    "weight_balancing",
    "los_max_norm",
}
LOS = {name: NUMBERS[name] for name in ("delta", "start", "sampler")}


def make(name, counts=COUNTS):
    wanted = [p for p in inspect.signature(METHODS[name]).parameters if p != "counts"]
    return methods.make(name, counts, {number: NUMBERS[number] for number in wanted})


@pytest.fixture(params=sorted(METHODS))
def name(request):
    return request.param


def test_hyperparameters_are_keywords_without_defaults(name):
    """The library has no defaults for config keys."""
    counts, *numbers = inspect.signature(METHODS[name]).parameters.values()
    assert counts.name == "counts"
    for number in numbers:
        assert number.kind is number.KEYWORD_ONLY, number.name
        assert number.default is number.empty, number.name


def test_make_accepts_read_only_counts(name):
    counts = COUNTS.copy()
    counts.flags.writeable = False
    method = make(name, counts)
    assert isinstance(method, Method)
    assert method.sampler in samplers.POWERS
    assert method.start in ("stage1", "fresh")


def test_cites_a_paper(name):
    found = re.search(
        r"\b(ICLR|ICML|NeurIPS|CVPR|ICCV|ECCV|ACML) 20\d\d\b",
        METHODS[name].__doc__ or "",
    )
    assert found, "name the paper of the method in its docstring"


def test_official_code_is_named(name):
    """In the table of the page about parity."""
    page = Path(__file__).parents[1] / "docs" / "benchmarks" / "parity.md"
    assert f"`{name}`" in page.read_text(encoding="utf-8")


def test_five_float32_vectors(name):
    method = make(name)
    for adjust in (method.adjust, method.deferred or method.adjust):
        for vector in adjust[:5]:
            assert vector.shape == (K,)
        assert adjust.extra.shape == (2,)
        for vector in adjust:
            assert vector.dtype == jnp.float32
            assert np.isfinite(vector).all()
    assert 0 <= method.defer <= 1


def stage1_head():
    return {
        "kernel": jax.random.normal(jax.random.key(1), (D, K)),
        "bias": jax.random.normal(jax.random.key(3), (K,)),
    }


def examples():
    features = jax.random.normal(jax.random.key(2), (2 * K, D))
    return features, jnp.arange(2 * K) % K


def off_neutral(params):
    """Move away from the neutral point, where DisAlign's confidence has no gradient."""
    return jax.tree.map(
        lambda p: p + jnp.linspace(0.1, 0.2, p.size).reshape(p.shape), params
    )


@pytest.mark.parametrize("kind", ["stage1", "fresh"])
def test_head_loss_and_gradient(name, kind):
    """Ten steps on the trained leaves stay finite and reduce the loss."""
    method = make(name)
    stage1 = stage1_head()
    start = stage1 if kind == "stage1" else None
    params = method.head.init(jax.random.key(0), start, D, K, "torch")
    if start is not None:
        np.testing.assert_array_equal(params["kernel"], stage1["kernel"])
    features, labels = examples()
    trained, fixed = trees.partition(params, method.head.trains)

    @jax.jit
    def step(trained):
        def mean(trained):
            logits = method.head.apply(trees.join(trained, fixed), features)
            assert logits.shape == (2 * K, K)
            mask = jnp.ones(2 * K)
            loss = method.loss(logits, labels, mask, method.adjust, losses.one_device)
            assert loss.shape == (2 * K,)
            return jnp.mean(loss)

        loss, gradient = jax.value_and_grad(mean)(trained)
        return (
            loss,
            jax.tree.map(lambda p, g: p - 0.02 * g, trained, gradient),
            gradient,
        )

    history = []
    for _ in range(10):
        loss, trained, gradient = step(trained)
        history.append(float(loss))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.isfinite(history).all()
    assert history[-1] < history[0]
    _, _, gradient = step(off_neutral(trained))
    for leaf, value in trees.leaves(gradient).items():
        assert np.any(value != 0), leaf


def test_loss_is_finite_far_out(name):
    method = make(name)
    logits = jnp.where(jnp.eye(K, dtype=bool), -1e4, 1e4)

    def total(logits):
        labels, mask = jnp.arange(K), jnp.ones(K)
        return jnp.sum(
            method.loss(logits, labels, mask, method.adjust, losses.one_device)
        )

    loss, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_some_leaf_is_trained(name):
    head = make(name).head
    trained, _ = trees.partition(
        head.init(jax.random.key(0), None, D, K, "torch"), head.trains
    )
    assert trained


def test_equal_hyperparameters_give_the_same_program(name):
    """The keys of the compiled steps are equal and hash equal."""
    one, other = make(name), make(name)
    for part in ("head", "loss", "project"):
        assert getattr(one, part) == getattr(other, part)
        assert hash(getattr(one, part)) == hash(getattr(other, part))


def test_projection_is_idempotent(name):
    method = make(name)
    if method.project is None:
        return
    start = stage1_head()
    params = jax.tree.map(lambda leaf: 1.5 * leaf, start)
    once = method.project(params, start)
    assert not np.array_equal(once["kernel"], params["kernel"])
    twice = method.project(once, start)
    for leaf, value in trees.leaves(twice).items():
        np.testing.assert_allclose(value, trees.leaves(once)[leaf], rtol=1e-6)


def test_correction_keeps_the_shapes(name):
    method = make(name)
    if method.correct is None:
        return
    params = method.head.init(jax.random.key(0), stage1_head(), D, K, "torch")
    features, labels = examples()
    corrected = method.correct(params, lambda: iter([features]), labels)
    assert {k: (v.shape, v.dtype) for k, v in trees.leaves(corrected).items()} == {
        k: (v.shape, v.dtype) for k, v in trees.leaves(params).items()
    }
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(corrected))


def test_sampler_makes_a_plan(name):
    labels = np.repeat(np.arange(K), COUNTS)
    rows = samplers.plan(labels, make(name).sampler, 64, run=(1, 0), epoch=0)
    assert rows.shape == (11, 64)


def test_records_of_the_methods():
    vectors = {name: make(name).adjust for name in METHODS}
    balanced = losses.logit_adjust(COUNTS, 1.0)
    expected = {
        "ce": losses.cross_entropy(K),
        "label_smoothing": losses.over_smooth(K, 0.98),
        "balanced_softmax": balanced,
        "vs": losses.vs(COUNTS, 0.3, 1.0),
        "los_balanced_softmax": balanced._replace(smooth=jnp.full(K, 0.98)),
        "los_max_norm": losses.over_smooth(K, 0.98),
        "los_tau_norm": losses.over_smooth(K, 0.98),
        "weight_balancing": losses.class_balanced(COUNTS, 0.9999),
        "cosine": losses.cross_entropy(K),
        "ldam": losses.ldam(COUNTS, 0.5, 30.0),
        "disalign": losses.reweight(COUNTS, 1.0),
        "marc": losses.reweight(COUNTS, 1.0),
        "label_aware_smoothing": losses.label_aware_smoothing(COUNTS, 0.4, 0.1),
        "lws": losses.cross_entropy(K),
        "los": losses.over_smooth(K, 0.98),
        "los_fresh": losses.over_smooth(K, 0.98),
        "los_resampled": losses.over_smooth(K, 0.98),
        "crt": losses.cross_entropy(K),
        "reweight": losses.reweight(COUNTS, 1.0),
        "class_balanced": losses.class_balanced(COUNTS, 0.9999),
        "logit_adjust": losses.logit_adjust(COUNTS, 1.0),
    }
    for name, adjust in expected.items():
        for one, other in zip(vectors[name], adjust, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
        assert make(name).loss is adjusted_xent
    assert (make("crt").sampler, make("crt").start) == ("class", "fresh")
    assert (make("lws").sampler, make("lws").start) == ("class", "stage1")
    ldam = make("ldam")
    assert ldam.deferred is not None
    np.testing.assert_array_equal(ldam.deferred.margin, ldam.adjust.margin)
    np.testing.assert_array_equal(
        ldam.deferred.weight, losses.class_balanced(COUNTS, 0.9999).weight
    )
    assert ldam.defer == 0.8
    np.testing.assert_allclose(make("focal").adjust.extra, [0.3, 0])
    np.testing.assert_allclose(make("lade").adjust.extra, [0.1, 0.1])


def test_scales_of_a_cosine_head_share_one_program():
    """The scale is a leaf of the head: it changes no function and no loss."""
    features, _ = examples()
    found = {}
    for scale in (10.0, 30.0):
        for name, more in (("cosine", {}), ("ldam", {"max_margin": 0.5})):
            hyper = NUMBERS | {"scale": scale} | more
            wanted = set(inspect.signature(METHODS[name]).parameters) - {"counts"}
            method = methods.make(name, COUNTS, {key: hyper[key] for key in wanted})
            head = method.head
            params = head.init(jax.random.key(0), stage1_head(), D, K, "torch")
            trained, fixed = trees.partition(params, head.trains)
            assert trained.keys() == {"kernel"}
            assert fixed == {"scale": scale}
            np.testing.assert_array_equal(method.adjust.scale, 1)
            found[name, scale] = head, head.apply(params, features)
    programs = {(head.apply, head.trains) for head, _ in found.values()}
    assert len(programs) == 1
    np.testing.assert_allclose(
        found["cosine", 30.0][1], 3 * found["cosine", 10.0][1], rtol=1e-5
    )
    assert np.abs(found["ldam", 30.0][1]).max() > 1


def test_projection_steps():
    each = make("weight_balancing")._replace(project_every="step")
    np.testing.assert_array_equal(methods.projection_steps(each, 2, 3), [True] * 6)
    last = [False, False, True]
    for name in ("weight_balancing", "los_max_norm"):
        found = methods.projection_steps(make(name), 2, 3)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, last * 2)
    np.testing.assert_array_equal(
        methods.projection_steps(make("los"), 2, 3), [False] * 6
    )
    assert methods.projection_steps(each, 0, 3).shape == (0,)


@pytest.mark.parametrize("start", ["stage1", "fresh"])
@pytest.mark.parametrize("sampler", samplers.POWERS)
def test_start_and_sampler_are_passed_on(start, sampler):
    chosen = {"start": start, "sampler": sampler}
    for name in METHODS:
        wanted = set(inspect.signature(METHODS[name]).parameters) - {"counts"}
        assert ("sampler" not in wanted) == (name in FIXED)
        assert ("start" not in wanted) == (name in STAGE1)
        hyper = {number: (NUMBERS | chosen)[number] for number in wanted}
        method = methods.make(name, COUNTS, hyper)
        for part in wanted & chosen.keys():
            assert getattr(method, part) == chosen[part], name


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("loss", LOS, r"unknown method 'loss'; did you mean 'los'"),
        ("los", LOS | {"dleta": 0.5}, r"'los' has no 'dleta'.*did you mean 'delta'"),
        ("los", LOS | {"tau": 1.0}, r"'los' has no 'tau': expected one of delta"),
        ("crt", LOS, r"'crt' has no 'delta'"),
        ("los", {"start": "stage1", "sampler": "class"}, r"needs a value for 'delta'"),
        ("los", LOS | {"start": "stage2"}, r"head 'stage2'.*did you mean 'stage1'"),
        ("los", LOS | {"sampler": "clas"}, r"sampler 'clas'.*did you mean 'class'"),
        ("los", LOS | {"delta": 1.0}, r"delta must be in \[0, 1\)"),
        ("ncm", {"kind": "l3"}, r"kind of nearest mean 'l3'.*raw, l2, cl2"),
        ("tau_norm", {"tau": float("nan")}, "tau must be in"),
        (
            "los_max_norm",
            {"delta": 0.9, "quantile": 0.1, "every": "epochs", "sampler": "class"},
            r"projection 'epochs'.*did you mean 'epoch'",
        ),
        (
            "cosine",
            {"scale": 0.0, "start": "stage1", "sampler": "class"},
            "scale must be in .0, inf., got 0.0",
        ),
    ],
)
def test_errors_of_make(name, hyper, message):
    with pytest.raises(InputError, match=message):
        methods.make(name, COUNTS, hyper)


def test_hyperparameters_of_earlier_workdirs():
    """What their fits did, where a key is newer than they are."""
    old = {"power": 1.0, "sampler": "instance"}
    assert methods.make("disalign", COUNTS, old).head is heads.blended
    assert make("disalign").head is heads.aligned
    old = {"beta": 0.9999, "start": "stage1", "sampler": "instance"}
    assert methods.make("class_balanced", COUNTS, old).adjust.by_weight == 1
    assert make("class_balanced").adjust.by_weight == 0
    assert make("weight_balancing").adjust.by_weight == 0
    assert make("ldam").deferred.by_weight == 1


def test_methods_that_read_counts_reject_empty_classes():
    hyper = {"tau": 1.0, "start": "stage1", "sampler": "instance"}
    for name in ("logit_adjust", "logit_adjust_posthoc", "ncm"):
        wanted = set(inspect.signature(METHODS[name]).parameters) - {"counts"}
        own = {key: (NUMBERS | hyper)[key] for key in wanted}
        with pytest.raises(InputError, match=r"classes \[1\] have none"):
            methods.make(name, np.array([3, 0, 1]), own)
