"""Networks under PyTorch's names and under ours, as dicts of arrays.

Supports the names of torchvision's ResNets and ResNeXts, and of timm, whose ViTs are in
``vit_names``. The code of LOS, weight balancing, Decoupling ("classifier-balancing"),
MiSLAS and LDAM differs from them in prefixes, and in the names of the head and the
shortcuts. PyTorch stores a convolution as [out, in, height, width] and a linear layer
as [K, D]; we store them as [height, width, in, out] and [D, K].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lt_jax import trees
from lt_jax.errors import InputError
from lt_jax.pretrained import vit_names

KERNEL, BIAS = "params/head/kernel", "params/head/bias"
# Our names in a batch norm -> PyTorch's.
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Dotted words before the name of a layer: module. or state_dict_best.feat_model.
_PREFIX = r"(?P<prefix>(?:\w+\.)*?)"
_LAYER = re.compile(
    _PREFIX + r"(?P<block>layer\d+\.\d+\.)?"
    r"(?P<module>conv\d|bn\d|(?:downsample|shortcut)\.[01])\.(?P<leaf>\w+)"
)
_HEAD = re.compile(
    _PREFIX + r"(?P<name>fc|linear|classifier|head|last_linear)\.(?P<leaf>weight|bias)"
)
_SCALE = re.compile(r"(?:\w+\.)*learned_norm")  # LWS and MiSLAS: s_k (w_k f + b_k)
# Entries of checkpoints that are not part of the network.
_NOT_WEIGHTS = re.compile(
    r"(?:.*\.)?(?:num_batches_tracked|mask_token)|(?:optim|sched|centroid|scaler).*"
)


class Line(NamedTuple):
    """One array of a network that was read, for the user."""

    name: str  # ours
    source: str  # the name in the file, or "" if it has none
    note: str  # what was changed


class Found(NamedTuple):
    """A network read from a file."""

    leaves: dict[str, np.ndarray]  # float32, by our names
    lines: list[Line]
    skipped: list[str]  # names in the file that are not weights


def is_head(name: str) -> bool:
    """Check whether a PyTorch name belongs to a classifier."""
    return _HEAD.fullmatch(name) is not None


def torch_name(name: str) -> str:
    """Translate one of our names of a residual network to torchvision's.

    >>> torch_name("params/backbone/stage2_block1/conv1/kernel")
    'layer2.0.conv1.weight'
    >>> torch_name("batch_stats/stage2_block1/short_norm/var")
    'layer2.0.downsample.1.running_var'
    """
    if name in (KERNEL, BIAS):
        return "fc.weight" if name == KERNEL else "fc.bias"
    *parts, leaf = name.split("/")
    layer = parts[-1].removeprefix("stem_") + ("1" if "stem_" in parts[-1] else "")
    layer = {"short_conv": "downsample.0", "short_norm": "downsample.1"}.get(
        layer, layer.replace("norm", "bn")
    )
    if stage := re.fullmatch(r"stage(\d+)_block(\d+)", parts[-2]):
        layer = f"layer{stage[1]}.{int(stage[2]) - 1}.{layer}"
    return f"{layer}.{'weight' if leaf == 'kernel' else NORM[leaf]}"


def torch_names(names: Iterable[str]) -> dict[str, str]:
    """Translate our names of a network: PyTorch's by ours."""
    names = list(names)
    if not _is_vit(names):
        return {name: torch_name(name) for name in names}
    heads = {KERNEL: "head.weight", BIAS: "head.bias"}
    vit_name = vit_names.torch_name
    return {n: heads.get(n) or vit_name(n.split("/")[2:]) for n in names}


def _is_vit(names: Iterable[str]) -> bool:
    """Check whether our names are those of a vision transformer."""
    return f"params/backbone/{vit_names.TOKEN}" in names


def to_torch_layout(array: Any) -> np.ndarray:
    """Transpose an array from our layout to PyTorch's."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(np.ndim(array))
    return np.ascontiguousarray(np.transpose(array, axes) if axes else array)


def to_our_layout(array: np.ndarray) -> np.ndarray:
    """Transpose an array from PyTorch's layout to ours."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(np.transpose(array, axes) if axes else array)


def to_torch(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translate the leaves of a network to PyTorch's names and layout.

    ``num_batches_tracked`` is left out, which ``load_state_dict`` accepts.

    Raises:
      InputError: the head is neither linear nor a scaled linear layer.
    """
    head = {n: leaf for n, leaf in leaves.items() if n.startswith("params/head/")}
    rest = {n: leaf for n, leaf in leaves.items() if n not in head}
    translated = rest | _linear(head)
    theirs = torch_names(translated)
    return {theirs[n]: to_torch_layout(leaf) for n, leaf in translated.items()}


def _linear(head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fold the scales of a head into a linear layer."""
    own = {name.removeprefix("params/head/"): np.asarray(v) for name, v in head.items()}
    names = ", ".join(own)
    kernel, bias = own.pop("kernel"), own.pop("bias", None)
    if bias is not None and set(own) == {"scale"}:
        kernel, bias = kernel * own["scale"], bias * own["scale"]
    elif bias is not None and set(own) == {"omega", "beta"}:
        norms = np.linalg.norm(kernel, axis=0)
        bias = own["omega"] * bias + own["beta"] * norms
        kernel = kernel * own["omega"]
    elif bias is None or own:
        raise InputError(
            f"this head is not a linear layer (it has {names}), as torchvision's is; "
            "write a .stablehlo file, which holds the computation"
        )
    return {KERNEL: kernel, BIAS: bias}


def from_torch(
    state: Mapping[str, np.ndarray], expected: Mapping[str, Any], part: str = ""
) -> Found:
    """Find the arrays of a network in a state dict, under any prefix.

    Floats of other precisions become float32. A head without a bias gets zeros; a file
    without a head gives only a backbone.

    Args:
      state: arrays by PyTorch's names, nested names joined by dots.
      expected: arrays, or their shapes, by our names.
      part: prefix of the names to read, for a file with several networks.

    Raises:
      InputError: there is no such network, or several; arrays are missing, unexpected
        or of another shape; values are not floats or not finite.
    """
    state = {name: leaf for name, leaf in state.items() if name.startswith(part)}
    prefix = _prefix(state, _is_vit(expected))
    ours = {theirs: name for name, theirs in torch_names(expected).items()}
    sources: dict[str, str] = {}
    skipped, unexpected, scale = [], {}, None
    for source, leaf in state.items():
        head = _HEAD.fullmatch(source)
        name = {"weight": KERNEL, "bias": BIAS}[head["leaf"]] if head else None
        if not head and source.startswith(prefix):
            short = source.removeprefix(prefix).replace("shortcut", "downsample")
            name = ours.get(short)
        if name in expected and name not in sources:
            sources[name] = source
        elif _SCALE.fullmatch(source):
            scale = np.asarray(leaf, np.float32).ravel()
        elif _NOT_WEIGHTS.fullmatch(source) or np.size(leaf) == 1:
            skipped.append(source)
        else:
            unexpected[source] = leaf
    found = {name: to_our_layout(state[source]) for name, source in sources.items()}
    if KERNEL in found and BIAS not in found:
        found[BIAS] = np.zeros(found[KERNEL].shape[-1], np.float32)
    absent = () if KERNEL in found else (KERNEL, BIAS)
    wanted = {n: leaf for n, leaf in expected.items() if n not in absent}
    if errors := trees.differences(found | unexpected, wanted):
        more = [f"and {len(errors) - 12} more"] if len(errors) > 12 else []
        raise InputError("\n  ".join(["", *errors[:12], *more]))
    leaves, lines = {}, []
    for name in wanted:
        source = sources.get(name, "")
        leaves[name], note = _float32(found[name], source)
        if not source:
            note = "zeros: the file has none"
        if scale is not None and name in (KERNEL, BIAS):
            leaves[name], note = leaves[name] * scale, "times learned_norm"
        lines.append(Line(name, source, note))
    return Found(leaves, lines, skipped)


def _prefix(state: Mapping[str, np.ndarray], is_vit: bool) -> str:
    """Return the prefix of the only network of this family in a file."""
    if is_vit:
        kind, example, token = "vision transformer", "blocks.0.", vit_names.TOKEN
        found = [name.removesuffix(token) for name in state if name.endswith(token)]
    else:
        kind, example = "residual network", "layer1.0.conv1.weight"
        layers = filter(None, map(_LAYER.fullmatch, state))
        found = [layer["prefix"] for layer in layers if layer["block"]]
    prefixes = list(dict.fromkeys(found))
    if not prefixes:
        names = ", ".join(list(state)[:5]) or "no arrays at all"
        raise InputError(
            f"it holds no {kind}: expected names such as {example}, got {names}"
        )
    if len(prefixes) > 1:
        raise InputError(
            f"it holds {len(prefixes)} networks, under {', '.join(map(repr, prefixes))}"
            ": choose one with --part"
        )
    return prefixes[0]


def _float32(array: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    """Convert to float32; return the array and a note on its former dtype."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"{source} has dtype {array.dtype}, expected floats: restore a quantised "
            "network first"
        )
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if bad := int((~np.isfinite(converted)).sum()):
        raise InputError(
            f"{source} ({array.dtype}) has {bad} values that are not finite in "
            "float32: the network diverged, or overflows"
        )
    return converted, "" if array.dtype == np.float32 else f"was {array.dtype}"
