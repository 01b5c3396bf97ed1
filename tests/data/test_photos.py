"""Photographs: loading, masking damaged files, training and evaluation."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import jax
import numpy as np
import pytest
import tiny_digits
from made_photos import VIEW, dataset, patterned
from test_steps import on

from lt_jax import samplers
from lt_jax.data import catalogue
from lt_jax.data.images.photos import photographs
from lt_jax.data.loader import IMAGES_PER_TASK, CropPlan, DecodeErrors, load_batches
from lt_jax.errors import InputError
from lt_jax.experiment import evaluation, results, stages
from lt_jax.retraining import engine, features
from lt_jax.training import inference, steps
from lt_jax.training.progress import Meter

LABELS = np.repeat(np.arange(3), (40, 20, 12)).astype(np.int32)
FILES = patterned(LABELS, 3, seed=1)
TEST_LABELS = np.repeat(np.arange(3), 8).astype(np.int32)
TEST_FILES = patterned(TEST_LABELS, 3, seed=2)


def made(broken=(), share=0.0, workers=1, files=FILES, labels=LABELS, name="made"):
    files = list(files)
    for i in broken:
        files[i] = files[i][: len(files[i]) // 2]
    view = VIEW._replace(broken=share, workers=workers)
    return dataset(files, view, labels, num_classes=3, name=name)


def fed(dataset, rows, epoch=0, first=0, **how):
    """Load all batches of a plan on the host."""
    places = np.arange(rows.size).reshape(rows.shape)
    crops = CropPlan((1, 0), epoch, places[first:])
    return list(load_batches(dataset, rows[first:], dict, crops=crops, **how))


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(a[name], b[name])


def plan(batch=20, epoch=0):
    return samplers.plan(LABELS, "instance", batch, (1, 0), epoch)


def test_a_batch_holds_the_images_of_its_row():
    rows = samplers.batch_indices(np.arange(len(LABELS)), 20)
    batches = list(load_batches(made(), rows, dict))
    whole = made().read(np.arange(len(LABELS)))
    for row, batch in zip(rows, batches, strict=True):
        real = row[row >= 0]
        np.testing.assert_array_equal(batch["image"][: len(real)], whole[real])
        np.testing.assert_array_equal(batch["label"][: len(real)], LABELS[real])
        np.testing.assert_array_equal(batch["mask"], np.arange(20) < len(real))
        assert not batch["image"][len(real) :].any()
        assert batch["image"].dtype == np.uint8


def test_batches_do_not_depend_on_workers_or_batches_ahead():
    base = fed(made(), plan())
    for workers in (2, 5):
        assert_equal(fed(made(workers=workers), plan()), base)
    for ahead in (0, 1, 7):
        assert_equal(fed(made(workers=2), plan(), ahead=ahead), base)


def test_a_plan_can_be_entered_anywhere():
    base = fed(made(workers=2), plan())
    for first in (1, 2, 3):
        assert_equal(fed(made(workers=2), plan(), first=first), base[first:])


def test_crops_depend_only_on_run_epoch_and_position():
    base = fed(made(), plan())
    assert_equal(fed(made(), plan()), base)
    other = fed(made(), plan(), epoch=1)
    assert not np.array_equal(base[0]["image"], other[0]["image"])
    # One image at two positions has two crops; the batch does not matter.
    twice = np.array([[3, 3, 5, 3]])
    (one,) = fed(made(), twice)
    assert not np.array_equal(one["image"][0], one["image"][1])
    halves = fed(made(), twice.reshape(2, 2))
    np.testing.assert_array_equal(
        one["image"], np.concatenate([half["image"] for half in halves])
    )


def test_a_subset_has_the_same_crops():
    chosen = np.array([50, 7, 9, 31])
    part = made().take(chosen)
    assert len(part) == 4
    rows = np.array([[2, 0, 1, 3]])
    assert_equal(fed(part, rows), fed(made(), chosen[rows]))
    np.testing.assert_array_equal(part.read(np.array([1])), made().read(np.array([7])))


def test_a_process_reads_only_its_own_columns():
    rows = np.concatenate([plan(), np.full((4, 4), -1, np.int32)], axis=1)
    places = np.arange(rows.size).reshape(rows.shape)
    base = list(load_batches(made(), rows, dict, crops=CropPlan((1, 0), 0, places)))
    read: list[int] = []

    def noting(indices):
        read.extend(indices)
        return [FILES[i] for i in indices]

    ids = np.arange(len(LABELS)).astype(str)
    whole = photographs("made", ("a", "b", "c"), LABELS, ids, noting, VIEW)
    for number in range(3):
        read.clear()
        own = slice(8 * number, 8 * number + 8)
        crops = CropPlan((1, 0), 0, places[:, own])
        part = list(load_batches(whole, rows[:, own], dict, crops=crops))
        assert_equal(part, [{k: v[own] for k, v in one.items()} for one in base])
        assert sorted(read) == sorted(i for i in rows[:, own].ravel() if i >= 0)


def test_photographs_are_never_held_in_memory():
    def never(rows):
        raise AssertionError("read")

    ids = np.arange(len(LABELS)).astype(str)
    part = photographs("made", ("a", "b", "c"), LABELS, ids, never, VIEW)
    assert part.in_memory() is part


def test_reading_ahead_stops_with_the_caller():
    read = []
    slow = threading.Event()

    def waits(rows):
        slow.wait(0.02)
        read.extend(rows)
        return [FILES[i] for i in rows]

    ids = np.arange(len(LABELS)).astype(str)
    part = photographs("made", ("a", "b", "c"), LABELS, ids, waits, VIEW)
    rows = np.tile(plan(8), (20, 1))
    batches = load_batches(part, rows, dict, ahead=2)
    next(batches)
    batches.close()
    assert len(read) <= 4 * 8
    assert threading.active_count() < 10


def test_a_bug_is_not_an_undecodable_image():
    def fails(rows):
        raise RuntimeError("the disk is gone")

    ids = np.arange(len(LABELS)).astype(str)
    view = VIEW._replace(broken=0.9, workers=2)
    part = photographs("made", ("a", "b", "c"), LABELS, ids, fails, view)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fed(part, plan())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_broken_image_becomes_padding_and_is_reported(workers):
    bad = (4, 17, 66)
    part = made(bad, share=0.1, workers=workers)
    broken = DecodeErrors(part)
    rows = plan()
    found = fed(part, rows, errors=broken)
    base = fed(made(), rows)
    for row, one, other in zip(rows, found, base, strict=True):
        spoilt = np.isin(row, bad)
        np.testing.assert_array_equal(one["mask"], other["mask"] * ~spoilt)
        np.testing.assert_array_equal(one["image"][~spoilt], other["image"][~spoilt])
        assert not one["image"][spoilt].any()
    assert set(broken.reasons) == set(bad)
    warning = broken.new_warning()
    for i in bad:
        assert f"made/{i:04d}.jpg" in warning
    assert "skipped 3 undecodable images" in warning
    assert broken.new_warning() == ""


def test_more_broken_images_than_allowed_stop_the_run():
    assert len(fed(made((4, 5, 6), share=3 / 72), plan())) == 4
    with pytest.raises(InputError) as caught:
        fed(made((4, 5, 6), share=2.9 / 72), plan())
    message = str(caught.value)
    assert "made: 3 of 72 images" in message
    assert "made/0005.jpg" in message
    assert message.endswith("--config.data.broken=0.042")
    with pytest.raises(InputError, match=r"made/0008\.jpg"):
        fed(made((8,)), plan())


def test_stops_as_soon_as_too_many_are_broken():
    """Without reading the rest."""
    read = []

    def noting(rows):
        read.extend(rows)
        return [b"" for _ in rows]

    ids = np.arange(len(LABELS)).astype(str)
    view = VIEW._replace(broken=0.1)
    part = photographs("made", ("a", "b", "c"), LABELS, ids, noting, view)
    with pytest.raises(InputError, match=r"and \d+ more|made"):
        fed(part, np.tile(plan(8), (10, 1)), ahead=1)
    assert len(read) <= 72 + 8 * IMAGES_PER_TASK + 24


# Both stages, as a user would run them.

LOST = 5  # an image of the fitted part


def config(**changes):
    return tiny_digits.config(
        data__name="cifar10",
        data__imbalance=1.0,
        data__pad=0,
        data__flip=True,
        data__valid=0.2,
        data__many=25,
        data__few=15,
        data__mean=(0.485, 0.456, 0.406),
        data__std=(0.229, 0.224, 0.225),
        eval__batch=16,
        optim__batch=12,
        optim__lr_batch=12,
        method__batch=12,
        method__lr_batch=12,
        **changes,
    )


def source(monkeypatch, broken=(), test_broken=(), share=0.1):
    # No image of the smallest class is lost: its size determines the cut.
    def load(dir):
        full = made(broken, share, workers=2)
        test = made(test_broken, share, 2, TEST_FILES, TEST_LABELS, name="test")
        return full, test

    monkeypatch.setitem(catalogue.SOURCES, "cifar10", load)
    monkeypatch.setattr(
        catalogue.longtail, "choose", lambda labels, *rest: np.arange(len(labels))
    )


@pytest.fixture
def one_device(monkeypatch):
    """Only the first of the four virtual devices, with its own compiled steps."""
    engine._make_measure.cache_clear()
    with monkeypatch.context() as patch:
        on(patch, 1)
        yield
    makers = (
        steps.make_train_step,
        inference.make_eval_step,
        inference.make_feature_step,
    )
    for maker in makers:
        maker.cache_clear()
    engine._make_measure.cache_clear()


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory):
    """Losses and log of stage 1, trained on all virtual devices."""
    workdir = tmp_path_factory.mktemp("four")
    with pytest.MonkeyPatch.context() as patch:
        source(patch, broken=(LOST,), test_broken=(1, 9))
        stages.train(config(optim__epochs=2, optim__lr=0.02), workdir)
    return losses(workdir), (workdir / "log.txt").read_text()


def test_both_stages_on_one_device_as_on_four(
    on_four_devices, one_device, tmp_path, monkeypatch, capsys
):
    source(monkeypatch, broken=(LOST,), test_broken=(1, 9))
    c = config(optim__epochs=2, optim__lr=0.02)
    found = stages.run(c, tmp_path)
    ours, log = losses(tmp_path), (tmp_path / "log.txt").read_text()
    for text in (log, on_four_devices[1]):
        assert f"made/{LOST:04d}.jpg" in text
        assert "test: skipped 2 undecodable images" in text
    np.testing.assert_allclose(ours[0], on_four_devices[0][0], rtol=2e-3)
    assert found["methods"]["none"]["all"]["mean"] > 0.4
    # Only decodable images are scored.
    outcome = results.outcome(tmp_path / "checkpoints/stage1/0")
    assert outcome is not None
    assert outcome["left_out"] == 2
    right = outcome["metrics"]["all"] * (len(TEST_LABELS) - 2)
    assert right == pytest.approx(round(right))
    # `evaluate` reports it too, on stderr.
    capsys.readouterr()
    again = evaluation.evaluate_all(c, tmp_path, "test")
    assert again["stage1/0"]["all"] == found["methods"]["none"]["all"]["mean"]
    assert "test/0009.jpg" in capsys.readouterr().err


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    source(monkeypatch, broken=(3,))
    c = config(optim__epochs=2, method__names=("ce",))
    stages.train(c, tmp_path / "whole")
    add = Meter.add

    def pressing(self, step, *measured):
        add(self, step, *measured)
        if step == 7:  # in the second of two epochs of 5 steps
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add", pressing)
        with pytest.raises(Exception, match="step 7"):
            stages.train(c, tmp_path / "parts")
    stages.train(c, tmp_path / "parts")
    kept = []
    for name in ("whole", "parts"):
        outcome = results.outcome(tmp_path / name / "checkpoints/stage1/0")
        assert outcome is not None
        kept.append((outcome["metrics"], outcome["per_class"], outcome["step"]))
    assert kept[0] == kept[1]


def test_a_step_without_decodable_images_is_skipped(tmp_path, monkeypatch):
    """58 images in batches of 57: the only image of the last step is broken."""
    source(monkeypatch, broken=tuple(range(72)), share=0.99)
    with pytest.raises(InputError, match=r"more than the share.*data\.broken=[\d.]+$"):
        stages.train(config(method__names=("ce",)), tmp_path / "all")
    lost = int(plan_of_the_run(57)[-1, 0])
    source(monkeypatch, broken=(int(fitted_rows()[lost]),), share=0.1)
    c = config(optim__epochs=1, method__names=("ce",))
    c.optim.batch = 57
    stages.train(c, tmp_path / "one")
    outcome = results.outcome(tmp_path / "one/checkpoints/stage1/0")
    assert outcome is not None
    assert np.isfinite(outcome["metrics"]["nll"])


def fitted_rows():
    fit, _ = catalogue.longtail.hold_out(LABELS, 0.2, 0, 3)
    assert len(fit) == 58
    return fit


def plan_of_the_run(batch):
    return samplers.plan(LABELS[fitted_rows()], "instance", batch, (1, 0), 0)


def test_too_many_broken_test_images_end_an_evaluation(tmp_path, monkeypatch):
    source(monkeypatch, test_broken=(0, 1, 2))
    with pytest.raises(InputError, match=r"test: 3 of .* images"):
        stages.train(config(optim__epochs=1, method__names=("ce",)), tmp_path)


def test_cached_features_leave_broken_images_out(tmp_path, monkeypatch, capsys):
    lost = fitted_rows()[[5, 11]]
    source(monkeypatch, broken=tuple(int(i) for i in lost), test_broken=(1,))
    c = config(
        optim__epochs=1, method__features="cached", method__views=2, eval__flip=True
    )
    result = stages.run(c, tmp_path)
    assert np.isfinite(result["methods"]["los"]["nll"]["mean"])
    assert "undecodable image" in capsys.readouterr().out
    whole = np.load(tmp_path / "features/0/train.npy")
    assert whole.shape[:2] == (2, 56)
    assert not np.allclose(whole[0], whole[1])  # another crop per view
    note = json.loads((tmp_path / "features/0/train.json").read_text())
    assert note["left_out"] == [5, 11]
    assert note["looks"]["size"] == VIEW.size
    assert np.load(tmp_path / "features/0/test.npy").shape[:2] == (2, 23)
    # The remaining rows are those of the good images, in order, with their labels.
    seen = []

    def noting(*arguments, **options):
        raise AssertionError("extracted again")

    monkeypatch.setattr(features, "extract", noting)
    load = features.cached_features

    def keeping(*args, **options):
        seen.append((args[2], load(*args, **options)))
        return seen[-1][1]

    monkeypatch.setattr(features, "cached_features", keeping)
    for path in tmp_path.glob("checkpoints/los/*/outcome.json"):
        path.unlink()
    stages.run(c, tmp_path)
    for part, one in seen:
        if part.name == "made" and len(part) == 58:
            np.testing.assert_array_equal(one.labels, np.delete(part.labels, [5, 11]))
            break
    else:
        pytest.fail("the features of the training set were not loaded")


def test_a_flip_without_a_crop_equals_the_one_hot_flip():
    """Photographs are not cropped on the device; their flips equal small images'."""
    from lt_jax.data.augment.transforms import Augment, crop_flip, mirror, offsets

    images = made().read(np.arange(6))
    augment = Augment(0, True, (0.5,) * 3, (0.5,) * 3)
    key, places = jax.random.key(3), np.arange(6)
    found = np.asarray(crop_flip(augment, key, places, images))
    mirrored = np.asarray(offsets(augment, key, places)[2])
    assert 0 < mirrored.sum() < 6
    for i, image in enumerate(images):
        expected = mirror(image[None])[0] if mirrored[i] else image
        np.testing.assert_array_equal(found[i], expected)


def test_memory_does_not_grow_with_the_number_of_images():
    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc here")
    rows = np.tile(samplers.batch_indices(np.arange(72), 72), (6, 1))
    for batch in load_batches(made(workers=2), rows, dict):
        del batch
    before = resident()
    rows = np.tile(rows, (6, 1))
    for batch in load_batches(made(workers=2), rows, dict):
        del batch
    assert resident() < before + 10


def test_photographs_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install 'lt_jax\[photos\]'"):
        made()
