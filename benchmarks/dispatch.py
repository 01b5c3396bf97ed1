"""Cost of calling a step in several processes: pmap against jit(shard_map).

    python benchmarks/dispatch.py [--json] [--quick] [--processes 1 2 4]

The training step of ResNet-50, some 430 arrays of state, with two images of 32 pixels
per device, so that little but the call and the update is left. Processes on this
machine have one CPU device each. Both variants run the same body in the same processes
and take turns; the state of `shard_map` consists of global arrays, that of `pmap` of
local ones, as in the package. Every step is waited for.

JSON keys, by number of processes: `pmap`, `shard_map` (median seconds of a step),
`ratio` (median over rounds of pmap's time over shard_map's), `compile` (seconds until
the first step is done, by variant), `loss` (of the second step, by variant).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import parts

SIDE, CLASSES, PER_DEVICE = 32, 10, 2


def variants(net: str) -> dict[str, Callable[[], float]]:
    """Make a function per variant that takes one step, and returns its loss."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from lt_jax import losses
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    backbone = parts.network(net, 64, "imagenet")
    params, stats = parts.fresh(backbone, (SIDE, SIDE, 3), CLASSES)
    augment = Augment(pad=4, flip=True, mean=(0.5,) * 3, std=(0.25,) * 3)
    program = parts.program(backbone, augment, decay=5e-4)
    state, inputs = parts.begin(
        program,
        params,
        stats,
        losses.cross_entropy(CLASSES),
        np.zeros(10_000, np.float32),
    )
    rng = np.random.default_rng(0)
    count = PER_DEVICE * jax.local_device_count()
    batch = {
        "image": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, count, np.int32),
        "mask": np.ones(count, np.float32),
    }
    mapped: Any = steps.make_train_step(program)
    ready = sharding.shard_batch(batch)
    mesh = Mesh(np.array(jax.devices()), (sharding.AXIS,))
    copied, split = PartitionSpec(), PartitionSpec(sharding.AXIS)

    def spread(tree: Any, spec: PartitionSpec) -> Any:
        place = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(
                place, np.asarray(leaf)
            ),
            jax.device_get(tree),
        )

    whole = spread(state, copied), spread(batch, split), spread(inputs, copied)
    body = jax.shard_map(
        mapped.__wrapped__,
        mesh=mesh,
        in_specs=(copied, split, copied),
        out_specs=copied,
        check_vma=False,
    )
    jitted = jax.jit(body, donate_argnums=(0,))
    states = {"pmap": state, "shard_map": whole[0]}
    calls = {
        "pmap": lambda state: mapped(state, ready, inputs),
        "shard_map": lambda state: jitted(state, *whole[1:]),
    }

    def step(name: str) -> Callable[[], float]:
        def run() -> float:
            states[name], measured = calls[name](states[name])
            jax.block_until_ready(states[name])
            return float(measured["loss_sum"])

        return run

    return {name: step(name) for name in calls}


def work(net: str, address: str, processes: int, process: int, rounds: int) -> None:
    """Join the others, measure, and print what process 0 found."""
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, process)
    runs, found = variants(net), {"compile": {}, "loss": {}}
    for name, run in runs.items():
        begun = time.perf_counter()
        run()
        found["compile"][name] = time.perf_counter() - begun
        found["loss"][name] = run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(times["pmap"], times["shard_map"], strict=True)]
    found |= {name: statistics.median(t) for name, t in times.items()}
    found["ratio"] = statistics.median(ratios)
    if process == 0:
        print(json.dumps(found))


def measure(net: str, processes: int, rounds: int) -> dict[str, Any]:
    """Run that many processes; return what process 0 found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, __file__, "--worker", net, address, str(processes)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
    started = [
        subprocess.Popen(
            [*words, str(i), str(rounds)], env=env, stdout=subprocess.PIPE, text=True
        )
        for i in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process failed; its message is above")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="1 and 2, ResNet-10")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        net, address, *numbers = options.worker
        return work(net, address, *map(int, numbers))
    if options.quick:
        options.processes = [1, 2]
    net, rounds = ("resnet10", 3) if options.quick else ("resnet50", 20)
    result = {}
    for processes in options.processes:
        found = result[processes] = measure(net, processes, rounds)
        first = ", ".join(f"{k} {v:.0f} s" for k, v in found["compile"].items())
        each = ", ".join(f"{k} {1000 * found[k]:.0f} ms" for k in found["compile"])
        print(
            f"{processes} processes: {each}, ratio {found['ratio']:.2f}; first {first}"
        )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
