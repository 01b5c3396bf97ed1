"""What a frozen backbone sees: computed once, kept on disk with its provenance."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import models, samplers, seeds, steps, trees
from lt_jax.data.feed import feed
from lt_jax.log import Log, write_whole
from lt_jax.loop import Task
from lt_jax.types import Dataset, Params

# How a feature is computed with, and what stands in the file: NumPy's format does not
# know bfloat16, so its bits are written as whole numbers.
DTYPES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(jnp.bfloat16), np.dtype(np.uint16)),
}


class Features(NamedTuple):
    """A split as a frozen backbone sees it."""

    values: np.ndarray  # float[V, N, D], one slice for each view; may map a file
    labels: np.ndarray  # int32[N]


class Request(NamedTuple):
    """What of a split is wanted."""

    views: tuple[str, ...]  # names in steps.VIEWS
    run: tuple[int, ...]  # names the random crops; see seeds
    dtype: str  # a key of DTYPES


def random_views(count: int) -> tuple[str, ...]:
    """The views that heads are fitted on: 1 is the image as it is, more are crops."""
    return ("plain",) if count == 1 else ("random",) * count


def cached_features(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    request: Request,
    file: Path,
    log: Log,
) -> Features:
    """The features of a split, from the file if it holds these very ones.

    Args:
      file: ``.npy`` of [V, N, D]; its provenance lies beside it as ``.json``.
    """
    provenance = {
        "network": fingerprint({"backbone": params["backbone"], "stats": batch_stats}),
        "split": dataset.hash,
        "order": hashlib.sha256("\n".join(map(str, dataset.ids)).encode()).hexdigest(),
        "augmentation": json.loads(json.dumps(task.augment._asdict())),
        "views": list(request.views),
        "crops": list(request.run) if "random" in request.views else [],
        "dtype": request.dtype,
    }
    shape = len(request.views), len(dataset), models.features_of(task.backbone)
    memory, stored = DTYPES[request.dtype]
    note = file.with_suffix(".json")
    differs = _differences(file, note, provenance, stored, shape)
    if (differs := steps.as_first(differs)) is not None:
        if differs:
            log.say(f"{file} is not used, it differs in {differs}; made again")
        blocks = extract(task, params, batch_stats, dataset, request, log)
        digest = _write(file, note, shape, stored, (b.astype(memory) for b in blocks))
        provenance |= {"sha256": digest}
        write_whole(note, json.dumps(provenance, indent=1) + "\n")
    values = np.load(file, mmap_mode="r", allow_pickle=False).view(memory)
    return Features(values, dataset.labels)


def _differences(
    file: Path,
    note: Path,
    provenance: dict[str, Any],
    stored: np.dtype,
    shape: tuple[int, ...],
) -> str | None:
    """What keeps a file of features from being used; "" if there is none yet.

    Returns:
      None if nothing does.
    """
    if not file.exists():
        return ""
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"that {note.name}, which tells what it was made from, cannot be read"
    keys = [key for key in provenance if before.get(key) != provenance[key]]
    if keys:
        return ", ".join(keys)
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        return f"its length ({error})"
    if (found.dtype, found.shape) != (stored, shape):
        return f"shape ({found.dtype}{list(found.shape)}, expected {list(shape)})"
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if digest == before.get("sha256") else "its content: it is damaged"


def _write(
    file: Path,
    note: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterator[np.ndarray],
) -> str:
    """A ``.npy`` in the order it comes, whole or not at all; returns its SHA-256.

    Not through a memory map: on a full disk that ends the process without a word. All
    processes compute the blocks, the first writes them.
    """
    draft = file.with_name(file.name + ".tmp")
    described = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": described, "fortran_order": False, "shape": shape}
    digest = hashlib.sha256()

    def begin() -> None:
        note.unlink(missing_ok=True)  # no note, no use: a kill leaves nothing stale
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as opened:
            np.lib.format.write_array_header_2_0(opened, header)
        digest.update(draft.read_bytes())

    try:
        steps.first_does(begin)
        for block in blocks:
            steps.first_does(functools.partial(_append, draft, block, digest))
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    steps.first_does(lambda: os.replace(draft, file))
    return digest.hexdigest()


def _append(file: Path, block: np.ndarray, digest: Any) -> None:
    content = block.tobytes()
    with file.open("ab") as opened:
        opened.write(content)
    digest.update(content)


def fingerprint(tree: Any) -> str:
    """SHA-256 of the names, shapes and bytes of the leaves of a tree."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.leaves(jax.device_get(tree)).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def extract(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    request: Request,
    log: Log,
) -> Iterator[np.ndarray]:
    """float[n, D], all views one after the other, each in the order of the data set."""
    params, batch_stats = steps.replicate((params, batch_stats))
    rows = samplers.in_rows(np.arange(len(dataset)), task.eval_batch)
    mine = steps.part(rows)
    with log.bar("features", 0, len(request.views) * len(dataset)) as bar:
        for number, view in enumerate(request.views):
            step = steps.make_feature_step(task.backbone, task.augment, view)
            key = steps.replicate(seeds.key((*request.run, number), "augment"))
            waiting: collections.deque[tuple[int, jax.Array]] = collections.deque()

            def next_block(
                waiting: collections.deque[tuple[int, jax.Array]] = waiting,
            ) -> np.ndarray:
                size, part = waiting.popleft()
                bar.update(size)
                return np.asarray(part)[:size]

            for row, batch in zip(
                rows, feed(dataset, mine, mine.shape[1], steps.shard), strict=True
            ):
                first = steps.replicate(jnp.asarray(row[0]))
                part = step(params, batch_stats, batch, key, first)
                waiting.append(((row >= 0).sum(), part))
                if len(waiting) > 4:  # the devices work on, the host stays small
                    yield next_block()
            while waiting:
                yield next_block()


def plain_features(
    task: Task, params: Params, batch_stats: Params, dataset: Dataset, log: Log
) -> Features:
    """The features of the images as they are, kept nowhere."""
    request = Request(("plain",), (), "float32")
    blocks = list(extract(task, params, batch_stats, dataset, request, log))
    return Features(np.concatenate(blocks)[None], dataset.labels)
