"""Arrays and columns of files from other programs and people.

Sizes in headers are compared with the size of the file before memory is taken.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from lt_jax.errors import InputError, brief
from lt_jax.files import open_regular

# Compressed content may expand to this many bytes, or this many times its size.
EXPANDED = 2**29
RATIO = 20


@contextlib.contextmanager
def reading(file: Path, expected: str) -> Iterator[None]:
    """Turn everything that a reader raises about a file into InputError.

    Args:
      expected: what the file should contain; ends the message.
    """
    if not file.is_file():
        what = "is not a regular file" if file.exists() else "does not exist"
        raise InputError(f"{file} {what}: expected {expected}")
    try:
        status = file.stat()  # of a sparse file, few blocks are stored
        check_expansion(status.st_size, 512 * status.st_blocks or status.st_size)
        yield
    except MemoryError as error:
        raise InputError(
            f"{file} needs more memory than this machine has: use a smaller dataset"
        ) from error
    except Exception as error:  # NumPy, zipfile and pyarrow raise anything
        raise InputError(
            f"{file} cannot be read ({brief(error)}): expected {expected}"
        ) from error


def check_expansion(size: int, stored: int) -> None:
    """Raise ValueError if content of ``stored`` bytes expands to too many."""
    if size > max(EXPANDED, RATIO * stored):
        raise ValueError(
            f"{stored:,} bytes expand to {size:,}, more than {RATIO} times as many; "
            "if this is right, store them without compression"
        )


def npy(file: Path) -> np.ndarray:
    """Read the array of a ``.npy`` file, without pickles."""
    with open(open_regular(file, os.O_RDONLY), "rb") as stream:
        return _array(stream, file.stat().st_size)


def npz(file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read these arrays of a ``.npz`` file, without pickles."""
    arrays = []
    with zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        for name in names:
            if members.count(f"{name}.npy") != 1:
                raise ValueError(f"expected {name!r} once among its arrays {members}")
            member = archive.getinfo(f"{name}.npy")
            if member.flag_bits & 1:
                raise ValueError(f"{name!r} is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r} has a compression that NumPy never writes")
            check_expansion(member.file_size, member.compress_size)
            with archive.open(member) as stream:
                arrays.append(_array(stream, member.file_size))
    return arrays


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    """Read an array of ``size`` bytes, header included."""
    version = npy_format.read_magic(stream)
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = readers[version](stream)
    count, left = math.prod(shape), size - stream.tell()
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"not numbers, but {dtype}{list(shape)}")
    if count * dtype.itemsize > left:
        raise ValueError(
            f"its header announces {dtype}{list(shape)}, which is "
            f"{count * dtype.itemsize:,} bytes, but {left:,} follow"
        )
    values = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def parquet(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Read these columns of a Parquet file as a ``pyarrow.Table``.

    Text is dictionary-encoded, so that a repeated value takes memory once.
    """
    import pyarrow  # imported here because it takes 0.2 s
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    wanted = _wanted(schema.names, names, optional)
    text = [n for n in wanted if pyarrow.types.is_string(schema.field(n).type)]
    batches, before = [], pyarrow.total_allocated_bytes()
    # The metadata have the numbers of values, but pyarrow 26 aborts on damaged ones.
    with parquet.ParquetFile(file, read_dictionary=text) as opened:
        for batch in opened.iter_batches(columns=wanted):
            batches.append(batch)
            taken = pyarrow.total_allocated_bytes() - before
            check_expansion(taken, file.stat().st_size)
    if not batches:
        raise ValueError("it has no rows")
    return pyarrow.Table.from_batches(batches)


def csv(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Any:
    """Read these columns of a CSV file as text, so that 007 stays 007."""
    import pyarrow  # imported here because it takes 0.2 s
    from pyarrow import csv

    kinds = dict.fromkeys([*names, *optional], pyarrow.string())
    table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=kinds))
    return table.select(_wanted(table.column_names, names, optional))


def _wanted(found: list[str], names: Sequence[str], optional: Sequence[str]) -> list:
    wanted = [*names, *(name for name in optional if name in found)]
    for name in wanted:
        if found.count(name) != 1:
            raise ValueError(f"expected {name!r} once among its columns {found}")
    return wanted
