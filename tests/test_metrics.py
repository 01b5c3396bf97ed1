"""Metrics: the tally against a NumPy oracle, as a monoid, and the summary."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import heads, metrics
from lt_jax.errors import InputError
from lt_jax.metrics import NUM_BINS, Tally

K = 7
COUNTS = np.array([300, 101, 100, 50, 20, 19, 3])
GROUPS = metrics.groups(COUNTS, 100, 20)
INTEGERS = ("seen", "right", "right5", "bin_seen", "bin_right")
tally = jax.jit(metrics.tally)


def any_batch(size=90, num_classes=K, seed=0, balanced=False):
    """Return informative logits with a bias and a spread per class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size).astype(np.int32)
    if balanced:
        labels = rng.permutation(np.arange(size) % num_classes).astype(np.int32)
    logits = rng.normal(size=(size, num_classes)) * rng.uniform(1, 2, num_classes)
    logits += rng.normal(size=num_classes) + rng.normal(size=(size, 1))
    logits[np.arange(size), labels] += rng.uniform(0, 3, num_classes)[labels]
    return logits.astype(np.float32), labels


def tally_of(logits, labels):
    return tally(logits, labels, np.ones(len(labels), np.float32))


def softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def tally_by_hand(logits, labels):
    found = {name: np.zeros(logits.shape[1]) for name in Tally._fields}
    found |= {name: np.zeros(NUM_BINS) for name in Tally._fields if "bin" in name}
    for row, y in zip(np.asarray(logits, np.float64), labels, strict=True):
        chances = softmax(row)
        best = int(np.argmax(row))
        place = next(
            b for b in range(NUM_BINS) if chances[best] * NUM_BINS <= b + 1 + 1e-6
        )
        ranking = sorted(range(len(row)), key=lambda k: (-row[k], k))
        found["seen"][y] += 1
        found["right"][y] += best == y
        found["right5"][y] += y in ranking[:5]
        found["loss_sum"][y] -= np.log(chances[y])
        found["true_sum"][y] += row[y]
        found["true_sq"][y] += row[y] ** 2
        for k, logit in enumerate(row):
            found["row_sum"][y] += logit
            found["row_sq"][y] += logit**2
            found["col_sum"][k] += logit
            found["col_sq"][k] += logit**2
        found["bin_seen"][place] += 1
        found["bin_right"][place] += best == y
        found["bin_conf"][place] += chances[best]
    return Tally(**found)


def classes_by_hand(logits, labels):
    """Compute each metric per class from its definition, without running sums."""
    z, num_classes = np.asarray(logits, np.float64), logits.shape[1]
    found = {name: np.full(num_classes, np.nan) for name in PER_CLASS}
    for k in sorted(set(labels.tolist())):
        mine, rest = z[labels == k], z[labels != k]
        true, row_false, col_false = mine[:, k], np.delete(mine, k, 1), rest[:, k]
        found["accuracy"][k] = np.mean(mine.argmax(1) == k)
        found["nll"][k] = np.mean([-np.log(softmax(row)[k]) for row in mine])
        row = np.mean([r[k] - np.delete(r, k).mean() for r in mine])
        col = true.mean() - col_false.mean()
        found["loma_row"][k], found["loma_col"][k] = row, col
        found["rsd_row_true"][k] = true.std() / row
        found["rsd_row_false"][k] = row_false.std() / row
        found["rsd_col_true"][k] = true.std() / col
        found["rsd_col_false"][k] = col_false.std() / col
    return found


PER_CLASS = (
    "accuracy",
    "nll",
    "loma_row",
    "loma_col",
    "rsd_row_true",
    "rsd_row_false",
    "rsd_col_true",
    "rsd_col_false",
)


def summary_by_hand(logits, labels, groups):
    z = np.asarray(logits, np.float64)
    classes = classes_by_hand(logits, labels)
    chances = np.array([softmax(row) for row in z])
    right = z.argmax(1) == labels
    confidence = chances.max(1)
    ece = 0.0
    for b in range(NUM_BINS):
        inside = (confidence > b / NUM_BINS) & (confidence <= (b + 1) / NUM_BINS)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    top5 = [y in np.argsort(-row)[:5] for row, y in zip(z, labels, strict=True)]
    found = {
        "all": right.mean(),
        "balanced": np.nanmean(classes["accuracy"]),
        "worst": np.nanmin(classes["accuracy"]),
        "top5": np.mean(top5),
        "nll": -np.log(chances[np.arange(len(labels)), labels]).mean(),
        "ece": ece,
    }
    for name in PER_CLASS[2:]:
        found[name] = np.nanmean(classes[name])
    for name in ("loma_row", "loma_col"):
        found[f"{name}_spread"] = np.nanstd(classes[name]) / abs(found[name])
    for group, members in groups.items():
        inside = members[labels]
        accuracies = classes["accuracy"][members & ~np.isnan(classes["accuracy"])]
        found[group] = accuracies.mean() if accuracies.size else np.nan
        for name in ("loma_row", "loma_col"):
            values = classes[name][members]
            values = values[~np.isnan(values)]
            found[f"{name}_{group}"] = values.mean() if values.size else np.nan
    return found


@pytest.mark.parametrize(("average", "few"), [("classes", 0.5), ("examples", 0.8)])
def test_average_of_a_group(average, few):
    """Two few-shot classes: 4 of 4 and 0 of 1 right; a third one has no example."""
    logits = np.eye(4, dtype=np.float32)[[0, 0, 0, 0, 3, 3]]
    labels = np.array([0, 0, 0, 0, 1, 3])
    few_shot = {"few": np.array([True, True, True, False]), "many": np.zeros(4, bool)}
    found = metrics.summary(tally_of(logits, labels), few_shot, average)
    assert found["few"] == pytest.approx(few)
    assert np.isnan(found["many"])
    assert found["all"] == pytest.approx(5 / 6)
    assert found["balanced"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match=r"group average 'class'.*did you mean"):
        metrics.summary(tally_of(logits, labels), few_shot, "class")


def test_averages_of_groups_agree_on_a_balanced_set():
    found = tally_of(*any_batch(70, balanced=True))
    one, other = (metrics.summary(found, GROUPS, a) for a in metrics.GROUP_AVERAGES)
    assert one == pytest.approx(other, rel=1e-12)


def assert_same(found, expected, rtol=1e-5, atol=1e-4):
    """Compare integers exactly and floats up to the order of summation."""
    for name in Tally._fields:
        one, other = getattr(found, name), getattr(expected, name)
        if name in INTEGERS:
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            np.testing.assert_allclose(one, other, rtol, atol, err_msg=name)


def assert_close(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol, atol, err_msg=name)


@pytest.mark.parametrize("num_classes", [2, 3, 5, 7])
def test_metrics_equal_the_oracle(num_classes):
    logits, labels = any_batch(num_classes=num_classes, seed=num_classes)
    found = tally_of(logits, labels)
    assert_same(found, tally_by_hand(logits, labels))
    assert_close(metrics.per_class(found), classes_by_hand(logits, labels))
    groups = metrics.groups(COUNTS[:num_classes], 100, 20)
    assert_close(
        metrics.summary(found, groups), summary_by_hand(logits, labels, groups)
    )


def test_metrics_equal_the_oracle_with_an_empty_class():
    logits, labels = any_batch()
    labels = np.where(np.isin(labels, (1, 5)), 3, labels)
    found = tally_of(logits, labels)
    assert_close(metrics.per_class(found), classes_by_hand(logits, labels))
    assert_close(
        metrics.summary(found, GROUPS), summary_by_hand(logits, labels, GROUPS)
    )


def test_an_empty_class_is_nan_and_ignored():
    # Class 0: 1 of 2 right. Class 1: 1 of 1. Class 2: none.
    logits = np.array([[5, 0, 1], [0, 5, 1], [0, 5, 1]], np.float32)
    found = tally_of(logits, np.array([0, 0, 1]))
    np.testing.assert_array_equal(
        metrics.per_class(found)["accuracy"], [0.5, 1, np.nan]
    )
    for name, values in metrics.per_class(found).items():
        assert np.isnan(values[2]), name
    values = metrics.summary(found, {"none": np.array([False, False, True])})
    assert values["all"] == pytest.approx(2 / 3)
    assert values["balanced"] == 0.75
    assert values["worst"] == 0.5
    assert math.isnan(values["none"])
    assert math.isnan(values["loma_row_none"])
    assert math.isnan(values["loma_col_none"])
    assert math.isfinite(values["loma_row"])


def test_readings_by_hand():
    # Class 0 has logits (3, 1, -1) and (5, 0, 1), class 1 has (1, 2, 0).
    logits = np.array([[3, 1, -1], [5, 0, 1], [1, 2, 0]], np.float32)
    values = metrics.per_class(tally_of(logits, np.array([0, 0, 1])))
    # Row: class 0: (3 - 0 + 5 - 0.5) / 2; class 1: 2 - 0.5.
    np.testing.assert_allclose(values["loma_row"], [3.75, 1.5, np.nan], rtol=1e-6)
    # Column: class 0: (3 + 5) / 2 - 1; class 1: 2 - (1 + 0) / 2.
    np.testing.assert_allclose(values["loma_col"], [3, 1.5, np.nan], rtol=1e-6)
    # True: 3, 5 | 2. Other logits of a row: 1, -1, 0, 1 | 1, 0. Of a column: 1 | 1, 0.
    root = np.sqrt(0.75 - 0.25**2)
    np.testing.assert_allclose(values["rsd_row_true"], [1 / 3.75, 0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(
        values["rsd_row_false"], [root / 3.75, 0.5 / 1.5, np.nan], rtol=1e-6
    )
    np.testing.assert_allclose(values["rsd_col_true"], [1 / 3, 0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(
        values["rsd_col_false"], [0, 0.5 / 1.5, np.nan], rtol=1e-6
    )


def test_merge_is_a_commutative_monoid():
    one, two, three = (tally_of(*any_batch(seed=seed)) for seed in range(3))
    merge, nothing = metrics.merge, metrics.empty(K)
    assert_same(merge(one, two), merge(two, one), rtol=0, atol=0)
    assert_same(merge(merge(one, two), three), merge(one, merge(two, three)))
    assert_same(merge(one, nothing), one, rtol=0, atol=0)
    assert_same(merge(nothing, one), one, rtol=0, atol=0)
    assert int(np.sum(merge(one, two).seen)) == 180


GARBAGE = (np.nan, np.inf, -np.inf, 3e38, 1e9)


@pytest.mark.parametrize("size", [1, 4, 32, 90, 128])
@pytest.mark.parametrize("where", ["end", "start", "between"])
def test_splits_and_padding_do_not_change_the_tally(size, where):
    """Masked rows may hold anything: values out of range, labels out of range."""
    logits, labels = any_batch()
    expected = tally_of(logits, labels)
    total = metrics.empty(K)
    rng = np.random.default_rng(1)
    for start in range(0, len(labels), size):
        held = len(labels[start : start + size])
        rows = 128 if size > 4 else 8
        place = {
            "end": np.arange(held),
            "start": np.arange(rows - held, rows),
            "between": np.sort(rng.permutation(rows)[:held]),
        }[where]
        batch = rng.choice(GARBAGE, (rows, K)).astype(np.float32)
        label = rng.choice([-1, 999, 0, K], rows).astype(np.int32)
        mask = np.zeros(rows, np.float32)
        batch[place], label[place] = logits[start : start + size], labels[start:][:held]
        mask[place] = 1
        total = metrics.merge(total, tally(batch, label, mask))
    assert_same(total, expected)
    assert int(np.sum(total.seen)) == len(labels)


def test_a_batch_of_padding_is_empty():
    found = tally(np.full((4, K), np.nan, np.float32), np.full(4, -1), np.zeros(4))
    assert_same(found, metrics.empty(K), rtol=0, atol=0)


def test_types():
    logits, labels = any_batch()
    for found in (
        tally_of(logits, labels),
        metrics.merge(metrics.empty(K), tally_of(logits, labels)),
        tally_of(jnp.asarray(logits, jnp.bfloat16), labels),
        metrics.empty(K),
    ):
        for name, field in found._asdict().items():
            dtype = np.int32 if name in INTEGERS else np.float32
            assert field.dtype == dtype, name
            assert field.shape == ((NUM_BINS,) if "bin" in name else (K,)), name


def test_jit_equals_eager():
    logits, labels = any_batch()
    eager = metrics.tally(
        jnp.asarray(logits), jnp.asarray(labels), jnp.ones(len(labels))
    )
    assert_same(eager, tally_of(logits, labels))


def test_four_devices_equal_one():
    logits, labels = any_batch(96)
    mask = (np.arange(96) < 70).astype(np.float32)  # the last device has padding only
    logits[70:] = np.nan

    @functools.partial(jax.pmap, axis_name="batch", out_axes=None)
    def over_devices(logits, labels, mask):
        return jax.lax.psum(metrics.tally(logits, labels, mask), "batch")

    found = over_devices(
        logits.reshape(4, 24, K), labels.reshape(4, 24), mask.reshape(4, 24)
    )
    assert_same(found, tally(logits, labels, mask))
    assert_same(found, tally_by_hand(logits[:70], labels[:70]))


def test_ties_go_to_the_first_class_as_in_argmax():
    """A head of zeros is right for class 0 only, not for every class."""
    found = tally_of(np.zeros((K, K), np.float32), np.arange(K))
    np.testing.assert_array_equal(found.right, [1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.right5, [1, 1, 1, 1, 1, 0, 0])
    pairs = np.array([[1, 1, 0], [1, 1, 0], [0, 2, 2], [0, 2, 2]], np.float32)
    found = tally_of(pairs, np.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(found.right, [1, 1, 0])


def test_diverged_logits_are_never_right():
    """Naively, argmax of NaN logits is class 0, and NaN ranks first."""
    for num_classes in (3, K):
        logits = np.full((num_classes, num_classes), np.nan, np.float32)
        found = tally_of(logits, np.arange(num_classes))
        assert found.seen.tolist() == [1] * num_classes
        assert found.right.tolist() == [0] * num_classes
        assert found.right5.tolist() == [0] * num_classes
        values = metrics.summary(found, {})
        assert values["all"] == values["top5"] == 0
        assert math.isnan(values["nll"])


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5])
def test_top5_with_at_most_five_classes_is_always_right(num_classes):
    logits, labels = any_batch(num_classes=num_classes)
    values = metrics.summary(tally_of(logits, labels), {})
    assert values["top5"] == 1
    assert values["all"] < 1


def test_confidence_of_one_is_in_the_last_bin():
    logits = np.array([[200, 0], [0, 200], [0, 0]], np.float32)
    found = tally_of(logits, np.array([0, 0, 1]))
    assert found.bin_seen[-1] == 2
    assert found.bin_right[-1] == 1
    assert found.bin_conf[-1] == 2
    assert found.bin_seen[7] == 1  # 0.5 is in (7/15, 8/15]
    assert int(np.sum(found.bin_seen)) == 3
    # (|1 - 2| + |0 - 0.5|) / 3
    assert metrics.summary(found, {})["ece"] == pytest.approx(0.5)


def test_row_reading_ignores_a_shift_per_example():
    logits, labels = any_batch()
    shift = np.random.default_rng(1).normal(0, 2, (len(labels), 1))
    before = metrics.per_class(tally_of(logits, labels))
    after = metrics.per_class(tally_of((logits + shift).astype(np.float32), labels))
    np.testing.assert_allclose(after["loma_row"], before["loma_row"], rtol=1e-4)
    assert np.abs(after["loma_col"] - before["loma_col"]).min() > 0.01


def test_column_reading_ignores_a_bias_per_class():
    logits, labels = any_batch()
    bias = np.random.default_rng(1).normal(0, 2, (1, K))
    before = metrics.per_class(tally_of(logits, labels))
    after = metrics.per_class(tally_of((logits + bias).astype(np.float32), labels))
    for name in ("loma_col", "rsd_col_true", "rsd_col_false"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3, err_msg=name)
    assert np.abs(after["loma_row"] - before["loma_row"]).min() > 0.01


def test_both_readings_have_the_same_mean_on_a_balanced_set():
    """Both equal the mean true logit minus the mean of all other logits."""
    logits, labels = any_batch(12 * K, balanced=True)
    values = metrics.summary(tally_of(logits, labels), {})
    assert values["loma_row"] == pytest.approx(values["loma_col"], rel=1e-5)
    classes = metrics.per_class(tally_of(logits, labels))
    assert np.abs(classes["loma_row"] - classes["loma_col"]).max() > 0.1
    values = metrics.summary(tally_of(*any_batch()), {})
    assert values["loma_row"] != pytest.approx(values["loma_col"], rel=1e-3)


def test_equal_magnitudes_have_no_spread():
    logits = np.where(np.eye(K), 2.0, 0.0).astype(np.float32)
    values = metrics.summary(tally_of(logits, np.arange(K)), GROUPS)
    for name in ("loma_row", "loma_col"):
        assert values[name] == pytest.approx(2)
        assert values[f"{name}_few"] == pytest.approx(2)
        assert values[f"{name}_spread"] == pytest.approx(0, abs=1e-6)


def test_summary_of_no_examples_is_nan():
    values = metrics.summary(metrics.empty(K), GROUPS)
    assert all(math.isnan(value) for value in values.values()), values


def test_summary_holds_python_floats():
    values = metrics.summary(tally_of(*any_batch()), GROUPS)
    assert {type(value) for value in values.values()} == {float}


def test_groups_include_their_limits_in_medium():
    assert {name: np.flatnonzero(w).tolist() for name, w in GROUPS.items()} == {
        "many": [0, 1],  # 101 is many
        "medium": [2, 3, 4],  # 100 and 20 are medium
        "few": [5, 6],  # 19 is few
    }
    assert (sum(w.astype(int) for w in GROUPS.values()) == 1).all()


@pytest.mark.parametrize(
    ("counts", "limits", "sizes"),
    [
        (500 * 100.0 ** (-np.arange(100) / 99), (100, 20), (35, 35, 30)),
        (np.array([900, 800, 700, 30, 3]), (100, 20), (3, 1, 1)),
        (np.array([900, 800, 700, 600]), (800, 700), (1, 2, 1)),
        (np.array([40, 8, 3]), (8, 8), (1, 1, 1)),
        (np.array([1, 60]), (60, 1), (0, 2, 0)),
        (np.full(10, 7), (7, 7), (0, 10, 0)),
    ],
)
def test_limits_of_groups_follow_the_counts(counts, limits, sizes):
    counts = counts.astype(int)
    assert metrics.group_limits(counts) == limits
    groups = metrics.groups(counts, *limits)
    assert tuple(where.sum() for where in groups.values()) == sizes


def test_right_equals_argmax_if_logits_are_computed_in_the_same_program():
    """A fusion may compute a logit twice, with and without a fused multiply-add.

    The true class must not rank ahead of itself because of the last bit.
    """
    head = heads.aligned
    params = head.init(jax.random.key(0), None, 64, 10, "torch")
    params = {  # away from zeros and ones, which are exact
        name: leaf + jax.random.normal(jax.random.key(1), leaf.shape) / 10
        for name, leaf in params.items()
    }
    features = jax.random.uniform(jax.random.key(2), (200, 64))
    logits = np.asarray(head.apply(params, features))
    labels = jnp.asarray(np.argmax(logits, axis=1))

    @jax.jit
    def measured(params, features, labels, mask):
        return metrics.tally(head.apply(params, features), labels, mask)

    found = measured(params, features, labels, jnp.ones(200))
    assert int(found.right.sum()) == 200
