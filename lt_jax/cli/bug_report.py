"""The file for an exception that nobody foresaw."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import tempfile
import traceback
from pathlib import Path

PACKAGES = ("lt_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")


def write(error: BaseException, argv: list[str], workdir: Path | None) -> str:
    """Write command, versions and traceback to a new file; return its path.

    It is in the workdir, if that exists and can be written, else in the folder for
    temporary files.
    """
    lines = [
        shlex.join(["lt-jax", *argv]),
        f"{platform.platform()}, Python {platform.python_version()}",
    ]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} is not installed as a package")
    names = ("JAX_", "XLA_", "SLURM_", "OMPI_", "CUDA_VISIBLE")
    lines += [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(names)]
    text = "\n".join([*lines, "", "".join(traceback.format_exception(error))])
    for folder in (workdir, None):
        try:
            # A new file of an unpredictable name: a received workdir may hold links.
            handle, path = tempfile.mkstemp(".txt", "lt-jax-error-", folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except OSError:
            continue
    traceback.print_exception(error)
    return "the traceback above: no folder can be written"
