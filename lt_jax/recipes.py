"""From the grid of a method's entry in the config to rows of hyper-parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from lt_jax.errors import InputError, suggest

GRID = "grid"  # the key of an entry that holds its grid; all others are its own values


def own(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an entry themselves, its grid left out.

    >>> own({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.1, 0.2)}})
    {'lr': 0.1, 'epochs': 20}
    """
    return {key: _plain(value) for key, value in entry.items() if key != GRID}


def expand(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an entry: every combination of its grid over its other values.

    The last key of the grid varies fastest; a ConfigDict holds its keys sorted. The
    entry's own values come first if the grid does not meet them, and nothing twice.

    >>> expand({"lr": 0.1, "epochs": 20, "grid": {"lr": (0.2, 0.4)}})
    [{'lr': 0.1, 'epochs': 20}, {'lr': 0.2, 'epochs': 20}, {'lr': 0.4, 'epochs': 20}]

    Raises:
      InputError: there is no grid; it names what the entry has not; its values are no
        tuple, or none.
    """
    if GRID not in entry:
        raise InputError("needs a 'grid': the values of each key that a sweep tries")
    base, grid = own(entry), entry[GRID]
    if not hasattr(grid, "items"):
        raise InputError(f"grid must hold a tuple for each key, found {grid!r}")
    tried: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        if key not in base:
            raise InputError(f"grid has an unknown key {key!r}{suggest(key, base)}")
        if not isinstance(values, tuple) or not values:
            raise InputError(
                f"grid.{key} must be a tuple of at least one value, for example "
                f"({base[key]!r},), found {values!r}"
            )
        tried[key] = tuple(_plain(value) for value in values)
    rows = [
        {**base, **dict(zip(tried, values, strict=True))}
        for values in itertools.product(*tried.values())
    ]
    if base not in rows:
        rows.insert(0, base)
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _plain(value: Any) -> Any:
    """A NumPy number as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") else value
