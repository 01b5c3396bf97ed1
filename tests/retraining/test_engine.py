"""Stage 2 on cached features: equal to online training, never on stale features."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_digits
from test_stages import arrays

from lt_jax import methods
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment import evaluation, stages
from lt_jax.retraining import chunks, engine
from lt_jax.retraining.features import Features
from lt_jax.training import optim

PLAIN = {
    "data__pad": 0,  # no augmentation: one view is enough
    "method__repeats": 2,
    "method__los__decay": 0.5,
    "method__decay_on": "head/kernel",
}
SGD = optim.Sgd(0.9, 1e-3, ".*")
GIB = 2**30


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online")
    return workdir, stages.run(tiny_digits.config(**PLAIN), workdir)


@pytest.fixture(scope="module")
def cached(online, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cached")
    config = tiny_digits.config(
        **PLAIN, method__features="cached", init__path=str(online[0])
    )
    return workdir, config, stages.retrain(config, workdir)


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


def test_a_finished_cached_run_can_be_evaluated(cached):
    workdir, config, result = cached
    found = evaluation.evaluate_all(config, workdir, "test")
    assert found["los/0.1"]["all"] == result["methods"]["los"]["all"]["values"][1]


def test_features_of_another_network_are_recomputed(cached, capsys):
    workdir, config, result = cached
    note = workdir / "features/0/train.json"
    provenance = json.loads(note.read_text())
    values = np.load(note.with_suffix(".npy"))
    changed = {**provenance, "network": "another"}
    del changed["digest"]  # as version 0.1 wrote it
    note.write_text(json.dumps(changed))
    np.save(note.with_suffix(".npy"), np.zeros_like(values))
    for directory in (workdir / "checkpoints/los").iterdir():
        (directory / "outcome.json").unlink()
    again = stages.retrain(config, workdir)
    assert "are stale (network changed); recomputing" in capsys.readouterr().out
    assert json.loads(note.read_text()) == provenance
    np.testing.assert_array_equal(np.load(note.with_suffix(".npy")), values)
    one, other = (r["methods"]["los"]["nll"]["values"] for r in (again, result))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"method__batch_norm": "drift"}, {"eval__select": "validation"}]
)
def test_cached_features_need_a_frozen_backbone(tmp_path, changes):
    config = tiny_digits.config(method__features="cached", **changes)
    with pytest.raises(InputError, match="need a frozen backbone"):
        stages.run(config, tmp_path)


def jobs(deltas, epochs=2, seed=0, lr=0.1):
    counts = np.array([40, 20, 10, 5, 3])
    labels = np.repeat(np.arange(5), counts).astype(np.int32)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    values = (centres[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32)
    features = Features(values[None], labels)
    per_epoch = -(-len(labels) // 16)
    made = []
    for delta in deltas:
        method = methods.make(
            "los", counts, {"delta": delta, "start": "fresh", "sampler": "instance"}
        )
        start = method.head.init(jax.random.key(seed), None, 8, 5, "torch")
        rates = optim.rates(lr, epochs, per_epoch, 0, "epoch")
        made.append(
            chunks.HeadJob(
                run=f"los {delta} {seed}",
                method=method,
                start=start,
                rates=rates,
                epochs=epochs,
                sgd=SGD,
                order=(2, 0, seed),
            )
        )
    return made, features


def fitted(several, features, memory=GIB, after_epoch=lambda heads: None):
    """Fit heads; return them by the name of their run."""
    planned = chunks.plan_chunks(several, 16, memory)
    return {
        job.run: fit
        for chunk, fits in engine.fit_heads(planned, features, 16, memory, after_epoch)
        for job, fit in zip(chunk.jobs, fits, strict=True)
    }


def assert_close(one, other):
    assert one.diverged == other.diverged
    for name, leaf in one.head.items():
        np.testing.assert_allclose(leaf, other.head[name], rtol=1e-5, atol=1e-6)


def test_corrections_use_unaugmented_images():
    """With random crops, class means still come from the plain images."""
    (job,), features = jobs([0.5], epochs=0)
    crops = features._replace(values=np.stack([features.values[0] + 1] * 2))
    ncm = methods.make("ncm", np.bincount(features.labels), {"kind": "raw"})
    chunk = chunks.Chunk((job._replace(method=ncm),), sharding.padded_size(1))
    found = []
    for given, plain in ((features, None), (crops, lambda: features), (crops, None)):
        ((_, (fit,)),) = engine.fit_heads([chunk], given, 16, GIB, lambda _: 0, plain)
        found.append(fit.head["kernel"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_corrections_without_features_do_not_load_any():
    (job,), features = jobs([0.5])
    for name in ("tau_norm", "logit_adjust_posthoc"):
        method = methods.make(name, np.bincount(features.labels), {"tau": 1.0})
        head = engine.apply_correction(method, job.start, features.labels, None)
        assert not np.array_equal(head["bias"], job.start["bias"])


def test_heads_fitted_together_equal_heads_fitted_alone():
    several, features = jobs([0.0, 0.5, 0.9])
    together = fitted(several, features)
    for job in several:
        assert_close(fitted([job], features)[job.run], together[job.run])
    kernels = [fit.head["kernel"] for fit in together.values()]
    assert not np.allclose(kernels[0], kernels[2])


def test_heads_with_other_seeds_and_epochs_keep_their_order():
    mixed = [*jobs([0.5])[0], *jobs([0.9], epochs=3)[0], *jobs([0.5], seed=1)[0]]
    _, features = jobs([0.5])
    finished: list[int] = []
    together = fitted(mixed, features, after_epoch=finished.append)
    assert sum(finished) == 2 + 3 + 2
    for job in mixed:
        assert_close(fitted([job], features)[job.run], together[job.run])


def test_each_head_has_its_own_decay():
    (job,), features = jobs([0.5])
    more = job._replace(run="more", sgd=SGD._replace(decay=0.5))
    together = fitted([job, more], features)
    assert_close(together["more"], fitted([more], features)["more"])
    norms = [np.linalg.norm(together[run].head["kernel"]) for run in (job.run, "more")]
    assert norms[1] < 0.8 * norms[0]


def test_one_program_for_a_whole_grid():
    """Other values, decays, seeds and group sizes do not recompile."""
    several, features = jobs([0.1, 0.2, 0.3])
    others = jobs([0.6, 0.7], seed=1, epochs=3)[0]
    other = others[0]._replace(run="decay", sgd=SGD._replace(decay=0.0))
    several += [*others, other]
    planned = chunks.plan_chunks(several, 16, GIB)
    assert [len(chunk.jobs) for chunk in planned] == [3, 3]
    assert chunks.count_programs(planned) == 1
    fit = engine.make_fit(*chunks.program_of(several[0]))
    fit.clear_cache()
    assert len(fitted(several, features)) == 6
    assert fit._cache_size() == 1


def test_less_memory_means_more_chunks_and_the_same_heads():
    several, features = jobs([0.1, 0.3, 0.5, 0.7, 0.9])
    one = 4 * chunks.ARRAYS_PER_HEAD * (8 * 5 + 5 + 16 * 5)
    devices = jax.local_device_count()
    planned = chunks.plan_chunks(several, 16, 1.5 * one)
    assert {chunk.width for chunk in planned} == {devices}
    assert sum(len(chunk.jobs) for chunk in planned) == 5
    together, apart = fitted(several, features), fitted(several, features, 1.5 * one)
    for job in several:
        assert_close(apart[job.run], together[job.run])


def test_on_a_cpu_a_grid_is_cut_into_chunks_that_fit_the_caches():
    most = chunks.HEADS_PER_CPU * jax.local_device_count()
    grid = [i / (10 * most) for i in range(3 * most)]
    several, _ = jobs(grid)
    planned = chunks.plan_chunks([*several, *jobs([0.5], seed=1)[0]], 16, GIB)
    assert [len(chunk.jobs) for chunk in planned] == [most, most, most, 1]
    assert {chunk.width for chunk in planned} == {most}


def test_a_small_group_gets_its_own_program_where_padding_costs_more(monkeypatch):
    """The work of four heads that only fill up a chunk, and one less than that."""
    several, _ = jobs([0.1, 0.2, 0.3, 0.4, 0.5])
    small = jobs([0.6], seed=1)[0]
    one = several[0]
    missing = -len(small) % sharding.padded_size(len(several))
    padding = missing * 4 * 16 * len(one.rates) * one.start["kernel"].size
    for limit, programs in ((padding, 1), (padding - 1, 2)):
        monkeypatch.setattr(chunks, "COMPILATION", limit)
        planned = chunks.plan_chunks([*small, *several], 16, GIB)
        assert [len(chunk.jobs) for chunk in planned] == [5, 1]
        assert chunks.count_programs(planned) == programs


def test_features_that_do_not_fit_are_streamed(monkeypatch):
    """Pieces of one step, two views, against features held on the devices."""
    several, features = jobs([0.1, 0.9], epochs=3)
    values = np.concatenate([features.values, features.values[:, ::-1] * 0.5])
    features = features._replace(values=values)
    held = fitted(several, features)
    assert not engine.fits_in_memory(features, 100)
    planned = chunks.plan_chunks(several, 16, GIB)
    monkeypatch.setattr(engine, "_held_pieces", None)  # would fail if it were used
    for chunk, fits in engine.fit_heads(planned, features, 16, 100, lambda _: None):
        for job, fit in zip(chunk.jobs, fits, strict=True):
            assert_close(fit, held[job.run])


def test_bfloat16_features_are_used_unchanged():
    several, features = jobs([0.5])
    half = features._replace(values=features.values.astype(jnp.bfloat16))
    rounded = half._replace(values=half.values.astype(np.float32))
    (run,) = (job.run for job in several)
    assert_close(fitted(several, half)[run], fitted(several, rounded)[run])


def test_measuring_averages_over_views():
    several, features = jobs([0.0])
    head = several[0].method.head
    both = Features(
        np.concatenate([features.values, -features.values]), features.labels
    )
    params = several[0].start
    (tally,) = engine.measure_heads(head, [params], both, 7, GIB)
    bias = np.asarray(params["bias"])  # what is left of f and -f
    assert tally.seen.sum() == len(features.labels)
    np.testing.assert_allclose(tally.col_sum, len(features.labels) * bias, atol=1e-3)


def test_a_diverging_head_is_reported_and_does_not_affect_others():
    several, features = jobs([0.5])
    wild = jobs([0.9], lr=1e30)[0][0]
    found = fitted([*several, wild], features)
    assert found[wild.run].diverged is not None
    assert 1 < found[wild.run].diverged <= 2 * 5
    assert_close(found["los 0.5 0"], fitted(several, features)["los 0.5 0"])
