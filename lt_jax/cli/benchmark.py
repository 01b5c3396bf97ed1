"""What a config makes of this machine: ``lt-jax benchmark``.

Everything runs through the functions that the commands use, on a network as
initialised and at learning rate 0, so that nothing diverges; and nothing is kept. One
process, all its devices.

The object of ``--json``; speeds are medians, ``null`` is what does not apply:

    config, device, versions   what was measured, where; ``versions`` as in result.json
    seconds                    for each part, asked for
    peak.flops, .dtype         FLOP/s of a large matmul in that type, all devices
    peak.bytes                 bytes/s of a large copy, read and written, all devices
    stage1.batch               images of a step
    stage1.lower_seconds       to trace the step and turn it into XLA's language
    stage1.compile_seconds     to compile that
    stage1.flops, .bytes       of a step, all devices, as XLA counts what it compiled
    stage1.step_seconds        of a step on a batch that is on the devices
    stage1.synthetic           images/s of the same
    stage1.resident            images/s, the training images on the devices
    stage1.streaming           images/s, the batches from the config's own data
    stage1.waiting             share of the streaming time that the host waits for data
    stage1.flops_share         of the step on the devices, of ``peak.flops``
    stage1.bytes_share         likewise, of ``peak.bytes``; caches may lift it above 1
    evaluation                 images/s, test images, with what it takes to read them
    extraction                 images/s, features of training images, likewise
    stage2.method, .batch      of cached stage 2; on random features
    stage2.rows, .features     examples, and features of each
    stage2.steps_per_second    of one head; .head_images_per_second: heads x images
    sweep.heads                that are fitted at once, and the same speeds
    memory.bytes               greatest use up to the end of the benchmark
    memory.of                  "device", the fullest one; or "process", its resident set

XLA counts the body of a loop once, so a step in micro-batches (``optim.accumulate``) is
counted as so many times its body. It cannot count what is inside a foreign kernel.
"""

from __future__ import annotations

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
from lt_jax.experiment.checks import make_method
from lt_jax.experiment.session import Session, open_session
from lt_jax.experiment.stages import first_stage
from lt_jax.experiment.weights import Weights
from lt_jax.methods import projection_steps
from lt_jax.retraining.engine import HeadJob, fit_heads, plan_chunks
from lt_jax.retraining.features import DTYPES, Features, Request, extract
from lt_jax.training import steps
from lt_jax.training.log import plain, write_whole
from lt_jax.training.loop import Stage, evaluate, planned, step_inputs, step_spec
from lt_jax.training.optim import Sgd
from lt_jax.training.stepping import holds, resident
from lt_jax.types import Batch, Config, TrainState

HEADS = 8  # of the sweep
ROUNDS = 3  # that each part is measured at least
GIVEN_UP = "the benchmark, which keeps nothing"  # said after a signal


def benchmark(
    config: Config,
    seconds: float,
    tell: Callable[[str], None],
    file: Path | None = None,
) -> dict[str, Any]:
    """Measures all parts, tells a line after each; returns what ``--json`` writes.

    Raises:
      InputError: what every command raises; seconds or a file that make no sense.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds: expected a number above 0, got {seconds:g}")
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"--json: expected a file in a folder that exists, got {file}")
    with (
        tempfile.TemporaryDirectory() as nowhere,
        open_session(config, Path(nowhere), talks=False) as session,
    ):
        found = _measure(session, seconds, tell)
    if file is not None:
        text = json.dumps(found, indent=1, allow_nan=False)
        write_whole(file, text + "\n")
    return found


def _measure(
    session: Session, seconds: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    config = session.config
    found: dict[str, Any] = {
        "config": session.dataset["name"],
        "device": sharding.device_name(),
        "versions": results.versions(),
        "seconds": seconds,
    }
    tell(f"{found['config']}, {config.model.name} on {found['device']}")
    found["peak"] = peak = _peak(config.model.dtype, seconds)
    tell(
        f"peak         {_si(peak['flops'])}FLOP/s ({peak['dtype']} matmul), "
        f"{_si(peak['bytes'])}B/s (copy), measured"
    )
    network = weights.fresh(session.task, config.model.init, (1, config.seed))
    tell("             stage 1 is compiled anew, without the cache, and takes longest")
    found["stage1"] = s = _stage1(session, network, peak, seconds)
    tell(
        f"stage 1      batch {s['batch']}: {s['synthetic']:,.0f} img/s on the device, "
        f"{_rate(s['resident'])} picked there, "
        f"{s['streaming']:,.0f} streaming (waits {s['waiting']:.0%} for data)\n"
        f"  a step     {1e3 * s['step_seconds']:,.2f} ms, "
        f"{_si(s['flops'])}FLOP ({_share(s['flops_share'])} of the peak), "
        f"{_si(s['bytes'])}B ({_share(s['bytes_share'])})\n"
        f"  compiled   in {s['lower_seconds']:.1f} s (tracing) + "
        f"{s['compile_seconds']:.1f} s"
    )
    session.raise_if_stopped(GIVEN_UP)
    found["evaluation"] = _evaluation(session, network, seconds)
    tell(f"evaluation   {found['evaluation']:,.0f} img/s")
    found["extraction"] = _extraction(session, network, seconds)
    tell(f"extraction   {found['extraction']:,.0f} img/s")
    for part, heads in (("stage2", 1), ("sweep", HEADS)):
        session.raise_if_stopped(GIVEN_UP)
        found[part] = h = _heads(session, network, heads, seconds)
        if h is None:
            tell(f"{part:12s} nothing to fit: no method of method.names has epochs")
            continue
        tell(
            f"{part:12s} {h['heads']} x {h['method']} on {h['rows']:,} x "
            f"{h['features']} features, batch {h['batch']}: "
            f"{h['steps_per_second']:,.0f} steps/s, "
            f"{h['head_images_per_second']:,.0f} head-images/s"
        )
    found["memory"] = memory = _memory()
    tell(f"memory       {_si(memory['bytes'])}B of the {memory['of']} at most")
    return plain(found)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _pace(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call, the median of rounds that end with a sync.

    A round takes as many calls as fill a tenth of the time, since the commands do not
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
    """What the devices reach together where nothing but one thing is asked of them."""
    count = jax.device_count()

    def grown(make: Callable[[int], Callable[[], Any]], size: int, most: int) -> Any:
        """The work at the least size that takes some milliseconds, and the size."""
        while True:
            work = make(size)
            if size >= most or _pace(work, 0.01) > 5e-3:
                return work, size
            size *= 2

    def matmul(size: int) -> Callable[[], Any]:
        square = sharding.shard_globally(
            np.full((count, size, size), 1e-3, jnp.dtype(dtype))
        )
        product = sharding.jit_over_devices(lambda a: a @ a, (True,))
        return lambda: product(square)

    def copy(size: int) -> Callable[[], Any]:
        array = sharding.shard_globally(np.ones((count, size), np.float32))
        plus = sharding.jit_over_devices(lambda a: a + 1, (True,))
        return lambda: plus(array)

    work, size = grown(matmul, 512, 8192)
    flops = count * 2 * size**3 / _pace(work, seconds)
    work, size = grown(copy, 2**24, 2**28)  # 64 MiB, more than most caches, to 1 GiB
    rate = count * 2 * 4 * size / _pace(work, seconds)
    return {"flops": flops, "bytes": rate, "dtype": dtype}


def _stage1(
    session: Session, network: Weights, peak: dict[str, Any], seconds: float
) -> dict[str, Any]:
    stage = first_stage(session, session.config.seed)
    task = session.task
    program = step_spec(task, stage)
    train_step: Any = steps.make_train_step(program)
    state = steps.init_state(*network, stage.sgd, stage.trains)
    still = stage._replace(rates=np.zeros_like(stage.rates))
    per_epoch = len(still.rates) // stage.epochs
    inputs = step_inputs(still, network.params["head"], per_epoch)
    with contextlib.closing(_batches(task.splits.train, stage)) as batches:
        batch = next(batches)
        begun = time.monotonic()
        lowered = train_step.lower(state, batch, inputs)
        traced = time.monotonic()
        step = lowered.compile(steps.compiler_options())
        ended = time.monotonic()
        waited = 0.0

        def synthetic() -> Any:
            nonlocal state
            state, measured = step(state, batch, inputs)
            return measured

        def streaming() -> Any:
            nonlocal state, waited
            before = time.monotonic()
            following = next(batches)
            waited += time.monotonic() - before
            state, measured = step(state, following, inputs)
            return measured

        each = _pace(synthetic, seconds)
        before = time.monotonic()
        streamed = _pace(streaming, seconds)
        waited /= time.monotonic() - before
        # XLA sees into its own convolutions alone.
        plain = program._replace(backbone=_by_xla(task.backbone))
        counted: Any = steps.make_train_step(plain)
        flops = _counted(counted.lower(state, batch, inputs), "flops", stage)
    held = None
    if holds(task.splits.train, task.resident):
        held = _held(session, stage, program, state, inputs, seconds)
    accessed = _counted(step, "bytes accessed", stage)
    return {
        "batch": stage.batch,
        "lower_seconds": traced - begun,
        "compile_seconds": ended - traced,
        "flops": flops,
        "bytes": accessed,
        "step_seconds": each,
        "synthetic": stage.batch / each,
        "resident": held,
        "streaming": stage.batch / streamed,
        "waiting": waited,
        "flops_share": flops and flops / each / peak["flops"],
        "bytes_share": accessed and accessed / each / peak["bytes"],
    }


def _by_xla(backbone: Any) -> Any:
    bare = isinstance(backbone, models.Identity)
    return backbone if bare else backbone.clone(engine="xla")


def _counted(program: Any, key: str, stage: Stage) -> float | None:
    cost = program.cost_analysis() or {}
    times = stage.accumulate * jax.device_count()
    return times * cost[key] if key in cost else None


def _held(
    session: Session,
    stage: Stage,
    program: steps.StepSpec,
    state: TrainState,
    inputs: steps.StepInputs,
    seconds: float,
) -> float:
    """Images a second where the images lie on the devices."""
    train = session.task.splits.train
    at_once = steps.at_once(session.task.at_once)
    made = steps.make_train_step(program), steps.make_train_steps(program)
    stepper = resident(*made, train, at_once, lambda compiled: None)
    rows, _ = planned(train, stage, 0, slice(None))
    rows = np.resize(rows, (at_once * max(1, len(rows) // at_once), rows.shape[1]))
    crops = CropPlan(stage.run, 0, rows)

    def endless() -> Generator[Any, None, None]:
        now = state
        while True:
            for after, measured, _ in stepper(now, rows, crops, inputs):
                now = after
                yield measured

    with contextlib.closing(endless()) as calls:
        return at_once * stage.batch / _pace(lambda: next(calls), seconds)


def _batches(train: Dataset, stage: Stage) -> Generator[Batch, None, None]:
    """The batches of epoch after epoch, the full ones alone where there are any."""
    for epoch in itertools.count():
        full = slice(max(1, len(train) // stage.batch))
        rows, crops = planned(train, stage, epoch, full)
        yield from load_batches(train, rows, sharding.shard_batch, crops=crops)


def _evaluation(session: Session, network: Weights, seconds: float) -> float:
    task = session.task
    head = session.methods["stage1"].head

    def run(dataset: Dataset) -> None:
        evaluate(task, head, *network, dataset, session.log, session.stop_requested)

    return _images(run, task.splits.test, task.eval_batch, seconds)


def _extraction(session: Session, network: Weights, seconds: float) -> float:
    task, request = session.task, Request(("plain",), (), "float32")

    def run(dataset: Dataset) -> None:
        given = session.log, DecodeErrors(dataset), session.stop_requested
        for _ in extract(task, *network, dataset, request, *given):
            pass

    return _images(run, task.splits.train, task.eval_batch, seconds)


def _images(
    run: Callable[[Dataset], None], dataset: Dataset, batch: int, seconds: float
) -> float:
    """Images a second of passes over as much of the data set as the time allows."""
    size = min(batch, len(dataset))
    run(dataset.take(np.arange(size)))  # compiles
    while True:
        some = dataset.take(np.arange(size))
        begun = time.monotonic()
        run(some)
        if size == len(dataset) or 2 * ROUNDS * (time.monotonic() - begun) > seconds:
            break
        size = min(2 * size, len(dataset))
    return size / _median(lambda: run(some), seconds)


def _heads(
    session: Session, network: Weights, heads: int, seconds: float
) -> dict[str, Any] | None:
    """So many heads of the first method that trains, side by side."""
    config, task = session.config, session.task
    m, train = config.method, task.splits.train
    trained = {k: v for k, v in own_values(config).items() if v["epochs"]}
    if not trained:
        return None
    name, hyper = next(iter(trained.items()))
    budget, width = budget_of(config), models.features_of(task.backbone)
    rows = min(len(train), max(m.batch, int(budget / (4 * width))))
    labels = train.labels[np.linspace(0, len(train) - 1, rows).astype(int)]
    drawn = np.random.default_rng(0).standard_normal((1, rows, width), np.float32)
    cached = Features(drawn.astype(DTYPES[m.feature_dtype][0]), labels)
    method = make_method(config, name, train.class_counts, hyper)
    per_epoch = -(-rows // m.batch)

    def run(epochs: int) -> list[float]:
        """Seconds of every epoch of all heads but the first, which compiles."""
        jobs = []
        for seed in range(heads):
            order = (2, config.seed, seed)
            start = weights.with_head(task, config.model.init, network, method, order)
            jobs.append(
                HeadJob(
                    run=f"{name}/{seed}",
                    method=method,
                    start=start.params["head"],
                    rates=np.zeros(epochs * per_epoch, np.float32),
                    projects=projection_steps(method, epochs, per_epoch),
                    epochs=epochs,
                    sgd=Sgd(m.momentum, hyper["decay"], m.decay_on),
                    order=(2, config.seed, 0),
                )
            )
        chunks, ends = plan_chunks(jobs, m.batch, budget), []

        def after_epoch(_: int) -> None:
            ends.append(time.monotonic())
            session.raise_if_stopped(GIVEN_UP)

        for _ in fit_heads(
            chunks, cached, m.batch, budget, after_epoch, lambda: cached
        ):
            pass
        times = []
        for first in range(0, len(ends), epochs):  # chunk after chunk
            times.append(np.diff(ends[first : first + epochs]))
        return list(np.sum(times, axis=0))

    each = run(2)[0]
    epochs = 1 + max(ROUNDS, min(1000, round(seconds / each)))
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


def _memory() -> dict[str, Any]:
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
    """``12.3 G``, for a unit to follow."""
    if number is None:
        return "? "
    power = 0 if number < 1 else min(5, int(math.log10(number)) // 3)
    return f"{number / 1000**power:,.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"
