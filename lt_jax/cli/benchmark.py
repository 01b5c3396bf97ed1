"""Speed of a config on this machine: ``lt-jax benchmark``.

It calls the functions of the other commands, on an untrained network at learning rate 0
so that nothing diverges. One process, all its devices; nothing is saved.

The keys of the ``--json`` object are in docs/howto/measure_speed.md.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import models
from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import load_batches
from lt_jax.distributed import sharding
from lt_jax.errors import in_range
from lt_jax.experiment import results, weights
from lt_jax.experiment.cached import budget_of, own_values
from lt_jax.experiment.config import UserConfig, make_method
from lt_jax.experiment.session import Session, open_session
from lt_jax.experiment.stages import first_stage
from lt_jax.experiment.weights import Weights
from lt_jax.files import as_json, write
from lt_jax.methods import projection_steps
from lt_jax.retraining.engine import HeadJob, fit_heads, plan_chunks
from lt_jax.retraining.features import DTYPES, Features, plain_features
from lt_jax.training import steps
from lt_jax.training.loop import (
    Stage,
    epoch_plan,
    evaluate,
    fits_on_device,
    resident_batches,
    step_inputs,
    step_spec,
)
from lt_jax.training.optim import Sgd
from lt_jax.training.steps import StepInputs, StepSpec
from lt_jax.types import Batch, TrainState

HEADS = 8  # fitted at once, to measure a sweep
ROUNDS = 3  # fewest measurements per part

_print = partial(print, flush=True)


def benchmark(config: UserConfig, seconds: float, file: Path | None = None) -> None:
    """Measure all parts, print a line after each, and write JSON to ``file``."""
    in_range("--seconds", seconds, "(0, 3600]")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(config, Path(folder), writes=False) as session,
    ):
        found = _measure(session, seconds)
    if file is not None:
        write(file, as_json(found))


def _measure(session: Session, seconds: float) -> dict[str, Any]:
    config = session.config
    found: dict[str, Any] = {
        "config": session.dataset["name"],
        "device": sharding.device_name(),
        "versions": results.versions(),
        "seconds": seconds,
    }
    _print(f"{found['config']}, {config.model.name} on {found['device']}")
    found["peak"] = peak = _peak(config.model.dtype, seconds)
    _print(
        f"peak         {_si(peak['flops'])}FLOP/s ({peak['dtype']} matmul), "
        f"{_si(peak['bytes'])}B/s (copy), measured"
    )
    network = weights.fresh(session.task, config.model.init, (1, config.seed))
    _print("             compiling stage 1 without the cache; this takes longest")
    found["stage1"] = s = _stage1(session, network, peak, seconds)
    resident = "-" if s["resident"] is None else f"{s['resident']:,.0f}"
    flops, accessed = (
        "?" if s[key] is None else f"{s[key]:.0%}"
        for key in ("flops_share", "bytes_share")
    )
    _print(
        f"stage 1      batch {s['batch']}: {s['synthetic']:,.0f} img/s on the device, "
        f"{resident} with resident data, "
        f"{s['streaming']:,.0f} streaming ({s['waiting']:.0%} waiting for data)\n"
        f"  per step   {1e3 * s['step_seconds']:,.2f} ms, "
        f"{_si(s['flops'])}FLOP ({flops} of the peak), "
        f"{_si(s['bytes'])}B ({accessed})\n"
        f"  compiled   in {s['lower_seconds']:.1f} s (tracing) + "
        f"{s['compile_seconds']:.1f} s"
    )
    session.raise_if_stopped("the benchmark")
    splits = session.task.splits
    head = session.methods["stage1"].head
    evaluation = partial(evaluate, session.task, head, network)
    extraction = partial(plain_features, session.task, network)
    for part, run, dataset in (
        ("evaluation", evaluation, splits.test),
        ("extraction", extraction, splits.train),
    ):
        found[part] = images_per_second(run, dataset, session, seconds)
        _print(f"{part}   {found[part]:,.0f} img/s")
    for part, heads in (("stage2", 1), ("sweep", HEADS)):
        session.raise_if_stopped("the benchmark")
        found[part] = h = _heads(session, network, heads, seconds)
        if h is None:
            _print(f"{part:12s} skipped: no method in method.names has epochs")
            continue
        _print(
            f"{part:12s} {h['heads']} x {h['method']} on {h['rows']:,} x "
            f"{h['features']} features, batch {h['batch']}: "
            f"{h['steps_per_second']:,.0f} steps/s, "
            f"{h['head_images_per_second']:,.0f} head-images/s"
        )
    found["memory"] = memory = peak_memory()
    _print(f"memory       {_si(memory['bytes'])}B peak, {memory['of']}")
    return found


def seconds_per_call(call: Callable[[], Any], seconds: float) -> float:
    """Measure the seconds per call: the median of rounds that end with a sync.

    A round makes enough calls to fill a tenth of the time: training does not wait for
    each step either.
    """
    jax.block_until_ready(call())  # may compile
    begun = time.monotonic()
    jax.block_until_ready(call())
    once = time.monotonic() - begun
    calls = max(1, round(seconds / 10 / max(once, 1e-9)))

    def several() -> None:
        wait, result = sharding.dispatch_limiter(), None
        for _ in range(calls):
            result = call()
            wait(result)
        jax.block_until_ready(result)

    return _median(several, seconds) / calls


def _median(work: Callable[[], Any], seconds: float) -> float:
    times: list[float] = []
    begun = time.monotonic()
    while len(times) < ROUNDS or time.monotonic() - begun < seconds:
        before = time.monotonic()
        work()
        times.append(time.monotonic() - before)
    return statistics.median(times)


def _peak(dtype: str, seconds: float) -> dict[str, Any]:
    """Measure the matmul and copy speed of all devices together."""
    count = jax.device_count()

    def speed(
        function: Any, axes: int, kind: str, size: int, most: int
    ) -> tuple[float, int]:
        """Measure calls/s at the smallest size that takes some milliseconds."""
        run = sharding.jit_over_devices(function, (True,))

        def measure(seconds: float) -> float:
            array = np.full((count, *[size] * axes), 1e-3, jnp.dtype(kind))
            placed = sharding.shard_globally(array)
            return seconds_per_call(partial(run, placed), seconds)

        while size < most and measure(0.01) < 5e-3:
            size *= 2
        return 1 / measure(seconds), size

    products, size = speed(lambda a: a @ a, 2, dtype, 512, 8192)
    flops = count * 2 * size**3 * products
    # 64 MiB, more than most caches, to 1 GiB
    copies, size = speed(lambda a: a + 1, 1, "float32", 2**24, 2**28)
    return {"flops": flops, "bytes": count * 2 * 4 * size * copies, "dtype": dtype}


def idle_stage(
    session: Session, network: Weights
) -> tuple[Stage, StepSpec, TrainState, StepInputs]:
    """Return stage 1 at learning rate 0, and what its training step needs."""
    stage = first_stage(session, session.config.seed)
    stage = stage._replace(rates=np.zeros_like(stage.rates))
    state = steps.init_state(*network, stage.sgd, stage.trains)
    inputs = step_inputs(stage, network.params["head"])
    return stage, step_spec(session.task, stage), state, inputs


def _stage1(
    session: Session, network: Weights, peak: dict[str, Any], seconds: float
) -> dict[str, Any]:
    stage, spec, state, inputs = idle_stage(session, network)
    train_step: Any = steps.make_train_step(spec)
    backbone: Any = spec.backbone
    if not isinstance(backbone, models.Identity):
        backbone = backbone.clone(engine="xla")  # XLA counts only its own convolutions
    counted_step: Any = steps.make_train_step(spec._replace(backbone=backbone))
    waited = 0.0

    def take_step(batch: Batch) -> Any:
        nonlocal state
        state, measured = step(state, batch, inputs)
        return measured

    def streaming() -> Any:
        nonlocal waited
        before = time.monotonic()
        following = next(batches)
        waited += time.monotonic() - before
        return take_step(following)

    def counted(program: Any, key: str) -> float | None:
        cost = program.cost_analysis() or {}
        times = stage.accumulate * jax.device_count()
        return times * cost[key] if key in cost else None

    with contextlib.closing(batches_of(session.task.splits.train, stage)) as batches:
        batch = next(batches)
        compiled = steps.compile_step(train_step, state, batch, inputs)
        step = compiled.run
        each = seconds_per_call(lambda: take_step(batch), seconds)
        before = time.monotonic()
        streamed = seconds_per_call(streaming, seconds)
        waited /= time.monotonic() - before
        flops = counted(counted_step.lower(state, batch, inputs), "flops")
    accessed = counted(step, "bytes accessed")
    return {
        "batch": stage.batch,
        "lower_seconds": compiled.lower_seconds,
        "compile_seconds": compiled.compile_seconds,
        "flops": flops,
        "bytes": accessed,
        "step_seconds": each,
        "synthetic": stage.batch / each,
        "resident": _resident(session, stage, (spec, state, inputs), seconds),
        "streaming": stage.batch / streamed,
        "waiting": waited,
        "flops_share": flops and flops / each / peak["flops"],
        "bytes_share": accessed and accessed / each / peak["bytes"],
    }


def _resident(
    session: Session, stage: Stage, step: tuple[Any, Any, Any], seconds: float
) -> float | None:
    """Measure images/s with the training images on the devices; None if too many."""
    task, (spec, state, inputs) = session.task, step
    train = task.splits.train
    if not fits_on_device(train, task.resident):
        return None
    batches = resident_batches(train)
    plan = epoch_plan(train, stage, 0, slice(None))

    def endless() -> Generator[Any, None, None]:
        now, step = state, None
        while True:
            for batch in batches(*plan):
                if step is None:
                    made = steps.make_train_step(spec)
                    step = steps.compile_step(made, now, batch, inputs).run
                now, measured = step(now, batch, inputs)
                yield measured

    with contextlib.closing(endless()) as calls:
        return stage.batch / seconds_per_call(lambda: next(calls), seconds)


def batches_of(train: Dataset, stage: Stage) -> Generator[Batch, None, None]:
    """Yield the complete batches of epoch after epoch."""
    full = slice(max(1, len(train) // stage.batch))
    for epoch in itertools.count():
        rows, crops = epoch_plan(train, stage, epoch, full)
        yield from load_batches(train, rows, sharding.shard_batch, crops=crops)


def images_per_second(
    run: Callable[[Dataset], Any], dataset: Dataset, session: Session, seconds: float
) -> float:
    """Measure images/s over as much of the dataset as the time allows."""
    part = dataset.take(np.arange(min(session.task.eval_batch, len(dataset))))
    run(part)  # compiles
    once = _median(lambda: run(part), 0)
    while len(part) < len(dataset) and 2 * ROUNDS * once < seconds:
        part = dataset.take(np.arange(min(2 * len(part), len(dataset))))
        once *= 2
    return len(part) / _median(lambda: run(part), seconds)


def _heads(
    session: Session, network: Weights, heads: int, seconds: float
) -> dict[str, Any] | None:
    """Measure fitting ``heads`` heads at once, of the first method that has epochs."""
    config, task = session.config, session.task
    m, train = config.method, task.splits.train
    trained = {k: v for k, v in own_values(config).items() if v["epochs"]}
    if not trained:
        return None
    name, values = next(iter(trained.items()))
    budget, width = budget_of(config), models.features_of(task.backbone)
    rows = min(len(train), max(m.batch, int(budget / (4 * width))))
    labels = train.labels[np.linspace(0, len(train) - 1, rows).astype(int)]
    drawn = np.random.default_rng(0).standard_normal((1, rows, width), np.float32)
    cached = Features(drawn.astype(DTYPES[m.feature_dtype][0]), labels)
    method = make_method(name, train.class_counts, values)
    per_epoch = -(-rows // m.batch)

    def job(seed: int, epochs: int) -> HeadJob:
        order = (2, config.seed, seed)
        start = weights.with_head(task, config.model.init, network, method, order)
        return HeadJob(
            run=f"{name}/{seed}",
            method=method,
            start=start.params["head"],
            rates=np.zeros(epochs * per_epoch, np.float32),
            projects=projection_steps(method, epochs, per_epoch),
            epochs=epochs,
            sgd=Sgd(m.momentum, values["decay"], m.decay_on),
            order=(2, config.seed, 0),
        )

    def run(epochs: int) -> np.ndarray:
        """Return the seconds of every epoch but the first, which compiles."""
        jobs, ends = [job(seed, epochs) for seed in range(heads)], []

        def after_epoch(_: int) -> None:
            ends.append(time.monotonic())
            session.raise_if_stopped("the benchmark")

        chunks = plan_chunks(jobs, m.batch, budget)
        given = chunks, cached, m.batch, budget, after_epoch, lambda: cached
        collections.deque(fit_heads(*given), maxlen=0)
        return np.diff(np.reshape(ends, (-1, epochs))).sum(axis=0)  # over chunks

    epochs = 1 + max(ROUNDS, min(1000, round(seconds / run(2)[0])))
    epoch = statistics.median(run(epochs))
    return {
        "method": name,
        "heads": heads,
        "batch": m.batch,
        "rows": rows,
        "features": width,
        "steps_per_second": per_epoch / epoch,
        "head_images_per_second": heads * rows / epoch,
    }


def peak_memory() -> dict[str, Any]:
    used = [device.memory_stats() for device in jax.local_devices()]
    if all(used):
        most = max(stats["peak_bytes_in_use"] for stats in used if stats)
        return {"bytes": most, "of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"bytes": unit * most, "of": "process"}


def _si(number: float | None) -> str:
    """Format a number with an SI prefix, ready for a unit: ``12.3 G``."""
    if number is None:
        return "? "
    power = 0 if number < 1 else min(5, int(math.log10(number)) // 3)
    return f"{number / 1000**power:,.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"
