"""Trees by leaf names: round trips and reported differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import trees
from lt_jax.errors import InputError
from lt_jax.types import TrainState

PARAMS = {
    "backbone": {"conv1": {"kernel": 1}, "conv10": {"kernel": 2}, "bn": {"scale": 3}},
    "head": {"kernel": 4, "bias": 5},
}


def test_leaves_are_named_by_their_path():
    assert trees.leaves(PARAMS) == {
        "backbone/bn/scale": 3,
        "backbone/conv1/kernel": 1,
        "backbone/conv10/kernel": 2,
        "head/bias": 5,
        "head/kernel": 4,
    }


def test_leaves_of_a_training_state():
    state = TrainState(
        step=jnp.array(3),
        params={"head": {"bias": jnp.zeros(2)}},
        batch_stats={},
        opt_state=(None, [jnp.ones(1)]),
    )
    assert [*trees.leaves(state)] == ["step", "params/head/bias", "opt_state/1/0"]
    again = trees.rebuild(state, trees.leaves(state))
    assert isinstance(again, TrainState)
    assert jax.tree.structure(again) == jax.tree.structure(state)


@pytest.mark.parametrize("tree", [PARAMS, {"a": [1, (2, {"b": 3})]}, {}])
def test_rebuild_undoes_leaves(tree):
    assert trees.rebuild(tree, trees.leaves(tree)) == tree


def test_rebuild_matches_by_name_not_by_order():
    values = {name: name for name in reversed(trees.leaves(PARAMS))}
    again = trees.leaves(trees.rebuild(PARAMS, values | {"not/used": 0}))
    assert again == {name: name for name in again}


@pytest.mark.parametrize(
    ("pattern", "inside"),
    [
        (".*", {1, 2, 3, 4, 5}),
        ("head/.*", {4, 5}),
        ("head/bias", {5}),
        ("backbone/conv1/kernel", {1}),
        (".*/kernel", {1, 2, 4}),
        ("backbone/conv1.*", {1, 2}),
    ],
)
def test_partition_splits_and_join_undoes_it(pattern, inside):
    one, other = trees.partition(PARAMS, pattern)
    assert {*trees.leaves(one).values()} == inside
    assert {*trees.leaves(other).values()} == {1, 2, 3, 4, 5} - inside
    assert trees.join(one, other) == trees.join(other, one) == PARAMS


def test_partition_of_everything():
    assert trees.partition(PARAMS, ".*") == (PARAMS, {})


def test_partition_does_not_copy_arrays():
    params = {"head": {"kernel": np.ones(3), "bias": np.zeros(2)}}
    one, other = trees.partition(params, ".*bias")
    assert one["head"]["bias"] is params["head"]["bias"]
    assert other["head"]["kernel"] is params["head"]["kernel"]


@pytest.mark.parametrize("pattern", ["head", "kernel", "haed/.*", "", "head/bia"])
def test_partition_rejects_a_pattern_without_matches(pattern):
    with pytest.raises(InputError, match=rf"'{pattern}': expected one of .*head/bias"):
        trees.partition(PARAMS, pattern)


def test_differences():
    found = {"a": np.ones(2), "b": np.ones((2, 3)), "old": np.ones(1)}
    expected = {"a": np.zeros(2), "b": np.ones((2, 4)), "new": np.ones(())}
    assert trees.differences(found, expected) == [
        "! b: (2, 3) in the file, (2, 4) in this model",
        "- new (): missing from the file",
        "+ old (1,): not in this model",
    ]


def test_no_differences():
    assert trees.differences({"a": np.ones(2)}, {"a": np.zeros(2)}) == []
    assert trees.differences({}, {}) == []
