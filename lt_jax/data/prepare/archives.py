"""Reading archives once, from start to end, without extracting them to disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lt_jax.errors import InputError

BUFFER = 2**20  # bytes

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
                yield members(tarfile.open(fileobj=unzipped, mode="r|", bufsize=BUFFER))
        else:
            with tarfile.open(path, "r:") as tar:
                yield members(tar)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, error) from error


def members(tar: tarfile.TarFile) -> Files:
    """Iterate over the files of an open tar archive."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # half a gigabyte otherwise
        if member.isfile():
            content: Any = tar.extractfile(member)
            yield Path(member.name).name, content


def read_json(path: Path, name: str) -> Any:
    """Read the JSON file of this name in an archive."""
    with opened(path) as files:
        for found, content in files:
            if found == name:
                try:
                    return json.load(content)
                except ValueError as error:
                    raise damaged(path, error) from error
    raise InputError(f"{path} does not contain {name}: it is another archive")


def damaged(path: Path, error: object) -> InputError:
    """Make the error for an archive that cannot be read to its end."""
    return InputError(
        f"{path} is truncated or damaged ({error}): compare its size and checksum with "
        "its source, and download it again"
    )
