"""Compile-only check of large batches: memory and FLOPs against arithmetic by hand.

Compiles the training step of ResNet-50 (224 px, 8,142 classes) for 8 virtual devices
at global batches that no machine here could run, from shapes only; nothing is
executed. The results are compared with arithmetic by hand:

- FLOPs per device: three times the forward pass (forward, gradient of the weights and
  gradient of the inputs, which the first layer does not need). A multiplication and an
  addition count for each weight and each position without padding.
- Arguments per device: parameters and momentum in float32, batch-norm statistics, the
  vectors of the loss, and its part of the batch as uint8.
- Temporary memory against activations: the backward pass keeps every convolution's
  output twice, before and after batch norm.

    python benchmarks/compiled.py [--json] [--quick]

`--quick` compiles ResNet-10 at 64 px. XLA counts the body of a loop once, so counts of
micro-batches are multiplied by their number. Temporary memory is that of XLA's CPU
compiler, which computes bfloat16 convolutions in float32 and plans memory differently
from GPUs and TPUs: read it as an order of magnitude.

JSON keys: `rows`, each with `batch`, `dtype`, `parts`, `flops_over_hand`,
`arguments_over_hand`, `temporary_over_hand`, `gib` (per device, in total),
`gflops_image`; and over all rows `flops_over_hand` and `arguments_over_hand`: [min,
max].
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any, NamedTuple

import parts

DEVICES = 8
CLASSES = 8142


class Case(NamedTuple):
    """A step to compile."""

    net: str
    size: int  # pixels of a side
    batch: int  # over all devices
    dtype: str
    parts: int  # micro-batches


FULL = (
    Case("resnet50", 224, 256, "float32", 1),
    Case("resnet50", 224, 256, "bfloat16", 1),
    Case("resnet50", 224, 1024, "bfloat16", 1),
    Case("resnet50", 224, 4096, "bfloat16", 1),
    Case("resnet50", 224, 4096, "bfloat16", 4),
)
QUICK = (
    Case("resnet10", 64, 64, "float32", 1),
    Case("resnet10", 64, 256, "bfloat16", 4),
)


class Layer(NamedTuple):
    """A convolution, counted by hand."""

    side: int  # input pixels per side
    stride: int
    kernel: int
    inputs: int  # channels
    outputs: int

    @property
    def out(self) -> int:
        """Return the output pixels per side."""
        return self.side // self.stride

    @property
    def flops(self) -> int:
        pad = (self.kernel - 1) // 2
        taps = sum(  # per side, the weights that do not meet padding
            0 <= place * self.stride - pad + i < self.side
            for place in range(self.out)
            for i in range(self.kernel)
        )
        return 2 * taps**2 * self.inputs * self.outputs

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.inputs * self.outputs

    @property
    def values(self) -> int:
        return self.out**2 * self.outputs


# Blocks per stage, and whether they are bottlenecks. Repeated here, because a check
# against the package should not read the package.
NETS = {"resnet50": ((3, 4, 6, 3), True), "resnet10": ((1, 1, 1, 1), False)}


def layers(net: str, size: int) -> list[Layer]:
    """List the convolutions of a network with the ImageNet stem, in order."""
    blocks, bottleneck = NETS[net]
    found = [Layer(size, 2, 7, 3, 64)]
    side, channels = size // 4, 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        out = 4 * width if bottleneck else width
        for block in range(number):
            stride = 2 if stage and not block else 1
            if bottleneck:
                found += [
                    Layer(side, 1, 1, channels, width),
                    Layer(side, stride, 3, width, width),
                    Layer(side // stride, 1, 1, width, out),
                ]
            else:
                found += [
                    Layer(side, stride, 3, channels, width),
                    Layer(side // stride, 1, 3, width, width),
                ]
            if stride != 1 or channels != out:
                found.append(Layer(side, stride, 1, channels, out))
            side, channels = side // stride, out
    return found


def by_hand(case: Case) -> dict[str, float]:
    """Count FLOPs and bytes of arguments and activations for one device."""
    convolutions = layers(case.net, case.size)
    images = case.batch / DEVICES
    features = max(layer.outputs for layer in convolutions)
    head = 2 * features * CLASSES
    forward = sum(layer.flops for layer in convolutions) + head
    norms = sum(layer.outputs for layer in convolutions)
    weights = sum(layer.weights for layer in convolutions) + 2 * norms
    weights += CLASSES * (features + 1)
    state = 4 * (2 * weights + 2 * norms)
    given = 4 * 5 * CLASSES  # the vectors of the loss; what is not read is not given
    bytes_each = 2 if case.dtype == "bfloat16" else 4
    values = sum(layer.values for layer in convolutions)
    return {
        "flops": images * (3 * forward - convolutions[0].flops),
        "arguments": state + given + images * (3 * case.size**2 + 8),
        "temporary": images / case.parts * 2 * values * bytes_each + 4 * weights,
        "weights": weights,
    }


def measure(case: Case) -> dict[str, Any]:
    """Compile the step of a case from shapes and compare."""
    import jax
    import jax.numpy as jnp

    from lt_jax import losses
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.training import steps
    from lt_jax.types import TrainState

    backbone = parts.network(case.net, 64, stem="imagenet", dtype=case.dtype)
    augment = Augment(pad=0, flip=True, mean=(0.5,) * 3, std=(0.2,) * 3)
    program = parts.program(backbone, augment, decay=1e-4, parts=case.parts)
    shape = (case.size, case.size, 3)

    def start() -> tuple[TrainState, steps.StepInputs]:
        params, stats = parts.fresh(backbone, shape, CLASSES)
        opt_state = program.sgd.transform().init(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state)
        adjust = losses.cross_entropy(CLASSES)
        one = jnp.zeros(1)
        numbers = jax.random.key_data(jax.random.key(0))  # as sharding.replicate does
        return state, steps.StepInputs(
            key=numbers,
            rates=one,
            adjust=adjust,
            start=params["head"],
            projects=one > 0,
        )

    state, inputs = jax.eval_shape(start)
    rows = case.batch // DEVICES

    def shaped(kind: Any, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((DEVICES, rows, *rest), kind)

    batch = {
        "image": shaped(jnp.uint8, *shape),
        "label": shaped(jnp.int32),
        "mask": shaped(jnp.float32),
    }
    step: Any = steps.make_train_step(program)
    begun = time.monotonic()
    compiled = step.lower(state, batch, inputs).compile()
    seconds = time.monotonic() - begun
    memory = compiled.memory_analysis()
    hand = by_hand(case)
    flops = case.parts * compiled.cost_analysis()["flops"]
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    given = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert given == hand["weights"], (given, hand["weights"])
    return {
        **case._asdict(),
        "flops_over_hand": flops / hand["flops"],
        "arguments_over_hand": arguments / hand["arguments"],
        "temporary_over_hand": temporary / hand["temporary"],
        "gib": (arguments + temporary) / 2**30,
        "gflops_image": flops / rows / 1e9,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="ResNet-10 at 64 px")
    options = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ |= {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    os.environ.setdefault("NPROC", "16")
    rows = []
    for case in QUICK if options.quick else FULL:
        row = measure(case)
        rows.append(row)
        print(
            f"{case.net} {case.size} px, batch {case.batch:,} in {case.parts} part(s), "
            f"{case.dtype}: of a device {row['gib']:.1f} GiB, "
            f"{row['gflops_image']:.1f} GFLOP an image; "
            f"FLOPs {row['flops_over_hand']:.3f} of those by hand, "
            f"arguments {row['arguments_over_hand']:.4f}, "
            f"temporary {row['temporary_over_hand']:.2f}; {row['seconds']:.0f} s",
            flush=True,
        )
    if options.json:
        found = {
            name: [min(r[name] for r in rows), max(r[name] for r in rows)]
            for name in ("flops_over_hand", "arguments_over_hand")
        }
        print(json.dumps({"rows": rows, **found}))


if __name__ == "__main__":
    main()
