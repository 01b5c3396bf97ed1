"""From the original archives to a set that TFDS reads, without TensorFlow.

DIR/NAME/VERSION.incomplete    while it is written; a leftover is removed
DIR/NAME/VERSION               the finished set: it appears whole or not at all
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

from tqdm import tqdm

from lt_jax.data.prepare.archives import Recipe
from lt_jax.data.prepare.definitions import RECIPES
from lt_jax.data.sources import records, tfds
from lt_jax.errors import InputError, one_of

Say = Callable[[str], None]


def prepare(
    name: str,
    archives: Path,
    dir: str,
    *,
    lists: Path | None = None,
    checksum: bool = False,
    partial: bool = False,
    say: Say = print,
) -> Path:
    """Writes a set that does not exist yet; see ``recipes.RECIPES``.

    Args:
      name: as TFDS names it.
      archives: the folder of the original archives.
      dir: TFDS's data folder; "" is where TFDS looks.
      lists: the folder of ImageNet-LT's lists; by default that of the archives.
      checksum: whether the archives' SHA-256 is compared too; reads them once more.
      partial: whether archives of other sizes and sets of other counts are taken.
      say: tells people.

    Returns:
      The folder of the finished set.

    Raises:
      InputError: archives that are missing, of another size or damaged, too little
        space, counts that are not the set's. Nothing is left behind.
    """
    recipe = RECIPES[one_of("data set to prepare", name, RECIPES)]
    final = tfds.root(dir) / recipe.name / recipe.version
    if final.exists():
        say(f"{name} is there already: {final}. Remove that folder to prepare it anew.")
        return final
    check_archives(recipe, archives, checksum, partial, say)
    with drafted(final, say) as draft:
        if not partial:
            _check_space(draft, recipe.space)
        counts = _write(recipe, draft, archives, lists or archives, partial)
        for split, expected in recipe.counts.items():
            if counts.get(split, 0) != expected and not partial:
                raise InputError(
                    f"{name}: {counts.get(split, 0):,} examples in {split}, expected "
                    f"{expected:,}: the archives or lists are others than the "
                    "published ones (--partial takes them)"
                )
    told = ", ".join(f"{split} {size:,}" for split, size in counts.items())
    say(f"{name} {recipe.version}: {told}; in {final}")
    return final


def check_archives(
    recipe: Recipe, folder: Path, checksum: bool, partial: bool, say: Say
) -> None:
    """Raises ``InputError`` for archives that are missing or are not the originals."""
    missing = [a.name for a in recipe.archives if not (folder / a.name).is_file()]
    if missing:
        hints = [
            f"{folder / stem} is the extracted folder of one of them; the archive "
            "itself is read"
            for stem in (name.split(".")[0] for name in missing)
            if (folder / stem).is_dir()
        ]
        names = ", ".join(a.name for a in recipe.archives)
        raise InputError(
            f"{recipe.name} is prepared from {names} in one folder; {folder} lacks "
            + ", ".join([*missing, *hints])
        )
    for archive in recipe.archives:
        path = folder / archive.name
        size = path.stat().st_size
        if size != archive.size and not partial:
            part = " It is shorter: the download may have stopped early."
            raise InputError(
                f"{path} has {size:,} bytes, expected {archive.size:,}: another "
                "archive, or a damaged one."
                + (part if size < archive.size else "")
                + " (--partial takes archives of any size.)"
            )
        if checksum:
            found = _sha256(path)
            if found != archive.sha256:
                raise InputError(
                    f"{path} has the SHA-256 {found}, expected {archive.sha256}: it is "
                    "damaged; download it again"
                )
            say(f"{archive.name}: SHA-256 as published")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, bar(path.name, path.stat().st_size, "B") as shown:
        while piece := file.read(2**22):
            digest.update(piece)
            shown.update(len(piece))
    return digest.hexdigest()


def _check_space(folder: Path, needed: float) -> None:
    """Raises ``InputError`` where this many GB will not fit."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        raise InputError(
            f"the prepared set takes about {needed:g} GB, {folder.parent} has "
            f"{free:.1f} GB free: make room, or name another folder with --dir"
        )


@contextlib.contextmanager
def drafted(final: Path, say: Say) -> Iterator[Path]:
    """A folder that becomes ``final`` when all went well, and vanishes otherwise.

    Raises:
      InputError: another process is writing there, or the disk is full.
    """
    draft = final.with_name(final.name + ".incomplete")
    if draft.exists():
        with _locked(draft):
            say(f"{draft} was left by a command that was cut off; it is removed")
            shutil.rmtree(draft)
    draft.mkdir(parents=True)
    try:
        with _locked(draft):
            try:
                yield draft
            except (OSError, RuntimeError) as error:  # RuntimeError: array_record's
                if full(draft, error):
                    raise InputError(
                        f"the disk of {final.parent} is full; what was written is "
                        "removed again. Make room, or name another folder with --dir"
                    ) from error
                raise
        draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        with contextlib.suppress(OSError):
            draft.parent.rmdir()  # if it was made for this and is empty
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"another command is writing {folder}: let it finish"
            ) from error
        yield
    finally:
        os.close(handle)


def full(folder: Path, error: Exception) -> bool:
    """Whether an error comes from a disk that is full; array_record gives no number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return shutil.disk_usage(folder).free < 2**20 or "space" in str(error).lower()


def bar(title: str, total: int | None, unit: str) -> tqdm:
    """Progress: a moving bar on a terminal, elsewhere a line every half minute."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=title,
        total=total,
        unit=unit,
        unit_scale=True,
        leave=False,
        mininterval=0.5 if terminal else 30.0,
        delay=0 if terminal else 30,
    )


def _write(
    recipe: Recipe, draft: Path, archives: Path, lists: Path, partial: bool
) -> dict[str, int]:
    """Writes the shards and TFDS's files; returns the examples of each split."""
    from tensorflow_datasets.core import dataset_info, example_serializer
    from tensorflow_datasets.core import features as tfds_features
    from tensorflow_datasets.core import splits as tfds_splits
    from tensorflow_datasets.core.file_adapters import FileFormat
    from tensorflow_datasets.core.utils import Version

    features: Any = tfds_features.FeaturesDict(recipe.features(archives))
    info: Any = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=recipe.name,
            version=Version(recipe.version),
            data_dir=str(draft),
            module_name=__name__,
        ),
        description=recipe.description,
        features=features,
        supervised_keys=("image", "label"),
        homepage=recipe.homepage,
    )
    info.set_file_format(FileFormat.ARRAY_RECORD)
    serializer: Any = example_serializer.ExampleSerializer(
        features.get_serialized_info()
    )
    splits: dict[str, records.Split] = {}
    seen: set[str] = set()
    total = None if partial else sum(recipe.counts.values())
    try:
        with bar(recipe.name, total, "img") as shown:
            for made in recipe.examples(archives, lists):
                if made.id in seen:
                    raise InputError(
                        f"{recipe.name}: {made.id} is in the archives twice"
                    )
                seen.add(made.id)
                if made.split not in splits:
                    splits[made.split] = records.Split(draft, recipe.name, made.split)
                example = serializer.serialize_example(
                    features.encode_example(made.features)
                )
                splits[made.split].add(example, made.label, made.id)
                shown.update()
        for split in splits.values():
            split.finish()
    except BaseException:
        for split in splits.values():
            split.abandon()
        raise
    for split in splits.values():
        check_written(split)
    empty = [split for split in recipe.counts if split not in splits]
    if empty:
        raise InputError(f"{recipe.name}: no example of {', '.join(empty)} was found")
    info.set_splits(
        tfds_splits.SplitDict(
            [
                tfds_splits.SplitInfo(
                    name=name,
                    shard_lengths=splits[name].lengths,
                    num_bytes=splits[name].bytes,
                )
                for name in recipe.counts
            ]
        )
    )
    info.write_to_directory(draft)
    return {name: sum(splits[name].lengths) for name in recipe.counts}


def check_written(split: records.Split) -> None:
    """Reads the numbers of records back; a full disk may have cut a file silently."""
    from array_record.python import array_record_module  # pyright: ignore

    for path, length in zip(split.shards, split.lengths, strict=True):
        try:
            reader = array_record_module.ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError):
            found = 0
        if found != length:
            raise OSError(
                errno.ENOSPC if full(path.parent, RuntimeError()) else errno.EIO,
                f"{path.name} holds {found} of the {length} records that were written",
            )
