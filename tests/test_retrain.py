"""Stage 2 on cached features: equal to the online loop, and never on stale features."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import tiny_digits
from test_train import arrays

from lt_jax import methods, optim, retrain, train
from lt_jax.meter import Diverged
from lt_jax.types import InputError

PLAIN = {"data__pad": 0, "method__repeats": 2}  # no augmentation: one view says it all
SGD = optim.Sgd(0.9, False, 1e-3, ".*")


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online")
    return workdir, train.run(tiny_digits.config(**PLAIN), workdir)


@pytest.fixture(scope="module")
def cached(online, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cached")
    config = tiny_digits.config(
        **PLAIN, method__features="cached", init__path=str(online[0])
    )
    return workdir, config, train.retrain(config, workdir)


def test_cached_equals_online(online, cached):
    workdir, _, result = cached
    assert result["protocol"]["features"] == "cached"
    for run in ("ce/0.0", "ce/0.1", "los/0.0", "los/0.1"):
        one, other = arrays(online[0], run), arrays(workdir, run)
        for name in ("params/head/kernel", "params/head/bias"):
            np.testing.assert_allclose(
                one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=run
            )
    for name, method in online[1]["methods"].items():
        found = result["methods"][name]
        assert found["all"]["values"] == method["all"]["values"]
        assert found["nll"]["mean"] == pytest.approx(method["nll"]["mean"], rel=1e-4)


def test_a_finished_cached_run_evaluates_like_any(cached):
    workdir, config, result = cached
    found = train.evaluate_all(config, workdir, "test")
    assert found["los/0.1"]["all"] == result["methods"]["los"]["all"]["values"][1]


def test_features_of_another_network_are_made_again(cached, capsys):
    workdir, config, result = cached
    note = workdir / "features/0/train.json"
    provenance = json.loads(note.read_text())
    values = np.load(note.with_suffix(".npy"))
    note.write_text(json.dumps({**provenance, "network": "another"}))
    np.save(note.with_suffix(".npy"), np.zeros_like(values))
    for directory in (workdir / "checkpoints/los").iterdir():
        (directory / "outcome.json").unlink()
    again = train.retrain(config, workdir)
    assert "made again" in capsys.readouterr().out
    assert json.loads(note.read_text()) == provenance
    np.testing.assert_array_equal(np.load(note.with_suffix(".npy")), values)
    one, other = (r["methods"]["los"]["nll"]["values"] for r in (again, result))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"method__batch_norm": "drift"}, {"eval__select": "validation"}]
)
def test_what_cached_features_cannot_do_is_told(tmp_path, changes):
    config = tiny_digits.config(method__features="cached", **changes)
    with pytest.raises(InputError, match="needs a frozen backbone"):
        train.run(config, tmp_path)


def jobs(deltas, epochs=2, seed=0, lr=0.1):
    counts = np.array([40, 20, 10, 5, 3])
    labels = np.repeat(np.arange(5), counts).astype(np.int32)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    values = (centres[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32)
    features = retrain.Features(values[None], labels)
    per_epoch = -(-len(labels) // 16)
    made = []
    for delta in deltas:
        method = methods.make(
            "los", counts, {"delta": delta, "start": "fresh", "sampler": "instance"}
        )
        start = method.head.init(jax.random.key(seed), None, 8, 5, "torch")
        rates = optim.rates(lr, epochs, per_epoch, 0, "epoch")
        made.append(
            retrain.Job(
                f"los {delta} {seed}", method, start, rates, epochs, SGD, (2, 0, seed)
            )
        )
    return made, features


def test_many_at_once_equal_one_by_one():
    several, features = jobs([0.0, 0.5, 0.9])
    together = retrain.fit_heads(several, features, 16, lambda _: None)
    for job, params in zip(several, together, strict=True):
        (alone,) = retrain.fit_heads([job], features, 16, lambda _: None)
        for name, leaf in alone.items():
            np.testing.assert_allclose(leaf, params[name], rtol=1e-5, atol=1e-6)
    assert not np.allclose(together[0]["kernel"], together[2]["kernel"])


def test_heads_of_other_seeds_and_lengths_keep_their_places():
    mixed = [*jobs([0.5])[0], *jobs([0.9], epochs=3)[0], *jobs([0.5], seed=1)[0]]
    _, features = jobs([0.5])
    told: list[int] = []
    together = retrain.fit_heads(mixed, features, 16, told.append)
    assert sum(told) == 2 + 3 + 2
    for job, params in zip(mixed, together, strict=True):
        (alone,) = retrain.fit_heads([job], features, 16, lambda _: None)
        np.testing.assert_allclose(alone["kernel"], params["kernel"], rtol=1e-5)


def test_one_program_for_a_whole_grid():
    several, features = jobs([0.1, 0.2, 0.3])
    fit = retrain.make_fit(several[0].method.head, several[0].method.loss, None, SGD)
    fit.clear_cache()
    retrain.fit_heads(several, features, 16, lambda _: None)
    retrain.fit_heads(jobs([0.6, 0.7, 0.8])[0], features, 16, lambda _: None)
    assert fit._cache_size() == 1


def test_views_are_averaged_in_the_measure():
    several, features = jobs([0.0])
    head = several[0].method.head
    both = retrain.Features(
        np.concatenate([features.values, -features.values]), features.labels
    )
    params = several[0].start
    (tally,) = retrain.measure_heads(head, [params], both, 7)
    bias = np.asarray(params["bias"])  # what is left of f and -f
    assert tally.seen.sum() == len(features.labels)
    np.testing.assert_allclose(tally.col_sum, len(features.labels) * bias, atol=1e-3)


def test_a_diverging_head_is_named():
    several, features = jobs([0.5], lr=1e30)
    with pytest.raises(Diverged, match=r"los 0.5 0: the loss is (nan|inf) at step \d"):
        retrain.fit_heads(several, features, 16, lambda _: None)
