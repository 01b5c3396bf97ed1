"""From a plan of indices to batches on the devices, read ahead in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lt_jax.types import Batch, Dataset


def feed(
    dataset: Dataset,
    rows: np.ndarray,
    width: int,
    place: Callable[[Batch], Batch],
    ahead: int = 2,
) -> Iterator[Batch]:
    """Yields the batch of every row of a plan.

    Args:
      dataset: what to read.
      rows: int32[steps, B] of indices; -1 is padding.
      width: rows of the batch that is made, at least B; the rest is padding.
      place: moves a host batch to the devices.
      ahead: batches that are read while the devices are busy with earlier ones.

    Yields:
      ``{"image": [width, H, W, C] of the type that is read, "label": int32, "mask":
      float32}`` as placed.
    """

    def make(indices: np.ndarray) -> Batch:
        real = np.flatnonzero(indices >= 0)
        found = dataset.read(indices[real])
        image = np.zeros((width, *dataset.shape), found.dtype)
        label = np.zeros(width, np.int32)
        mask = np.zeros(width, np.float32)
        image[real] = found
        label[real] = dataset.labels[indices[real]]
        mask[real] = 1
        return place({"image": image, "label": label, "mask": mask})

    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(make, row) for row in rows[:ahead])
        for row in rows[ahead:]:
            yield waiting.popleft().result()
            waiting.append(reader.submit(make, row))
        while waiting:
            yield waiting.popleft().result()
