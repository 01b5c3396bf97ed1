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
from typing import Any, BinaryIO, NamedTuple

from lt_jax.errors import InputError

BUFFER = 2**20  # bytes

# What reading a truncated or damaged archive raises.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class Content(NamedTuple):
    """A file in an archive; read it before advancing to the next one."""

    archive: Path
    file: BinaryIO

    def read(self) -> bytes:
        """Read all bytes.

        Raises:
          InputError: the archive is truncated or damaged.
        """
        try:
            return self.file.read()
        except DAMAGE as error:
            raise damaged(self.archive, error) from error


def walk(path: Path) -> Iterator[tuple[str, Content]]:
    """Yield base names and contents of the files in an archive.

    Raises:
      InputError: the archive is truncated or damaged.
    """
    try:
        with _open(path) as tar:
            for name, file in members(tar):
                yield name, Content(path, file)
    except DAMAGE as error:
        raise damaged(path, error) from error


def members(tar: tarfile.TarFile) -> Iterator[tuple[str, BinaryIO]]:
    """Yield base names and contents; a content is read at once or skipped."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # half a gigabyte otherwise
        if member.isfile():
            content: Any = tar.extractfile(member)
            yield Path(member.name).name, content


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar file, gzipped or not."""
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    # A seek empties the buffer, so with a large one, skipping a file would read it.
    with path.open("rb", buffering=BUFFER if gzipped else -1) as file:
        if not gzipped:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
            return
        # Faster than tarfile's own gzip reader, which reads 10 KiB at a time.
        unzipped: Any = gzip.GzipFile(fileobj=file)
        buffered = io.BufferedReader(unzipped, BUFFER)
        with tarfile.open(fileobj=buffered, mode="r|", bufsize=BUFFER) as tar:
            yield tar


def read_json(path: Path, name: str) -> Any:
    """Read the JSON file of this name in an archive."""
    for found, content in walk(path):
        if found == name:
            try:
                return json.loads(content.read())
            except ValueError as error:
                raise damaged(path, error) from error
    raise InputError(f"{path} does not contain {name}: it is another archive")


def damaged(path: Path, error: object) -> InputError:
    """Make the error for an archive that cannot be read to its end."""
    return InputError(
        f"{path} is truncated or damaged ({error}): compare its size and checksum with "
        "its source, and download it again"
    )
