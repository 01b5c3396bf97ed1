"""The file for an exception that nobody foresaw."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import tempfile
import traceback
from pathlib import Path

PACKAGES = {"lt_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy"}
VARIABLES = ("JAX_", "XLA_", "SLURM_", "OMPI_", "CUDA_VISIBLE")


def write(error: BaseException, argv: list[str], workdir: Path | None) -> str:
    """Write command, versions and traceback to a new file; return its path.

    It is in the workdir, if that can be written, else in the folder for temporary
    files.
    """
    found = importlib.metadata.distributions()
    lines = [
        shlex.join(["lt-jax", *argv]),
        f"{platform.platform()}, Python {platform.python_version()}",
        *sorted({f"{d.name} {d.version}" for d in found if d.name in PACKAGES}),
        *sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(VARIABLES)),
        "",
        "".join(traceback.format_exception(error)),
    ]
    # A new file of an unpredictable name: a received workdir may hold links.
    try:
        handle, path = tempfile.mkstemp(".txt", "lt-jax-error-", workdir)
    except OSError:
        handle, path = tempfile.mkstemp(".txt", "lt-jax-error-")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(lines))
    return path
