"""Checkpoints: which are kept, restored and refused."""

from __future__ import annotations

import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.errors import InputError
from lt_jax.training import checkpoint
from lt_jax.training.checkpoint import Checkpoints
from lt_jax.types import TrainState


def state(value: float) -> TrainState:
    params = {
        "backbone": {"conv": {"kernel": jnp.full((3, 2), value)}},
        "head": {"kernel": jnp.full((2, 4), value), "bias": jnp.zeros(4)},
    }
    return TrainState(
        step=jnp.asarray(int(value), jnp.int32),
        params=params,
        batch_stats={"norm": {"mean": jnp.zeros(2)}},
        opt_state=optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)).init(
            {"head": params["head"]}
        ),
    )


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints; the second has the best score, the last has none."""
    store = Checkpoints(tmp_path / "run")
    for step, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, None)):
        store.save(step, state(float(step)), {"step": step}, score)
    store.close()
    return tmp_path / "run"


def test_last_two_and_best_are_kept(saved):
    store = Checkpoints(saved)
    assert (store.latest(), store.best()) == (5, 2)
    assert {p.name for p in saved.iterdir()} == {"2", "4", "5"}
    store.close()


def test_restore_returns_every_leaf_and_the_notes(saved):
    store = Checkpoints(saved)
    found, notes = store.restore(5, state(0.0))
    store.close()
    assert notes == {"step": 5}
    assert isinstance(found, TrainState)
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((2, 4), 5.0))
    assert found.step.dtype == np.int32
    assert int(found.step) == 5
    assert found.opt_state[1].trace["head"]["bias"].shape == (4,)


def test_nothing_saved_yet(tmp_path):
    store = Checkpoints(tmp_path / "new")
    assert store.latest() is None
    assert store.best() is None
    store.close()


def test_the_state_may_be_donated_right_after_save(tmp_path):
    """Writing continues in the background while training reuses the buffers."""
    store = Checkpoints(tmp_path / "run")
    overwrite = jax.jit(lambda a: a * 0 + 7, donate_argnums=0)
    array = jax.jit(lambda: jnp.ones(300_000))()
    store.save(1, {"a": array}, {}, None)
    overwrite(array).block_until_ready()
    host = np.ones(300_000)
    store.save(2, {"a": host}, {}, None)
    host[:] = 7
    store.close()
    np.testing.assert_array_equal(checkpoint.load_leaves(tmp_path / "run/2")["a"], 1.0)


def test_another_network_is_listed_leaf_by_leaf(saved):
    other = state(0.0)
    params = {
        **other.params,
        "head": {"kernel": jnp.zeros((2, 9)), "scale": jnp.ones(9)},
    }
    store = Checkpoints(saved)
    with pytest.raises(InputError) as error:
        store.restore(5, other.replace(params=params))
    store.close()
    text = str(error.value)
    assert "! params/head/kernel: (2, 4) in the file, (2, 9) in this model" in text
    assert "+ params/head/bias (4,): not in this model" in text
    assert "- params/head/scale (9,): missing from the file" in text
    assert "conv" not in text  # what fits is not listed


def test_merge_skips_only_matching_leaves(saved):
    found = checkpoint.load_leaves(saved / "5")
    fresh = state(0.0).params
    head = {name: leaf for name, leaf in found.items() if name.startswith("params/")}
    merged = checkpoint.merge_leaves(head, {"params": fresh}, "head/.*", "here")
    np.testing.assert_array_equal(merged["params"]["head"]["kernel"], 0.0)
    np.testing.assert_array_equal(merged["params"]["backbone"]["conv"]["kernel"], 5.0)

    del head["params/backbone/conv/kernel"]
    with pytest.raises(InputError, match="- params/backbone/conv/kernel"):
        checkpoint.merge_leaves(head, {"params": fresh}, "head/.*", "here")


# The writer of the failed checkpoint may end after the loop that it reports to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk(tmp_path):
    """A limit on file sizes simulates a full disk."""
    store = Checkpoints(tmp_path / "run")
    store.save(1, {"a": np.ones(10)}, {}, None)
    store.close()
    store = Checkpoints(tmp_path / "run")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"a": np.random.default_rng(0).random(100_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
        store.save(2, big, {}, None)
        with pytest.raises(InputError, match=r"cannot write .*File too large.*room"):
            store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    again = Checkpoints(tmp_path / "run")
    assert again.latest() == 1
    np.testing.assert_array_equal(again.restore(1, {"a": np.ones(10)})[0]["a"], 1.0)
    again.close()


def spoil(file, at, cut):
    content = bytearray(file.read_bytes())
    at = int(at * len(content))
    content[at] ^= 1
    file.write_bytes(content[:at] if cut else content)


@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "cut"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("part", ["state", "notes"])
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(saved, part, at, cut):
    """Any damaged file, unless the damage does not affect what is read."""
    files = [f for f in (saved / "5" / part).rglob("*") if f.is_file()]
    for file in files:
        if file.stat().st_size:
            spoil(file, at, cut)
    lines = []
    store = Checkpoints(saved)
    step, found, notes = store.resume(state(0.0), lines.append)
    store.close()
    assert (step, int(found.step), notes) == (4, 4, {"step": 4})
    assert "5 is damaged" in lines[0]
    assert "using step 4" in lines[0]
    assert not (saved / "5").exists()


def test_changed_values_are_damage_even_if_the_file_is_valid(saved, monkeypatch):
    """All file formats may accept the data; the digest detects the change."""
    store = Checkpoints(saved)
    restore = store._manager.restore

    def changed(*args, **kwargs):
        loaded = restore(*args, **kwargs)
        loaded["state"]["params"]["head"]["bias"][0] += 1
        return loaded

    monkeypatch.setattr(store._manager, "restore", changed)
    with pytest.raises(InputError, match="content has changed"):
        store.restore(5, state(0.0))
    store.close()


def test_without_an_intact_checkpoint_the_fit_starts_again(saved):
    """Such as the remnants of a workdir that was deleted under a job."""
    spoil(saved / "2" / "notes" / "metadata", 0.5, cut=True)
    shutil.rmtree(saved / "4")
    (saved / "4").mkdir()
    (saved / "5/state/manifest.ocdbt").unlink()
    lines: list[str] = []
    store = Checkpoints(saved)
    assert store.resume(state(0.0), lines.append) is None
    assert store.latest() is None
    store.save(2, state(2.0), {"examples": "x"}, score=None)
    store.close()
    assert all("is damaged" in line and "starts again" in line for line in lines)
    names = sorted(p.name[:9] for p in saved.iterdir())
    assert names == ["2", "2.damaged", "4.damaged", "5.damaged"]


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "notes/metadata"])
def test_pipes_and_huge_files_are_damage(saved, name):
    (saved / "5" / name).unlink()
    os.mkfifo(saved / "5" / name)
    with pytest.raises(InputError, match=r"5 is damaged .*is not a regular file"):
        checkpoint.load_leaves(saved / "5")
    os.truncate(saved / "4" / name, 10 * 2**30)
    with pytest.raises(InputError, match=r"4 is damaged .*more than 67,108,864 bytes"):
        checkpoint.load_leaves(saved / "4")


def test_loading_damaged_leaves_is_an_error(tmp_path):
    checkpoint.save_tree(tmp_path, 3, {"head": jnp.arange(100.0)})
    for file in (tmp_path / "3" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            spoil(file, 0.5, cut=False)
    with pytest.raises(InputError, match="3 is damaged"):
        checkpoint.load_leaves(tmp_path / "3")
