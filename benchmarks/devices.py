"""One device against four: the same loss curve, the same integers.

Trains the digits network for 50 steps, with augmentation and an incomplete last batch,
on 1 and on 4 virtual CPU devices (a process each), then evaluates on the test set. All
in float64: training about doubles a rounding error per step. In float32 the curves of
some seeds diverge after 20 steps, which would hide a bug.

    python benchmarks/devices.py [--json] [--quick]

JSON keys: `steps`, `loss_difference` (largest relative difference of a step's loss),
`integers_equal` (right and seen of every class), `loss_first`, `loss_last`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import parts

COUNTS = (1, 4)


def measure(num_steps: int) -> dict[str, Any]:
    """Train and evaluate on the devices of this process."""
    import jax
    import numpy as np

    from lt_jax import heads, losses, metrics, samplers
    from lt_jax.data import catalogue
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.data.loader import load_batches
    from lt_jax.distributed import sharding
    from lt_jax.training import inference, steps

    splits = catalogue.load(
        "digits", dir="", imbalance=20, split="first", valid=0.2, seed=0
    )
    augment = Augment(pad=1, flip=False, mean=(0.305,), std=(0.376,))
    num_classes = len(splits.full_class_counts)
    backbone = parts.network("resnet8", 16, dtype="float64")
    params, stats = parts.fresh(backbone, splits.train.shape, num_classes)
    params = jax.tree.map(lambda a: a.astype(float), params)
    program = parts.program(backbone, augment, decay=5e-3)
    adjust = losses.cross_entropy(num_classes)
    state, inputs = parts.begin(program, params, stats, adjust, rates=0.01)
    train = steps.make_train_step(program)
    labels, batch, rows = splits.train.labels, 50, []
    for epoch in range(num_steps):
        rows.append(samplers.plan(labels, "instance", batch, (1, 0), epoch))
    plan = np.concatenate(rows)[:num_steps]
    curve = []
    for one in load_batches(
        splits.train, sharding.process_part(plan), sharding.shard_batch
    ):
        state, measured = train(state, one, inputs)
        curve.append(float(measured["loss_sum"] / measured["weight_sum"]))

    evaluate = inference.make_eval_step(backbone, heads.linear, augment, False)
    tally = sharding.replicate(metrics.empty(num_classes))
    order = samplers.batch_indices(np.arange(len(splits.test)), 70)
    for one in load_batches(
        splits.test, sharding.process_part(order), sharding.shard_batch
    ):
        tally = evaluate(state.params, state.batch_stats, one, tally)
    return {
        "devices": jax.device_count(),
        "loss": curve,
        "right": np.asarray(tally.right).tolist(),
        "seen": np.asarray(tally.seen).tolist(),
    }


def run(devices: int, num_steps: int) -> dict[str, Any]:
    """Measure in a process with ``devices`` virtual devices."""
    command = __file__, "--steps", num_steps
    return parts.on_devices(devices, *command, JAX_ENABLE_X64="1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="10 steps")
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(measure(options.steps)))
        return
    one, four = (run(devices, 10 if options.quick else 50) for devices in COUNTS)
    assert (one["devices"], four["devices"]) == COUNTS
    pairs = list(zip(one["loss"], four["loss"], strict=True))
    result = {
        "steps": len(pairs),
        "loss_difference": max(abs(a - b) / a for a, b in pairs),
        "integers_equal": one["right"] == four["right"] and one["seen"] == four["seen"],
        "loss_first": pairs[0],
        "loss_last": pairs[-1],
    }
    if options.json:
        print(json.dumps(result))
        return
    for step in range(0, len(pairs), max(1, len(pairs) // 10)):
        print(
            f"step {step + 1:3d}  1 device {pairs[step][0]:.6f}  4 {pairs[step][1]:.6f}"
        )
    print(f"largest relative difference of the loss: {result['loss_difference']:.1e}")
    print(f"right and seen of every class equal: {result['integers_equal']}")


if __name__ == "__main__":
    main()
