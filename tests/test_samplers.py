"""Sampling plans: frequencies, order, padding."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax import samplers
from lt_jax.errors import InputError
from lt_jax.samplers import plan

KINDS = ("instance", "class", "sqrt")
COUNTS = np.array([200, 90, 0, 30, 9, 2, 1, 0, 5])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(9), COUNTS))
N = len(LABELS)
HELD = np.flatnonzero(COUNTS)


def drawn(rows):
    """Return the order of a plan; check that the padding is at the end."""
    flat = rows.reshape(-1)
    order = flat[flat >= 0]
    np.testing.assert_array_equal(flat[: len(order)], order)
    assert (flat[len(order) :] == -1).all()
    return order


def per_class(order, labels=LABELS):
    return np.bincount(labels[order], minlength=len(COUNTS))


@pytest.mark.parametrize("batch", [1, 7, 64, N, N + 50])
@pytest.mark.parametrize("kind", KINDS)
def test_shape_and_padding(kind, batch):
    rows = plan(LABELS, kind, batch, run=(1, 0), epoch=0)
    assert rows.dtype == np.int32
    assert rows.shape == (int(np.ceil(N / batch)), batch)
    assert len(drawn(rows)) == N
    assert rows.max() < N
    assert (rows == -1).sum() == rows.size - N < batch


@pytest.mark.parametrize("epoch", range(3))
def test_instance_draws_each_example_once(epoch):
    order = drawn(plan(LABELS, "instance", 7, run=(1, 0), epoch=epoch))
    np.testing.assert_array_equal(np.sort(order), np.arange(N))


@pytest.mark.parametrize("seed", range(5))
def test_class_draws_classes_equally_often(seed):
    often = per_class(drawn(plan(LABELS, "class", 7, run=(1, seed), epoch=0)))
    assert often.sum() == N
    assert np.ptp(often[HELD]) <= 1
    assert (often[COUNTS == 0] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_sqrt_draws_classes_by_the_root_of_their_count(seed):
    often = per_class(drawn(plan(LABELS, "sqrt", 7, run=(1, seed), epoch=0)))
    assert often.sum() == N
    share = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    assert (np.abs(often - N * share) < 1).all()
    assert (often[COUNTS == 0] == 0).all()


@pytest.mark.parametrize("kind", ["class", "sqrt"])
def test_remaining_draws_are_fair(kind):
    """Over many epochs the mean frequency is the exact one, not a rounded one."""
    labels = np.repeat(np.arange(3), [5, 4, 1])
    share = np.array([5, 4, 1]) ** (0.0 if kind == "class" else 0.5)
    often = [
        np.bincount(
            labels[drawn(plan(labels, kind, 4, run=(1, 0), epoch=e))], minlength=3
        )
        for e in range(400)
    ]
    np.testing.assert_allclose(
        np.mean(often, axis=0), 10 * share / share.sum(), atol=0.1
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_is_exhausted_before_an_example_repeats(kind):
    order = drawn(plan(LABELS, kind, 7, run=(1, 0), epoch=0))
    for label in HELD:
        mine = order[LABELS[order] == label]
        for start in range(0, len(mine), COUNTS[label]):
            one_round = mine[start : start + COUNTS[label]]
            assert len(set(one_round)) == len(one_round), label


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_shuffled_over_the_epoch(kind):
    """Every class and every example has the same mean position."""
    labels = np.repeat(np.arange(3), [60, 30, 10])
    places = np.zeros(100)
    times = np.zeros(100)
    for epoch in range(200):
        order = drawn(plan(labels, kind, 10, run=(1, 1), epoch=epoch))
        np.add.at(places, order, np.arange(100))
        np.add.at(times, order, 1)
    # At least 70 draws per example: the mean position has a deviation of at most 3.4.
    np.testing.assert_allclose(places / times, 49.5, atol=15)
    by_class = np.bincount(labels, places) / np.bincount(labels, times)
    np.testing.assert_allclose(by_class, 49.5, atol=2)


@pytest.mark.parametrize("kind", KINDS)
def test_plan_depends_on_seed_and_epoch_only(kind):
    first = plan(LABELS, kind, 7, run=(1, 3), epoch=5)
    np.random.default_rng().random()
    np.testing.assert_array_equal(first, plan(LABELS, kind, 7, run=(1, 3), epoch=5))
    others = [(3, 6), (4, 5), (5, 3)]  # the last: seed and epoch are not summed
    for seed, epoch in others:
        assert (plan(LABELS, kind, 7, run=(1, seed), epoch=epoch) != first).any()


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_does_not_change_the_order(kind):
    np.testing.assert_array_equal(
        drawn(plan(LABELS, kind, 7, run=(1, 0), epoch=0)),
        drawn(plan(LABELS, kind, 64, run=(1, 0), epoch=0)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_not_modified(kind):
    labels = LABELS.copy()
    labels.flags.writeable = False
    plan(labels, kind, 7, run=(1, 0), epoch=0)


@pytest.mark.parametrize("kind", KINDS)
def test_single_example(kind):
    rows = plan(np.array([4], np.int32), kind, 3, run=(1, 0), epoch=0)
    np.testing.assert_array_equal(rows, [[0, -1, -1]])


@pytest.mark.parametrize("kind", KINDS)
def test_inaturalist_size(kind):
    num_classes, size = 8142, 437_513
    share = 1 / np.arange(1, num_classes + 1)
    rng = np.random.default_rng(0)
    tail = rng.choice(num_classes, size - 2 * num_classes, p=share / share.sum())
    labels = np.concatenate([np.repeat(np.arange(num_classes), 2), tail])
    labels = rng.permutation(labels).astype(np.int32)
    counts = np.bincount(labels)
    assert counts.min() == 2
    assert counts.max() > 1000
    rows = plan(labels, kind, 512, run=(1, 0), epoch=0)
    assert rows.shape == (855, 512)
    order = drawn(rows)
    assert len(order) == size
    often = np.bincount(labels[order], minlength=num_classes)
    power = {"instance": 1, "class": 0, "sqrt": 0.5}[kind]
    expected = size * counts**power / (counts**power).sum()
    assert (np.abs(often - expected) < 1).all()
    each = np.bincount(order, minlength=size)
    rounds = often // counts
    assert (each >= rounds[labels]).all()
    assert (each <= rounds[labels] + 1).all()


def test_unknown_kind_suggests_a_similar_one():
    with pytest.raises(InputError, match=r"'instnce'.*did you mean 'instance'"):
        plan(LABELS, "instnce", 7, run=(1, 0), epoch=0)


def test_batch_indices():
    rows = samplers.batch_indices(np.array([4, 2, 9]), 2)
    np.testing.assert_array_equal(rows, [[4, 2], [9, -1]])
    assert samplers.batch_indices(np.arange(4), 2).tolist() == [[0, 1], [2, 3]]
    assert samplers.batch_indices(np.arange(0), 2).shape == (0, 2)
