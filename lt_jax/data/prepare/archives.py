"""Archives read once from end to end, never extracted to disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lt_jax.errors import InputError

BUFFER = 2**20  # bytes read at a time


class Archive(NamedTuple):
    """A file to prepare from."""

    name: str
    size: int  # bytes
    sha256: str


class Made(NamedTuple):
    """An example as TFDS's features take it."""

    split: str
    id: str
    label: int
    features: dict[str, Any]


class Recipe(NamedTuple):
    """How a set is prepared."""

    name: str  # the name and version of TFDS
    version: str
    description: str
    homepage: str
    archives: tuple[Archive, ...]
    space: float  # GB that the prepared set takes
    counts: dict[str, int]  # examples of each split
    features: Callable[[Path], dict[str, Any]]  # of TFDS; folder of the archives
    # (folder of the archives, folder of the lists) -> examples as they stand there
    examples: Callable[[Path, Path], Iterator[Made]]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar file, gzipped or not, to be read from its start to its end.

    An archive that is not gzipped is skipped over where nothing is wanted of it.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    # A seek empties the buffer, so a large one would read what is skipped over.
    with path.open("rb", buffering=BUFFER if gzipped else -1) as file:
        if not gzipped:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
            return
        # Faster than tarfile's own reading of gzip, in pieces of 10 KiB.
        unzipped: Any = gzip.GzipFile(fileobj=file)
        buffered = io.BufferedReader(unzipped, BUFFER)
        with tarfile.open(fileobj=buffered, mode="r|", bufsize=BUFFER) as tar:
            yield tar


def members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """The files of a tar file and their content, which is read at once or skipped."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # half a gigabyte otherwise
        if member.isfile():
            content: Any = tar.extractfile(member)
            yield member, content


def damaged(path: Path, error: object) -> InputError:
    """The error of an archive that cannot be read to its end."""
    return InputError(
        f"{path} is cut or damaged ({error}): compare its size and checksum with its "
        "source's, and download it again"
    )


# What reading a cut or damaged archive raises.
BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class Content(NamedTuple):
    """A file in an archive, to be read before the next one is asked for."""

    archive: Path
    file: BinaryIO

    def read(self) -> bytes:
        """All of it.

        Raises:
          InputError: the archive ends before, or is damaged.
        """
        try:
            return self.file.read()
        except BROKEN as error:
            raise damaged(self.archive, error) from error


def walk(path: Path) -> Iterator[tuple[str, Content]]:
    """Base names and contents of the files of an archive.

    Raises:
      InputError: the archive is cut or damaged.
    """
    try:
        with opened(path) as tar:
            for member, file in members(tar):
                yield Path(member.name).name, Content(path, file)
    except BROKEN as error:
        raise damaged(path, error) from error


def read_json(path: Path, name: str) -> Any:
    """The JSON file of this name in an archive."""
    for found, content in walk(path):
        if found == name:
            try:
                return json.loads(content.read())
            except ValueError as error:
                raise damaged(path, error) from error
    raise InputError(f"{path} holds no {name}: it is another archive")
