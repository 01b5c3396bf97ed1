"""Learning rates by hand, and SGD against PyTorch's rule in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import trees
from lt_jax.errors import InputError
from lt_jax.training.optim import Sgd, rates


def test_epoch_schedule_matches_the_authors():
    """Epoch t of T has lr (1 + cos(pi t / T)) / 2, and t starts at 0."""
    found = rates(0.01, 200, 170, 0, "epoch")
    assert found.shape == (200 * 170,)
    assert found.dtype == np.float32
    epoch = np.repeat(np.arange(200), 170)
    np.testing.assert_allclose(
        found, 0.01 * (1 + np.cos(np.pi * epoch / 200)) / 2, rtol=1e-4
    )
    assert found[0] == np.float32(0.01)
    assert found[-1] > 0


def test_epoch_schedule_by_hand():
    found = rates(2.0, 3, 2, 0, "epoch")
    np.testing.assert_allclose(found, [2, 2, 1.5, 1.5, 0.5, 0.5], rtol=1e-6)


def test_step_schedule_by_hand():
    found = rates(2.0, 3, 2, 0, "step")
    cosine = [1, np.sqrt(3) / 2, 0.5, 0, -0.5, -np.sqrt(3) / 2]
    np.testing.assert_allclose(found, [1 + c for c in cosine], rtol=1e-6)
    assert (np.diff(found) < 0).all()
    assert found[-1] > 0


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_warm_up(per):
    found = rates(1.0, 5, 4, 2, per)
    np.testing.assert_allclose(found[:8], np.arange(1, 9) / 8, rtol=1e-6)
    assert found[0] > 0
    assert found[7] == found.max() == 1
    # What remains is the schedule of a run that much shorter.
    np.testing.assert_allclose(found[8:], rates(1.0, 3, 4, 0, per), rtol=1e-6)


def test_warm_up_of_part_of_an_epoch():
    found = rates(1.0, 3, 4, 0.5, "step")
    assert found[:3].tolist() == [0.5, 1, 1]
    # Step 4 is half an epoch of the remaining two and a half after the warm-up.
    assert found[4] == pytest.approx((1 + np.cos(np.pi * 0.5 / 2.5)) / 2, rel=1e-6)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_milestones_replace_the_cosine(per):
    """LDAM's schedule: warm-up, then a hundredth at each of two epochs."""
    found = rates(0.1, 20, 3, 5, per, milestones=(18, 16), fall=0.01)
    np.testing.assert_allclose(found[:15], 0.1 * np.arange(1, 16) / 15, rtol=1e-6)
    expected = [0.1] * 3 * 11 + [1e-3] * 3 * 2 + [1e-5] * 3 * 2
    np.testing.assert_allclose(found[15:], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"milestones": (2, 5)}, r"milestones must be below 5 epochs: \(2, 5\)"),
        ({"per": "steps"}, r"schedule 'steps'.*did you mean 'step'"),
        ({"epochs": -1}, "epochs must be an integer in .*, got -1"),
        ({"warmup": 5}, "warmup must be below 5 epochs, got 5"),
        ({"warmup": -1}, "warmup must be in .*, got -1"),
        ({"warmup": float("nan")}, "warmup must be in .*, got nan"),
        ({"steps_per_epoch": 10**7}, "more than 20,000,000 steps"),
        ({"lr": 0}, "rate must be in .0, inf., got 0"),
        ({"lr": -0.1}, "rate must be in .*, got -0.1"),
        ({"lr": float("nan")}, "rate must be in .*, got nan"),
    ],
)
def test_errors_of_rates(numbers, message):
    good = {"lr": 0.1, "epochs": 5, "steps_per_epoch": 3, "warmup": 0, "per": "step"}
    rates(**good)
    with pytest.raises(InputError, match=message):
        rates(**good | numbers)


def test_no_epochs_have_no_rates():
    """Zero epochs train nothing, whatever the other arguments."""
    found = rates(0.0, 0, 3, 5, "epoch")
    assert found.shape == (0,)
    assert found.dtype == np.float32


def network(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "backbone": {"conv": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}},
        "head": {
            "bias": rng.normal(size=2).astype(np.float32),
            "kernel": rng.normal(size=(4, 2)).astype(np.float32),
        },
    }


def torch_by_hand(params, grads, rate, sgd, decayed):
    """Apply torch.optim.SGD's rule to a list of gradients, in float64."""
    params = {name: np.asarray(p, np.float64) for name, p in params.items()}
    buffers = {}
    for grad in grads:
        for name, w in params.items():
            g = np.asarray(grad[name], np.float64)
            if name in decayed:
                g = g + sgd.decay * w
            if sgd.momentum:
                buffers[name] = (
                    sgd.momentum * buffers[name] + g if name in buffers else g
                )
                g = buffers[name]
            params[name] = w - rate * g
    return params


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("decay", "on", "decayed"),
    [
        (0.0, "nothing", ()),
        (0.1, ".*", ("backbone/conv/kernel", "head/bias", "head/kernel")),
        (0.1, ".*/kernel", ("backbone/conv/kernel", "head/kernel")),
        (0.1, "head/.*", ("head/bias", "head/kernel")),
        (0.1, "head/(kernel|scale)", ("head/kernel",)),
    ],
)
def test_sgd_matches_torch(momentum, decay, on, decayed):
    sgd = Sgd(momentum=momentum, decay=decay, decay_on=on)
    transform = sgd.transform()
    params = start = network()
    grads = [network(seed) for seed in range(1, 6)]
    state = transform.init(params)
    for grad in grads:
        direction, state = transform.update(grad, state, params)
        params = jax.tree.map(lambda p, d: p - 0.05 * d, params, direction)
    expected = torch_by_hand(
        trees.leaves(start), [trees.leaves(g) for g in grads], 0.05, sgd, decayed
    )
    for name, leaf in trees.leaves(params).items():
        np.testing.assert_allclose(leaf, expected[name], 1e-5, 1e-6, err_msg=name)


def test_sgd_by_hand():
    """Two steps on one number: w = 1, g = 1, decay 0.5, momentum 0.5, rate 0.1."""
    transform = Sgd(0.5, 0.5, ".*").transform()
    w, g = {"w": jnp.array(1.0)}, {"w": jnp.array(1.0)}
    one, state = transform.update(g, transform.init(w), w)
    assert one["w"] == pytest.approx(1.5)  # 1 + 0.5 * 1
    w = {"w": w["w"] - 0.1 * one["w"]}  # 0.85
    two, _ = transform.update(g, state, w)
    assert two["w"] == pytest.approx(0.5 * 1.5 + 1 + 0.5 * 0.85)


@pytest.mark.parametrize("pattern", ["kernel", "head", "head/kern", "tail/.*"])
def test_decay_on_nothing_is_an_error(pattern):
    """The full name must match; a part of it does not."""
    sgd = Sgd(0.9, 1e-4, pattern)
    with pytest.raises(InputError, match=rf"acts on nothing.*'{pattern}'.*head/kernel"):
        sgd.check(network())


def test_zero_decay_may_match_nothing():
    Sgd(0.9, 0.0, "").check(network())


def test_is_a_cache_key():
    one, same = (Sgd(0.9, 1e-4, ".*") for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same, one._replace(decay=0.0)}) == 2
