"""timm, for parity tests, with any build of torchvision."""

from __future__ import annotations

from typing import Any

import pytest

_kept: list[Any] = []


def load() -> Any:
    """Import timm; skip the test without it.

    torchvision's compiled operators fit one build of PyTorch. timm does not use them,
    but without their names torchvision cannot be imported.
    """
    torch = pytest.importorskip("torch", reason="pip install 'lt_jax[parity]'")
    if not _kept:
        _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                arguments = "(Tensor dets, Tensor scores, float threshold) -> Tensor"
                _kept[0].define(name + arguments)
    return pytest.importorskip("timm", reason="pip install 'lt_jax[parity]'")
