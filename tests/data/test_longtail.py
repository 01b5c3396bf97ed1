"""Class sizes, the two builds of the long-tailed subset, and holding out."""

from __future__ import annotations

import numpy as np
import pytest

from lt_jax.data import longtail
from lt_jax.errors import InputError


@pytest.mark.parametrize(
    ("imbalance", "total", "smallest", "groups"),
    [
        (100, 10_847, 5, (35, 35, 30)),
        (50, 12_608, 10, (41, 41, 18)),
        (10, 19_573, 50, (69, 31, 0)),
    ],
)
def test_class_sizes_of_cifar100_lt(imbalance, total, smallest, groups):
    sizes = longtail.class_sizes(500, 100, imbalance)
    assert sizes.sum() == total
    assert (sizes.max(), sizes.min()) == (500, smallest)
    assert (np.diff(sizes) <= 0).all()
    many, few = (sizes > 100).sum(), (sizes < 20).sum()
    assert (many, 100 - many - few, few) == groups


def test_class_sizes_by_hand():
    # 100 * 0.1 ** (1/3) = 46.4, 100 * 0.1 ** (2/3) = 21.5
    assert longtail.class_sizes(100, 4, 10).tolist() == [100, 46, 21, 10]
    assert longtail.class_sizes(7, 3, 1).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("n_max", "imbalance", "which", "largest"),
    [
        (500, 501, "1 of 100 classes empty", 500),
        (500, 1000, "10 of 100 classes empty", 500),
        # 49 * (1 / 49) is 0.99...9 in floating point, so 49 is too large.
        (49, 50, "1 of 100 classes empty", 48),
        (20, float("inf"), "99 of 100 classes empty", 20),
    ],
)
def test_class_sizes_reject_empty_classes(n_max, imbalance, which, largest):
    with pytest.raises(InputError, match=rf"{which}; .* is {largest}$"):
        longtail.class_sizes(n_max, 100, imbalance)
    assert longtail.class_sizes(n_max, 100, largest).min() == 1
    with pytest.raises(InputError):
        longtail.class_sizes(n_max, 100, largest + 1)


def test_class_sizes_of_no_examples():
    with pytest.raises(InputError, match="empty class is none"):
        longtail.class_sizes(0, 10, 1)


# The oracles visit the examples one at a time, as the original code does.


def first_oracle(labels, sizes):
    left, kept = list(sizes), []
    for i, c in enumerate(labels):
        if left[c] > 0:
            kept.append(i)
            left[c] -= 1
    return sorted(kept, key=lambda i: labels[i])  # stable: by class, then by id


def cao_oracle(labels, sizes):
    np.random.seed(0)  # noqa: NPY002  LDAM's generator is this global one
    kept = []
    for c, size in enumerate(sizes):
        idx = np.where(np.asarray(labels) == c)[0]
        np.random.shuffle(idx)  # noqa: NPY002
        kept.extend(idx[:size])
    return kept


@pytest.mark.parametrize(
    ("split", "oracle"), [("first", first_oracle), ("cao", cao_oracle)]
)
@pytest.mark.parametrize("imbalance", [1, 10, 50])
def test_choose_against_oracle(split, oracle, imbalance):
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(10), 50))
    sizes = longtail.class_sizes(50, 10, imbalance)
    rows = longtail.choose(labels, np.arange(500), 10, imbalance, split)
    assert rows.tolist() == oracle(labels.tolist(), sizes)
    assert np.bincount(labels[rows], minlength=10).tolist() == sizes.tolist()
    assert len(set(rows.tolist())) == len(rows)


@pytest.mark.parametrize("split", ["first", "cao"])
def test_choose_does_not_depend_on_the_order_of_the_file(split):
    random = np.random.default_rng(5)
    labels = random.permutation(np.repeat(np.arange(5), 20))
    ids = np.array([f"train_{i:05d}" for i in range(100)])
    shuffled = random.permutation(100)
    straight = longtail.choose(labels, np.arange(100), 5, 10, split)
    order = np.argsort(ids[shuffled])
    rows = longtail.choose(labels[shuffled], order, 5, 10, split)
    assert ids[shuffled][rows].tolist() == ids[straight].tolist()


def test_choose_does_not_touch_the_global_generator():
    labels = np.repeat(np.arange(3), 10)
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    longtail.choose(labels, np.arange(30), 3, 5, "cao")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_choose_keeps_a_dataset_that_is_cut_already():
    labels = np.repeat(np.arange(100), longtail.class_sizes(500, 100, 100))
    rows = longtail.choose(labels, np.arange(len(labels)), 100, 100, "first")
    assert rows.tolist() == list(range(len(labels)))


def test_choose_rejects_a_class_that_is_too_small():
    labels = np.array([0] * 10 + [1] * 2 + [2] * 10)
    with pytest.raises(InputError, match=r"needs 7 examples of class 1, .* has 2 \(1 "):
        longtail.choose(labels, np.arange(22), 3, 2, "first")


def test_hold_out_is_stratified():
    sizes = np.array([100, 41, 15, 3, 2, 1, 0])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), sizes))
    fit, valid = longtail.hold_out(labels, 0.1, 0, 7)
    held = np.bincount(labels[valid], minlength=7).tolist()
    assert held == [10, 4, 2, 1, 1, 0, 0]  # round(1.5) is 2; at least 1; 1 of 1 never
    assert sorted([*fit, *valid]) == list(range(len(labels)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(valid) > 0).all()


def test_hold_out_never_takes_all_of_a_class():
    labels = np.repeat(np.arange(4), [50, 3, 2, 1])
    fit, valid = longtail.hold_out(labels, 0.99, 0, 4)
    assert np.bincount(labels[fit], minlength=4).tolist() == [1, 1, 1, 1]
    assert np.bincount(labels[valid], minlength=4).tolist() == [49, 2, 1, 0]


def test_hold_out_nothing():
    fit, valid = longtail.hold_out(np.array([0, 1, 1, 0]), 0, 0, 2)
    assert fit.tolist() == [0, 1, 2, 3]
    assert valid.shape == (0,)
    assert np.issubdtype(valid.dtype, np.integer)


def test_hold_out_depends_on_its_seed():
    labels = np.repeat(np.arange(10), 30)
    same = [longtail.hold_out(labels, 0.2, 4, 10)[1].tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != longtail.hold_out(labels, 0.2, 5, 10)[1].tolist()
    # Not the first of each class: the draw is random.
    assert len({i % 30 for i in same[0]}) > 20


def test_hold_out_nests_with_the_fraction():
    labels = np.repeat(np.arange(10), 30)
    small = longtail.hold_out(labels, 0.1, 0, 10)[1].tolist()
    large = longtail.hold_out(labels, 0.5, 0, 10)[1].tolist()
    assert set(small) < set(large)
