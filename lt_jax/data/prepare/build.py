"""Preparing datasets in TFDS format from their original archives, without TensorFlow.

DIR/NAME/VERSION.incomplete    while it is written; a leftover is removed
DIR/NAME/VERSION               the finished dataset
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore
from tensorflow_datasets.core import dataset_info, example_serializer
from tensorflow_datasets.core import features as tfds_features
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.core.utils import Version
from tqdm import tqdm

from lt_jax.data.prepare.builders import BUILDERS, Builder
from lt_jax.data.sources import records, tfds
from lt_jax.errors import InputError, one_of


def prepare(
    name: str,
    archives: Path,
    dir: str,
    *,
    lists: Path | None = None,
    checksum: bool = False,
    partial: bool = False,
    echo: Callable[[str], None] = print,
) -> Path:
    """Prepare a dataset, unless it exists already.

    Args:
      name: a key of ``BUILDERS``.
      archives: folder of the original archives.
      dir: TFDS data folder; "" is TFDS's default.
      lists: folder of the ImageNet-LT lists; None for that of the archives.
      checksum: also compare the SHA-256 of the archives, which reads them once more.
      partial: accept archives of other sizes and other numbers of examples.
      echo: prints a line.

    Returns:
      The folder of the dataset.

    Raises:
      InputError: archives are missing, damaged or of another size, the disk is full, or
        the numbers of examples are wrong. Nothing is left on disk.
    """
    builder = BUILDERS[one_of("dataset to prepare", name, BUILDERS)]
    final = tfds.data_dir(dir) / name / builder.version
    if final.exists():
        echo(f"{name} already exists: {final}. Remove that folder to prepare it again.")
        return final
    _check_archives(builder, archives, checksum, partial, echo)
    with _draft_of(final, echo) as draft:
        free = shutil.disk_usage(draft).free / 1e9
        if free < builder.gigabytes and not partial:
            raise InputError(
                f"the prepared dataset needs about {builder.gigabytes:g} GB, "
                f"{final.parent} has {free:.1f} GB free: free some space, or choose "
                "another folder with --dir"
            )
        counts = _write(builder, draft, archives, lists or archives, partial)
        for split, expected in builder.counts.items():
            if counts[split] != expected and not partial:
                raise InputError(
                    f"{name}: expected {expected:,} examples in {split}, got "
                    f"{counts[split]:,}: the archives or lists are not the published "
                    "ones (--partial accepts them)"
                )
    sizes = ", ".join(f"{split} {size:,}" for split, size in counts.items())
    echo(f"{name} {builder.version}: {sizes}; in {final}")
    return final


def _check_archives(
    builder: Builder,
    folder: Path,
    checksum: bool,
    partial: bool,
    echo: Callable[[str], None],
) -> None:
    missing = [a.name for a in builder.archives if not (folder / a.name).is_file()]
    if missing:
        stems = [folder / name.split(".")[0] for name in missing]
        raise InputError(
            f"{folder} lacks {', '.join(missing)}. {builder.name} needs the archives "
            f"{', '.join(a.name for a in builder.archives)} in one folder"
            + "".join(
                f". {stem} is an extracted folder; the archive itself is needed"
                for stem in stems
                if stem.is_dir()
            )
        )
    for archive in builder.archives:
        path = folder / archive.name
        size = path.stat().st_size
        if size != archive.size and not partial:
            shorter = " The download may be incomplete." if size < archive.size else ""
            raise InputError(
                f"{path} has {size:,} bytes, expected {archive.size:,}.{shorter} "
                "--partial accepts any size"
            )
        if checksum:
            echo(f"{archive.name}: computing SHA-256")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != archive.sha256:
                raise InputError(
                    f"{path} has SHA-256 {found}, expected {archive.sha256}: it is "
                    "damaged; download it again"
                )
            echo(f"{archive.name}: SHA-256 verified")


@contextlib.contextmanager
def _draft_of(final: Path, echo: Callable[[str], None]) -> Iterator[Path]:
    """A folder that is renamed to ``final`` on success and removed on failure.

    Raises:
      InputError: another process is writing it, or the disk is full.
    """
    draft = final.with_name(final.name + ".incomplete")
    draft.mkdir(parents=True, exist_ok=True)
    with _locked(draft):
        try:
            leftovers = list(draft.iterdir())
            if leftovers:
                echo(f"removing {draft}, left by an interrupted command")
            for file in leftovers:
                file.unlink()
            yield draft
            draft.rename(final)
        except BaseException as error:
            full = isinstance(error, Exception) and _disk_is_full(draft, error)
            shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):
                draft.parent.rmdir()  # only if it is empty
            if full:
                raise InputError(
                    f"the disk of {final.parent} is full; all files written were "
                    "removed. Free some space, or choose another folder with --dir"
                ) from error
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(
            f"another command is writing {folder}: wait until it finishes"
        ) from error
    finally:
        os.close(handle)


def _disk_is_full(folder: Path, error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # array_record raises RuntimeError without a number.
    return isinstance(error, RuntimeError) and (
        shutil.disk_usage(folder).free < 2**20 or "space" in str(error).lower()
    )


def _write(
    builder: Builder, draft: Path, archives: Path, lists: Path, partial: bool
) -> dict[str, int]:
    """Write shards and metadata; return the number of examples per split."""
    features: Any = tfds_features.FeaturesDict(builder.features(archives))
    serializer: Any = example_serializer.ExampleSerializer(
        features.get_serialized_info()
    )
    writers = {
        split: records.SplitWriter(draft, builder.name, split)
        for split in builder.counts
    }
    seen: set[str] = set()
    terminal = sys.stderr.isatty()
    bar = tqdm(
        desc=builder.name,
        total=None if partial else sum(builder.counts.values()),
        unit="img",
        unit_scale=True,
        leave=False,
        mininterval=0.5 if terminal else 30.0,
        delay=0 if terminal else 30,
    )
    try:
        with bar:
            for example in builder.examples(archives, lists):
                if example.id in seen:
                    raise InputError(
                        f"{builder.name}: duplicate example in the archives: "
                        f"{example.id}"
                    )
                seen.add(example.id)
                encoded = features.encode_example(example.features)
                record = serializer.serialize_example(encoded)
                writers[example.split].add(record, example.label, example.id)
                bar.update()
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.abandon()
    for split, writer in writers.items():
        if not writer.lengths:
            raise InputError(f"{builder.name}: found no example of {split}")
        _check_written(writer)
    _write_info(builder, features, writers, draft)
    return {split: sum(writer.lengths) for split, writer in writers.items()}


def _check_written(writer: records.SplitWriter) -> None:
    """Count the records: a full disk may truncate a file silently."""
    for path, length in zip(writer.shards, writer.lengths, strict=True):
        try:
            reader = array_record_module.ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError):
            found = 0
        if found != length:
            full = _disk_is_full(path.parent, RuntimeError())
            raise OSError(
                errno.ENOSPC if full else errno.EIO,
                f"{path.name} holds {found} of the {length} records that were written",
            )


def _write_info(
    builder: Builder,
    features: Any,
    writers: dict[str, records.SplitWriter],
    draft: Path,
) -> None:
    """Write TFDS's metadata."""
    info: Any = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=builder.name,
            version=Version(builder.version),
            data_dir=str(draft),
            module_name=__name__,
        ),
        description=builder.description,
        features=features,
        supervised_keys=("image", "label"),
        homepage=builder.homepage,
    )
    info.set_file_format(FileFormat.ARRAY_RECORD)
    splits = [
        tfds_splits.SplitInfo(
            name=split, shard_lengths=writer.lengths, num_bytes=writer.bytes
        )
        for split, writer in writers.items()
    ]
    info.set_splits(tfds_splits.SplitDict(splits))
    info.write_to_directory(draft)
