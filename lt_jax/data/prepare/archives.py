"""Reading archives once, from start to end, without extracting them to disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lt_jax import files
from lt_jax.errors import InputError, brief

BUFFER = 2**20  # bytes
MAX_FILE = 2**29  # bytes; ImageNet's largest class has 200 MB
MAX_HEADER = 2**20  # bytes of a long name or of extended attributes

# Base names and contents; read a content before advancing to the next one.
Files = Iterator[tuple[str, IO[bytes]]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Files]:
    """Iterate over the files of a tar archive, gzipped or not.

    Raises InputError if it turns out to be damaged, also while a content is read.
    """
    try:
        with path.open("rb") as file:
            stream: Any = {"fileobj": file, "mode": "r:"}
            if file.peek(2)[:2] == b"\x1f\x8b":
                # Faster than tarfile's own gzip reader, which reads 10 KiB at a time.
                # On Python 3.11, the buffer saves a third of the time.
                unzipped = io.BufferedReader(gzip.open(file), BUFFER)  # type: ignore
                stream = {"fileobj": unzipped, "mode": "r|", "bufsize": BUFFER}
            yield _members(tarfile.open(**stream, tarinfo=_Header))
    except Exception as error:  # tarfile and json raise anything
        known = isinstance(error, InputError | OSError | MemoryError)
        if known and not isinstance(error, gzip.BadGzipFile):
            raise
        raise damaged(path, brief(error)) from error


class _Header(tarfile.TarInfo):
    """A header of which only real files may be long, and no file has holes."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        size = 0 if found.type in tarfile.REGULAR_TYPES else found.size
        if found.type == tarfile.GNUTYPE_SPARSE or size > MAX_HEADER:
            raise tarfile.ReadError(f"a sparse file, or a header of {size:,} bytes")
        return found


def inner(content: IO[bytes]) -> Files:
    """Iterate over the files of an archive within an archive."""
    return _members(tarfile.open(fileobj=content, mode="r:", tarinfo=_Header))


def _members(tar: tarfile.TarFile) -> Files:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # half a gigabyte otherwise
        if member.sparse is not None or member.size > MAX_FILE:  # extended attributes
            raise tarfile.ReadError(f"{member.name!r:.100} has {member.size:,} bytes")
        if member.isfile():
            content: Any = tar.extractfile(member)
            yield Path(member.name).name, content


def read_json(path: Path, schema: files.Schema) -> Any:
    """Read NAME of NAME.tar.gz, and check it; see ``files``."""
    name = path.name.removesuffix(".tar.gz")
    with opened(path) as members:
        for found, content in members:
            if found == name:
                value = files.parse_json(content.read())
                where = f"{name} in {path}"
                files.check(value, schema, where, "Download the archive again")
                return value
    raise InputError(f"{path} does not contain {name}: it is another archive")


def damaged(path: Path, error: object) -> InputError:
    """Make the error for an archive that cannot be read to its end."""
    return InputError(
        f"{path} is truncated, damaged or another file ({error}): compare its size and "
        "checksum with its source, and download it again"
    )
