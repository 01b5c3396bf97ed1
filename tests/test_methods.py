"""The common suite that every entry of METHODS passes, and the errors of ``make``."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import losses, methods, samplers, trees
from lt_jax.losses import adjusted_xent
from lt_jax.methods import METHODS, Method
from lt_jax.types import InputError

K, D = 7, 5
COUNTS = np.array([500, 120, 40, 9, 3, 3, 1])
# A value for every number that a method may ask for. A new number goes here too.
NUMBERS = {
    "start": "stage1",
    "sampler": "instance",
    "delta": 0.98,
    "power": 1.0,
    "beta": 0.9999,
    "tau": 1.0,
}
LOS = {name: NUMBERS[name] for name in ("delta", "start", "sampler")}


def make(name, counts=COUNTS):
    wanted = [p for p in inspect.signature(METHODS[name]).parameters if p != "counts"]
    return methods.make(name, counts, {number: NUMBERS[number] for number in wanted})


@pytest.fixture(params=sorted(METHODS))
def name(request):
    return request.param


def test_numbers_are_keywords_without_defaults(name):
    """The library supplies no default for a config key."""
    counts, *numbers = inspect.signature(METHODS[name]).parameters.values()
    assert counts.name == "counts"
    for number in numbers:
        assert number.kind is number.KEYWORD_ONLY, number.name
        assert number.default is number.empty, number.name


def test_can_be_made(name):
    counts = COUNTS.copy()
    counts.flags.writeable = False
    method = make(name, counts)
    assert isinstance(method, Method)
    assert method.sampler in samplers.POWERS
    assert method.start in ("stage1", "fresh")


def test_cites_a_paper(name):
    found = re.search(
        r"\b(ICLR|ICML|NeurIPS|CVPR|ICCV|ECCV) 20\d\d\b", METHODS[name].__doc__ or ""
    )
    assert found, "say in the docstring where the method comes from"


def test_five_float32_vectors(name):
    for vector in make(name).adjust:
        assert vector.shape == (K,)
        assert vector.dtype == jnp.float32
        assert np.isfinite(vector).all()


@pytest.mark.parametrize("kind", ["stage1", "fresh"])
def test_head_loss_and_gradient(name, kind):
    """Ten steps on the head: finite, and they fit the batch better."""
    method = make(name)
    stage1 = {
        "kernel": jax.random.normal(jax.random.key(1), (D, K)),
        "bias": jnp.zeros(K),
    }
    start = stage1 if kind == "stage1" else None
    params = method.head.init(jax.random.key(0), start, D, K, "torch")
    if start is not None:
        np.testing.assert_array_equal(params["kernel"], stage1["kernel"])
    features = jax.random.normal(jax.random.key(2), (2 * K, D))
    labels = jnp.arange(2 * K) % K

    @jax.jit
    def step(params):
        def mean(params):
            logits = method.head.apply(params, features)
            assert logits.shape == (2 * K, K)
            loss = method.loss(logits, labels, method.adjust)
            assert loss.shape == (2 * K,)
            return jnp.mean(loss)

        loss, gradient = jax.value_and_grad(mean)(params)
        return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), gradient

    history = []
    for _ in range(10):
        loss, params, gradient = step(params)
        history.append(float(loss))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.isfinite(history).all()
    assert history[-1] < history[0]


def test_loss_is_finite_far_out(name):
    method = make(name)
    logits = jnp.where(jnp.eye(K, dtype=bool), -1e4, 1e4)

    def total(logits):
        return jnp.sum(method.loss(logits, jnp.arange(K), method.adjust))

    loss, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_trains_some_leaf_of_its_head(name):
    head = make(name).head
    trained, _ = trees.partition(
        head.init(jax.random.key(0), None, D, K, "torch"), head.trains
    )
    assert trained


def test_sampler_makes_a_plan(name):
    labels = np.repeat(np.arange(K), COUNTS)
    rows = samplers.plan(labels, make(name).sampler, 64, run=(1, 0), epoch=0)
    assert rows.shape == (11, 64)


def test_what_they_are():
    vectors = {name: make(name).adjust for name in METHODS}
    expected = {
        "ce": losses.cross_entropy(K),
        "los": losses.over_smooth(K, 0.98),
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


@pytest.mark.parametrize("start", ["stage1", "fresh"])
@pytest.mark.parametrize("sampler", samplers.POWERS)
def test_start_and_sampler_are_handed_on(start, sampler):
    for name in METHODS.keys() - {"crt"}:
        wanted = inspect.signature(METHODS[name]).parameters.keys() - {"counts"}
        hyper = {number: NUMBERS[number] for number in wanted}
        method = methods.make(
            name, COUNTS, hyper | {"start": start, "sampler": sampler}
        )
        assert (method.start, method.sampler) == (start, sampler), name


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("loss", LOS, r"unknown method 'loss'.*crt.*; did you mean 'los'"),
        ("los", LOS | {"dleta": 0.5}, r"'los' reads no 'dleta'.*did you mean 'delta'"),
        ("los", LOS | {"tau": 1.0}, r"'los' reads no 'tau': expected one of delta"),
        ("crt", LOS, r"'crt' reads no 'delta'"),
        ("los", {"start": "stage1", "sampler": "class"}, r"needs a value for 'delta'"),
        ("los", LOS | {"start": "stage2"}, r"head 'stage2'.*did you mean 'stage1'"),
        ("los", LOS | {"sampler": "clas"}, r"sampler 'clas'.*did you mean 'class'"),
        ("los", LOS | {"delta": 1.0}, r"delta must lie in \[0, 1\)"),
    ],
)
def test_errors_say_what_was_meant(name, hyper, message):
    with pytest.raises(InputError, match=message):
        methods.make(name, COUNTS, hyper)


def test_empty_class_is_an_error_where_counts_are_read():
    hyper = {"tau": 1.0, "start": "stage1", "sampler": "instance"}
    with pytest.raises(InputError, match=r"classes \[1\] have none"):
        methods.make("logit_adjust", np.array([3, 0, 1]), hyper)
