"""Many heads on cached features: time of a step, 32 heads over one, complete grids.

    python benchmarks/heads.py [--devices N] [--json] [--quick]

Random features, so no dataset is needed, and no PyTorch. Three parts, on the CPU:

    steps    LOS heads on D features and K classes, batch 64, by number of heads:
             microseconds per step and head, and the fraction of a plain matmul's rate
    one      seconds of 32 heads over those of one, in rounds, each 20 epochs at the
             size of CIFAR100-LT at IR 100 with 64 features (as stage2.py)
    grids    every method with its whole grid, as `lt_jax.fit_heads` fits them,
             compilation included, for one seed and for three: 10,847 x 64 features with
             100 classes, 3,262 x 1,280 with 17

``--devices`` is the number of virtual CPU devices that share the cores. JSON keys:
`steps`, `sweep32_over_one` (median), `rounds`, `grids`, `matmul_gflops`, `devices`,
`versions`, `cores`, `date`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

DELTAS = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
RATES = (5e-4, 2e-3, 5e-3, 2e-2)
BATCH = 64
# Features, classes, images of the largest and of the smallest class.
CIFAR, PHOTOS = (64, 100, 500, 5), (1280, 17, 480, 48)
SHAPES = (CIFAR, (512, 100, 500, 5), PHOTOS)


def make_features(shape: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """Make random features with long-tailed labels, and an initial head."""
    import numpy as np

    from lt_jax.data import longtail
    from lt_jax.retraining.features import Features

    width, classes, largest, smallest = shape
    rng = np.random.default_rng(0)
    counts = longtail.class_sizes(largest, classes, largest / smallest)
    labels = rng.permutation(np.repeat(np.arange(classes), counts)).astype(np.int32)
    values = np.maximum(rng.normal(size=(1, len(labels), width)), 0)
    kernel = np.float32(0.01) * rng.normal(size=(width, classes)).astype(np.float32)
    start = {"kernel": kernel, "bias": np.zeros(classes, np.float32)}
    return Features(values.astype(np.float32), labels), start


def make_jobs(start: Any, count: int, examples: int, epochs: int) -> list[Any]:
    """Make LOS heads that differ in delta, then in the learning rate."""
    import numpy as np

    from lt_jax import methods
    from lt_jax.retraining import chunks
    from lt_jax.training import optim

    jobs, counts = [], np.ones(len(start["bias"]), int)
    sgd = optim.Sgd(momentum=0.9, decay=0.0, decay_on=".*")
    per_epoch = -(-examples // BATCH)
    for i in range(count):
        delta = DELTAS[(i + 6) % len(DELTAS)]  # the first is the paper's
        rate = RATES[i // len(DELTAS) % len(RATES)]
        los = methods.los(counts, delta=delta, start="stage1", sampler="instance")
        jobs.append(
            chunks.HeadJob(
                run=f"los/{i}",
                method=los,
                start=start,
                rates=optim.rates(rate, epochs, per_epoch, 0, "epoch"),
                epochs=epochs,
                sgd=sgd,
                order=(2, 0, 0),
            )
        )
    return jobs


def fit(jobs: list[Any], features: Any) -> list[Any]:
    from lt_jax.retraining import chunks, engine

    memory = 2.0**30
    planned = chunks.plan_chunks(jobs, BATCH, memory)
    return list(engine.fit_heads(planned, features, BATCH, memory, lambda heads: None))


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def matmul_rate() -> float:
    """Measure 10^9 operations per second of a product of 2048 x 2048 matrices."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(jnp.dot)
    product(square, square).block_until_ready()  # compiles
    took = [
        seconds(lambda: product(square, square).block_until_ready()) for _ in "12345"
    ]
    return 2 * 2.048**3 / statistics.median(took)


def steps(counts: tuple[int, ...], epochs: int) -> tuple[list[dict[str, Any]], float]:
    """Measure a step of a head by shape and number of heads, and a plain matmul."""
    rows, rates = [], []
    for shape in SHAPES:
        features, start = make_features(shape)
        width, classes = shape[:2]
        for count in counts:
            jobs = make_jobs(start, count, len(features.labels), epochs)
            fit(jobs, features)  # compiles
            rates.append(matmul_rate())
            again = functools.partial(fit, jobs, features)
            took = statistics.median(seconds(again) for _ in range(3))
            each = took / len(jobs[0].rates) / count
            # Logits and the gradient of the kernel: two products of B x D x K.
            done = 4e-9 * BATCH * width * classes
            rows.append(
                {
                    "features": width,
                    "classes": classes,
                    "heads": count,
                    "microseconds": 1e6 * each,
                    "of_matmul_rate": done / each / rates[-1],
                }
            )
    return rows, statistics.median(rates)


def over_one(rounds: int, epochs: int) -> list[float]:
    """Measure 32 heads over one, once per round."""
    features, start = make_features(CIFAR)
    one, many = (make_jobs(start, n, len(features.labels), epochs) for n in (1, 32))
    for jobs in (one, many):
        fit(jobs, features)  # compiles
    return [
        seconds(lambda: fit(many, features)) / seconds(lambda: fit(one, features))
        for _ in range(rounds)
    ]


def grids(seeds: int, settings: int | None) -> list[dict[str, Any]]:
    """Fit every method's grid; seconds after one seed and after all of them."""
    import all_methods
    import jax
    import numpy as np

    from lt_jax import recipes

    found = []
    for shape in (CIFAR, PHOTOS):
        features, start = make_features(shape)
        case = recipes.Case(recipes.smoothing(shape[1]))
        rows = all_methods.rows_of(case, settings)
        values = np.asarray(features.values[0])
        data = all_methods.Data(values, features.labels, *[None] * 4, start)  # pyright: ignore
        jax.clear_caches()
        once = functools.partial(all_methods.fit, data, rows)
        took = [seconds(functools.partial(once, seed)) for seed in range(seeds)]
        found.append(
            {
                "features": shape[0],
                "classes": shape[1],
                "examples": len(features.labels),
                "methods": len({name for name, _ in rows}),
                "heads": len(rows),
                "seconds": took[0],
                "seeds": seeds,
                "seconds_of_all_seeds": sum(took),
            }
        )
    return found


def show(result: dict[str, Any]) -> None:
    """Format the result as text."""
    for row in result["steps"]:
        print(
            f"{row['features']:5d} x {row['classes']:3d} classes, {row['heads']:3d} "
            f"heads {row['microseconds']:7.1f} microseconds, "
            f"{row['of_matmul_rate']:4.0%} of {result['matmul_gflops']:.0f} GFLOP/s"
        )
    rounds = result["rounds"]
    print(
        f"32 heads over one: {result['sweep32_over_one']:.1f} "
        f"({min(rounds):.1f} to {max(rounds):.1f})"
    )
    for row in result["grids"]:
        print(
            f"{row['heads']} heads of {row['methods']} methods, {row['examples']:,} x "
            f"{row['features']}, {row['classes']} classes: {row['seconds']:.0f} s; "
            f"{row['seeds']} seeds, {row['heads'] * row['seeds']:,} heads: "
            f"{row['seconds_of_all_seeds']:.0f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="fewer heads and epochs")
    parser.add_argument("--devices", type=int, default=1, help="default %(default)s")
    options = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={options.devices}"
    env = {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if any(os.environ.get(name) != value for name, value in env.items()):
        env = {**os.environ, **env}
        env.pop("NPROC", None)  # as many threads as cores
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    import jax

    import lt_jax

    quick = options.quick
    table, rate = steps((1, 32) if quick else (1, 8, 32, 64), 1 if quick else 4)
    rounds = over_one(1 if quick else 7, 2 if quick else 20)
    result = {
        "steps": table,
        "matmul_gflops": rate,
        "sweep32_over_one": statistics.median(rounds),
        "rounds": rounds,
        "grids": grids(1 if quick else 3, 1 if quick else None),
        "devices": options.devices,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "lt_jax": lt_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    show(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
