"""What a frozen backbone sees: computed once, kept on disk with its provenance."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import models, samplers, seeds, trees
from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import never_stop, until_stopped
from lt_jax.training import steps
from lt_jax.training.log import Logger, write_whole
from lt_jax.types import Params

if TYPE_CHECKING:  # the loop imports Orbax, which fit_heads does not need
    from lt_jax.training.loop import Task

# How a feature is computed with, and what stands in the file: NumPy's format does not
# know bfloat16, so its bits are written as whole numbers.
DTYPES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(jnp.bfloat16), np.dtype(np.uint16)),
}


# What a head computes, see ``heads.Head``.
Apply = Callable[[Params, jax.Array], jax.Array]


class Features(NamedTuple):
    """A split as a frozen backbone sees it, without images that cannot be decoded."""

    values: np.ndarray  # float[V, N, D], one slice for each view; may map a file
    labels: np.ndarray  # int32[N]

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """float32[V, B, D], int32[B] and the mask float32[B], every example once."""
        for rows in samplers.batch_indices(np.arange(len(self.labels)), size):
            indices, mask = np.maximum(rows, 0), (rows >= 0).astype(np.float32)
            values = self.values[:, indices].astype(np.float32)
            yield values, self.labels[indices], mask


def mean_logits(apply: Apply, params: Params, values: jax.Array) -> jax.Array:
    """float32[B, K], what a head makes of float32[V, B, D], averaged over the views."""
    return jnp.mean(jax.vmap(apply, in_axes=(None, 0))(params, values), axis=0)


class Request(NamedTuple):
    """What of a split is wanted."""

    views: tuple[str, ...]  # names in steps.VIEWS
    run: tuple[int, ...]  # names the random crops; see seeds
    dtype: str  # a key of DTYPES


def random_views(count: int) -> tuple[str, ...]:
    """The views that heads are fitted on: 1 is the image as it is, more are crops."""
    return ("plain",) if count == 1 else ("random",) * count


def evaluated_views(flip: bool) -> tuple[str, ...]:
    """The views that logits are averaged over in an evaluation."""
    return ("plain", "mirror") if flip else ("plain",)


def cached_features(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    request: Request,
    file: Path,
    log: Logger,
    stopped: Callable[[], str] = never_stop,
) -> Features:
    """The features of a split, from the file if it holds these very ones.

    An image that cannot be decoded, in whatever view, is named and left out.

    Args:
      file: ``.npy`` of [V, N, D]; its provenance lies beside it as ``.json``.

    Raises:
      InputError: more of them than the data set tolerates.
      Interrupted: ``stopped`` named a signal; there is no file then.
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
    if dataset.decoder is not None:
        provenance["looks"] = dataset.decoder.looks
    shape = len(request.views), len(dataset), models.features_of(task.backbone)
    memory, stored = DTYPES[request.dtype]
    note = file.with_suffix(".json")
    differs = processes.from_process_zero(
        lambda: _differences(file, note, provenance, stored, shape)
    )
    if differs is None:
        return _loaded(file, note, memory, dataset)
    if differs:
        log.info(f"{file} is not used, it differs in {differs}; made again")

    def begin() -> None:
        note.unlink(missing_ok=True)  # no note, no use: a kill leaves nothing stale
        file.parent.mkdir(parents=True, exist_ok=True)

    processes.on_process_zero(begin)
    decode_errors, network = DecodeErrors(dataset), (params, batch_stats)
    blocks = extract(task, *network, dataset, request, log, decode_errors, stopped)
    blocks = (block.astype(memory).view(stored) for block in blocks)
    provenance |= _write(file, shape, stored, blocks, decode_errors)
    write_whole(note, json.dumps(provenance, indent=1) + "\n")
    return _loaded(file, note, memory, dataset)


def _loaded(file: Path, note: Path, dtype: np.dtype, dataset: Dataset) -> Features:
    values = np.load(file, mmap_mode="r", allow_pickle=False).view(dtype)
    left_out = json.loads(note.read_text(encoding="utf-8")).get("left_out", [])
    return Features(values, np.delete(dataset.labels, left_out))


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
    views, size, num_features = shape
    shape = views, size - len(before.get("left_out", [])), num_features
    if (found.dtype, found.shape) != (stored, shape):
        return f"shape ({found.dtype}{list(found.shape)}, expected {list(shape)})"
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if digest == before.get("sha256") else "its content: it is damaged"


def _write(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterator[np.ndarray],
    decode_errors: DecodeErrors,
) -> dict[str, Any]:
    """A ``.npy`` in the order it comes, whole or not at all.

    Not through a memory map: on a full disk that ends the process without a word. All
    processes compute the blocks, the first one writes.

    Args:
      shape: V, N, D with the broken images, which are left out at last: that an image
        is broken may be seen in the last view only.

    Returns:
      What its note has to tell: its ``sha256``, and which images are ``left_out``.
    """
    draft = file.with_name(file.name + ".tmp")
    thinner = draft.with_suffix(".thin")
    try:
        found: dict[str, Any] = {"sha256": _stream(draft, shape, dtype, blocks)}
        if left_out := decode_errors.all_indices():
            whole = np.load(draft, mmap_mode="r", allow_pickle=False)
            views, size, num_features = shape
            shape = views, size - len(left_out), num_features
            digest = _stream(thinner, shape, dtype, _without(whole, left_out))
            found = {"sha256": digest, "left_out": left_out}
            processes.on_process_zero(lambda: os.replace(thinner, draft))
    except BaseException:
        for half in (draft, thinner):
            with contextlib.suppress(OSError):
                half.unlink()
        raise
    processes.on_process_zero(lambda: os.replace(draft, file))
    return found


def _stream(
    file: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]
) -> str:
    """Writes one block after the other; gives, in the first process, their SHA-256."""
    described = np.lib.format.dtype_to_descr(dtype)
    header, digest = io.BytesIO(), hashlib.sha256()
    np.lib.format.write_array_header_2_0(
        header, {"descr": described, "fortran_order": False, "shape": shape}
    )

    def append(content: bytes, mode: str = "ab") -> None:
        with file.open(mode) as opened:
            opened.write(content)
        digest.update(content)

    processes.on_process_zero(functools.partial(append, header.getvalue(), "wb"))
    for block in blocks:
        processes.on_process_zero(functools.partial(append, block.tobytes()))
    return digest.hexdigest()


def _without(values: np.ndarray, left_out: list[int]) -> Iterator[np.ndarray]:
    """The rows of [V, N, D] that stay, some thousand at a time."""
    kept = np.delete(np.arange(values.shape[1]), left_out)
    for view in values:
        for first in range(0, len(kept), 4096):
            yield view[kept[first : first + 4096]]


def fingerprint(tree: Any) -> str:
    """The ``trees.digest`` of a tree on whatever devices, as text."""
    return trees.digest(trees.leaves(jax.device_get(tree))).hex()


def extract(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    request: Request,
    log: Logger,
    decode_errors: DecodeErrors,
    stopped: Callable[[], str] = never_stop,
) -> Iterator[np.ndarray]:
    """float[n, D], all views one after the other, each in the order of the data set.

    Rows of images that cannot be decoded hold no meaning; ``broken`` tells which.
    """
    params, batch_stats = sharding.replicate((params, batch_stats))
    rows = samplers.batch_indices(np.arange(len(dataset)), task.eval_batch)
    mine = sharding.process_part(rows)
    with log.bar("features", 0, len(request.views) * len(dataset)) as bar:
        for number, view in enumerate(request.views):
            step = steps.make_feature_step(task.backbone, task.augment, view)
            key = sharding.replicate(seeds.key((*request.run, number), "augment"))
            waiting: collections.deque[tuple[int, jax.Array]] = collections.deque()

            def next_block(
                waiting: collections.deque[tuple[int, jax.Array]] = waiting,
            ) -> np.ndarray:
                size, part = waiting.popleft()
                bar.update(size)
                return np.asarray(part)[:size]

            # On the host a photograph is cropped by its place in the data set, as the
            # device crops small images.
            crops = None
            if view == "random":
                crops = CropPlan((*request.run, number), 0, mine)
            batches = load_batches(
                dataset, mine, sharding.shard_batch, crops=crops, errors=decode_errors
            )
            doing = f"the features of {dataset.name}, which begin anew"
            batches = until_stopped(batches, stopped, doing)
            for row, batch in zip(rows, batches, strict=True):
                first = sharding.replicate(jnp.asarray(row[0]))
                part = step(params, batch_stats, batch, key, first)
                waiting.append(((row >= 0).sum(), part))
                if len(waiting) > 4:  # the devices work on, the host stays small
                    yield next_block()
            while waiting:
                yield next_block()
            if warning := decode_errors.new_warning():
                log.warning(warning)


def plain_features(
    task: Task,
    params: Params,
    batch_stats: Params,
    dataset: Dataset,
    log: Logger,
    stopped: Callable[[], str] = never_stop,
) -> Features:
    """The features of the images as they are, kept nowhere."""
    request = Request(("plain",), (), "float32")
    decode_errors = DecodeErrors(dataset)
    network = params, batch_stats
    blocks = list(
        extract(task, *network, dataset, request, log, decode_errors, stopped)
    )
    left_out = decode_errors.all_indices()
    values = np.concatenate(blocks)
    if left_out:
        values = np.delete(values, left_out, axis=0)
    return Features(values[None], np.delete(dataset.labels, left_out))
