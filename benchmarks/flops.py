"""FLOPs of a training step of CIFAR100-LT's networks, counted by XLA's compiler.

    python benchmarks/flops.py [--json] [--quick]

Compiles the step on one device, with XLA's own convolutions, and runs nothing. JSON
keys: `resnet32`, `resnet34` (wide), in GFLOP per image. `--quick`: ResNet-32 only.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import parts

NETS = {"resnet32": 16, "resnet34": 64}  # width of the first stage
BATCH, SIDE, CLASSES = 64, 32, 100


def gflops(net: str) -> float:
    """Count GFLOP per image."""
    from lt_jax import losses
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    backbone = parts.network(net, NETS[net])
    params, stats = parts.fresh(backbone, (SIDE, SIDE, 3), CLASSES)
    augment = Augment(pad=4, flip=True, mean=(0.5,) * 3, std=(0.25,) * 3)
    program = parts.program(backbone, augment, decay=5e-3)
    adjust = losses.cross_entropy(CLASSES)
    state, inputs = parts.begin(program, params, stats, adjust, rates=0.01)
    batch = {
        "image": np.zeros((BATCH, SIDE, SIDE, 3), np.uint8),
        "label": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    step: Any = steps.make_train_step(program)
    lowered = step.lower(state, sharding.shard_batch(batch), inputs)
    return lowered.compile().cost_analysis()["flops"] / BATCH / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="ResNet-32 only")
    options = parser.parse_args()
    found = {}
    for net in [*NETS][: 1 if options.quick else None]:
        found[net] = gflops(net)
        print(f"{net}: {found[net]:.3f} GFLOP per image")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
