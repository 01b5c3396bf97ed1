"""Parts shared by benchmarks: our training step, PyTorch's network, a subprocess.

Imports are inside the functions, because the scripts set JAX's variables first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def network(net: str, width: int, stem: str = "cifar", dtype: str = "float32") -> Any:
    """Make one of our backbones."""
    from lt_jax import models
    from lt_jax.distributed import sharding

    return models.create(net, stem, width, dtype=dtype, axis_name=sharding.AXIS)


def fresh(backbone: Any, shape: tuple[int, ...], num_classes: int) -> tuple[Any, Any]:
    """Make parameters with a linear head, and batch statistics."""
    import jax

    from lt_jax import models

    params, stats = models.init(backbone, jax.random.key(0), shape)
    head = fresh_head(backbone.num_features, num_classes)
    return {"backbone": params, "head": head}, stats


def fresh_head(width: int, num_classes: int) -> Any:
    """Make the parameters of a linear head."""
    import jax

    from lt_jax import heads

    return heads.linear.init(jax.random.key(1), None, width, num_classes, "torch")


def program(
    backbone: Any,
    augment: Any,
    decay: float,
    trains: str = ".*",
    batch_norm: str = "train",
    parts: int = 1,
) -> Any:
    """Make an SGD step, momentum 0.9, on the cross-entropy of a linear head."""
    from lt_jax import heads, losses
    from lt_jax.training import optim, steps

    return steps.StepSpec(
        backbone=backbone,
        head=heads.linear,
        loss=losses.adjusted_xent,
        project=None,
        sgd=optim.Sgd(momentum=0.9, decay=decay, decay_on=".*"),
        trains=trains,
        batch_norm=batch_norm,
        augment=augment,
        micro_batches=parts,
    )


def begin(
    program: Any, params: Any, stats: Any, adjust: Any, rates: Any, seed: int = 2
) -> tuple[Any, Any]:
    """Place the initial state and the step inputs on the devices.

    Args:
      rates: float32[steps], or one rate for any number of steps.
      seed: seed of the augmentation.
    """
    import jax
    import numpy as np

    from lt_jax.distributed import sharding
    from lt_jax.training import steps

    if np.ndim(rates) == 0:
        rates = np.full(100_000, rates, np.float32)
    none = np.zeros(len(rates), bool)
    inputs = steps.StepInputs(
        key=jax.random.key(seed),
        rates=rates,
        adjust=adjust,
        start=params["head"],
        projects=none,
    )
    state = steps.init_state(params, stats, program.sgd, program.trains)
    return state, sharding.replicate(inputs)


def torch_network(net: str, width: int, num_classes: int, stem: str = "cifar") -> Any:
    """Make the network in torch.nn, with torchvision's names and PyTorch's init."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_networks import Network

    torch.manual_seed(0)
    return Network(net, width, num_classes, stem)


class Worker:
    """A process that runs a task per line of its input and prints the seconds."""

    def __init__(
        self,
        script: str,
        *words: object,
        devices: int = 1,
        python: str = sys.executable,
    ):
        env = {k: v for k, v in os.environ.items() if k != "NPROC"}
        if devices > 1:
            env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self._process = subprocess.Popen(
            [python, script, *map(str, words)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def take(self, *task: object) -> float:
        """Measure the seconds of a task."""
        process: Any = self._process
        process.stdin.write(" ".join(map(str, task)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            sys.exit("a worker died; its message is above")
        return float(answer)

    def close(self) -> None:
        process: Any = self._process
        process.stdin.close()
        process.stdout.close()
        process.wait()


def answer(*words: object, **env: str) -> Any:
    """Run a script in a subprocess; return the JSON in its last line."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def on_devices(devices: int, *words: object, **env: str) -> Any:
    """Run a script with ``devices`` virtual CPU devices; return its JSON."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return answer(*words, XLA_FLAGS=flag, JAX_PLATFORMS="cpu", NPROC="16", **env)
