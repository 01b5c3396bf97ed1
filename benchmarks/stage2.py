"""Stage 2 in four ways: the authors', online, cached, one additional head.

The size of CIFAR100-LT at IR 100 (10,847 images, 100 classes; random pixels, no dataset
needed), batch 64, 20 epochs, on the CPU:

    authors  PyTorch as in the authors' code: each epoch runs the augmented images
             forward and backward through the full network in train mode, while the
             optimiser updates the head only
    online   the pmapped train step of lt_jax: frozen backbone, no gradients for it,
             augmented images each epoch
    cached   lt_jax.retraining.engine: features of all images once, one head fitted
             on them, compilation included
    head     one additional head on those features, already compiled

A round measures each way once, one after the other, so that other work on the machine
affects all of them. Ratios are formed within a round, against the faster of PyTorch's
memory layouts and numbers of threads. ``cached`` and ``head`` are measured completely.
``authors`` and ``online`` are the time of some steps after warm-up, scaled to 20
epochs. Evaluation is never included. PyTorch's time also excludes reading files
and the accuracy per step.

    python benchmarks/stage2.py [--json] [--quick] [--net resnet32|resnet34]

JSON keys: `cached_over_authors`, `head_over_authors`, `online_over_authors` (how many
times faster than the authors' way), `sweep32_over_one` (seconds of 32 configurations in
one program over those of one), `marginal_over_authors` (as `head`, but for one of 33
heads fitted at once: seconds of 33 minus those of 1, over 32), each the median over the
rounds. Details: `spread` (min and max over rounds), `of_least` (ratios of the shortest
times), `of_cpu_seconds` (ratios of CPU time, less sensitive to other processes),
`seconds` (for 20 epochs), `cpu_seconds`, `extrapolated` (which of these are),
`comparator` (which PyTorch), `network`, `images`, `rounds`, `steps_measured`,
`steps_in_all`, `versions`, `device`, `cores`, `load` (before and after). On a busy
machine all ratios are inaccurate: at a load of 8 on 2 cores, rounds of one run differed
by a factor of 1.6 to 2.7.

Needs PyTorch: the extra `parity`. Both sides get huge pages (GLIBC_TUNABLES).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import parts
from heads import fit, make_jobs

CLASSES, BATCH, EPOCHS = 100, 64, 20
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# Blocks per stage, width of the first stage, kind of shortcut.
NETS = {"resnet32": 16, "resnet34": 64}  # width of the first stage
AUTHORS = ("authors", "authors_channels_last", "authors_one_thread")
EXTRAPOLATED = (*AUTHORS, "torch_frozen", "online")
RATIOS = {  # numerator and denominator; None: the best of AUTHORS
    "cached_over_authors": (None, "cached"),
    "head_over_authors": (None, "head"),
    "online_over_authors": (None, "online"),
    "sweep32_over_one": ("heads32", "head"),
    "marginal_over_authors": (None, "marginal_head"),
}
HUGE = "glibc.malloc.hugetlb=1"


Ways = dict[str, Callable[[int], None]]  # steps


class Size(NamedTuple):
    """Size of the measurement."""

    largest: int  # images of the largest class
    rounds: int
    steps: int  # per round, of the extrapolated ways


FULL = {
    "resnet32": Size(500, 5, 12),
    "resnet34": Size(500, 3, 3),
}
QUICK = {
    "resnet32": Size(50, 2, 4),
    "resnet34": Size(20, 1, 1),
}


def long_tail(largest: int) -> Any:
    """Make random images with the labels of CIFAR100-LT at IR 100, or fewer."""
    import numpy as np

    from lt_jax.data import longtail
    from lt_jax.data.dataset import Dataset

    rng = np.random.default_rng(0)
    counts = longtail.class_sizes(largest, CLASSES, min(100, largest))
    labels = rng.permutation(np.repeat(np.arange(CLASSES), counts)).astype(np.int32)
    shape = (32, 32, 3)
    images = rng.integers(0, 256, (len(labels), *shape), np.uint8)
    return Dataset(
        name="random",
        classes=tuple(map(str, range(CLASSES))),
        labels=labels,
        ids=np.arange(len(labels)).astype(str),
        shape=shape,
        read=lambda rows: images[rows],
    )


# --- PyTorch ----------------------------------------------------------------------


def torch_batches(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yield shuffled batches forever: cropped, mirrored, normalised, [B, C, H, W]."""
    import numpy as np
    import torch

    rng = np.random.default_rng(1)
    images = dataset.read(np.arange(len(dataset))).transpose(0, 3, 1, 2)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    while True:
        order = rng.permutation(len(dataset))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            batch = np.empty((BATCH, 3, 32, 32), np.uint8)
            top, left = rng.integers(0, 9, (2, BATCH))
            turn = rng.choice((1, -1), BATCH)
            for i, row in enumerate(rows):
                crop = padded[row, :, top[i] : top[i] + 32, left[i] : left[i] + 32]
                batch[i] = crop[:, :, :: turn[i]]
            pixels = torch.from_numpy(batch).float().div_(255).sub_(mean).div_(std)
            yield pixels, torch.from_numpy(dataset.labels[rows]).long()


def torch_way(
    net: str, dataset: Any, channels_last: bool, threads: int, frozen: bool = False
) -> Callable[[int], None]:
    """Run some steps of stage 2 in PyTorch.

    Args:
      threads: with more than one, other processes on the cores delay every barrier.
      frozen: put the backbone in evaluation mode without gradients, unlike the
        authors' code.
    """
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = parts.torch_network(net, NETS[net], CLASSES).to(memory_format=layout)
    model.train(not frozen).requires_grad_(not frozen)
    head = model.fc.requires_grad_()
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.98)
    optimiser = torch.optim.SGD(head.parameters(), lr=5e-4, momentum=0.9)
    batches = torch_batches(dataset)

    def take(steps: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(steps):
            images, labels = next(batches)
            images = images.contiguous(memory_format=layout)
            # Clears the head's gradients; the backbone's accumulate, as in their code.
            optimiser.zero_grad()
            loss(model(images), labels).backward()
            optimiser.step()

    return take


def extract(network: Any, dataset: Any) -> Any:
    """Compute the cached features of the training set."""
    from pathlib import Path

    from lt_jax.retraining.features import plain_features
    from lt_jax.training.log import Logger
    from lt_jax.types import Weights

    # The fields of a task that extraction reads.
    task: Any = SimpleNamespace(
        backbone=network.backbone,
        augment=network.augment,
        eval_batch=500,
        log=Logger(Path(), enabled=False),
        log_seconds=60.0,
        stop_requested=lambda: "",
    )
    return plain_features(task, Weights(network.params, network.stats), dataset)


# --- lt_jax: the rest -----------------------------------------------------------------


class Network(NamedTuple):
    backbone: Any
    augment: Any
    params: Any
    stats: Any


def jax_network(net: str) -> Network:
    from lt_jax.data.augment.transforms import Augment

    backbone = parts.network(net, NETS[net])
    params, stats = parts.fresh(backbone, (32, 32, 3), CLASSES)
    return Network(backbone, Augment(4, True, MEAN, STD), params, stats)


def online_way(network: Network, dataset: Any) -> Callable[[int], None]:
    """Run some online steps: frozen batch norm, only the head is trained."""
    import jax
    import numpy as np

    from lt_jax import losses, samplers
    from lt_jax.data.loader import load_batches
    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    program = parts.program(
        network.backbone, network.augment, 0.0, trains="head/.*", batch_norm="frozen"
    )
    adjust = losses.over_smooth(CLASSES, 0.98)
    state, inputs = parts.begin(program, network.params, network.stats, adjust, 5e-4)
    step = steps.make_train_step(program)
    rows = samplers.plan(dataset.labels, "instance", BATCH, (2, 0, 0), 0)[:-1]

    def take(count: int) -> None:
        nonlocal state
        chosen = rows[np.arange(count) % len(rows)]
        for batch in load_batches(
            dataset, sharding.process_part(chosen), sharding.shard_batch
        ):
            state, _ = step(state, batch, inputs)
        jax.block_until_ready(state)

    return take


# --- measuring ------------------------------------------------------------------------


class Clock:
    """Wall seconds, and CPU seconds of all threads, by name and round."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def add(self, name: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)

    def run(self, name: str, work: Callable[[], Any], scale: float = 1) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.add(name, scale * wall, scale * cpu)
        return done


def one_round(
    network: Network, dataset: Any, ways: Ways, size: Size, clock: Clock
) -> None:
    """Measure each way once."""
    import jax

    # Clear what the previous round compiled: `cached` includes compilation.
    jax.clear_caches()
    jobs = make_jobs(network.params["head"], 33, len(dataset), EPOCHS)
    features = clock.run("extraction", lambda: extract(network, dataset))
    clock.run("first_fit", lambda: fit(jobs[:1], features))
    both = ("extraction", "first_fit")
    wall, cpu = (sum(took[n][-1] for n in both) for took in (clock.wall, clock.cpu))
    clock.add("cached", wall, cpu)

    scale = steps_in_all(dataset) / size.steps
    for name, take in {**ways, "online": online_way(network, dataset)}.items():
        take(1)  # the JAX step compiles, PyTorch's allocators and caches warm up
        clock.run(name, lambda take=take: take(size.steps), scale)

    repeats, counts = Clock(), {"head": 1, "heads32": 32, "heads33": 33}
    for count in counts.values():
        fit(jobs[:count], features)  # compiles
    for _ in range(3):
        for name, count in counts.items():
            repeats.run(name, lambda count=count: fit(jobs[:count], features))
    middle = statistics.median
    for name in counts:
        clock.add(name, middle(repeats.wall[name]), middle(repeats.cpu[name]))
    wall, cpu = (
        (took["heads33"][-1] - took["head"][-1]) / 32
        for took in (clock.wall, clock.cpu)
    )
    clock.add("marginal_head", wall, cpu)


def steps_in_all(dataset: Any) -> int:
    return -(-len(dataset) // BATCH) * EPOCHS


def measure(net: str, size: Size) -> dict[str, Any]:
    """Measure every round and the table of heads; compute the ratios."""
    import jax
    import torch

    import lt_jax

    load, cores = [os.getloadavg()[0]], len(os.sched_getaffinity(0))
    dataset, network, clock = long_tail(size.largest), jax_network(net), Clock()
    ways = {
        "authors": torch_way(net, dataset, channels_last=False, threads=cores),
        "authors_channels_last": torch_way(net, dataset, True, threads=cores),
        "authors_one_thread": torch_way(net, dataset, True, threads=1),
        "torch_frozen": torch_way(net, dataset, True, threads=cores, frozen=True),
    }
    for number in range(size.rounds):
        one_round(network, dataset, ways, size, clock)
        now = {name: round(values[-1], 2) for name, values in clock.wall.items()}
        print(f"round {number + 1} of {size.rounds}: {now}", file=sys.stderr)
    load.append(os.getloadavg()[0])

    middle = statistics.median
    best = min(AUTHORS, key=lambda name: middle(clock.wall[name]))
    named = {name: (over or best, under) for name, (over, under) in RATIOS.items()}

    def by_round(took: dict[str, list[float]]) -> dict[str, list[float]]:
        return {
            name: [a / b for a, b in zip(took[over], took[under], strict=True)]
            for name, (over, under) in named.items()
        }

    wall, cpu = by_round(clock.wall), by_round(clock.cpu)
    return {
        **{name: middle(values) for name, values in wall.items()},
        "spread": {name: [min(values), max(values)] for name, values in wall.items()},
        "of_least": {
            name: min(clock.wall[over]) / min(clock.wall[under])
            for name, (over, under) in named.items()
        },
        "of_cpu_seconds": {name: middle(values) for name, values in cpu.items()},
        "seconds": {
            name: {"median": middle(v), "least": min(v), "greatest": max(v)}
            for name, v in clock.wall.items()
        },
        "cpu_seconds": {name: middle(values) for name, values in clock.cpu.items()},
        "extrapolated": list(EXTRAPOLATED),
        "comparator": best,
        "network": net,
        "images": len(dataset),
        "rounds": size.rounds,
        "steps_measured": size.steps,
        "steps_in_all": steps_in_all(dataset),
        "versions": {
            "lt_jax": lt_jax.__version__,
            "jax": jax.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "load": load,
    }


def show(result: dict[str, Any]) -> None:
    """Format the result as text."""
    whole = {name: f"{v['median']:,.2f}" for name, v in result["seconds"].items()}
    print(
        f"{result['network']}, {result['images']:,} random images of 32x32 in "
        f"{CLASSES} classes, batch {BATCH}, {EPOCHS} epochs\n"
        f"{result['cores']} cores, load {result['load'][0]:.1f} to "
        f"{result['load'][1]:.1f}, {result['rounds']} rounds, "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + "\n"
    )
    names = {
        "authors": "the authors' way in PyTorch",
        "authors_channels_last": "the same, channels_last",
        "authors_one_thread": "the same, channels_last, one thread",
        "torch_frozen": "PyTorch, backbone frozen, channels_last",
        "online": "lt_jax online, backbone frozen",
        "cached": "lt_jax cached, all in all",
        "extraction": "  of that: features, with compilation",
        "first_fit": "  of that: one head, with compilation",
        "head": "one head more, alone",
        "marginal_head": "one head more, of 33 at once: (33 - 1) / 32",
        "heads32": "32 heads at once",
    }
    for name, title in names.items():
        spent = result["seconds"][name]
        how = "extrapolated" if name in result["extrapolated"] else "whole"
        print(
            f"{title:45s} {whole[name]:>10s} s  "
            f"({spent['least']:,.2f} to {spent['greatest']:,.2f}; {how})"
        )
    print()
    for name, (low, high) in result["spread"].items():
        print(
            f"{name:25s} {result[name]:10,.1f}  ({low:,.1f} to {high:,.1f}; of CPU "
            f"seconds {result['of_cpu_seconds'][name]:,.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the images or fewer, one or two rounds: shows that it runs; "
        "compilation and padding make the ratios smaller than they are",
    )
    parser.add_argument("--net", choices=sorted(NETS), default="resnet32")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("benchmarks/stage2.py needs PyTorch: pip install 'lt_jax[parity]'")
    if os.environ.get("GLIBC_TUNABLES") != HUGE:  # read when a process starts
        env = {**os.environ, "GLIBC_TUNABLES": HUGE, "JAX_PLATFORMS": "cpu"}
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        for name in ("NPROC", "XLA_FLAGS"):  # one device, as many threads as cores
            env.pop(name, None)
        # OpenMP's spinning threads are several times slower at a barrier where another
        # process has their core.
        env.setdefault("OMP_WAIT_POLICY", "passive")
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    size = (QUICK if options.quick else FULL)[options.net]
    result = measure(options.net, size)
    show(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
