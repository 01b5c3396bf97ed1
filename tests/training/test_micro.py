"""Micro-batches, mixup and bfloat16: what they change and what they do not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_digits
from test_steps import AUGMENT, COUNTS, SGD, K, _fresh_steps, network, on

from lt_jax import heads, losses, methods, models, trees
from lt_jax.data.augment import transforms
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment.checks import check_data, rates
from lt_jax.experiment.config import resolve
from lt_jax.experiment.session import load_splits, open_session
from lt_jax.experiment.stages import run
from lt_jax.training import optim, steps

__all__ = ["_fresh_steps", "network"]  # fixtures

WEIGHTED = methods.Method(losses.reweight(COUNTS, 1.0))
OVER_EXAMPLES = methods.Method(losses.class_balanced(COUNTS, 0.99, "examples"))
ROWS = 30  # divides over neither 4 devices nor 4 parts


def plan(number, seed=0):
    """Batches of 30 examples out of 200, the last one incomplete."""
    rows = np.random.default_rng(seed).permutation(200)[: number * ROWS]
    rows = rows.reshape(number, ROWS).astype(np.int32)
    rows[-1, ROWS - 7 :] = -1
    return rows


def images_of(rows):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, K, 200).astype(np.int32)
    rubbish = np.where(rows >= 0, rows, 199)
    return {
        "image": images[rubbish],
        "label": labels[rubbish],
        "mask": (rows >= 0).astype(np.float32),
    }


def train(network, parts, batch_norm, mixup=0.0, number=6, method=WEIGHTED):
    """Take ``number`` steps; return the parameters and what was measured."""
    backbone, params, stats = network
    program = steps.StepSpec(
        backbone=backbone,
        head=method.head,
        loss=method.loss,
        project=None,
        sgd=SGD,
        trains=".*",
        batch_norm=batch_norm,
        augment=AUGMENT,
        micro_batches=parts,
        mixup=mixup,
    )
    step = steps.make_train_step(program)
    rates = optim.rates(0.05, number, 1, 0, "step")
    inputs = sharding.replicate(
        steps.StepInputs(
            key=jax.random.key(3),
            rates=rates,
            adjust=method.adjust,
            start=params["head"],
            projects=np.zeros(number, bool),
            micro_batch_size=sharding.micro_batch_size(ROWS, parts, mixup > 0),
        )
    )
    state = steps.init_state(params, stats, SGD, ".*")
    seen = []
    with jax.transfer_guard("disallow"):
        for row in sharding.arrange_micro_batches(plan(number), parts, mixup > 0):
            state, measured = step(state, sharding.shard_batch(images_of(row)), inputs)
            seen.append(jax.device_get(measured))
    return jax.device_get(state), seen


def assert_alike(one, other):
    for name in ("right", "seen"):
        assert [int(m[name]) for m in one[1]] == [int(m[name]) for m in other[1]]
    for name in ("loss_sum", "weight_sum"):
        np.testing.assert_allclose(
            [m[name] for m in one[1]], [m[name] for m in other[1]], rtol=1e-5
        )
    there = trees.leaves(other[0])
    for name, leaf in trees.leaves(one[0]).items():
        np.testing.assert_allclose(
            leaf, there[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    ("mixup", "method", "cases"),
    [
        (0.0, WEIGHTED, ((1, 1), (4, 1), (1, 4), (2, 4), (4, 4))),
        (0.8, WEIGHTED, ((1, 1), (4, 1), (2, 4))),
        (0.8, OVER_EXAMPLES, ((1, 1), (4, 4))),
    ],
    ids=["plain", "mixup", "mean over examples"],
)
def test_devices_and_micro_batches_change_nothing(
    network, monkeypatch, mixup, method, cases
):
    """1 to 4 devices, 1 and 4 micro-batches; augmented, weighted, ragged, frozen."""
    runs = []
    for devices, parts in cases:
        with monkeypatch.context() as patch:
            on(patch, devices)
            runs.append(train(network, parts, "frozen", mixup, method=method))
    for other in runs[1:]:
        assert_alike(runs[0], other)
    for measured in runs[0][1] if method is OVER_EXAMPLES else ():
        assert measured["weight_sum"] == measured["seen"]


def test_moving_batch_norm_uses_the_same_micro_batches_on_any_devices(
    network, monkeypatch
):
    """They differ from the statistics of the complete batch."""
    runs = {}
    for devices, parts in ((1, 1), (1, 2), (4, 2)):
        with monkeypatch.context() as patch:
            on(patch, devices)
            runs[devices, parts] = train(network, parts, "train", number=2)
    assert_alike(runs[1, 2], runs[4, 2])
    whole, cut = runs[1, 1], runs[1, 2]
    assert abs(whole[1][0]["loss_sum"] / cut[1][0]["loss_sum"] - 1) > 1e-3
    # The running mean moves twice in a step: 0.81 of the start is left and not 0.9.
    _, _, stats = network
    name = "stem_norm/var"
    before, once, twice = (
        np.asarray(trees.leaves(s)[name])
        for s in (stats, whole[0].batch_stats, cut[0].batch_stats)
    )
    left = (twice - once) / (once - before)
    # Two steps: 0.9 ** 2 and 0.9 ** 4 of the start are left, near enough.
    expected = (1 - 0.9**4) / (1 - 0.9**2) - 1
    np.testing.assert_allclose(left, expected, atol=0.1)


def test_arrange():
    rows = np.arange(20, dtype=np.int32).reshape(2, 10)
    devices = jax.device_count()
    assert devices == 4
    dealt = sharding.arrange_micro_batches(rows, 3, pairs=False)
    assert dealt.shape == (2, 12)
    # Device by device, and each device's rows part by part.
    assert dealt[0].reshape(4, 3, 1)[:, :, 0].tolist() == [
        [0, 4, 8],
        [1, 5, 9],
        [2, 6, -1],
        [3, 7, -1],
    ]
    np.testing.assert_array_equal(np.sort(dealt, axis=1)[:, 2:], rows)
    # 11 rows in 2 parts: 6 and 5, each on 4 devices with room for 8.
    odd = sharding.arrange_micro_batches(np.arange(11, dtype=np.int32)[None], 2, False)
    parts = odd.reshape(4, 2, 2).swapaxes(0, 1).reshape(2, 8)
    assert parts.tolist() == [[0, 1, 2, 3, 4, 5, -1, -1], [6, 7, 8, 9, 10, -1, -1, -1]]
    np.testing.assert_array_equal(
        sharding.arrange_micro_batches(rows, 1, False)[:, :10], rows
    )
    pairs = sharding.arrange_micro_batches(rows, 1, pairs=True)
    assert pairs.shape == (2, 16)
    assert pairs[0].reshape(8, 2)[:5].tolist() == rows[0].reshape(5, 2).tolist()


def test_mixup_is_the_loss_of_the_mixed_target(network):
    """Against optax's cross-entropy with mixed, over-smoothed targets."""
    backbone, params, stats = network
    plain = Augment(pad=0, flip=False, mean=(0.5,), std=(0.25,))
    delta, alpha = 0.7, 1.0
    row = plan(1)[0]
    row = sharding.arrange_micro_batches(row[None], 1, pairs=True)[0]
    batch = images_of(row)
    program = steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=losses.adjusted_xent,
        project=None,
        sgd=SGD,
        trains="head/.*",
        batch_norm="frozen",
        augment=plain,
        micro_batches=1,
        mixup=alpha,
    )
    step = steps.make_train_step(program)
    key = jax.random.key(3)
    inputs = sharding.replicate(
        steps.StepInputs(
            key=key,
            rates=np.ones(1, np.float32),
            adjust=losses.over_smooth(K, delta),
            start=params["head"],
            projects=np.zeros(1, bool),
        )
    )
    state = steps.init_state(params, stats, SGD, "head/.*")
    _, measured = step(state, sharding.shard_batch(batch), inputs)

    share = transforms.mix_shares(
        alpha, jax.random.fold_in(key, 0), jnp.arange(len(row)), batch["mask"]
    )
    other = np.arange(len(row)) ^ 1
    images = (batch["image"] / np.float32(255) - 0.5) / 0.25
    own = np.asarray(share)[:, None, None, None]
    mixed = own * images + (1 - own) * images[other]
    features = backbone.apply(
        {"params": params["backbone"], "batch_stats": stats},
        jnp.asarray(mixed, jnp.float32),
        jnp.ones(len(row)),
        False,
    )
    onehot = jax.nn.one_hot(batch["label"], K)
    target = share[:, None] * onehot + (1 - share[:, None]) * onehot[other]
    target = optax.smooth_labels(target, delta)
    logits = heads.linear.apply(params["head"], features)
    expected = jnp.sum(batch["mask"] * optax.softmax_cross_entropy(logits, target))
    assert float(measured["loss_sum"]) == pytest.approx(float(expected), rel=1e-4)
    assert float(measured["weight_sum"]) == batch["mask"].sum()
    assert float(share.min()) < 0.5


def test_bfloat16_step_keeps_labels_logits_and_state_in_float32(network):
    """No array with an axis of K is bfloat16 in the step; the images are."""
    backbone = dataclasses.replace(network[0], dtype=jnp.dtype("bfloat16"))
    odd = 37  # classes; no other size of the network
    params, stats = models.init(backbone, jax.random.key(0), (8, 8, 1))
    head = heads.linear.init(jax.random.key(1), None, 4, odd, "torch")
    params = {"backbone": params, "head": head}
    adjust = losses.over_smooth(odd, 0.9)
    state = steps.init_state(params, stats, SGD, ".*")
    inputs = steps.StepInputs(
        key=jax.random.key(3),
        rates=np.ones(1, np.float32),
        adjust=adjust,
        start=head,
        projects=np.zeros(1, bool),
    )
    batch = sharding.shard_batch(
        images_of(sharding.arrange_micro_batches(plan(1), 1, False)[0])
    )
    program = steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=losses.adjusted_xent,
        project=None,
        sgd=SGD,
        trains=".*",
        batch_norm="train",
        augment=AUGMENT,
    )
    step = steps.make_train_step(program)
    inputs = sharding.replicate(inputs)
    traced = jax.make_jaxpr(step)(state, batch, inputs)
    found = [v.aval for v in variables(traced.jaxpr) if hasattr(v.aval, "shape")]
    half = [a for a in found if a.dtype == jnp.bfloat16]
    assert any(len(a.shape) == 4 for a in half)
    assert not [a for a in half if odd in a.shape]
    assert any(a.dtype == jnp.float32 and a.shape[-1:] == (odd,) for a in found)
    new, measured = step(state, batch, inputs)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(new)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert measured["loss_sum"].dtype == jnp.float32
    assert np.isfinite(measured["loss_sum"])


def variables(jaxpr):
    """Iterate over all variables of a program, including nested ones."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, "jaxpr"):
                    yield from variables(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from variables(inner)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__accumulate": 0}, "optim.accumulate must be in .1, 1e9., got 0"),
        (
            {"method__accumulate": 33},
            "must be at most method.batch, 32, got 33",
        ),
        ({"optim__lr_batch": 0}, "optim.lr_batch must be in .1, 1e9., got 0"),
        ({"optim__mixup": -0.1}, "optim.mixup must be in .0, 100., got -0.1"),
        ({"data__jitter": (0.4, 0.4)}, "data.jitter must have 4 values"),
        ({"data__jitter": (0.0, 0.0, 0.0, 0.6)}, "hue must be at most 0.5"),
        ({"data__randaugment": (2, 31.0)}, r"data.randaugment must be in \[0, 30"),
        ({"data__randaugment": (1.5, 9.0)}, "integer number of operations"),
        ({"data__randaugment": (2, 9.0)}, "need 3 channels, .*have 1: set them"),
        (
            {"data__jitter": (0.4, 0.4, 0.4, 0.0)},
            "need 3 channels, .*have 1: set them",
        ),
    ],
)
def test_invalid_values_raise(changes, message):
    splits, _ = load_splits(resolve(tiny_digits.config()))
    with pytest.raises(InputError, match=message):
        check_data(resolve(tiny_digits.config(**changes)), splits)


@pytest.mark.slow
def test_a_run_with_micro_batches_equals_a_run_without(tmp_path):
    """Through config, plan, loader and both stages, with frozen batch norm."""
    runs = []
    for number in (1, 3):
        config = tiny_digits.config(
            optim__accumulate=number,
            method__accumulate=number,
            optim__batch_norm="frozen",
            optim__epochs=1,
            optim__mixup=0.4,
            method__names=("los",),
        )
        runs.append(run(config, tmp_path / f"{number}")["methods"])
    for name in ("none", "los"):
        one, other = (methods[name]["nll"]["mean"] for methods in runs)
        assert one == pytest.approx(other, rel=1e-4)


def test_doubling_the_batch_doubles_the_rate(tmp_path):
    config = tiny_digits.config()
    config.optim.batch = 2 * config.optim.lr_batch
    with open_session(config, tmp_path, writes=False) as session:
        found = rates(session.config.optim, 0.1, 1, 1000)
        assert found[0] == pytest.approx(0.2)
        found = rates(session.config.method, 0.1, 1, 1000)
        assert found[0] == pytest.approx(0.1)
