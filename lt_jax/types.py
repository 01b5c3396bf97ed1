"""Types that the folders share: batches, parameters, the training state.

Sizes in docstrings: ``B`` examples in a batch, ``K`` classes, ``D`` features, ``N``
examples in a dataset, ``H W C`` an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax

# {"image": uint8[B, H, W, C], "label": int32[B], "mask": float32[B]}. Mask 0 marks a
# padded row; the loss, the metrics and batch norm ignore it.
Batch = dict[str, Any]
Params = dict[str, Any]  # a nested dict of arrays


class Weights(NamedTuple):
    """A network: what stage 1 ends with and stage 2 starts from."""

    params: Params  # {"backbone": ..., "head": ...}
    batch_stats: Params  # running statistics of the backbone's batch norms


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, as arrays only; saved as it is."""

    step: jax.Array  # int32[], optimiser steps taken
    params: Params
    batch_stats: Params
    opt_state: Any  # of the trained parameters only
