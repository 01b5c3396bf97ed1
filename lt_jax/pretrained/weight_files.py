"""Files of weights: safetensors, and PyTorch's own, read without running their code."""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError, brief, located
from lt_jax.files import atomic_path

PYTORCH = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".paramonly")
SAFETENSORS = ".safetensors"
SUFFIXES = (*PYTORCH, SAFETENSORS)
# A file may claim anything: what is read before its sizes are known is bounded.
MAX_HEADER = 2**24  # bytes of names and shapes
MAX_ENTRIES, MAX_DEPTH, MAX_NAME = 100_000, 20, 500
# Types of numbers by their names in safetensors; others are listed but not loaded.
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class Stored(NamedTuple):
    """An array in a file, which ``np.asarray`` loads."""

    shape: tuple[int, ...]
    dtype: str  # such as float32, or a description of what cannot be loaded
    load: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


Array = np.ndarray | Stored


def read(file: Path) -> dict[str, Array]:
    """List the arrays of a file by name; names of nested dicts are joined by dots.

    Never runs code from the file, and loads no array. Skips entries of other kinds.
    """
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    with located(f"{file}"):
        if file.suffix.lower() != SAFETENSORS:
            return dict(_arrays(_read_pytorch(file), itertools.count(1)))
        import safetensors  # on use, as commands without such files do without it

        try:
            return dict(_read_safetensors(file))
        except safetensors.SafetensorError as error:
            raise InputError(
                f"not a safetensors file, or only a part of one ({error}): download it "
                "again"
            ) from error


def _read_safetensors(file: Path) -> Iterator[tuple[str, Array]]:
    import safetensors

    with file.open("rb") as start:
        header = int.from_bytes(start.read(8), "little")
    if header > MAX_HEADER:
        raise InputError(
            f"not a safetensors file: a header of {header:,} bytes, expected at most "
            f"{MAX_HEADER:,}"
        )
    opened = safetensors.safe_open(file, "numpy")
    for name in opened.keys():
        _check_name(name)
        found = opened.get_slice(name)
        kind = str(found.get_dtype())
        kind = FLOATS.get(kind, kind)
        load = functools.partial(opened.get_tensor, name)
        yield name, Stored(tuple(found.get_shape()), kind, load)


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"a name is not printable text of at most {MAX_NAME} characters: "
            f"{name!a:.100}"
        )


def _read_pytorch(file: Path) -> Any:
    torch = _import_torch(file)
    # Official checkpoints hold these next to the weights; none of them runs code.
    harmless: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    harmless += [type(np.dtype(kind)) for kind in "fdefilqbB?"]
    calls: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    for call in calls:
        harmless += [call, (call, f"numpy.core.multiarray.{call.__name__}")]
    try:
        with file.open("rb") as opened:
            mapped = opened.read(4) == b"PK\3\4"  # since PyTorch 1.6
        if mapped:
            _check_zip(file)
        # PyTorch warns about pickles that torch.save did not write.
        with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, so that arrays take memory only when they are used.
            return torch.load(file, "cpu", weights_only=True, mmap=mapped)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(_refusal(file, error)) from error


def _check_zip(file: Path) -> None:
    """Require that nothing in a zip file expands, and that its pickle is small."""
    with zipfile.ZipFile(file) as opened:
        for member in opened.infolist():
            limit = MAX_HEADER if member.filename.endswith(".pkl") else math.inf
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
                raise InputError(
                    f"not a file of weights from PyTorch: {member.filename!r:.100} is "
                    f"compressed or has more than {limit:,} bytes"
                )


def _refusal(file: Path, error: Exception) -> str:
    """Explain what to do; PyTorch's own advice would run the code of the file."""
    refused = str(error).partition("GLOBAL ")[2].split()
    if not refused:
        why = brief(ValueError(str(error).rpartition("WeightsUnpickler error: ")[2]))
        return (
            f"damaged or not a file of weights from PyTorch ({why}): "
            "expected what torch.save(model.state_dict(), FILE) writes, or .safetensors"
        )
    return (
        f"a pickle that holds more than weights ({refused[0]:.100}), and opening it "
        "would run its code. If you trust it, save only its weights, in a folder with "
        "the code that wrote it: "
        "python -c \"import torch; m = torch.load('"
        f"{file.name}', weights_only=False, map_location='cpu'); "
        "torch.save(m.state_dict(), 'weights.pth')\""
    )


def _arrays(
    value: Any, entries: Iterator[int], name: str = "", depth: int = 0
) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of nested dicts by dotted name, in order."""
    if next(entries) > MAX_ENTRIES or depth > MAX_DEPTH:  # in a cycle, both are
        raise InputError(
            f"dicts more than {MAX_DEPTH} deep or with more than {MAX_ENTRIES:,} "
            "entries: expected a state dict"
        )
    if isinstance(value, Mapping):
        _check_name(name)  # before it is part of many others
        prefix = f"{name}." if name else ""
        for key, inner in value.items():
            if isinstance(key, str | int):
                yield from _arrays(inner, entries, f"{prefix}{key}", depth + 1)
    elif isinstance(value, np.ndarray) or hasattr(value, "detach"):
        _check_name(name)
        yield name, value if isinstance(value, np.ndarray) else _stored(value)


def _stored(tensor: Any) -> Stored:
    kind, layout = (
        f"{x}".removeprefix("torch.") for x in (tensor.dtype, tensor.layout)
    )
    plain = tensor.float if kind == "bfloat16" else lambda: tensor
    if tensor.device.type != "cpu" or layout != "strided":
        kind = f"{kind} ({tensor.device.type}, {layout})"
    return Stored(tuple(tensor.shape), kind, lambda: plain().detach().numpy())


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
    """Write arrays by name, completely or not at all; PyTorch's format has no notes."""
    if file.suffix.lower() == SAFETENSORS:
        import safetensors.numpy

        with atomic_path(file) as draft:
            safetensors.numpy.save_file(dict(state), draft, notes)
        return
    torch = _import_torch(file)
    tensors = {name: torch.from_numpy(leaf.copy()) for name, leaf in state.items()}
    with atomic_path(file) as draft:
        torch.save(tensors, draft)
