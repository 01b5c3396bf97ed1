"""Stage 1 against a plain PyTorch version of the authors' recipe, step by step.

The authors' code is not part of this repository and is not run here. How to run it:
docs/benchmarks/against_authors.md. This script contains a PyTorch version of their
stage 1: wide ResNet-34 (or ResNet-32), SGD with momentum 0.9, weight decay 5e-3 on
everything, cosine by epochs from lr 0.01, batches of 64, crops and mirror images. Both
sides start from the same weights and see the same pixels in the same order, step by
step in turns. A second PyTorch copy differs only in its memory layout. It shows the
effect of rounding on a loss curve.

    TFDS_DATA_DIR=... python benchmarks/against_authors.py [--net resnet32]
        [--seconds 180] [--plot FILE.png] [--json] [--quick]

JSON keys: `steps`, `loss_difference` (largest relative difference of a step's loss over
the first ten steps and over all), `rounding_difference` (the same between the two
PyTorch copies), `loss_first`, `loss_last`, `images_per_second`.

Needs PyTorch: the extra `parity`; and CIFAR-100 as TFDS prepares it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import parts

NETS = {"resnet34": 64, "resnet32": 16}  # width of the first stage
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
BATCH, EPOCHS, LR, DECAY = 64, 200, 0.01, 5e-3
SIDES = ("lt_jax", "torch", "torch_channels_last")


class Torch:
    """A copy in PyTorch; a step takes a batch of pixels and returns its loss."""

    def __init__(self, net: str, num_classes: int, channels_last: bool):
        import torch

        self.torch = torch
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.layout = layout
        model = parts.torch_network(net, NETS[net], num_classes)
        self.model = model.to(memory_format=layout).train()
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=LR, momentum=0.9, weight_decay=DECAY
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, EPOCHS
        )
        self.criterion = torch.nn.CrossEntropyLoss()

    def step(self, pixels: Any, labels: Any) -> float:
        x = self.torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        x = x.to(memory_format=self.layout)
        loss = self.criterion(self.model(x), self.torch.from_numpy(labels).long())
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


class Jax:
    """The train step of the package, which crops and mirrors the images."""

    def __init__(self, net: str, splits: Any, state: Any):
        import jax.numpy as jnp

        from lt_jax import heads, losses, trees
        from lt_jax.data.augment.transforms import Augment
        from lt_jax.distributed import sharding
        from lt_jax.experiment import stored
        from lt_jax.pretrained import torch_names
        from lt_jax.training import optim, steps

        self.augment = Augment(pad=4, flip=True, mean=MEAN, std=STD)
        self.shard, self.splits = sharding.shard_batch, splits
        num_classes = len(splits.full_class_counts)
        backbone = parts.network(net, NETS[net])
        like = stored.blank(backbone, heads.linear, splits.train.shape, num_classes)
        found = torch_names.from_torch(state, trees.leaves(like._asdict()))
        leaves = {name: jnp.asarray(leaf) for name, leaf in found.leaves.items()}
        params, stats = trees.rebuild(like, leaves)
        per_epoch = -(-len(splits.train) // BATCH)
        rates = optim.rates(LR, EPOCHS, per_epoch, 0, "epoch")
        program = parts.program(backbone, self.augment, decay=DECAY)
        adjust = losses.cross_entropy(num_classes)
        self.state, self.inputs = parts.begin(
            program, params, stats, adjust, rates, seed=0
        )
        self.train = steps.make_train_step(program)

    def step(self, images: Any, labels: Any, mask: Any) -> float:
        batch = {"image": images, "label": labels, "mask": mask}
        self.state, measured = self.train(self.state, self.shard(batch), self.inputs)
        return float(measured["loss_sum"] / measured["weight_sum"])


def measure(net: str, seconds: float, most: int, splits: Any) -> dict[str, Any]:
    """Run all sides in turn, step by step, until the time is over."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lt_jax import samplers
    from lt_jax.data.augment import transforms as augmentation

    num_classes = len(splits.full_class_counts)
    key = jax.random.key(0)  # as `Jax` has it
    plain = Torch(net, num_classes, channels_last=False)
    other = Torch(net, num_classes, channels_last=True)
    state = {n: t.detach().numpy().copy() for n, t in plain.model.state_dict().items()}
    ours = Jax(net, splits, state)

    @jax.jit
    def pixels_of(step: Any, images: Any) -> Any:
        """Crop, mirror and normalise the images as the train step does."""
        positions = jnp.arange(len(images))
        own = jax.random.fold_in(key, step)
        seen = augmentation.crop_flip(ours.augment, own, positions, images)
        return augmentation.normalise(ours.augment, seen)

    losses: list[list[float]] = []
    spent = dict.fromkeys(SIDES, 0.0)
    train, began = splits.train, time.monotonic()
    per_epoch = -(-len(train) // BATCH)
    for step in range(most):
        if step == 1:
            began = time.monotonic()  # without compilation
        if step and time.monotonic() - began > seconds:
            break
        epoch, at = divmod(step, per_epoch)
        rows = samplers.plan(train.labels, "instance", BATCH, (1, 0), epoch)[at]
        real = rows >= 0
        images = train.read(np.maximum(rows, 0))
        labels = np.where(real, train.labels[rows], 0).astype(np.int32)
        pixels = np.asarray(pixels_of(step, images))[real]
        given = {
            ours: (images, labels, real.astype(np.float32)),
            plain: (pixels, labels[real]),
            other: (pixels, labels[real]),
        }
        now = []
        for name, (side, batch) in zip(SIDES, given.items(), strict=True):
            start = time.monotonic()
            now.append(side.step(*batch))
            spent[name] += (time.monotonic() - start) * bool(step)  # not compilation
        losses.append(now)
        if at == per_epoch - 1:
            plain.scheduler.step()
            other.scheduler.step()

    def difference(column: int, first: int | None = None) -> float:
        rows = losses[:first]
        return max(abs(row[column] - row[1]) / row[1] for row in rows)

    return {
        "net": net,
        "steps": len(losses),
        "split": splits.hash,
        "loss_difference": [difference(0, 10), difference(0)],
        "rounding_difference": [difference(2, 10), difference(2)],
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "losses": losses,
        "images_per_second": {
            side: (len(losses) - 1) * BATCH / spent[side] if spent[side] else None
            for side in SIDES
        },
    }


def show(result: dict[str, Any]) -> None:
    losses = result["losses"]
    print(f"{result['net']}, {len(losses)} steps, split {result['split']}")
    print(f"{'step':>5s}" + "".join(f"{side:>22s}" for side in SIDES))
    every = max(1, len(losses) // 12)
    for step in sorted({*range(0, len(losses), every), len(losses) - 1}):
        print(f"{step + 1:5d}" + "".join(f"{v:22.6f}" for v in losses[step]))
    for key in ("loss_difference", "rounding_difference"):
        first, whole = result[key]
        print(f"{key}: {first:.1e} in the first ten steps, {whole:.1e} in all")
    print(f"images per second: {result['images_per_second']}")


def plot(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), dpi=80)
    steps = range(1, result["steps"] + 1)
    for side, style, column in zip(
        SIDES, ("-", "--", ":"), zip(*result["losses"], strict=True), strict=True
    ):
        axes.plot(steps, column, style, label=side)
    axes.set(xlabel="step", ylabel="cross-entropy", title=result["net"])
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=NETS, default="resnet34")
    parser.add_argument("--seconds", type=float, default=180, help="%(default)s")
    parser.add_argument("--steps", type=int, default=10**6, help="at most")
    parser.add_argument("--plot", type=Path, help="a PNG of the curves")
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="ResNet-32, 20 steps")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("benchmarks/against_authors.py needs PyTorch: 'lt_jax[parity]'")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as PyTorch's extra is the CPU's
    from lt_jax.data import catalogue

    net, steps = options.net, options.steps
    if options.quick:
        net, steps = "resnet32", 20
    splits = catalogue.load(
        "cifar100", dir="", imbalance=100, split="first", valid=0.0, seed=0
    )
    result = measure(net, options.seconds, steps, splits)
    if options.plot:
        plot(result, options.plot)
    show(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
