"""Features: the right ones, whatever lies on the disk."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_digits

from lt_jax import models
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


@pytest.fixture(scope="module")
def task_and_network(tmp_path_factory):
    config = tiny_digits.config(data__pad=2, data__flip=True, eval__batch=50)
    with open_session(config, tmp_path_factory.mktemp("work"), writes=False) as session:
        yield session.task, weights.fresh(session.task, "torch", (1, 0))


def made(task_and_network, file, request=PLAIN, split="train"):
    task, network = task_and_network
    dataset = getattr(task.splits, split)
    log = Logger(file.parent)
    return features.cached_features(task, *network, dataset, request, file, log)


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


def test_a_view_is_what_the_backbone_sees(task_and_network, tmp_path):
    task, network = task_and_network
    request = Request(("plain", "mirror"), (), "float32")
    found = made(task_and_network, tmp_path / "f.npy", request, "valid")
    images = task.splits.valid.read(np.arange(len(task.splits.valid)))
    for view, seen in zip(found.values, (images, images[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(view, by_hand(task, network, seen), atol=1e-5)
    np.testing.assert_array_equal(found.labels, task.splits.valid.labels)


def test_random_views_differ_and_repeat_whatever_the_batch(task_and_network, tmp_path):
    task, network = task_and_network
    request = Request(("random", "random"), (2, 0), "float32")
    found = made(task_and_network, tmp_path / "one.npy", request, "valid")
    assert not np.allclose(found.values[0], found.values[1])
    plain = made(task_and_network, tmp_path / "plain.npy", PLAIN, "valid")
    assert not np.allclose(found.values[0], plain.values[0])
    other = task._replace(eval_batch=17), network
    again = made(other, tmp_path / "two.npy", request, "valid")
    np.testing.assert_allclose(found.values, again.values, atol=1e-5)
    elsewhere = made(
        task_and_network, tmp_path / "three.npy", request._replace(run=(2, 1)), "valid"
    )
    assert not np.allclose(found.values, elsewhere.values)


def test_bfloat16_takes_half_the_disk(task_and_network, tmp_path):
    whole = made(task_and_network, tmp_path / "whole.npy")
    half = made(
        task_and_network, tmp_path / "half.npy", PLAIN._replace(dtype="bfloat16")
    )
    assert half.values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.values, whole.values.astype(jnp.bfloat16))
    sizes = [(tmp_path / f"{name}.npy").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]
    again = made(
        task_and_network, tmp_path / "half.npy", PLAIN._replace(dtype="bfloat16")
    )
    np.testing.assert_array_equal(again.values, half.values)


def test_good_ones_are_read_and_not_made(
    task_and_network, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "f.npy"
    first = np.array(made(task_and_network, file).values)
    monkeypatch.setattr(features, "extract", None)  # would fail if it were called
    np.testing.assert_array_equal(made(task_and_network, file).values, first)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda note, file: note.update(network="x"), "differs in network"),
        (lambda note, file: note.update(split="x", order="x"), "in split, order"),
        (lambda note, file: note.update(dtype="bfloat16"), "differs in dtype"),
        (lambda note, file: note.update(views=["mirror"]), "differs in views"),
        (lambda note, file: file.write_bytes(file.read_bytes()[:-9]), "its length"),
        (lambda note, file: file.write_bytes(b"no array"), "its length"),
        (lambda note, file: np.save(file, np.zeros((1, 2, 3))), "shape"),
    ],
)
def test_wrong_ones_are_told_and_made_again(
    task_and_network, tmp_path, capsys, spoil, told
):
    file = tmp_path / "f.npy"
    first = np.array(made(task_and_network, file).values)
    note = json.loads(file.with_suffix(".json").read_text())
    spoil(note, file)
    file.with_suffix(".json").write_text(json.dumps(note))
    np.testing.assert_array_equal(made(task_and_network, file).values, first)
    assert told in capsys.readouterr().out


def test_a_file_without_its_note_is_not_used(task_and_network, tmp_path, capsys):
    made(task_and_network, tmp_path / "f.npy")
    (tmp_path / "f.json").unlink()
    made(task_and_network, tmp_path / "f.npy")
    assert "f.json, which tells what it was made from" in capsys.readouterr().out


def test_a_write_that_fails_leaves_nothing(task_and_network, tmp_path, monkeypatch):
    def one_block(*_):
        yield np.zeros((1, 16), np.float32)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "extract", one_block)
    with pytest.raises(OSError, match="No space left"):
        made(task_and_network, tmp_path / "f.npy")
    assert not list(tmp_path.glob("*.npy*"))


def test_a_signal_between_two_batches_leaves_no_file(task_and_network, tmp_path):
    task, network = task_and_network
    request, log, file = PLAIN, Logger(tmp_path), tmp_path / "f.npy"
    given = task, *network, task.splits.train, request, file, log
    answers = iter(["", "", "SIGTERM"])
    with pytest.raises(Interrupted, match="the features of digits"):
        features.cached_features(*given, lambda: next(answers))
    assert not list(tmp_path.glob("f.*"))
    assert len(features.cached_features(*given).labels) == len(task.splits.train)


def test_a_signal_between_two_batches_stops_an_evaluation(task_and_network, tmp_path):
    task, network = task_and_network
    given = task, linear, *network, task.splits.test, Logger(tmp_path)
    answers = iter(["", "", "SIGTERM"])
    with pytest.raises(Interrupted, match="the evaluation on digits"):
        loop.evaluate(*given, lambda: next(answers))
    assert loop.evaluate(*given).seen.sum() == len(task.splits.test)


def test_rows_of_an_array_divided_over_the_devices():
    values = np.arange(22, dtype=np.float32).reshape(11, 2)
    take = sharding.jit_over_devices(
        lambda v, i: sharding.gather_rows(v, i)[None], sharded=(True, False)
    )
    indices = np.array([10, 0, 3, 3, 9], np.int32)
    found = take(sharding.shard_globally(values), indices)
    assert found.shape == (jax.local_device_count(), 5, 2)
    for each in found:
        np.testing.assert_array_equal(each, values[indices])
