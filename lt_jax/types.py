"""The records that every floor shares: batches, data sets, the training state.

Letters used for sizes everywhere: ``B`` examples in a batch, ``K`` classes, ``D``
features, ``N`` examples in a set, ``H W C`` an image.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

# {"image": uint8[B, H, W, C], "label": int32[B], "mask": float32[B]}; mask 0 marks a
# padded row, which counts nowhere: not in the loss, the metrics or the batch norm.
Batch = dict[str, Any]
Params = dict[str, Any]  # a nested dict of arrays

# An ml_collections.ConfigDict; a type checker cannot know what its attributes hold.
Config = Any


@flax.struct.dataclass
class TrainState:
    """All that training changes, as arrays only: what is held is what is saved.

    ``params`` is ``{"backbone": ..., "head": ...}``; ``opt_state`` covers only the
    parameters that are trained.
    """

    step: jax.Array  # int32[], optimiser steps taken
    params: Params
    batch_stats: Params  # running statistics of the backbone's batch norms
    opt_state: Any
