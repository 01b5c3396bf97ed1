"""Provisional; replaced by the branch grids."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any


def expand(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = {k: v for k, v in entry.items() if k != "grid"}
    grid = dict(entry.get("grid", {}))
    rows = [own]
    for values in itertools.product(*grid.values()):
        row = {**own, **dict(zip(grid, values, strict=True))}
        if row not in rows:
            rows.append(row)
    return rows
