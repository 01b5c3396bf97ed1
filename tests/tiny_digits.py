"""The digits config made small enough for a test: a fit takes about a second."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def load(name: str, *argument: str) -> ConfigDict:
    """The config of a file in configs/, which is a folder and no package."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument)


def config(**changes: object) -> ConfigDict:
    """The digits config with a narrow network and short stages; keys dotted by __."""
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
