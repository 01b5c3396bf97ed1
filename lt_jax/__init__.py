"""Long-tailed recognition in JAX: decoupled training and classifier re-training.

``fit_heads`` and ``evaluate`` work on your own features and logits. The modules
``losses``, ``heads``, ``samplers``, ``metrics`` and ``methods`` are pure functions.
Experiments with configs and workdirs run through the ``lt-jax`` command.
"""

from __future__ import annotations

from lt_jax._version import __version__

# Type checkers take it for true; `typing` is slow to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lt_jax.api import (
        FittedHead,
        Recipe,
        evaluate,
        fit_head,
        fit_heads,
        published,
        stage1,
    )

__all__ = [
    "FittedHead",
    "Recipe",
    "__version__",
    "evaluate",
    "fit_head",
    "fit_heads",
    "published",
    "stage1",
]


def __getattr__(name: str) -> Any:
    """Import a name of ``api`` on first use, so that ``lt-jax --help`` is fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lt_jax import api

    return getattr(api, name)
