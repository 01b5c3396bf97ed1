"""Features of a frozen backbone: images/s of ours over PyTorch's, in one run.

    python benchmarks/extraction.py [--json] [--quick] [--rounds N] [--nets NET ...]
        [--platform cpu|gpu]

Ours is the step of `lt-jax features`, from uint8 images. PyTorch gets normalised float
images in memory, in inference mode. Weights are random. Every variant has its own
process, and they take turns in every round; ratios are formed within a round. The best
variant of each side counts: batches of 16 and 64; PyTorch's two memory layouts; ours on
one device with all cores and, on a CPU, on a virtual device per core. Both compute in
float32; on a GPU in bfloat16, PyTorch with `torch.compile`.

JSON keys: `NET_over_torch`, the median over the rounds; `NET`, our best rate in
images/s, the only key without PyTorch (and, for a ViT, timm); `rounds`: everything.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts

# Name -> stem, width of the first stage, side in pixels, batches per task.
NETS = {
    "resnet32": ("cifar", 16, 32, 20),
    "resnet34": ("cifar", 64, 32, 3),
    "resnet50": ("imagenet", 64, 224, 1),
    "vit_small_patch16_224": ("imagenet", 64, 224, 1),
}
BATCHES = {"cpu": (16, 64), "gpu": (64, 256)}
OURS = {"cpu": ("lt_jax", "lt_jax_split"), "gpu": ("lt_jax",)}
TORCH = ("contiguous_format", "channels_last")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(net: str, batch: int, platform: str) -> Callable[[int], None]:
    """Return a function that computes the features of a number of batches."""
    import jax
    import numpy as np

    from lt_jax import models
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.distributed import sharding
    from lt_jax.training import inference

    stem, width, side, _ = NETS[net]
    dtype = "float32" if platform == "cpu" else "bfloat16"
    backbone = parts.network(net, width, stem, dtype)
    if isinstance(backbone, models.ResNet):
        backbone = backbone.clone(engine=models.fastest_engine())
    params, stats = parts.fresh(backbone, (side, side, 3), 100)
    augment = Augment(0, False, MEAN, STD)
    step = inference.make_feature_step(backbone, augment, "plain")
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    some = {"image": images, "label": np.zeros(batch, np.int32)}
    ready = sharding.shard_batch({**some, "mask": np.ones(batch, np.float32)})
    params, stats = sharding.replicate(params), sharding.replicate(stats)
    key = sharding.replicate(jax.random.key_data(jax.random.key(0)))
    first = sharding.replicate(np.int32(0))

    def run(count: int) -> None:
        wait, found = sharding.dispatch_limiter(), None
        for _ in range(count):
            found = step(params, stats, ready, key, first)
            wait(found)
        jax.block_until_ready(found)

    return run


def theirs(net: str, layout: str, batch: int, platform: str) -> Callable[[int], None]:
    """Return the same in PyTorch."""
    import torch

    stem, width, side, _ = NETS[net]
    device = "cpu" if platform == "cpu" else "cuda"
    memory = getattr(torch, layout)
    torch.set_num_threads(os.cpu_count() or 1)
    if net.startswith("vit"):
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import timm_library

        model = timm_library.load().create_model(net, num_classes=0)
    else:
        model = parts.torch_network(net, width, 100, stem)
    model = model.eval().to(device, memory_format=memory)
    forward = torch.compile(model) if device == "cuda" else model
    ready = torch.randn(batch, 3, side, side).to(device, memory_format=memory)

    def run(count: int) -> None:
        with (
            torch.inference_mode(),
            torch.autocast(device, torch.bfloat16, enabled=device == "cuda"),
        ):
            for _ in range(count):
                forward(ready)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def work(net: str, kind: str, batch: int, platform: str) -> None:
    """Run a worker: read a number of batches per line, print the seconds they took."""
    if kind in TORCH:
        run = theirs(net, kind, batch, platform)
    else:
        run = ours(net, batch, platform)
    for line in sys.stdin:
        begun = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - begun, flush=True)


def measure(
    net: str, platform: str, rounds: int, kinds: tuple[str, ...], quick: bool
) -> list[dict[str, float]]:
    """Measure images/s of every variant, by round."""
    much = NETS[net][3]
    batches = BATCHES[platform][: 1 if quick else None]
    workers = {}
    for kind in kinds:
        for batch in batches:
            words = "--worker", net, kind, batch, platform
            cores = os.cpu_count() if kind == "lt_jax_split" else 1
            workers[kind, batch] = parts.Worker(__file__, *words, devices=cores or 1)
    found: list[dict[str, float]] = []
    try:
        for worker in workers.values():
            worker.take(1)  # compiles, fills caches
        for _ in range(rounds):
            rates = {}
            for (kind, batch), worker in workers.items():
                count = 1 if quick else much * max(batches) // batch
                rates[f"{kind}_{batch}"] = count * batch / worker.take(count)
            found.append(rates)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def best(rates: dict[str, float], torch: bool) -> float:
    return max(v for k, v in rates.items() if k.startswith(TORCH) == torch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="one round, one batch")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        net, kind, batch, platform = options.worker
        return work(net, kind, int(batch), platform)
    result: dict[str, Any] = {"rounds": {}}
    for net in options.nets:
        wanted = ("torch", "timm") if net.startswith("vit") else ("torch",)
        there = all(importlib.util.find_spec(name) for name in wanted)
        kinds = (*OURS[options.platform], *(TORCH if there else ()))
        rounds = 1 if options.quick else options.rounds
        found = measure(net, options.platform, rounds, kinds, options.quick)
        result["rounds"][net] = found
        result[net] = statistics.median(best(one, torch=False) for one in found)
        text = f"{net}: {result[net]:,.1f} img/s"
        if there:
            ratios = [best(one, torch=False) / best(one, torch=True) for one in found]
            result[f"{net}_over_torch"] = statistics.median(ratios)
            text += f", {result[f'{net}_over_torch']:.2f} of PyTorch's"
        print(text, flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
