"""Laws of the steps: any number of devices gives the result of one."""

from __future__ import annotations

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads, losses, methods, metrics, models, trees
from lt_jax.data.augment.transforms import Augment
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.training import inference, optim, steps

K = 7
AUGMENT = Augment(pad=2, flip=True, mean=(0.5,), std=(0.25,))
SGD = optim.Sgd(momentum=0.9, decay=1e-3, decay_on=".*")


def make_network(stages):
    backbone = models.create(
        "resnet8",
        stem="cifar",
        width=4,
        zero_init=False,
        init="torch",
        dtype="float32",
        axis_name=sharding.AXIS,
    )
    backbone = dataclasses.replace(backbone, stages=stages)
    params, stats = models.init(backbone, jax.random.key(0), (8, 8, 1))
    sizes = backbone.num_features, K
    head = heads.linear.init(jax.random.key(1), None, *sizes, "torch")
    return backbone, {"backbone": params, "head": head}, stats


@pytest.fixture(scope="module")
def network():
    """One block: compiles fast and has all kinds of layers."""
    return make_network((1,))


def on(monkeypatch, devices):
    """Restrict the steps to the first ``number`` virtual devices."""
    chosen = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *a, **k: chosen)
    monkeypatch.setattr(jax, "local_devices", lambda *a, **k: chosen)
    monkeypatch.setattr(jax, "local_device_count", lambda *a, **k: devices)
    monkeypatch.setattr(jax, "device_count", lambda *a, **k: devices)
    real = jax.pmap
    monkeypatch.setattr(jax, "pmap", lambda f, **k: real(f, devices=chosen, **k))
    for maker in (
        steps.make_train_step,
        inference.make_eval_step,
        inference.make_feature_step,
    ):
        maker.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_steps():
    yield
    for maker in (
        steps.make_train_step,
        inference.make_eval_step,
        inference.make_feature_step,
    ):
        maker.cache_clear()


def batches(number, rows, seed=2):
    """Ragged batches: the last rows are padding with random content.

    With seed 0 an activation comes so near to zero within 50 steps that roundings
    decide its sign, and a gradient then differs by more than they do.
    """
    rng = np.random.default_rng(seed)
    for i in range(number):
        mask = np.ones(rows, np.float32)
        mask[rows - 1 - i % (rows - 1) :] = 0
        yield {
            "image": rng.integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8),
            "label": rng.integers(0, K, rows).astype(np.int32),
            "mask": mask,
        }


COUNTS = np.arange(1, K + 1) * 3
WEIGHTED = methods.Method(losses.reweight(COUNTS, 1.0))


def train(
    network,
    number,
    trains=".*",
    batch_norm="train",
    rows=12,
    method=WEIGHTED,
    per_epoch=1,
):
    backbone, params, stats = network
    inputs = sharding.replicate(
        steps.StepInputs(
            key=jax.random.key(3),
            rates=optim.rates(0.01, number, 1, 0, "step"),
            adjust=method.adjust,
            start=params["head"],
            projects=methods.projection_steps(method, number, per_epoch)[:number],
        )
    )
    program = steps.StepSpec(
        backbone=backbone,
        head=method.head,
        loss=method.loss,
        project=method.project,
        sgd=SGD,
        trains=trains,
        batch_norm=batch_norm,
        augment=AUGMENT,
    )
    step = steps.make_train_step(program)
    state = steps.init_state(params, stats, SGD, trains)
    seen = []
    with jax.transfer_guard("disallow"):
        for batch in batches(number, rows):
            state, measured = step(state, sharding.shard_batch(batch), inputs)
            seen.append(jax.device_get(measured))
    return jax.device_get(state), seen


def test_four_devices_train_as_one(monkeypatch):
    """50 steps with augmentation, ragged batches, empty devices, weighted losses."""
    network, runs = make_network((1, 1, 1)), {}
    for devices in (1, 4):
        with monkeypatch.context() as patch:
            on(patch, devices)
            runs[devices] = train(network, 50)
    one, four = runs[1], runs[4]
    np.testing.assert_allclose(
        [m["loss_sum"] / m["weight_sum"] for m in one[1]],
        [m["loss_sum"] / m["weight_sum"] for m in four[1]],
        rtol=1e-4,
    )
    assert [int(m["right"]) for m in one[1]] == [int(m["right"]) for m in four[1]]
    assert [int(m["seen"]) for m in one[1]] == [int(m["seen"]) for m in four[1]]
    for name, leaf in trees.leaves(one[0]).items():
        np.testing.assert_allclose(
            leaf, trees.leaves(four[0])[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("lade", {"alpha": 0.5, "square": 0.2}),
        ("focal", {"gamma": 2.0}),
        ("ldam", {"max_margin": 0.5, "scale": 10.0, "beta": 0.99, "defer": 0.5}),
        ("los_max_norm", {"delta": 0.9, "quantile": 0.1, "every": "step"}),
        ("disalign", {"power": 1.2, "form": "classification"}),
        ("weight_balancing", {"beta": 0.99, "quantile": 0.1, "every": "step"}),
    ],
)
def test_four_devices_train_every_loss_as_one(network, monkeypatch, name, hyper):
    """Especially LADE, whose terms use the global batch; some devices get padding."""
    backbone, params, stats = network
    given = {"start": "stage1", "sampler": "instance", "mean": "examples"}
    wanted = inspect.signature(methods.METHODS[name]).parameters
    given = {key: value for key, value in given.items() if key in wanted}
    method = methods.make(name, COUNTS, hyper | given)
    head = method.head.init(jax.random.key(1), params["head"], 4, K, "torch")
    trains = f"head/(?:{method.head.trains})"
    own = backbone, {**params, "head": head}, stats
    runs = {}
    for devices in (1, 4):
        with monkeypatch.context() as patch:
            on(patch, devices)
            runs[devices] = train(own, 12, trains, "frozen", method=method)
    (one, losses_one), (four, losses_four) = runs[1], runs[4]
    np.testing.assert_allclose(
        [m["loss_sum"] for m in losses_one],
        [m["loss_sum"] for m in losses_four],
        rtol=1e-5,
    )
    before, alike = trees.leaves(own[1]), trees.leaves(four.params)
    for leaf_name, leaf in trees.leaves(one.params).items():
        np.testing.assert_allclose(
            leaf, alike[leaf_name], rtol=1e-4, atol=1e-6, err_msg=leaf_name
        )
        trained = re.fullmatch(trains, leaf_name) is not None
        assert np.array_equal(leaf, before[leaf_name]) != trained, leaf_name
    if method.project is not None:
        radius = float(heads.max_norm_radius(head, 0.1))
        assert float(heads.class_norms(one.params["head"]).max()) <= radius * 1.00001


def test_projection_after_an_epoch(network):
    """Three steps per epoch: unconstrained within it, projected at its end."""
    _, params, _ = network
    hyper = {"delta": 0.0, "quantile": 0.1, "sampler": "instance"}
    each, last = (
        methods.make("los_max_norm", COUNTS, {**hyper, "every": every})
        for every in ("step", "epoch")
    )
    free = last._replace(project=None)
    radius = float(heads.max_norm_radius(params["head"], 0.1))

    def kernel(method, number, per_epoch):
        # The rate falls over ``number`` epochs of one step, not over these epochs.
        state, _ = train(
            network, number, "head/.*", "frozen", method=method, per_epoch=per_epoch
        )
        return state.params["head"]["kernel"]

    within, without = kernel(last, 2, 3), kernel(free, 2, 3)
    np.testing.assert_array_equal(within, without)
    assert np.linalg.norm(within, axis=0).max() > 1.001 * radius
    over = kernel(last, 3, 3)
    assert np.linalg.norm(over, axis=0).max() <= 1.00001 * radius
    unbound = {"kernel": kernel(free, 3, 3), "bias": params["head"]["bias"]}
    np.testing.assert_allclose(
        over, heads.max_norm(unbound, radius)["kernel"], rtol=1e-5, atol=1e-7
    )
    assert not np.array_equal(kernel(each, 3, 3), over)


def test_four_devices_evaluate_as_one(network, monkeypatch):
    backbone, params, stats = network
    tallies = {}
    for devices in (1, 4):
        with monkeypatch.context() as patch:
            on(patch, devices)
            step = inference.make_eval_step(backbone, heads.linear, AUGMENT, True)
            tally = sharding.replicate(metrics.empty(K))
            placed = sharding.replicate((params, stats))
            for batch in batches(5, 12):
                tally = step(*placed, sharding.shard_batch(batch), tally)
            tallies[devices] = jax.device_get(tally)
    assert tallies[1].seen.sum() == sum(int(b["mask"].sum()) for b in batches(5, 12))
    for name, one, four in zip(metrics.Tally._fields, *tallies.values(), strict=True):
        if one.dtype == np.int32:
            np.testing.assert_array_equal(one, four, err_msg=name)
        else:
            np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-4, err_msg=name)


def test_features_match_the_network(network):
    backbone, params, stats = network
    batch = next(batches(1, 12))
    step = inference.make_feature_step(backbone, AUGMENT, "plain")
    placed = sharding.replicate((params, stats))
    unused = sharding.replicate((jax.random.key(0), jnp.zeros((), jnp.int32)))
    found = np.asarray(step(*placed, sharding.shard_batch(batch), *unused)).reshape(
        12, -1
    )
    images = (batch["image"] / np.float32(255) - 0.5) / 0.25
    expected = backbone.apply(
        {"params": params["backbone"], "batch_stats": stats},
        jnp.asarray(images, jnp.float32),
        jnp.ones(12),
        False,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_mirror_averaging(network):
    """Flipping the image does not change the averaged logits."""
    backbone, params, stats = network
    step = inference.make_eval_step(backbone, heads.linear, AUGMENT, True)
    placed = sharding.replicate((params, stats))
    tallies = []
    for image in (lambda b: b, lambda b: b[:, :, ::-1]):
        batch = next(batches(1, 12))
        batch["image"] = np.ascontiguousarray(image(batch["image"]))
        empty = sharding.replicate(metrics.empty(K))
        tallies.append(step(*placed, sharding.shard_batch(batch), empty))
    np.testing.assert_allclose(tallies[0].true_sum, tallies[1].true_sum, rtol=1e-5)


@pytest.mark.parametrize(("batch_norm", "moves"), [("frozen", False), ("drift", True)])
def test_stage_two_changes_only_the_head(network, batch_norm, moves):
    _, params, stats = network
    state, _ = train(network, 3, trains="head/.*", batch_norm=batch_norm)
    before = trees.leaves({"params": params, "batch_stats": stats})
    after = trees.leaves({"params": state.params, "batch_stats": state.batch_stats})
    for name, leaf in before.items():
        same = np.array_equal(leaf, after[name])
        if name.startswith("params/head/"):
            assert not same, name
        elif name.startswith("params/"):
            assert same, name
        else:
            assert same != moves, name
    assert set(trees.leaves(state.opt_state)) == {
        "1/trace/head/kernel",
        "1/trace/head/bias",
    }


def test_frozen_features_do_not_depend_on_the_batch(network):
    """Stage-2 steps with frozen norm use the features of evaluation."""
    backbone, params, stats = network
    plain = Augment(pad=0, flip=False, mean=(0.5,), std=(0.25,))
    batch = next(batches(1, 12))
    inputs = sharding.replicate(
        steps.StepInputs(
            key=jax.random.key(0),
            rates=np.ones(1, np.float32),
            adjust=losses.cross_entropy(K),
            start=params["head"],
            projects=np.zeros(1, bool),
        )
    )
    program = steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=losses.adjusted_xent,
        project=None,
        sgd=SGD,
        trains="head/.*",
        batch_norm="frozen",
        augment=plain,
    )
    step = steps.make_train_step(program)
    state = steps.init_state(params, stats, SGD, "head/.*")
    _, measured = step(state, sharding.shard_batch(batch), inputs)
    evaluate = inference.make_eval_step(backbone, heads.linear, plain, False)
    placed = sharding.replicate((params, stats, metrics.empty(K)))
    tally = evaluate(*placed[:2], sharding.shard_batch(batch), placed[2])
    loss = float(tally.loss_sum.sum() / tally.seen.sum())
    assert float(measured["loss_sum"] / measured["weight_sum"]) == pytest.approx(
        loss, rel=1e-5
    )
    assert int(measured["right"]) == int(tally.right.sum())


def test_steps_trace_once(network):
    """Another seed, method or a ragged batch does not recompile."""
    backbone, params, stats = network
    traced = []

    def loss(logits, labels, mask, adjust, total):
        traced.append(1)
        return losses.adjusted_xent(logits, labels, mask, adjust, total)

    program = steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=loss,
        project=None,
        sgd=SGD,
        trains="head/.*",
        batch_norm="frozen",
        augment=AUGMENT,
    )
    step = steps.make_train_step(program)
    for seed, adjust in enumerate(
        (losses.cross_entropy(K), losses.over_smooth(K, 0.9))
    ):
        rates = optim.rates(0.1, 4, 1, 0, "epoch")
        inputs = sharding.replicate(
            steps.StepInputs(
                key=jax.random.key(seed),
                rates=rates,
                adjust=adjust,
                start=params["head"],
                projects=np.zeros(4, bool),
            )
        )
        state = steps.init_state(params, stats, SGD, "head/.*")
        for batch in batches(4, 12):
            state, _ = step(state, sharding.shard_batch(batch), inputs)
    assert len(traced) == 1
    program = steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=loss,
        project=None,
        sgd=SGD,
        trains="head/.*",
        batch_norm="frozen",
        augment=AUGMENT,
    )
    again = steps.make_train_step(program)
    assert again is step


def test_the_state_is_donated_but_the_callers_arrays_survive(network):
    _, params, _ = network
    train(network, 2)
    train(network, 2)  # would fail on deleted arrays
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_batch_that_does_not_divide():
    with pytest.raises(InputError, match=r"6 rows is not divisible by 4 devices.*8"):
        sharding.shard_batch(next(batches(1, 6)))
    assert sharding.padded_size(6) == 8
    assert sharding.padded_size(8) == 8
