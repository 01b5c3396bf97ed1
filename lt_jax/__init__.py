"""Long-tailed recognition in JAX: decoupled training and classifier re-training.

The way of the data: ``data`` makes a long-tailed task, ``samplers`` plan an order,
``steps`` run ``models`` and ``heads`` on the devices under ``losses``, ``metrics`` add
up, ``methods`` say what differs, ``loop`` repeats, ``train`` makes commands of it.
Without configs and workdirs, on features and logits of one's own: ``library``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lt_jax._version import __version__

if TYPE_CHECKING:
    from lt_jax.api import FittedHead, Recipe, evaluate, fit_head, fit_heads

__all__ = [
    "FittedHead",
    "Recipe",
    "__version__",
    "evaluate",
    "fit_head",
    "fit_heads",
]


def __getattr__(name: str) -> Any:
    """The names of ``library``, on first use: ``lt-jax --help`` waits for no JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lt_jax import api

    return getattr(api, name)
