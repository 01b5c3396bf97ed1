"""The feature cache: correct features, whatever the file on disk contains."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_digits

from lt_jax import files, models
from lt_jax.data.augment import transforms
from lt_jax.distributed import sharding
from lt_jax.errors import Interrupted
from lt_jax.experiment import weights
from lt_jax.experiment.session import open_session
from lt_jax.heads import linear
from lt_jax.retraining import features
from lt_jax.retraining.features import Request
from lt_jax.training import loop
from lt_jax.training.log import Logger

PLAIN = Request(("plain",), (2, 0), "float32")


def _edit(note, file):
    file.write_text(json.dumps(note | {"left_out": [0]}))
    del note["digest"]  # do not write it again


def _make_fifo(note, file):
    del note["digest"]
    file.unlink()
    os.mkfifo(file)


@pytest.fixture(scope="module")
def task_and_network(tmp_path_factory):
    config = tiny_digits.config(data__pad=2, data__flip=True, eval__batch=50)
    with open_session(config, tmp_path_factory.mktemp("work"), writes=False) as session:
        yield session.task, weights.fresh(session.task, "torch", (1, 0))


def compute(task_and_network, file, request=PLAIN, split="train"):
    task, network = task_and_network
    dataset = getattr(task.splits, split)
    task = task._replace(log=Logger(file.parent))
    return features.cached_features(task, network, dataset, request, file)


def by_hand(task, network, images):
    params, stats = network.params["backbone"], network.batch_stats
    module = models.create(
        "resnet8",
        stem="cifar",
        width=4,
        zero_init=False,
        init="torch",
        dtype="float32",
        axis_name=None,
    )
    images = transforms.normalise(task.augment, images)
    return module.apply(
        {"params": params, "batch_stats": stats}, images, jnp.ones(len(images)), False
    )


def test_features_match_the_backbone(task_and_network, tmp_path):
    task, network = task_and_network
    request = Request(("plain", "mirror"), (), "float32")
    found = compute(task_and_network, tmp_path / "f.npy", request, "valid")
    images = task.splits.valid.read(np.arange(len(task.splits.valid)))
    for view, seen in zip(found.values, (images, images[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(view, by_hand(task, network, seen), atol=1e-5)
    np.testing.assert_array_equal(found.labels, task.splits.valid.labels)


def test_random_views_differ_and_do_not_depend_on_the_batch(task_and_network, tmp_path):
    task, network = task_and_network
    request = Request(("random", "random"), (2, 0), "float32")
    found = compute(task_and_network, tmp_path / "one.npy", request, "valid")
    assert not np.allclose(found.values[0], found.values[1])
    plain = compute(task_and_network, tmp_path / "plain.npy", PLAIN, "valid")
    assert not np.allclose(found.values[0], plain.values[0])
    other = task._replace(eval_batch=17), network
    again = compute(other, tmp_path / "two.npy", request, "valid")
    np.testing.assert_allclose(found.values, again.values, atol=1e-5)
    elsewhere = compute(
        task_and_network, tmp_path / "three.npy", request._replace(run=(2, 1)), "valid"
    )
    assert not np.allclose(found.values, elsewhere.values)


def test_bfloat16_halves_the_file(task_and_network, tmp_path):
    whole = compute(task_and_network, tmp_path / "whole.npy")
    half = compute(
        task_and_network, tmp_path / "half.npy", PLAIN._replace(dtype="bfloat16")
    )
    assert half.values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.values, whole.values.astype(jnp.bfloat16))
    sizes = [(tmp_path / f"{name}.npy").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]
    again = compute(
        task_and_network, tmp_path / "half.npy", PLAIN._replace(dtype="bfloat16")
    )
    np.testing.assert_array_equal(again.values, half.values)


def test_matching_features_are_not_recomputed(
    task_and_network, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "f.npy"
    first = np.array(compute(task_and_network, file).values)
    monkeypatch.setattr(features, "extract", None)  # would fail if it were called
    np.testing.assert_array_equal(compute(task_and_network, file).values, first)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda note, file: note.update(network="x"), "network changed"),
        (lambda note, file: note.update(split="x", order="x"), "split, order changed"),
        (lambda note, file: note.update(dtype="bfloat16"), "dtype changed"),
        (lambda note, file: note.update(views=["mirror"]), "views changed"),
        (lambda note, file: note.update(left_out=[0]), "damaged"),
        (lambda note, file: note.update(left_out=[10**9]), "damaged"),
        (lambda note, file: note.update(left_out=["0"]), "cannot read f.json"),
        (lambda note, file: note.update(sha256=1), "cannot read f.json"),
        (lambda note, file: _edit(note, file.with_suffix(".json")), "cannot read"),
        (lambda note, file: _make_fifo(note, file.with_suffix(".json")), "cannot read"),
        (lambda note, file: _make_fifo({"digest": ""}, file), "damaged"),
        (lambda note, file: file.write_bytes(file.read_bytes()[:-9]), "damaged"),
        (lambda note, file: file.write_bytes(b"no array"), "damaged"),
        (lambda note, file: np.save(file, np.zeros((1, 2, 3))), "damaged"),
    ],
)
def test_stale_features_are_reported_and_recomputed(
    task_and_network, tmp_path, capsys, spoil, reason
):
    file = tmp_path / "f.npy"
    first = np.array(compute(task_and_network, file).values)
    note = json.loads(file.with_suffix(".json").read_text())
    spoil(note, file)
    if note.pop("digest", None):
        files.write(file.with_suffix(".json"), files.sealed_json(note))
    np.testing.assert_array_equal(compute(task_and_network, file).values, first)
    assert reason in capsys.readouterr().out


def test_a_file_without_provenance_is_not_used(task_and_network, tmp_path, capsys):
    compute(task_and_network, tmp_path / "f.npy")
    (tmp_path / "f.json").unlink()
    compute(task_and_network, tmp_path / "f.npy")
    assert "cannot read f.json" in capsys.readouterr().out


def test_a_failed_write_leaves_no_file(task_and_network, tmp_path, monkeypatch):
    def one_block(*_, **__):
        yield np.zeros((1, 16), np.float32)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "extract", one_block)
    with pytest.raises(OSError, match="No space left"):
        compute(task_and_network, tmp_path / "f.npy")
    assert not list(tmp_path.glob("*.npy*"))


def test_a_signal_between_two_batches_leaves_no_file(task_and_network, tmp_path):
    task, network = task_and_network
    given = network, task.splits.train, PLAIN, tmp_path / "f.npy"
    answers = iter(["", "", "SIGTERM"])
    stopped = task._replace(stop_requested=lambda: next(answers))
    with pytest.raises(Interrupted, match="the features of digits"):
        features.cached_features(stopped, *given)
    assert not list(tmp_path.glob("f.*"))
    task = task._replace(stop_requested=lambda: "")
    assert len(features.cached_features(task, *given).labels) == len(task.splits.train)


def test_a_signal_between_two_batches_stops_an_evaluation(task_and_network, tmp_path):
    task, network = task_and_network
    given = linear, network, task.splits.test
    answers = iter(["", "", "SIGTERM"])
    stopped = task._replace(stop_requested=lambda: next(answers))
    with pytest.raises(Interrupted, match="the evaluation on digits"):
        loop.evaluate(stopped, *given)
    assert loop.evaluate(task, *given).seen.sum() == len(task.splits.test)


def test_gathering_rows_of_a_sharded_array():
    values = np.arange(22, dtype=np.float32).reshape(11, 2)
    take = sharding.jit_over_devices(
        lambda v, i: sharding.gather_rows(v, i)[None], sharded=(True, False)
    )
    indices = np.array([10, 0, 3, 3, 9], np.int32)
    found = take(sharding.shard_globally(values), indices)
    assert found.shape == (jax.local_device_count(), 5, 2)
    for each in found:
        np.testing.assert_array_equal(each, values[indices])


def test_a_norm_that_published_rates_do_not_suit_has_a_note():
    values = np.zeros((3, 4), np.float32)
    values[:, 0] = 40
    note = features.norm_note(values)
    assert "mean norm of 40;" in note
    assert features.norm_note(values / 5) == ""
    assert "Set --config.data.norm=8," in features.norm_note(values / 100)
