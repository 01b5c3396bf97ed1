"""Sets JAX up for every test: four CPU devices, and no silent broadcasting."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# These are read when JAX starts, so JAX is imported after them and not above.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"]
).strip()
# On two cores, a loop over several virtual devices that runs ahead without blocking has
# too few threads to meet in a collective, and dead-locks.
os.environ.setdefault("NPROC", "16")
# Nothing of a test is kept in the user's cache, or comes from there.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

# Doctests are looked for in every file; this one imports PyTorch at its top.
if importlib.util.find_spec("torch") is None:
    collect_ignore = ["torch_networks.py"]


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.option.markexpr
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["JAX_PLATFORMS"] = "cpu"
        # Most of the time goes to programs that run for a moment. The compiler's effort
        # changes none of what the tests ask; the demo is compiled as users have it.
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

    import jax

    # [B] + [B, K] is a mistake that broadcasting would hide whenever B = K.
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where a TFDS copy of CIFAR-100 lies; for the tests marked ``realdata``."""
    path = os.environ.get("LT_JAX_DATA_DIR")
    if not path:
        pytest.skip(
            "LT_JAX_DATA_DIR is not set: point it at a folder that holds TFDS's "
            "cifar100/3.0.2 in array_record format"
        )
    if not (Path(path) / "cifar100").is_dir():
        pytest.fail(f"LT_JAX_DATA_DIR={path} has no folder cifar100")
    return Path(path)
