"""Files of weights: safetensors, and PyTorch's own without running what is in them."""

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

# safetensors.numpy knows no bfloat16.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def is_weights(file: Path) -> bool:
    """Whether the name is one of a file of weights."""
    return file.suffix.lower() in (*PYTORCH, SAFETENSORS)


def read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, nested names joined by dots.

    Nothing in the file is run. Numbers, texts and settings beside the arrays are left
    out.

    Raises:
      InputError: no such file, not of these kinds, damaged, or a pickle of more than
        arrays.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    if file.suffix.lower() == SAFETENSORS:
        return _safetensors(file)
    return dict(_flat(_pytorch(file)))


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        entries = safetensors.deserialize(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is no safetensors file: {error}") from error
    found = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"{file}: {name} holds {entry['dtype']}, expected one of "
                f"{', '.join(DTYPES)}"
            )
        array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        found[name] = array.reshape(entry["shape"])
    return found


def _pytorch(file: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{file.name} is PyTorch's own format, which PyTorch reads: pip install "
            "'lt_jax[parity]', or save the weights as .safetensors, which need none"
        ) from error
    # What official checkpoints hold beside the weights; none of it runs anything.
    numbers: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    harmless: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    harmless += [type(np.dtype(kind)) for kind in "fdefilqbB?"]
    for call in numbers:
        old = f"numpy.core.multiarray.{call.__name__}"
        harmless += [call, (call, old)]
    try:
        # PyTorch warns of pickles that it did not write; they are refused, or read.
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_told(file, str(error))) from error
    except Exception as error:  # a damaged pickle makes PyTorch raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{file} is damaged or no file of weights that PyTorch wrote: {first}"
        ) from error


def _told(file: Path, error: str) -> str:
    """What to do about a pickle that PyTorch will not open."""
    refused = [part for part in error.split("GLOBAL ")[1:2] if part.strip()]
    if not refused:
        # PyTorch's own advice is to open it all the same, which would run its code.
        _, _, why = error.partition("WeightsUnpickler error: ")
        first = (why.strip() or "a pickle of something else").splitlines()[0]
        return (
            f"{file} is no file of weights that PyTorch wrote ({first}): expected what "
            "torch.save(model.state_dict(), FILE) writes, or .safetensors"
        )
    return (
        f"{file} is a pickle that holds more than weights ({refused[0].split()[0]}), "
        "and opening it would run code of its maker. If you trust it, save the weights "
        "alone, once, beside the code that wrote it:\n"
        "  python -c \"import torch; m = torch.load('"
        f"{file.name}', weights_only=False, map_location='cpu'); "
        "torch.save(m.state_dict(), 'weights.pth')\""
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of nested dicts, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, np.ndarray):
        yield name, value
    elif hasattr(value, "detach"):
        tensor = value.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            yield name, tensor.float().numpy().astype(ml_dtypes.bfloat16)
        elif not tensor.is_quantized:
            yield name, tensor.numpy()
        else:
            yield name, tensor.int_repr().numpy()


def write(file: Path, state: Mapping[str, np.ndarray], notes: dict[str, str]) -> None:
    """Writes arrays by name, whole or not at all.

    Args:
      notes: text that a safetensors file carries along.

    Raises:
      InputError: a kind of file that is not known.
    """
    if file.suffix.lower() == SAFETENSORS:
        with atomic_path(file) as draft:
            safetensors.numpy.save_file(dict(state), draft, notes)
        return
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{file.name} is PyTorch's own format, which PyTorch writes: pip install "
            "'lt_jax[parity]', or write .safetensors, which need none"
        ) from error
    tensors = {name: torch.from_numpy(leaf.copy()) for name, leaf in state.items()}
    with atomic_path(file) as draft:
        torch.save(tensors, draft)
