"""Arrays of foreign files: nothing is believed before its size is checked."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lt_jax.data import arrays
from lt_jax.errors import InputError

LABELS = np.arange(40) % 4


def header(shape, descr="<f4") -> bytes:
    """The header of an ``.npy`` file without its content."""
    made = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(made, described)
    return made.getvalue()


def npy(array) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=True)
    return made.getvalue()


def zipped(file: Path, *members: bytes, kind=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", kind) as archive:
        for content in members:
            archive.writestr("x.npy", content)
    return file


def patched(file: Path, local: int, central: int, value: bytes) -> Path:
    """Change a field of the first member in both of its zip headers."""
    made = bytearray(file.read_bytes())
    for start, at in ((b"PK\3\4", local), (b"PK\1\2", central)):
        first = made.find(start) + at
        made[first : first + len(value)] = value
    file.write_bytes(made)
    return file


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3, np.uint8),
        np.zeros((0, 4)),
        np.array(["a", "ü"]),
        np.arange(4, dtype=">i2"),
    ],
)
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array, kind):
    (tmp_path / "x.npy").write_bytes(npy(array))
    (packed,) = arrays.npz(zipped(tmp_path / "x.npz", npy(array), kind=kind), ["x"])
    for found in (packed, arrays.npy(tmp_path / "x.npy")):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


BAD = {
    "4 PB": (header((10**9, 10**6)), "4,000,000,000,000,000 bytes, but 0 follow"),
    "overflow": (header((2**62, 16)), "but 0 follow"),
    "negative": (header((-5, -8)) + bytes(160), "not numbers"),
    "objects": (npy(np.array([{}], object)), "not numbers, but object"),
    "cut": (npy(LABELS)[:-1], "but 319 follow"),
    "pickle": (pickle.dumps(list(range(9))), "magic string"),
    "empty": (b"", "magic string"),
    "no Python": (b"\x93NUMPY\1\0" + struct.pack("<H", 200) + b"(" * 200, "cannot be"),
    "version": (b"\x93NUMPY\3\0" + bytes(99), r"version \(3, 0\)"),
    "long header": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "array header"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays(tmp_path, what):
    content, message = BAD[what]
    (tmp_path / "x.npy").write_bytes(content)
    for file in (tmp_path / "x.npy", zipped(tmp_path / "x.npz", content)):
        with (
            pytest.raises(InputError, match=rf"{file}.*{message}.*: expected numbers"),
            arrays.reading(file, "numbers"),
        ):
            _ = arrays.npy(file) if file.suffix == ".npy" else arrays.npz(file, ["x"])


def refused(file: Path, message: str) -> None:
    with pytest.raises(InputError, match=message), arrays.reading(file, "numbers"):
        arrays.npz(file, ["x"])


def test_bad_zip_files(tmp_path):
    file, good = tmp_path / "x.npz", npy(LABELS)
    refused(patched(zipped(file, good), 6, 8, b"\1"), "'x' is encrypted")
    for method in (9, 12, 14, 99):
        changed = patched(zipped(file, good), 8, 10, struct.pack("<H", method))
        refused(changed, "compression that NumPy never writes")
    many = struct.pack("<I", 2**32 - 2)
    refused(patched(zipped(file, good), 22, 24, many), "expand to 4,294,967,294")
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(file, good, good)
    refused(file, r"expected 'x' once among its arrays \['x.npy', 'x.npy'\]")
    refused(tmp_path, "is not a regular file")
    refused(tmp_path / "none", "does not exist")


def test_a_sparse_file_is_found_before_it_is_read(tmp_path):
    file = tmp_path / "x.npy"
    with file.open("wb") as opened:
        opened.write(header((2**34,)))
        opened.truncate(2**36 + 128)
    with (
        pytest.raises(InputError, match=r"bytes expand to 68,719,476,864"),
        arrays.reading(file, "numbers"),
    ):
        arrays.npy(file)


def test_a_bomb_is_found_before_it_expands(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "EXPANDED", 1000)
    refused(zipped(tmp_path / "x.npz", npy(np.zeros(10_000))), "store them without")
    table = pyarrow.table({"x": np.zeros(100_000), "y": ["a" * 1000] * 100_000})
    file = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, file)
    with pytest.raises(ValueError, match="expand to"):
        arrays.parquet(file, ["x"])


def test_repeated_text_takes_memory_once(tmp_path):
    file = tmp_path / "x.parquet"
    table = pyarrow.table({"x": pyarrow.array(["a" * 10_000] * 50_000)})
    pyarrow.parquet.write_table(table, file)
    before = pyarrow.total_allocated_bytes()
    found = arrays.parquet(file, ["x"])
    assert pyarrow.total_allocated_bytes() - before < 10_000_000  # not 500 MB
    assert len(found) == 50_000
