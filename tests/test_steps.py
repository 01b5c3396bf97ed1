"""Laws of the steps: any number of devices computes what one device computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads, losses, metrics, models, optim, steps, trees
from lt_jax.data.augment import Augment
from lt_jax.types import InputError

K = 7
AUGMENT = Augment(pad=2, flip=True, mean=(0.5,), std=(0.25,))
SGD = optim.Sgd(momentum=0.9, nesterov=False, decay=1e-3, decay_on=".*")


@pytest.fixture(scope="module")
def network():
    backbone = models.create(
        "resnet8",
        stem="cifar",
        width=4,
        zero_init=False,
        init="torch",
        dtype="float32",
        axis_name=steps.AXIS,
    )
    params, stats = models.init(backbone, jax.random.key(0), (8, 8, 1))
    head = heads.linear().init(jax.random.key(1), None, 16, K)
    return backbone, {"backbone": params, "head": head}, stats


def on(monkeypatch, devices):
    """Makes the steps use only the first so many of the four virtual devices."""
    chosen = jax.devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda *a, **k: chosen)
    monkeypatch.setattr(jax, "local_device_count", lambda *a, **k: devices)
    monkeypatch.setattr(jax, "device_count", lambda *a, **k: devices)
    real = jax.pmap
    monkeypatch.setattr(jax, "pmap", lambda f, **k: real(f, devices=chosen, **k))
    for maker in (steps.make_train_step, steps.make_eval_step, steps.make_feature_step):
        maker.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_steps():
    yield
    for maker in (steps.make_train_step, steps.make_eval_step, steps.make_feature_step):
        maker.cache_clear()


def batches(number, rows, seed=0):
    """Ragged batches: the last rows are padding that holds rubbish."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        mask = np.ones(rows, np.float32)
        mask[rows - 1 - i % (rows - 1) :] = 0
        yield {
            "image": rng.integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8),
            "label": rng.integers(0, K, rows).astype(np.int32),
            "mask": mask,
        }


def train(network, number, trains=".*", batch_norm="train", rows=12):
    backbone, params, stats = network
    counts = np.arange(1, K + 1) * 3
    knobs = steps.replicate(
        steps.Knobs(
            jax.random.key(3),
            optim.rates(0.1, number, 1, 0, "step"),
            losses.reweight(counts, 1.0),
        )
    )
    step = steps.make_train_step(
        backbone, heads.linear(), losses.adjusted_xent, SGD, trains, batch_norm, AUGMENT
    )
    state = steps.init_state(params, stats, SGD, trains)
    seen = []
    with jax.transfer_guard("disallow"):
        for batch in batches(number, rows):
            state, measured = step(state, steps.shard(batch), knobs)
            seen.append(jax.device_get(measured))
    return jax.device_get(state), seen


def test_four_devices_train_as_one(network, monkeypatch):
    """50 steps with augmentation, ragged batches, empty devices, weighted losses."""
    runs = {}
    for devices in (1, 4):
        with monkeypatch.context() as patch:
            on(patch, devices)
            runs[devices] = train(network, 50)
    one, four = runs[1], runs[4]
    np.testing.assert_allclose(
        [m["loss"] for m in one[1]], [m["loss"] for m in four[1]], rtol=2e-4
    )
    assert [int(m["right"]) for m in one[1]] == [int(m["right"]) for m in four[1]]
    assert [int(m["seen"]) for m in one[1]] == [int(m["seen"]) for m in four[1]]
    for name, leaf in trees.leaves(one[0]).items():
        np.testing.assert_allclose(
            leaf, trees.leaves(four[0])[name], rtol=1e-3, atol=1e-4, err_msg=name
        )
