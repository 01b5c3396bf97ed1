"""Features of a frozen backbone: computed once, cached on disk with provenance."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax import samplers, seeds, trees
from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import until_stopped
from lt_jax.files import COUNT, jsonable, open_regular, read_json, sealed_json, write
from lt_jax.training import inference
from lt_jax.training.log import Bar
from lt_jax.training.stage import Task
from lt_jax.types import Params, Weights

# Dtypes in memory and in the file. NumPy's format lacks bfloat16, so its bits are
# stored as integers.
DTYPES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(jnp.bfloat16), np.dtype(np.uint16)),
}
# The note next to a file, apart from its provenance.
NOTE = {"sha256": str, "left_out?": [COUNT]}
ROWS = 4096  # copied at a time
# Mean norm of features that published rates suit: docs/benchmarks/choice.md.
NORM = 8.0
QUEUED = 4  # batches that the devices may be ahead of the file

# Computes logits, see ``heads.Head.apply``.
Apply = Callable[[Params, jax.Array], jax.Array]


class Features(NamedTuple):
    """The features of a split, without images that cannot be decoded."""

    values: np.ndarray  # float[V, N, D], one slice per view; may map a file
    labels: np.ndarray  # int32[N]

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Iterate once over all examples: float32[V, B, D], int32[B], float32[B]."""
        for rows in samplers.batch_indices(np.arange(len(self.labels)), size):
            indices, mask = np.maximum(rows, 0), (rows >= 0).astype(np.float32)
            values = self.values[:, indices].astype(np.float32)
            yield values, self.labels[indices], mask

    def take(self, rows: np.ndarray) -> Features:
        """Copy these examples."""
        return Features(self.values[:, rows], self.labels[rows])


def mean_logits(apply: Apply, params: Params, values: jax.Array) -> jax.Array:
    """Average logits over views: float32[V, B, D] -> float32[B, K]."""
    return jnp.mean(jax.vmap(apply, in_axes=(None, 0))(params, values), axis=0)


class Request(NamedTuple):
    """Which features of a split to compute."""

    views: tuple[str, ...]  # names in inference.VIEWS
    run: tuple[int, ...]  # determines the random crops, see seeds
    dtype: str  # a key of DTYPES


def cached_features(
    task: Task, network: Weights, dataset: Dataset, request: Request, file: Path
) -> Features:
    """Load the features of a split if their provenance matches, or compute them.

    ``file`` is a ``.npy`` of [V, N, D], with its provenance in a ``.json`` next to it.
    Images that cannot be decoded in some view are logged and left out.

    Raises:
      InputError: more images cannot be decoded than the dataset tolerates.
      Interrupted: ``task.stop_requested`` named a signal; no file is left behind.
    """
    backbone = network.params["backbone"]
    provenance = {
        "network": fingerprint({"backbone": backbone, "stats": network.batch_stats}),
        "split": dataset.hash,
        "order": dataset.hash_of_order,
        "augmentation": jsonable(task.augment._asdict()),
        "views": list(request.views),
        "crops": list(request.run) if "random" in request.views else [],
        "dtype": request.dtype,
    }
    if dataset.decoder is not None:
        provenance["looks"] = dataset.decoder.settings
    memory, stored = DTYPES[request.dtype]
    note = file.with_suffix(".json")
    shape = len(request.views), len(dataset), task.backbone.num_features
    stale = processes.from_process_zero(lambda: _find_stale(file, shape, provenance))
    if stale is not None:
        if stale:
            task.log.info(f"cached features {file} are stale ({stale}); recomputing")
        errors = DecodeErrors(dataset)
        blocks = extract(task, network, dataset, request, errors)
        blocks = (block.astype(memory).view(stored) for block in blocks)
        provenance |= _write(file, shape, stored, blocks, errors)
        processes.on_process_zero(lambda: write(note, sealed_json(provenance)))
    values = np.load(file, mmap_mode="r", allow_pickle=False).view(memory)
    left_out = read_json(note, NOTE, f"Delete {file}").get("left_out", [])
    return Features(values, np.delete(dataset.labels, left_out))


def _find_stale(
    file: Path, shape: tuple[int, int, int], provenance: dict[str, Any]
) -> str | None:
    """Explain why a file cannot be used: None if it can, "" if it does not exist."""
    note = file.with_suffix(".json")
    if not file.exists():
        return ""
    try:
        before = read_json(note, NOTE, "")
    except (OSError, ValueError):
        return f"cannot read {note.name}"
    if changed := [k for k, value in provenance.items() if before.get(k) != value]:
        return f"{', '.join(changed)} changed"
    left_out = before.get("left_out", [])
    try:
        with open(open_regular(file, os.O_RDONLY), "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found = np.load(file, mmap_mode="r", allow_pickle=False).shape
        kept = len(np.delete(np.arange(shape[1]), left_out))
    except (ValueError, IndexError, EOFError):
        return "damaged"
    same = digest == before["sha256"] and found == (shape[0], kept, shape[2])
    return None if same else "damaged"


def _write(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterator[np.ndarray],
    errors: DecodeErrors,
) -> dict[str, Any]:
    """Write a ``.npy`` in process 0, all at once; return its ``sha256``.

    Undecodable images are in ``shape``, but ``left_out`` at the end, since an image may
    fail in the last view only.
    """

    def begin() -> None:
        # Without its provenance, the file of a killed run is not used.
        for old in (file.with_suffix(".json"), draft, reduced):
            old.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)

    complete = draft = file.with_name(file.name + ".tmp")
    reduced = draft.with_suffix(".thin")
    processes.on_process_zero(begin)
    try:
        digest, left_out = _stream(draft, shape, dtype, blocks), errors.all_indices()
        if left_out:
            full = np.load(draft, mmap_mode="r", allow_pickle=False)
            kept = np.delete(np.arange(shape[1]), left_out)
            pieces = np.split(kept, range(ROWS, len(kept), ROWS))
            rest = (view[piece] for view in full for piece in pieces)
            digest = _stream(reduced, (shape[0], len(kept), shape[2]), dtype, rest)
            complete = reduced
        processes.on_process_zero(lambda: os.replace(complete, file))
    finally:
        draft.unlink(missing_ok=True)
        reduced.unlink(missing_ok=True)
    return {"sha256": digest, "left_out": left_out} if left_out else {"sha256": digest}


def _stream(
    file: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]
) -> str:
    """Write a ``.npy`` block by block; return its SHA-256 in process 0.

    Not through a memory map: on a full disk that kills the process without a message.
    """
    header, digest = io.BytesIO(), hashlib.sha256()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(header, described)

    def append(content: bytes, mode: str = "ab") -> None:
        with file.open(mode) as opened:
            opened.write(content)
        digest.update(content)

    processes.on_process_zero(lambda: append(header.getvalue(), "xb"))
    for block in blocks:
        processes.on_process_zero(functools.partial(append, block.tobytes()))
    return digest.hexdigest()


def standardise(
    features: np.ndarray, norm: float = NORM
) -> tuple[np.ndarray, np.ndarray, float]:
    """Centre features, float32[N, D], and scale them to a mean norm.

    Returns:
      The features, their centre float32[D], and the scale.
    """
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    values = features - centre
    scale = norm / max(float(np.linalg.norm(values, axis=1).mean()), 1e-12)
    return values * np.float32(scale), centre, scale


def norm_note(values: np.ndarray) -> str:
    """Describe the mean norm of features float[N, D], "" if published rates suit it.

    >>> norm_note(np.full((5, 4), 20.0))[:32]
    'the features have a mean norm of'
    """
    norm = float(np.linalg.norm(np.asarray(values[:ROWS], np.float32), axis=1).mean())
    if 4 <= norm <= 16:
        return ""
    return (
        f"the features have a mean norm of {norm:.3g}; published rates suit 4 to 16, "
        "so methods at their own values may fail. Set "
        f"--config.data.norm={NORM:g}, or choose rates with `lt-jax sweep`"
    )


def fingerprint(tree: Any) -> str:
    """Return the ``trees.digest`` of a tree in hex."""
    return trees.digest(trees.leaves(jax.device_get(tree))).hex()


def extract(
    task: Task,
    network: Weights,
    dataset: Dataset,
    request: Request,
    errors: DecodeErrors,
) -> Iterator[np.ndarray]:
    """Compute float[n, D] block by block: view after view, in dataset order.

    Rows of undecodable images are meaningless; ``errors`` collects them.
    """
    network = sharding.replicate(network)
    rows = samplers.batch_indices(np.arange(len(dataset)), task.eval_batch)
    local = sharding.process_part(rows)
    title, total = f"features of {dataset.name}", len(request.views) * len(dataset)
    with Bar(task.log, title, 0, total, task.log_seconds) as bar:

        def to_host(block: tuple[int, jax.Array]) -> np.ndarray:
            size, features = block
            if bar.advance(size):
                bar.show({})
            return np.asarray(features)[:size]

        for number, view in enumerate(request.views):
            run = (*request.run, number)
            step = inference.make_feature_step(task.backbone, task.augment, view)
            key = sharding.replicate(seeds.key(run, "augment"))
            # The host crops a photo by its position in the dataset, as the device crops
            # small images.
            crops = CropPlan(run, 0, local) if view == "random" else None
            batches = load_batches(
                dataset, local, sharding.shard_batch, crops=crops, errors=errors
            )
            doing = f"the features of {dataset.name}, which restart"
            batches = until_stopped(batches, task.stop_requested, doing)
            queue: collections.deque[tuple[int, jax.Array]] = collections.deque()
            for row, batch in zip(rows, batches, strict=True):
                first = sharding.replicate(jnp.asarray(row[0]))
                features = step(*network, batch, key, first)
                queue.append(((row >= 0).sum(), features))
                if len(queue) > QUEUED:
                    yield to_host(queue.popleft())
            while queue:
                yield to_host(queue.popleft())
            if warning := errors.new_warning():
                task.log.warning(warning)


def plain_features(task: Task, network: Weights, dataset: Dataset) -> Features:
    """Compute the features without augmentation and without a cache."""
    request, errors = Request(("plain",), (), "float32"), DecodeErrors(dataset)
    values = np.concatenate(list(extract(task, network, dataset, request, errors)))
    left_out = errors.all_indices()
    values = np.delete(values, left_out, axis=0) if left_out else values
    return Features(values[None], np.delete(dataset.labels, left_out))
