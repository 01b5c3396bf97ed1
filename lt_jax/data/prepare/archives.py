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

    Raises:
      InputError: the archive turns out to be damaged, also while a content is read.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    try:
        if gzipped:
            # Faster than tarfile's own gzip reader, which reads 10 KiB at a time. On
            # Python 3.11, the buffer saves a third of the time.
            raw: Any = gzip.open(path)
            with io.BufferedReader(raw, BUFFER) as unzipped:
                stream: Any = {"fileobj": unzipped, "mode": "r|", "bufsize": BUFFER}
                yield members(tarfile.open(**stream, tarinfo=_Header))
        else:
            with tarfile.open(path, "r:", tarinfo=_Header) as tar:
                yield members(tar)
    except gzip.BadGzipFile as error:
        raise damaged(path, brief(error)) from error
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # tarfile and json raise anything
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
    with tarfile.open(fileobj=content, mode="r:", tarinfo=_Header) as tar:
        yield from members(tar)


def members(tar: tarfile.TarFile) -> Files:
    """Iterate over the files of an open tar archive."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # half a gigabyte otherwise
        if member.sparse is not None or member.size > MAX_FILE:  # extended attributes
            raise tarfile.ReadError(f"{member.name!r:.100} has {member.size:,} bytes")
        if member.isfile():
            content: Any = tar.extractfile(member)
            yield Path(member.name).name, content


def read_json(path: Path, name: str, schema: Any) -> Any:
    """Read the JSON file of this name in an archive, and check it; see ``files``."""
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
