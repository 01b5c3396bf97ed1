"""Speed of a config on this machine: ``lt-jax benchmark``.

Calls the functions of the other commands, on an untrained network at learning rate 0 so
that nothing diverges. One process, all its devices; nothing is saved.

The keys of the ``--json`` object are in docs/howto/measure_speed.md.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
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
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.errors import InputError
from lt_jax.experiment import results, weights
from lt_jax.experiment.cached import budget_of, own_values
from lt_jax.experiment.config import UserConfig, make_method
from lt_jax.experiment.session import Session, open_session
from lt_jax.experiment.stages import first_stage
from lt_jax.experiment.weights import Weights
from lt_jax.methods import projection_steps
from lt_jax.retraining.engine import HeadJob, fit_heads, plan_chunks
from lt_jax.retraining.features import DTYPES, Features, Request, extract
from lt_jax.training import steps
from lt_jax.training.epochs import fits_on_device, resident_stepper
from lt_jax.training.log import jsonable, write_atomically
from lt_jax.training.loop import Stage, epoch_plan, evaluate, step_inputs, step_spec
from lt_jax.training.optim import Sgd
from lt_jax.types import Batch

HEADS = 8  # heads of the sweep
ROUNDS = 3  # least number of measurements per part

_print = partial(print, flush=True)


def benchmark(config: UserConfig, seconds: float, file: Path | None = None) -> None:
    """Measure all parts, print a line after each, and write ``--json`` to ``file``.

    Raises:
      InputError: invalid config, seconds or file.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds must be a positive number, got {seconds:g}")
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"--json must be a file in an existing folder, got {file}")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(config, Path(folder), writes=False) as session,
    ):
        found = jsonable(_measure(session, seconds))
    if file is not None:
        write_atomically(file, json.dumps(found, indent=1, allow_nan=False) + "\n")


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
    rate = "-" if s["resident"] is None else f"{s['resident']:,.0f}"
    _print(
        f"stage 1      batch {s['batch']}: {s['synthetic']:,.0f} img/s on the device, "
        f"{rate} with resident data, "
        f"{s['streaming']:,.0f} streaming ({s['waiting']:.0%} waiting for data)\n"
        f"  per step   {1e3 * s['step_seconds']:,.2f} ms, "
        f"{_si(s['flops'])}FLOP ({_share(s['flops_share'])} of the peak), "
        f"{_si(s['bytes'])}B ({_share(s['bytes_share'])})\n"
        f"  compiled   in {s['lower_seconds']:.1f} s (tracing) + "
        f"{s['compile_seconds']:.1f} s"
    )
    session.raise_if_stopped("the benchmark")
    splits = session.task.splits
    for part, run, dataset in (
        ("evaluation", run_evaluation, splits.test),
        ("extraction", _extraction, splits.train),
    ):
        measured = partial(run, session, network)
        found[part] = images_per_second(measured, dataset, session, seconds)
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

    A round makes enough calls to fill a tenth of the time, because training does not
    wait for each step either.
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


def _median(work: Callable[[], None], seconds: float) -> float:
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

    def matmul(size: int) -> Callable[[], Any]:
        square = np.full((count, size, size), 1e-3, jnp.dtype(dtype))
        square = sharding.shard_globally(square)
        product = sharding.jit_over_devices(lambda a: a @ a, (True,))
        return lambda: product(square)

    def copy(size: int) -> Callable[[], Any]:
        array = sharding.shard_globally(np.ones((count, size), np.float32))
        plus = sharding.jit_over_devices(lambda a: a + 1, (True,))
        return lambda: plus(array)

    def speed(make: Any, size: int, most: int) -> tuple[float, int]:
        """Measure calls/s at the smallest size that takes some milliseconds."""
        while size < most and seconds_per_call(make(size), 0.01) < 5e-3:
            size *= 2
        return 1 / seconds_per_call(make(size), seconds), size

    products, size = speed(matmul, 512, 8192)
    flops = count * 2 * size**3 * products
    copies, size = speed(copy, 2**24, 2**28)  # 64 MiB, more than most caches, to 1 GiB
    return {"flops": flops, "bytes": count * 2 * 4 * size * copies, "dtype": dtype}


def _stage1(
    session: Session, network: Weights, peak: dict[str, Any], seconds: float
) -> dict[str, Any]:
    task, stage = session.task, first_stage(session, session.config.seed)
    stage = stage._replace(rates=np.zeros_like(stage.rates))
    spec = step_spec(task, stage)
    state = steps.init_state(*network, stage.sgd, stage.trains)
    per_epoch = len(stage.rates) // stage.epochs
    inputs = step_inputs(stage, network.params["head"], per_epoch)
    train_step: Any = steps.make_train_step(spec)
    # XLA counts only its own convolutions.
    counted_spec = spec._replace(backbone=_with_xla(task.backbone))
    counted_step: Any = steps.make_train_step(counted_spec)
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

    with contextlib.closing(batches_of(task.splits.train, stage)) as batches:
        batch = next(batches)
        compiled = steps.compile_step(train_step, state, batch, inputs)
        step = compiled.run
        each = seconds_per_call(lambda: take_step(batch), seconds)
        before = time.monotonic()
        streamed = seconds_per_call(streaming, seconds)
        waited /= time.monotonic() - before
        flops = _counted(counted_step.lower(state, batch, inputs), "flops", stage)
    accessed = _counted(step, "bytes accessed", stage)
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


def _with_xla(backbone: Any) -> Any:
    is_network = not isinstance(backbone, models.Identity)
    return backbone.clone(engine="xla") if is_network else backbone


def _counted(program: Any, key: str, stage: Stage) -> float | None:
    cost = program.cost_analysis() or {}
    times = stage.accumulate * jax.device_count()
    return times * cost[key] if key in cost else None


def _resident(
    session: Session, stage: Stage, step: tuple[Any, Any, Any], seconds: float
) -> float | None:
    """Measure images/s with the training images on the devices, if they fit."""
    task, (spec, state, inputs) = session.task, step
    train = task.splits.train
    if not fits_on_device(train, task.resident):
        return None
    at_once = steps.steps_per_call(task.at_once)
    stepper = resident_stepper(spec, train, at_once, lambda compiled: None)
    rows, _ = epoch_plan(train, stage, 0, slice(None))
    rows = np.resize(rows, (at_once * max(1, len(rows) // at_once), rows.shape[1]))
    crops = CropPlan(stage.run, 0, rows)

    def endless() -> Generator[Any, None, None]:
        now = state
        while True:
            for after, measured, _ in stepper(now, rows, crops, inputs):
                now = after
                yield measured

    with contextlib.closing(endless()) as calls:
        return at_once * stage.batch / seconds_per_call(lambda: next(calls), seconds)


def batches_of(train: Dataset, stage: Stage) -> Generator[Batch, None, None]:
    """Yield batches for epoch after epoch, skipping incomplete ones."""
    full = slice(max(1, len(train) // stage.batch))
    for epoch in itertools.count():
        rows, crops = epoch_plan(train, stage, epoch, full)
        yield from load_batches(train, rows, sharding.shard_batch, crops=crops)


def run_evaluation(session: Session, network: Weights, dataset: Dataset) -> None:
    evaluate(
        session.task,
        session.methods["stage1"].head,
        *network,
        dataset,
        log=session.log,
        stop_requested=session.stop_requested,
    )


def _extraction(session: Session, network: Weights, dataset: Dataset) -> None:
    request = Request(("plain",), (), "float32")
    blocks = extract(
        session.task,
        *network,
        dataset,
        request,
        log=session.log,
        errors=DecodeErrors(dataset),
        stop_requested=session.stop_requested,
    )
    collections.deque(blocks, maxlen=0)


def images_per_second(
    run: Callable[[Dataset], None], dataset: Dataset, session: Session, seconds: float
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
    """Measure fitting ``heads`` heads of the first method that trains, in parallel."""
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
    method = make_method(config, name, train.class_counts, values)
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
        """Return the seconds per epoch of all heads, without the first, compiling."""
        jobs, ends = [job(seed, epochs) for seed in range(heads)], []

        def after_epoch(_: int) -> None:
            ends.append(time.monotonic())
            session.raise_if_stopped("the benchmark")

        chunks = plan_chunks(jobs, m.batch, budget)
        collections.deque(
            fit_heads(chunks, cached, m.batch, budget, after_epoch, lambda: cached), 0
        )
        return np.diff(np.reshape(ends, (-1, epochs))).sum(0)  # over the chunks

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


def _share(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def _si(number: float | None) -> str:
    """Format a number with an SI prefix, ready for a unit: ``12.3 G``."""
    if number is None:
        return "? "
    power = 0 if number < 1 else min(5, int(math.log10(number)) // 3)
    return f"{number / 1000**power:,.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"
