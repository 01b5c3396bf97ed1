"""Files of weights: safetensors, and PyTorch's own, read without running their code."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from lt_jax.errors import InputError
from lt_jax.files import atomic_path

PYTORCH = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".paramonly")
SAFETENSORS = ".safetensors"
SUFFIXES = (*PYTORCH, SAFETENSORS)


def read(file: Path) -> dict[str, np.ndarray]:
    """Read arrays by name; names of nested dicts are joined by dots.

    Never runs code from the file. Skips entries that are not arrays.

    Raises:
      InputError: the file is missing, damaged or of another kind, or a pickle holds
        more than arrays.
    """
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    if file.suffix.lower() == SAFETENSORS:
        try:
            return safetensors.numpy.load_file(file)
        except (safetensors.SafetensorError, AttributeError) as error:
            # AttributeError: a type without a NumPy dtype, such as float8.
            raise InputError(
                f"{file} is not a safetensors file that NumPy can read: {error}"
            ) from error
    return dict(_flat(_read_pytorch(file)))


def _read_pytorch(file: Path) -> Any:
    torch = _import_torch(file)
    # Official checkpoints hold these next to the weights; none of them runs code.
    harmless: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    harmless += [type(np.dtype(kind)) for kind in "fdefilqbB?"]
    calls: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    for call in calls:
        harmless += [call, (call, f"numpy.core.multiarray.{call.__name__}")]
    try:
        # PyTorch warns about pickles that torch.save did not write.
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(file, str(error))) from error
    except Exception as error:  # a damaged pickle may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{file} is damaged or not a file of weights from PyTorch: {first}"
        ) from error


def _refusal(file: Path, error: str) -> str:
    """Explain what to do about a pickle that PyTorch refuses to open.

    PyTorch's own advice would run the code of the file.
    """
    refused = error.partition("GLOBAL ")[2].split()
    if not refused:
        why = error.partition("WeightsUnpickler error: ")[2].strip()
        first = (why or "a pickle of something else").splitlines()[0]
        return (
            f"{file} is not a file of weights from PyTorch ({first}): expected what "
            "torch.save(model.state_dict(), FILE) writes, or .safetensors"
        )
    return (
        f"{file} is a pickle that holds more than weights ({refused[0]}), and opening "
        "it would run its code. If you trust it, save only its weights, in a folder "
        "with the code that wrote it:\n"
        "  python -c \"import torch; m = torch.load('"
        f"{file.name}', weights_only=False, map_location='cpu'); "
        "torch.save(m.state_dict(), 'weights.pth')\""
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of nested dicts by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, np.ndarray):
        yield name, value
    elif hasattr(value, "detach"):
        tensor = value.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            yield name, tensor.float().numpy().astype(ml_dtypes.bfloat16)
        else:
            tensor = tensor.int_repr() if tensor.is_quantized else tensor
            yield name, tensor.numpy()


def _import_torch(file: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{file.name} is in PyTorch's format, which needs PyTorch: pip install "
            "'lt_jax[parity]', or use a .safetensors file"
        ) from error
    return torch


def write(file: Path, state: Mapping[str, np.ndarray], notes: dict[str, str]) -> None:
    """Write arrays by name, completely or not at all.

    Args:
      notes: metadata of a safetensors file; not written to PyTorch's format.
    """
    if file.suffix.lower() == SAFETENSORS:
        with atomic_path(file) as draft:
            safetensors.numpy.save_file(dict(state), draft, notes)
        return
    torch = _import_torch(file)
    tensors = {name: torch.from_numpy(leaf.copy()) for name, leaf in state.items()}
    with atomic_path(file) as draft:
        torch.save(tensors, draft)
