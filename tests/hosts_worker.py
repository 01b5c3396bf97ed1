"""One process of a job of several: joins the others and runs commands, in order.

python tests/hosts_worker.py ADDRESS PROCESSES PROCESS WORKDIR COMMAND...
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import tiny_digits

from lt_jax import train


def config():
    c = tiny_digits.config(
        optim__epochs=2,
        method__names=("ce", "los", "weight_balancing", "ncm"),
        method__weight_balancing__epochs=2,
        # Rounds of training amplify roundings; without augmentation there is less.
        optim__lr=0.01,
        optim__batch=20,  # ragged
        eval__batch=77,
        eval__curves="test",
    )
    with c.unlocked():
        for name in c.method.names:
            c.method[name].grid = {} if name == "ncm" else {"lr": (5e-4, 5e-3)}
    return c.lock()


def main() -> int:
    address, processes, process, workdir, *commands = sys.argv[1:]
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(process))
    calls = {"train": train.train, "run": train.run, "sweep": train.sweep}
    for command in commands:
        calls[command](config(), Path(workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
