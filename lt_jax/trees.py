"""Trees of arrays, addressed by leaf names such as ``head/kernel``."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lt_jax.errors import InputError
from lt_jax.types import Params


def leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by name: path parts joined by ``/``.

    >>> leaves({"head": {"bias": 1, "kernel": 2}})
    {'head/bias': 1, 'head/kernel': 2}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def rebuild(like: Any, values: dict[str, Any]) -> Any:
    """Build a tree with the structure of ``like`` from leaves by name."""
    return jax.tree.unflatten(
        jax.tree.structure(like), [values[name] for name in leaves(like)]
    )


def partition(params: Params, pattern: str) -> tuple[Params, Params]:
    """Split nested dicts into leaves whose full name matches, and the others."""
    names = leaves(params)
    chosen = {name for name in names if re.fullmatch(pattern, name)}
    if not chosen:
        raise InputError(
            f"no parameter matches {pattern!r}: expected one of {', '.join(names)}"
        )
    # Unlike ``leaves``, this keeps the empty branch of a backbone without parameters.
    parts: tuple[Params, Params] = {}, {}
    for name, leaf in _flat(params).items():
        parts[name not in chosen][name] = leaf
    inside, outside = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return inside, outside


def join(one: Params, other: Params) -> Params:
    """Undo ``partition``."""
    return traverse_util.unflatten_dict({**_flat(one), **_flat(other)}, sep="/")


def _flat(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, keep_empty_nodes=True, sep="/")


def digest(named: dict[str, Any], before: bytes = b"") -> bytes:
    """Hash ``before``, then names, shapes, dtypes and bytes of leaves (SHA-256)."""
    total = hashlib.sha256(before)
    for name, leaf in sorted(named.items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.shape} {array.dtype}\n".encode())
        total.update(array.tobytes())
    return total.digest()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return one line per leaf that is missing, unexpected or of another shape."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            lines.append(f"- {name} {expected[name].shape}: missing from the file")
        elif name not in expected:
            lines.append(f"+ {name} {found[name].shape}: not in this model")
        elif found[name].shape != expected[name].shape:
            lines.append(
                f"! {name}: {found[name].shape} in the file, "
                f"{expected[name].shape} in this model"
            )
    return lines
