"""From a TFRecord copy to array_record in the same folder, without TensorFlow.

A record is the same bytes in both formats; what differs is how a file is laid out. A
TFRecord file is a row of: length (8 bytes, little-endian), its checksum (4), the
record, its checksum (4). Checksums are left to the counts of ``dataset_info.json`` and
to the records, each of which must parse.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lt_jax.data.prepare.build import Say, bar, check_written, drafted
from lt_jax.data.sources import records
from lt_jax.errors import InputError
from lt_jax.files import atomic_path


def convert(folder: Path, say: Say = print) -> None:
    """Writes array_record files beside the TFRecord files of a prepared set.

    The TFRecord files stay, and TFDS reads either.

    Args:
      folder: ``DIR/NAME/VERSION``, which holds ``dataset_info.json``.
      say: tells people.

    Raises:
      InputError: no such set, another format, files that are missing, cut or damaged,
        or a full disk. Nothing is left behind.
    """
    info_file = folder / "dataset_info.json"
    try:
        info = json.loads(info_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} is no set that TFDS prepared: expected {info_file}, for example "
            "in ~/tensorflow_datasets/cifar100/3.0.2"
        ) from error
    also = info.get("alternativeFileFormats", [])
    if "array_record" in (info.get("fileFormat"), *also):
        say(f"{folder} holds array_record files already")
        return
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise InputError(
            f"{folder} holds {info['fileFormat']} files, expected tfrecord"
        )
    # A command that was cut off while it moved them; all of them are made anew.
    shutil.rmtree(folder / "array_record", ignore_errors=True)
    name = info["name"]
    lengths = {
        split["name"]: [int(n) for n in split["shardLengths"]]
        for split in info["splits"]
    }
    total = sum(map(sum, lengths.values()))
    with drafted(folder / "array_record", say) as draft:
        with bar(name, total, "img") as shown:
            splits = [
                _convert(folder, draft, name, split, shards, shown)
                for split, shards in lengths.items()
            ]
        for split in splits:
            check_written(split)
    # Whole in a folder of their own by now; moving them takes no space.
    for file in sorted((folder / "array_record").iterdir()):
        os.replace(file, folder / file.name)
    (folder / "array_record").rmdir()
    info["alternativeFileFormats"] = [*also, "array_record"]
    with atomic_path(info_file) as draft:
        draft.write_text(json.dumps(info, indent=2), encoding="utf-8")
    say(f"{name}: {total:,} records are in array_record files too, in {folder}")


def _convert(
    folder: Path, draft: Path, name: str, split: str, lengths: list[int], shown: Any
) -> records.Split:
    """One split, file by file under the same numbers."""
    written = records.Split(draft, name, split)
    for shard, length in enumerate(lengths):
        path = folder / f"{name}-{split}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
        count = 0
        for record in _records(path):
            try:
                features = records.example(record)
                label = int(features["label"].int64_list.value[0])
                id = features["id" if "id" in features else "file_name"]
                text = id.bytes_list.value[0].decode()
            except (IndexError, ValueError, records.decode_error()) as error:
                raise InputError(
                    f"{path}, record {count}, has no label, or no id or file_name: "
                    f"{error}"
                ) from error
            written.add(record, label, text)
            count += 1
            shown.update()
        if count != length:
            raise InputError(
                f"{path} holds {count} records, expected {length}: it is cut; prepare "
                "or copy the set again"
            )
        written.next_shard()
    written.finish()
    return written


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file."""
    try:
        with path.open("rb", buffering=2**20) as file:
            while head := file.read(12):
                length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 2**63
                if length > path.stat().st_size:
                    raise InputError(f"{path} is cut or damaged: prepare the set again")
                record = file.read(length)
                if len(record) < length or len(file.read(4)) < 4:
                    raise InputError(f"{path} is cut: prepare or copy the set again")
                yield record
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: prepare or copy the set again") from error
