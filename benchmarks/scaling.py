"""Cost of splitting the train step over virtual CPU devices, and bytes exchanged.

Runs a ResNet-32 step with a batch of 64 on 1, 2, 4 and 8 virtual devices, a process
each. They share the same few cores, so nothing gets faster. If splitting cost nothing,
each step would take as long as on one device (ratio 1.0).

    python benchmarks/scaling.py [--json] [--quick]

JSON keys, by number of devices: `wall` and `cpu` (wall and CPU seconds of a step
relative to one device; CPU time is less sensitive to other work; medians over rounds),
`spread`, `bytes` (input of one device to the all-reduces of a step, counted in the
compiled program), and `parameters`, `by_hand`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from typing import Any

import parts

COUNTS = (1, 2, 4, 8)
BATCH = 64
SIZES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "f64": 8}


def measure(num_steps: int) -> dict[str, Any]:
    """Measure seconds per step and bytes summed over devices, in this process."""
    import jax
    import numpy as np

    from lt_jax import losses
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    num_classes, shape = 100, (32, 32, 3)
    backbone = parts.network("resnet32", 16)
    params, stats = parts.fresh(backbone, shape, num_classes)
    augment = Augment(pad=4, flip=True, mean=(0.5,) * 3, std=(0.25,) * 3)
    program = parts.program(backbone, augment, decay=5e-4)
    adjust = losses.cross_entropy(num_classes)
    state, inputs = parts.begin(program, params, stats, adjust, rates=0.01)
    train: Any = steps.make_train_step(program)
    rng = np.random.default_rng(0)
    one = sharding.shard_batch(
        {
            "image": rng.integers(0, 256, (BATCH, *shape), np.uint8),
            "label": rng.integers(0, num_classes, BATCH, np.int32),
            "mask": np.ones(BATCH, np.float32),
        }
    )
    train = train.lower(state, one, inputs).compile()
    for _ in range(2):
        state, measured = train(state, one, inputs)
    jax.block_until_ready(measured)
    begin = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        state, measured = train(state, one, inputs)
        jax.block_until_ready(measured)  # a loop that runs ahead may deadlock
    end = time.perf_counter(), time.process_time()
    return {
        "devices": jax.device_count(),
        "wall": (end[0] - begin[0]) / num_steps,
        "cpu": (end[1] - begin[1]) / num_steps,
        "bytes": summed_bytes(train.as_text()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "channels": sum(leaf.size for leaf in jax.tree.leaves(stats)) // 2,
    }


def summed_bytes(program: str) -> int:
    """Count the bytes of all all-reduce results in the text of a compiled program."""
    total = 0
    for line in program.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?\S+ = (.*?) all-reduce(?:-start)?\(", line)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1] if found else ""):
            sides = [int(side) for side in shape.split(",") if side]
            total += SIZES[kind] * math.prod(sides)
    return total


def run(devices: int, num_steps: int) -> dict[str, Any]:
    """Measure in a process with ``devices`` virtual devices."""
    return parts.on_devices(devices, __file__, "--steps", num_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="one round of 3 steps")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(measure(options.steps)))
        return
    rounds, num_steps = (1, 2) if options.quick else (3, 5)
    ratios = {kind: {n: [] for n in COUNTS[1:]} for kind in ("wall", "cpu")}
    last: dict[str, Any] = {}
    counted = {}
    for _ in range(rounds):  # all take turns; ratios are within a round
        alone = run(1, num_steps)
        for devices in COUNTS[1:]:
            last = run(devices, num_steps)
            counted[devices] = last["bytes"]
            for kind, values in ratios.items():
                values[devices].append(last[kind] / alone[kind])
    # A gradient per parameter, and per channel of batch norm the sum and the
    # sum of squares forward and two sums backward; the rest are a few scalars.
    by_hand = 4 * (last["parameters"] + 4 * last["channels"])
    result = {
        **{
            kind: {n: statistics.median(r) for n, r in values.items()}
            for kind, values in ratios.items()
        },
        "spread": {
            kind: {n: [min(r), max(r)] for n, r in values.items()}
            for kind, values in ratios.items()
        },
        "bytes": counted,
        "parameters": last["parameters"],
        "by_hand": by_hand,
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'devices':>8s}{'wall':>10s}{'cpu':>10s}{'bytes summed':>16s}")
    for devices in COUNTS[1:]:
        print(
            f"{devices:8d}{result['wall'][devices]:10.2f}"
            f"{result['cpu'][devices]:10.2f}{counted[devices]:16,d}"
        )
    print(f"by hand: {by_hand:,} bytes for {last['parameters']:,} parameters")


if __name__ == "__main__":
    main()
