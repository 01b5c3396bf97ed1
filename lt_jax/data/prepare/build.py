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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore
from tensorflow_datasets import core
from tensorflow_datasets import features as features_of

from lt_jax.data.prepare.builders import BUILDERS, Builder, class_names
from lt_jax.data.sources import records, tfds
from lt_jax.errors import InputError, one_of, terminal

LINE_SECONDS = 30.0  # between lines about progress, without a terminal
SHARD = 2**29  # bytes of records per file; TFDS chooses similar sizes
# Compressing photographs again gains nothing and costs minutes per hour.
OPTIONS = "group_size:1,uncompressed"


def prepare(
    name: str,
    archives: Path,
    dir: str,
    *,
    lists: Path | None = None,
    checksum: bool = False,
    partial: bool = False,
) -> Path:
    """Prepare a dataset, unless it exists already; return its folder.

    Args:
      name: a key of ``BUILDERS``.
      archives: folder of the original archives.
      dir: TFDS data folder; "" is TFDS's default.
      lists: folder of the ImageNet-LT lists; None for that of the archives.
      checksum: also compare the SHA-256 of the archives, which reads them once more.
      partial: accept archives of other sizes and other numbers of examples.

    Raises:
      InputError: bad archives, a full disk or wrong numbers of examples. Nothing is
        left on disk.
    """
    builder = BUILDERS[one_of("dataset to prepare", name, BUILDERS)]
    final = tfds.data_dir(dir) / name / builder.version
    if final.exists():
        print(f"{name} already exists: {final}. Remove it to prepare it again.")
        return final
    _check_archives(builder, archives, checksum, partial)
    with _draft_of(final) as draft:
        free = shutil.disk_usage(draft).free / 1e9
        if free < builder.gigabytes and not partial:
            raise InputError(
                f"{final.parent} has {free:.1f} GB free, {name} needs about "
                f"{builder.gigabytes:g} GB: free some space, or set --dir"
            )
        counts = _write(builder, draft, archives, lists or archives, partial)
        for split, expected in builder.counts.items():
            if counts[split] != expected and not partial:
                raise InputError(
                    f"{name}: expected {expected:,} examples in {split}, got "
                    f"{counts[split]:,}: use the published archives and lists "
                    "(--partial accepts others)"
                )
    sizes = ", ".join(f"{split} {size:,}" for split, size in counts.items())
    print(f"{name} {builder.version}: {sizes}; in {final}")
    return final


def _check_archives(
    builder: Builder, folder: Path, checksum: bool, partial: bool
) -> None:
    names = [archive.name for archive in builder.archives]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}: {builder.name} needs the archives "
            f"{', '.join(names)} in one folder, not extracted"
        )
    for archive in builder.archives:
        path = folder / archive.name
        size = path.stat().st_size
        if size != archive.size and not partial:
            raise InputError(
                f"{path} has {size:,} bytes, expected {archive.size:,}: download it "
                "again (--partial accepts any size)"
            )
        if checksum:
            print(f"{archive.name}: computing SHA-256")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != archive.sha256:
                raise InputError(
                    f"{path} is damaged: it has SHA-256 {found}, expected "
                    f"{archive.sha256}; download it again"
                )
            print(f"{archive.name}: SHA-256 verified")


@contextlib.contextmanager
def _draft_of(final: Path) -> Iterator[Path]:
    """Make a folder that is renamed to ``final`` on success and removed on failure."""
    draft = final.with_name(final.name + ".incomplete")
    if draft.is_symlink():
        raise InputError(f"{draft} is a link, which is not followed: remove it")
    created = [path for path in draft.parents if not path.exists()]
    draft.mkdir(parents=True, exist_ok=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(
            f"another command is writing {draft}: wait until it finishes"
        ) from error
    try:
        if leftovers := list(draft.iterdir()):
            print(f"removing {draft}, left by an interrupted command")
        for path in leftovers:
            is_folder = path.is_dir() and not path.is_symlink()
            shutil.rmtree(path) if is_folder else path.unlink()
        yield draft
        draft.rename(final)
    except BaseException as error:
        full = _disk_is_full(draft, error)
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in created or [draft.parent]:
                folder.rmdir()  # only if it is empty
        if full:
            raise InputError(
                f"the disk of {final.parent} is full: free some space, or set --dir. "
                "The files written were removed"
            ) from error
        raise
    finally:
        os.close(handle)


def _disk_is_full(folder: Path, error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # array_record raises RuntimeError without a number.
    return isinstance(error, RuntimeError) and (
        shutil.disk_usage(folder).free < 2**20 or "space" in str(error).lower()
    )


class SplitWriter:
    """Writes a split: shards of about ``SHARD`` bytes, and the index."""

    def __init__(self, folder: Path, dataset: str, split: str):
        self.folder, self.split = folder, split
        self.lengths: list[int] = []  # records per shard
        self._bytes = 0  # of all records
        self._stem = f"{dataset}-{split}.array_record"
        self._labels: list[int] = []
        self._ids: list[str] = []
        self._writer: Any = None
        self._shard_bytes = SHARD  # of the current shard: begin one

    def add(self, record: bytes, label: int, id: str) -> None:
        """Append a record."""
        if self._shard_bytes >= SHARD:
            self._close()
            path = self._draft(len(self.lengths))
            self._writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
            self.lengths.append(0)
            self._shard_bytes = 0
        self._writer.write(record)
        self.lengths[-1] += 1
        self._shard_bytes += len(record)
        self._bytes += len(record)
        self._labels.append(label)
        self._ids.append(id)

    def finish(self) -> core.SplitInfo:
        """Close and check the shards, rename them to TFDS's names, write the index."""
        if not self.lengths:
            raise InputError(
                f"found no example of the split {self.split} for {self._stem}: use the "
                "published archives and lists"
            )
        self._close()
        shards = []
        for i, length in enumerate(self.lengths):
            path = self._draft(i)
            reader = array_record_module.ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
            if found != length:  # a full disk may truncate a file silently
                raise RuntimeError(f"{path.name} has {found} of {length} records")
            final = path.with_name(f"{path.name}-of-{len(self.lengths):05d}")
            shards.append(path.rename(final))
        labels, ids = np.array(self._labels, np.int32), np.array(self._ids, np.str_)
        stamp = records.stamp(shards)
        records.save_index(self.folder, self.split, stamp, labels, ids)
        return core.SplitInfo(
            name=self.split, shard_lengths=self.lengths, num_bytes=self._bytes
        )

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _draft(self, shard: int) -> Path:
        return self.folder / f"{self._stem}-{shard:05d}"


def _write(
    builder: Builder, draft: Path, archives: Path, lists: Path, partial: bool
) -> dict[str, int]:
    """Write shards and metadata; return the number of examples per split."""
    labels = {
        label: features_of.ClassLabel(names=names)
        for label, names in class_names(builder, archives).items()
    }
    image = features_of.Image(shape=tuple(builder.shape))
    features: Any = features_of.FeaturesDict(
        {builder.id: features_of.Text(), "image": image, **labels}
    )
    serializer: Any = core.ExampleSerializer(features.get_serialized_info())
    writers = {name: SplitWriter(draft, builder.name, name) for name in builder.counts}
    seen: set[str] = set()
    examples = builder.examples(builder, archives, lists)
    reported = time.monotonic()
    total = None if partial else sum(builder.counts.values())
    if console := terminal(sys.stderr):
        from rich.progress import track

        examples = track(examples, builder.name, total, console=console, transient=True)
    for split, example in examples:
        if not console and time.monotonic() - reported > LINE_SECONDS:
            reported = time.monotonic()
            of = f" of {total:,}" if total else ""
            print(f"{builder.name}: {len(seen):,}{of} images", file=sys.stderr)
        if (id := example[builder.id]) in seen:
            raise InputError(f"{builder.name}: duplicate example in the archives: {id}")
        seen.add(id)
        record = serializer.serialize_example(features.encode_example(example))
        writers[split].add(record, example["label"], id)
    splits = [writer.finish() for writer in writers.values()]
    version = core.Version(builder.version)
    info: Any = core.DatasetInfo(
        builder=core.DatasetIdentity(builder.name, version, str(draft), __name__),
        description=builder.description,
        features=features,
        supervised_keys=("image", "label"),
        homepage=builder.homepage,
    )
    info.set_file_format(core.FileFormat.ARRAY_RECORD)
    info.set_splits(core.SplitDict(splits))
    info.write_to_directory(draft)
    return {split.name: split.num_examples for split in splits}
