"""The batches of an epoch, streamed or gathered from images on the devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.data.loader import CropPlan, DecodeErrors, load_batches
from lt_jax.distributed import sharding
from lt_jax.training import inference
from lt_jax.types import Batch

# (int32[S, B] for this process, crops) -> S batches on the devices
Batches = Callable[[np.ndarray, CropPlan], Iterator[Batch]]


def fits_on_device(dataset: Dataset, limit: float) -> bool:
    """Return whether all images fit into ``limit`` GiB; encoded photos never do."""
    fits = len(dataset) * math.prod(dataset.shape) <= limit * 2**30
    return fits and dataset.decoder is None


def streamed(dataset: Dataset, errors: DecodeErrors) -> Batches:
    """Load batches while the devices work."""
    load = functools.partial(load_batches, dataset, place=sharding.shard_batch)
    return lambda rows, crops: load(rows, crops=crops, errors=errors)


def resident(dataset: Dataset) -> Batches:
    """Keep the images on the devices, which gather each batch.

    Only indices travel. A batch equals that of `streamed` bit for bit.
    """
    images, labels = dataset.read(np.arange(len(dataset))), dataset.labels
    held = sharding.replicate({"image": images, "label": labels.astype(np.int32)})
    gather = inference.make_gather()
    return lambda rows, _: (gather(held, row) for row in sharding.shard_batch([*rows]))
