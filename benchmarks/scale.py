"""Rehearsal of iNaturalist2018's size: 437,513 images, 8,142 classes, 2,048 features.

    python benchmarks/scale.py [--json] [--quick] [--folder=DIR]

Checks that everything fits into memory, and how long it takes:

- `host`: the validation split, the plans of an epoch, the hash of the examples;
- `metrics`: the tally of 24,426 test images over 8,142 classes, and its summary;
- `stage1`: some training steps of ResNet-10 at 64 px with a head of all classes;
- `features`: a file of all features, synthetic, in bfloat16, written block by block;
- `heads`: stage 2 on that file, read during the steps, with 0.5 GiB for features:
  a complete epoch of one head, some steps of one and of several, and nearest class mean
  over all examples.

Each runs in a separate process. `cpu` in a name means CPU time of all cores, which
depends less on other work on the machine. `anonymous_gib` is the peak memory without
mapped files, which the system may drop. For stage 1 and several heads some steps are
measured, after the first ones, and **extrapolated** to an epoch: keys with the suffix
`_extrapolated`. `--quick` uses 500 classes and 128 features.

The class counts are synthetic. The ends (1,000 and 2), the number of classes and the
sum are those of the dataset. The rest is log-normal with deviation 1.24 and a median
that makes the sum exact. The real distribution is similar: `groups` counts the many-
and few-shot classes here; MiSLAS's config has 842 and 3,599 for the dataset.

`--folder` holds the file of features while it is needed (1.7 GiB); default: the
system's temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import parts

DEVIATION = 1.24  # standard deviation of log counts


class Size(NamedTuple):
    """Size of the rehearsal."""

    classes: int
    images: int
    most: int  # images of the largest class
    least: int
    features: int
    test: int  # images
    batch: int
    pixels: int  # per step of stage 1
    steps: int  # timed
    heads: int  # at once
    memory: float  # bytes


FULL = Size(8142, 437_513, 1000, 2, 2048, 24_426, 256, 64, 24, 4, 2**29)
QUICK = Size(500, 20_000, 300, 2, 128, 1500, 64, 32, 3, 4, 2**20)


def made_counts(size: Size) -> np.ndarray:
    """Make int64[K], decreasing from ``most`` to ``least``, with the sum ``images``."""
    places = (np.arange(size.classes)[::-1] + 0.5) / size.classes
    normal = np.array([statistics.NormalDist().inv_cdf(p) for p in places])

    def cut(middle: float) -> np.ndarray:
        counts = np.exp(middle + DEVIATION * normal).round().astype(np.int64)
        return np.clip(counts, size.least, size.most)

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).sum() < size.images else (low, middle)
    counts = cut(low)
    missing = size.images - int(counts.sum())  # rounding step of one
    assert 0 <= missing < size.classes
    able = np.flatnonzero((counts > size.least) & (counts < size.most))[:missing]
    counts[able] += 1
    counts = np.sort(counts)[::-1]
    assert (counts.sum(), counts[0], counts[-1]) == (size.images, size.most, size.least)
    return counts


def made_labels(size: Size) -> np.ndarray:
    """Make int32[N] in random order."""
    labels = np.repeat(np.arange(size.classes), made_counts(size))
    return np.random.default_rng(0).permutation(labels).astype(np.int32)


@contextlib.contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Record the peak anonymous memory of this process, sampled 20 times a second."""
    over = threading.Event()
    most = 0

    def look() -> None:
        nonlocal most
        status = Path("/proc/self/status")
        while not over.wait(0.05) and status.exists():
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            most = max(most, int(lines["RssAnon"].split()[0]) * 1024)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        found["anonymous_gib"] = most / 2**30


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def host(size: Size, folder: Path) -> dict[str, Any]:
    """Measure work on the host, once per run or per epoch."""
    from lt_jax import metrics, samplers
    from lt_jax.data import longtail
    from lt_jax.data.dataset import Dataset

    labels = made_labels(size)
    ids = np.array([f"train_{i:06d}" for i in range(len(labels))])
    dataset = Dataset(
        "made", tuple(map(str, range(size.classes))), labels, ids, (8, 8, 3), np.asarray
    )

    def split() -> None:
        longtail.hold_out(labels, 0.1, 0, size.classes)

    def plan(kind: str) -> Callable[[], Any]:
        return lambda: samplers.plan(labels, kind, size.batch, (1, 0), 0)

    counts = dataset.class_counts
    groups = metrics.groups(counts, 100, 20)
    return {
        "counts_max": int(counts.max()),
        "counts_min": int(counts.min()),
        "images": int(counts.sum()),
        "groups": {name: int(where.sum()) for name, where in groups.items()},
        "split_seconds": seconds(split),
        "plan_instance_seconds": seconds(plan("instance")),
        "plan_class_seconds": seconds(plan("class")),
        "plan_sqrt_seconds": seconds(plan("sqrt")),
        "hash_seconds": seconds(lambda: dataset.hash),
    }


def tally(size: Size, folder: Path) -> dict[str, Any]:
    """Measure the metrics of a test set, from logits."""
    import jax

    from lt_jax import metrics

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(size.batch, size.classes)).astype(np.float32)
    mask = np.ones(size.batch, np.float32)
    groups = metrics.groups(made_counts(size), 100, 20)
    step = jax.jit(
        lambda so_far, *batch: metrics.merge(so_far, metrics.tally(*batch)),
        donate_argnums=0,
    )
    labels = rng.integers(
        0, size.classes, (1 + -(-size.test // size.batch), size.batch)
    )
    labels = labels.astype(np.int32)
    found: Any = jax.device_put(metrics.empty(size.classes))
    found = step(found, logits, labels[0], mask)  # compiles
    jax.block_until_ready(found)
    begun = time.perf_counter()
    for one in labels[1:]:
        found = step(found, logits, one, mask)
    found = jax.device_get(found)
    return {
        "tally_seconds": time.perf_counter() - begun,
        "summary_seconds": seconds(lambda: metrics.summary(found, groups)),
        "per_class_seconds": seconds(lambda: metrics.per_class(found)),
    }


def stage1(size: Size, folder: Path) -> dict[str, Any]:
    """Measure some steps of the small network with the full head."""
    from lt_jax import losses, samplers
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.data.dataset import Dataset
    from lt_jax.data.loader import load_batches
    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    labels, shape = made_labels(size), (size.pixels, size.pixels, 3)
    bank = np.random.default_rng(0).integers(0, 256, (512, *shape), np.uint8)
    dataset = Dataset(
        "made",
        tuple(map(str, range(size.classes))),
        labels,
        np.arange(len(labels)),
        shape,
        lambda rows: bank[rows % len(bank)],
    )
    augment = Augment(pad=4, flip=True, mean=(0.466, 0.471, 0.380), std=(0.2,) * 3)
    backbone = parts.network("resnet10", 64, stem="imagenet")
    params, stats = parts.fresh(backbone, shape, size.classes)
    program = parts.program(backbone, augment, decay=1e-4)
    adjust, number = losses.cross_entropy(size.classes), size.steps + 2
    state, inputs = parts.begin(program, params, stats, adjust, rates=0.1)
    step = steps.make_train_step(program)
    rows = samplers.plan(labels, "class", size.batch, (1, 0), 0)
    rows = sharding.arrange_micro_batches(rows, 1, pairs=False)
    begun, used, loss = 0.0, 0.0, float("nan")
    for at, batch in enumerate(
        load_batches(dataset, rows[:number], sharding.shard_batch)
    ):
        if at == 2:  # the first two compile and fill caches
            begun, used = time.perf_counter(), -time.process_time()
        state, measured = step(state, batch, inputs)
        loss = float(measured["loss_sum"] / measured["weight_sum"])
    each = (time.perf_counter() - begun) / size.steps
    return {
        "step_seconds": each,
        "step_cpu_seconds": (used + time.process_time()) / size.steps,
        "loss": loss,
        "steps_epoch": len(rows),
        "epoch_hours_extrapolated": each * len(rows) / 3600,
    }


def write_features(size: Size, folder: Path) -> dict[str, Any]:
    """Write a file like `features.cached_features`: a class centre plus noise."""
    from lt_jax.retraining import features

    labels, rng = made_labels(size), np.random.default_rng(1)
    memory, stored = features.DTYPES["bfloat16"]
    centres = rng.standard_normal((size.classes, size.features), np.float32)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, len(labels), 4096):
            own = centres[labels[first : first + 4096]]
            noise = rng.standard_normal(own.shape, np.float32)
            yield np.maximum(own + noise, 0).astype(memory).view(stored)

    file = folder / "train.npy"
    shape = (1, len(labels), size.features)
    spent = seconds(lambda: features._stream(file, shape, stored, blocks()))
    return {"write_seconds": spent, "file_gib": file.stat().st_size / 2**30}


def fit(size: Size, folder: Path) -> dict[str, Any]:
    """Measure stage 2 on the file."""
    import jax

    from lt_jax import methods, samplers
    from lt_jax.retraining import chunks, engine, features
    from lt_jax.training import optim

    labels, counts = made_labels(size), made_counts(size)
    memory, _ = features.DTYPES["bfloat16"]
    values = np.load(folder / "train.npy", mmap_mode="r").view(memory)
    seen = features.Features(values, labels)
    assert not engine.fits_in_memory(seen, size.memory)
    whole = samplers.plan(labels, "class", size.batch, (2, 0, 0), 0)
    sgd = optim.Sgd(momentum=0.9, decay=0.0, decay_on=".*")
    found: dict[str, Any] = {"steps_epoch": len(whole)}

    def jobs(number: int) -> list[chunks.HeadJob]:
        made = []
        for delta in np.linspace(0.9, 0.9999, number):
            method = methods.make(
                "los", counts, {"delta": delta, "start": "fresh", "sampler": "class"}
            )
            start = method.head.init(
                jax.random.key(0), None, size.features, size.classes, "torch"
            )
            rates = optim.rates(0.1, 1, len(whole), 0, "step")
            made.append(
                chunks.HeadJob(
                    run=f"los {delta}",
                    method=method,
                    start=start,
                    rates=rates,
                    epochs=1,
                    sgd=sgd,
                    order=(2, 0, 0),
                )
            )
        return made

    fitted: dict[str, Any] = {}
    for number in (1, size.heads):
        planned = chunks.plan_chunks(jobs(number), size.batch, 8 * 2**30)
        assert len(planned) == 1

        def run(planned: Any = planned) -> None:
            for _, fits in engine.fit_heads(
                planned, seen, size.batch, size.memory, lambda heads: None
            ):
                fitted["head"] = fits[0].head

        if number == 1:
            found["epoch_seconds"] = seconds(run)  # compilation included
        # An epoch of several heads takes too long here: stop after some steps.
        plan = samplers.plan
        samplers.plan = lambda *given: whole[: size.steps]
        try:
            run()  # compiles
            used = -time.process_time()
            each = seconds(run) / size.steps
            used += time.process_time()
        finally:
            samplers.plan = plan
        found[f"step_seconds_{number}"] = each
        found[f"step_cpu_seconds_{number}"] = used / size.steps
        if number > 1:
            found[f"epoch_hours_{number}_extrapolated"] = each * len(whole) / 3600
    found["marginal_head"] = (
        found[f"step_seconds_{size.heads}"] - found["step_seconds_1"]
    ) / ((size.heads - 1) * found["step_seconds_1"])

    ncm = methods.make("ncm", counts, {"kind": "cl2"})
    like = ncm.head.init(
        jax.random.key(0), fitted["head"], size.features, size.classes, "torch"
    )
    found["ncm_seconds"] = seconds(
        lambda: engine.apply_correction(ncm, like, labels, lambda: seen)
    )
    held = seen._replace(values=values[:, : size.test], labels=labels[: size.test])
    found["measure_seconds"] = seconds(
        lambda: engine.measure_heads(
            jobs(1)[0].method.head, [fitted["head"]], held, size.batch, size.memory
        )
    )
    return found


PHASES: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
    "host": host,
    "metrics": tally,
    "stage1": stage1,
    "features": write_features,
    "heads": fit,
}


def rehearse(size: Size, folder: Path, phase: str) -> dict[str, Any]:
    """Run one part in this process."""
    found: dict[str, Any] = {}
    with watched(found):
        found["seconds"] = -time.perf_counter()
        measured = PHASES[phase](size, folder)
        found["seconds"] += time.perf_counter()
        found["cpu_seconds"] = time.process_time()  # imports and compilation included
    return {**measured, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="500 classes")
    parser.add_argument("--folder", type=Path, help="for the file of features")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.phase:
        print(json.dumps(rehearse(size, options.folder, options.phase)))
        return
    result: dict[str, Any] = {"size": size._asdict()}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for phase in PHASES:
            command = [__file__, "--phase", phase, "--folder", folder]
            result[phase] = parts.answer(*command, *["--quick"] * options.quick)
            print(f"{phase}:", flush=True)
            for name, value in result[phase].items():
                text = f"{value:,.4g}" if isinstance(value, float) else value
                print(f"  {name}: {text}", flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
