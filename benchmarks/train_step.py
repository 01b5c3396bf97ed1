"""Training step, evaluation step and epoch against PyTorch, in one run.

    python benchmarks/train_step.py [--json] [--quick] [--rounds N] [--platform cpu|gpu]
        [--torch-python PYTHON]

The networks of CIFAR100-LT at batch 64: ResNet-32 and the paper's wide ResNet-34. Ours
is the package's step, with crop, flip and normalisation from uint8 images, as in
`lt-jax train`. PyTorch gets normalised float images in memory. Both: cross-entropy, SGD
with momentum 0.9 and weight decay 5e-3, float32. Every variant has its own process, and
they take turns in every round. Ratios are formed within a round. The best variant of
each side counts: PyTorch's two memory layouts; ours on one device with all cores and,
on a CPU, with the batch split over a virtual device per core.

An epoch is 2,560 images of noise (CIFAR100-LT at IR 100 has 10,847; each costs the
same), read, augmented and fitted. Ours streams and also keeps images on the device.
PyTorch's uses crops and flips of NumPy with one call per batch, which is faster than
torchvision's with one call per image.

JSON keys: `resnet32_over_torch`, `resnet34_over_torch` (training step),
`eval_over_torch` (the lower of the two networks), `epoch_over_torch` and
`resident_over_torch` (ResNet-32), rates of ours over PyTorch's, medians over the
rounds; `step_over_100_classes`: the time of our ResNet-32 step under 1,000 and 8,142
classes over that under 100; `rounds`: all measurements.

`--torch-python` is the Python of the processes that run PyTorch, where the one that has
the newest JAX has no PyTorch.

On a GPU (`--platform gpu`) ours runs in bfloat16, PyTorch with `torch.compile`,
channels_last and bfloat16 autocast, batch 64 and 512; that needs a PyTorch with CUDA,
which no extra of this package installs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import parts

CLASSES, SIDE = 100, 32
NETS = {"resnet32": 16, "resnet34": 64}  # width of the first stage
TORCH = ("channels_first", "channels_last")
OURS = {"cpu": ("lt_jax", "lt_jax_split"), "cuda": ("lt_jax",)}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MANY = (1000, 8142)  # numbers of classes, compared with 100
EPOCHS = ("epoch", "resident")
EPOCH = 2560  # images


def made_images(number: int) -> tuple[Any, Any]:
    """Make images uint8[number, 32, 32, 3] and labels int32[number]."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, SIDE, SIDE, 3), np.uint8)
    return images, rng.integers(0, CLASSES, number, np.int32)


def ours(
    net: str, batch: int, dtype: str, number: int, classes: int
) -> dict[str, Callable]:
    """Return the package's tasks by name; each runs some steps, or one epoch."""
    import jax
    import numpy as np

    from lt_jax import heads, losses, metrics, models, samplers
    from lt_jax.data.augment.transforms import Augment
    from lt_jax.data.dataset import Dataset
    from lt_jax.data.loader import CropPlan, DecodeErrors
    from lt_jax.distributed import sharding
    from lt_jax.training import batches, inference, steps

    images, labels = made_images(number)
    dataset = Dataset(
        "made",
        tuple(map(str, range(classes))),
        labels,
        np.arange(number),
        images.shape[1:],
        lambda rows: images[rows],
    )
    backbone = parts.network(net, NETS[net], dtype=dtype)
    backbone = backbone.clone(engine=models.fastest_engine())
    params, stats = parts.fresh(backbone, dataset.shape, classes)
    augment = Augment(pad=4, flip=True, mean=MEAN, std=STD)
    program = parts.program(backbone, augment, decay=5e-3)
    adjust = losses.cross_entropy(classes)
    state, inputs = parts.begin(program, params, stats, adjust, rates=0.01)
    train: Any = steps.make_train_step(program)
    evaluate = inference.make_eval_step(backbone, heads.linear, augment, False)
    ready = sharding.shard_batch(
        {
            "image": images[:batch],
            "label": labels[:batch],
            "mask": np.ones(batch, np.float32),
        }
    )

    train = steps.compile_step(train, state, ready, inputs).run
    sources = {
        "epoch": batches.streamed(dataset, DecodeErrors(dataset)),
        "resident": batches.resident(dataset),
    }

    def step(count: int) -> None:
        nonlocal state
        wait, measured = sharding.dispatch_limiter(), None
        for _ in range(count):
            state, measured = train(state, ready, inputs)
            wait(measured)
        jax.block_until_ready(measured)

    def score(count: int) -> None:
        tally = sharding.replicate(metrics.empty(classes))
        wait = sharding.dispatch_limiter()
        for _ in range(count):
            tally = evaluate(state.params, state.batch_stats, ready, tally)
            wait(tally.seen)
        jax.block_until_ready(tally)

    def epoch(kind: str, count: int) -> None:
        nonlocal state
        rows = samplers.plan(labels, "instance", batch, (1, 0), 0)[:count]
        rows = sharding.process_part(
            sharding.arrange_micro_batches(rows, 1, pairs=False)
        )
        crops = CropPlan((1, 0), 0, np.arange(rows.size).reshape(rows.shape))
        wait, measured = sharding.dispatch_limiter(), None
        for some in sources[kind](rows, crops):
            state, measured = train(state, some, inputs)
            wait(measured)
        jax.block_until_ready(measured)

    whole = {kind: functools.partial(epoch, kind) for kind in sources}
    return {"step": step, "eval": score, **whole}


def theirs(
    net: str, batch: int, layout: str, number: int, device: str
) -> dict[str, Callable]:
    """Return the same tasks in PyTorch."""
    import numpy as np
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    images, labels = made_images(number)
    memory = getattr(
        torch, "channels_last" if layout == "channels_last" else "contiguous_format"
    )
    model = parts.torch_network(net, NETS[net], CLASSES)
    model = model.to(device, memory_format=memory)
    forward = torch.compile(model) if device == "cuda" else model
    loss = torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-3
    )
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))

    def pixels(some: Any) -> Any:
        moved = torch.from_numpy(some.transpose(0, 3, 1, 2).astype(np.float32))
        return ((moved / 255 - mean) / std).to(device).contiguous(memory_format=memory)

    ready = pixels(images[:batch]), torch.from_numpy(labels[:batch]).long().to(device)

    def low() -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def fit(x: Any, y: Any) -> None:
        optimiser.zero_grad(set_to_none=True)
        with low():
            value = loss(forward(x), y)
        value.backward()
        optimiser.step()

    def sync() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step(count: int) -> None:
        model.train()
        for _ in range(count):
            fit(*ready)
        sync()

    def score(count: int) -> None:
        model.eval()
        with torch.inference_mode(), low():
            right = torch.zeros((), dtype=torch.long, device=device)
            for _ in range(count):
                right += (forward(ready[0]).argmax(1) == ready[1]).sum()
        sync()

    def epoch(count: int) -> None:
        model.train()
        rng = np.random.default_rng(0)
        order = rng.permutation(number)
        for at in range(count):
            rows = order[at * batch : (at + 1) * batch]
            wide = np.pad(images[rows], ((0, 0), (4, 4), (4, 4), (0, 0)))
            where = rng.integers(0, 9, (len(rows), 2))
            mirrored = rng.random(len(rows)) < 0.5
            cut = np.stack(
                [
                    w[i : i + SIDE, j : j + SIDE]
                    for w, (i, j) in zip(wide, where, strict=True)
                ]
            )
            cut[mirrored] = cut[mirrored, :, ::-1]
            fit(pixels(cut), torch.from_numpy(labels[rows]).long().to(device))
        sync()

    return {"step": step, "eval": score, "epoch": epoch, "resident": epoch}


def work(kind: str, net: str, batch: int, number: int, device: str) -> None:
    """Run a worker: read a task per line, print the seconds it took."""
    if kind.startswith("lt_jax"):
        dtype = "float32" if device == "cpu" else "bfloat16"
        _, _, classes = kind.partition(":")
        what = ours(net, batch, dtype, number, int(classes or CLASSES))
    else:
        what = theirs(net, batch, kind, number, device)
    for line in sys.stdin:
        name, count = line.split()
        begun = time.perf_counter()
        what[name](int(count))
        print(time.perf_counter() - begun, flush=True)


def worker(kind: str, *words: object, python: str = sys.executable) -> parts.Worker:
    """Start the process of a variant."""
    cores = os.cpu_count() if kind == "lt_jax_split" else 1
    words = "--worker", kind, *words
    return parts.Worker(__file__, *words, devices=cores or 1, python=python)


def measure(
    net: str, batch: int, rounds: int, counts: dict[str, int], number: int, given: Any
) -> dict[str, list[dict[str, float]]]:
    """Measure images/s of every variant per task and round."""
    device, python = given
    workers = {kind: worker(kind, net, batch, number, device) for kind in OURS[device]}
    workers |= {
        kind: worker(kind, net, batch, number, device, python=python) for kind in TORCH
    }
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in counts}
    try:
        for name in counts:
            for each in workers.values():
                each.take(name, 2)  # compiles, fills caches
        for _ in range(rounds):
            for name, count in counts.items():
                seen = min(count * batch, number) if name in EPOCHS else count * batch
                rates[name].append(
                    {k: seen / w.take(name, count) for k, w in workers.items()}
                )
    finally:
        for each in workers.values():
            each.close()
    return rates


def over_classes(rounds: int, count: int, number: int, device: str) -> dict[int, float]:
    """Measure a ResNet-32 step with more classes, relative to 100."""
    workers = {
        k: worker(f"lt_jax:{k}", "resnet32", 64, number, device) for k in (100, *MANY)
    }
    times: dict[int, list[float]] = {k: [] for k in workers}
    try:
        for each in workers.values():
            each.take("step", 2)
        for _ in range(rounds):
            for k, each in workers.items():
                times[k].append(each.take("step", count))
    finally:
        for each in workers.values():
            each.close()
    return {
        k: statistics.median(
            t / one for t, one in zip(times[k], times[100], strict=True)
        )
        for k in MANY
    }


def ratio(rates: list[dict[str, float]]) -> float:
    """Return the median over rounds of our best rate over PyTorch's best rate."""
    return statistics.median(
        max(rate for kind, rate in one.items() if kind not in TORCH)
        / max(one[kind] for kind in TORCH)
        for one in rates
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="one round, few steps")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, net, batch, number, device = options.worker
        return work(kind, net, int(batch), int(number), device)
    here = options.torch_python == sys.executable
    if here and importlib.util.find_spec("torch") is None:
        sys.exit("benchmarks/train_step.py needs PyTorch: 'lt_jax[parity]'")
    rounds = 1 if options.quick else options.rounds
    number = 256 if options.quick else EPOCH
    device = "cpu" if options.platform == "cpu" else "cuda"
    found: dict[str, Any] = {}
    for net in options.nets:
        for batch in (64,) if device == "cpu" else (64, 512):
            much = 4 if options.quick else {"resnet32": 20, "resnet34": 5}[net]
            counts = {"step": much, "eval": 2 * much}
            if net == "resnet32":
                counts |= dict.fromkeys(EPOCHS, -(-number // batch))
            given = device, options.torch_python
            rates = measure(net, batch, rounds, counts, number, given)
            found[f"{net}_{batch}"] = rates
            for name, some in rates.items():
                middle = {
                    k: round(statistics.median(one[k] for one in some)) for k in some[0]
                }
                text = " ".join(f"{k} {v:,}" for k, v in middle.items())
                print(f"{net} batch {batch} {name}: {text} img/s, {ratio(some):.2f}")
    result: dict[str, Any] = {
        f"{net}_over_torch": ratio(found[f"{net}_64"]["step"]) for net in options.nets
    }
    result["eval_over_torch"] = min(
        ratio(found[f"{net}_64"]["eval"]) for net in options.nets
    )
    if "resnet32" in options.nets:
        result["epoch_over_torch"] = ratio(found["resnet32_64"]["epoch"])
        result["resident_over_torch"] = ratio(found["resnet32_64"]["resident"])
    slower = over_classes(rounds, 4 if options.quick else 20, number, device)
    for k, value in slower.items():
        print(f"resnet32 step under {k:,} classes over that under 100: {value:.2f}")
    result["step_over_100_classes"] = slower
    if options.json:
        print(json.dumps({**result, "rounds": found}))


if __name__ == "__main__":
    main()
