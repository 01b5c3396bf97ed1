"""A small digits config for tests: a fit takes about a second."""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def load(name: str, *argument: str) -> ConfigDict:
    """Load a config from a file in configs/."""
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*argument)


def config(**changes: object) -> ConfigDict:
    """Return the digits config with a narrow network and short stages.

    Keys of ``changes`` have ``__`` for dots.
    """
    c = load("digits_lt")
    c.model.width = 4
    c.optim.repeats = 1
    c.optim.epochs = 4
    c.eval.every = 2
    c.save.every = 1
    c.method.ce.epochs = c.method.los.epochs = 2
    c.method.los.lr = 5e-3
    with c.unlocked():
        c.update_from_flattened_dict(
            {k.replace("__", "."): v for k, v in changes.items()}
        )
    return c.lock()
