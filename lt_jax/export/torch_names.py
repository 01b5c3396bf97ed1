"""The same network under PyTorch's names and under ours; arrays in, arrays out.

Understood are the names of torchvision's ResNets and ResNeXts, which timm and the code
of LOS, weight balancing, Decoupling ("classifier-balancing") and MiSLAS share but for
module prefixes and the name of the head, and those of the CIFAR ResNets of LDAM.
PyTorch keeps a convolution as [out, in, height, width] and a linear layer as [K, D], we
as [height, width, in, out] and [D, K].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lt_jax import trees
from lt_jax.errors import InputError

# Leaves of a layer, ours and PyTorch's, with the collection that holds ours.
NORM = {
    "scale": ("params/backbone", "weight"),
    "bias": ("params/backbone", "bias"),
    "mean": ("batch_stats", "running_mean"),
    "var": ("batch_stats", "running_var"),
}

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
# What checkpoints hold beside the network, and nothing computes with.
_ASIDE = re.compile(r"(?:.*\.)?num_batches_tracked|(?:optim|sched|centroid|scaler).*")


class Line(NamedTuple):
    """A leaf of ours, where it came from, and what was done to it."""

    name: str
    source: str
    note: str


class Found(NamedTuple):
    """The network of a file."""

    leaves: dict[str, np.ndarray]  # float32, by our names
    lines: list[Line]
    aside: list[str]  # names in the file that were left out


def is_head(name: str) -> bool:
    """Whether a name of PyTorch's is that of a classifier's leaf."""
    return _HEAD.fullmatch(name) is not None


def torch_name(name: str) -> str:
    """What torchvision calls one of our leaves.

    >>> torch_name("params/backbone/stage2_block1/conv1/kernel")
    'layer2.0.conv1.weight'
    >>> torch_name("batch_stats/stage2_block1/short_norm/var")
    'layer2.0.downsample.1.running_var'
    """
    *parts, leaf = name.split("/")
    if parts[:2] == ["params", "head"]:
        return {"kernel": "fc.weight", "bias": "fc.bias"}[leaf]
    layer = parts[-1].removeprefix("stem_") + ("1" if "stem_" in parts[-1] else "")
    layer = {"short_conv": "downsample.0", "short_norm": "downsample.1"}.get(
        layer, layer.replace("norm", "bn")
    )
    if stage := re.fullmatch(r"stage(\d+)_block(\d+)", parts[-2]):
        layer = f"layer{stage[1]}.{int(stage[2]) - 1}.{layer}"
    return f"{layer}.{'weight' if leaf == 'kernel' else NORM[leaf][1]}"


def to_theirs(array: Any) -> np.ndarray:
    """A leaf of ours in PyTorch's layout."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(np.ndim(array))
    return np.ascontiguousarray(np.transpose(array, axes) if axes else array)


def to_ours(array: np.ndarray) -> np.ndarray:
    """A leaf of PyTorch's in our layout."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(np.transpose(array, axes) if axes else array)


def to_torch(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Leaves of a network with a linear head as torchvision names and lays them out.

    ``num_batches_tracked`` is not among them; ``load_state_dict`` does without.

    Raises:
      InputError: the head is no linear layer, nor a linear layer times a scale.
    """
    head = {n: leaf for n, leaf in leaves.items() if n.startswith("params/head/")}
    rest = {n: leaf for n, leaf in leaves.items() if n not in head}
    return {
        torch_name(n): to_theirs(leaf) for n, leaf in {**rest, **_linear(head)}.items()
    }


def _linear(head: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The linear layer that computes what a head does."""
    own = {name.removeprefix("params/head/"): np.asarray(v) for name, v in head.items()}
    kernel, bias = own.pop("kernel"), own.pop("bias", None)
    if bias is not None and set(own) == {"scale"}:
        kernel, bias = kernel * own["scale"], bias * own["scale"]
    elif bias is not None and set(own) == {"omega", "beta"}:
        norms = np.linalg.norm(kernel, axis=0)
        bias = own["omega"] * bias + own["beta"] * norms
        kernel = kernel * own["omega"]
    elif bias is None or own:
        raise InputError(
            "this head is no linear layer (it has "
            f"{', '.join(n.removeprefix('params/head/') for n in head)}), so PyTorch's "
            "names do not fit it; write a .stablehlo, which holds the computation"
        )
    return {"params/head/kernel": kernel, "params/head/bias": bias}


def from_torch(
    state: Mapping[str, np.ndarray], expected: Mapping[str, Any], part: str = ""
) -> Found:
    """The leaves of a network out of a state dict, whatever stands before their names.

    Weights of half precision are widened, of double precision narrowed, and told. A
    head without a bias gets zeros; a file without any head gives a backbone alone.

    Args:
      state: arrays by PyTorch's names, nested ones joined by dots.
      expected: arrays, or their shapes, of the network by our names.
      part: only names that begin so are read, where a file holds several networks.

    Raises:
      InputError: no such network, or several; leaves that are missing, unexpected or of
        another shape, which are listed; numbers that are no floats or not finite.
    """
    state = {name: leaf for name, leaf in state.items() if name.startswith(part)}
    prefix = _prefix_of(state)
    names = {torch_name(name): name for name in expected}
    found: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    notes: dict[str, str] = {}
    aside, extra, scale = [], [], None
    for source, leaf in state.items():
        ours = _ours(source, prefix, names)
        if ours is not None and ours not in found:
            found[ours], sources[ours] = leaf, source
        elif _SCALE.fullmatch(source):
            scale = np.asarray(leaf, np.float32).ravel()
        elif _ASIDE.fullmatch(source) or np.size(leaf) == 1:
            aside.append(source)
        else:
            extra.append(source)
    kernel, bias = "params/head/kernel", "params/head/bias"
    if kernel in found and bias not in found:
        zeros = np.zeros(len(found[kernel]), np.float32)
        found[bias], sources[bias], notes[bias] = zeros, "", "zeros: the file has none"
    wanted = dict(expected)
    if kernel not in found:
        wanted = {n: v for n, v in wanted.items() if n not in (kernel, bias)}
    turned = {name: to_ours(leaf) for name, leaf in found.items()}
    lines = trees.differences(turned, wanted)
    lines += [f"+ {name} {state[name].shape}: not in this model" for name in extra]
    if lines:
        more = [f"and {len(lines) - 12} more"] if len(lines) > 12 else []
        raise InputError("\n  ".join(["", *lines[:12], *more]))
    leaves = {}
    for name in wanted:
        leaves[name], note = _float32(turned[name], sources[name])
        notes[name] = notes.get(name, note)
    if scale is not None and kernel in leaves:
        leaves[kernel] = leaves[kernel] * scale
        leaves[bias] = leaves[bias] * scale
        notes[kernel] = notes[bias] = "times learned_norm"
    made = [Line(name, sources[name], notes[name]) for name in wanted]
    return Found(leaves, made, aside)


def _prefix_of(state: Mapping[str, np.ndarray]) -> str:
    """What stands before the names of the one residual network in there."""
    prefixes = []
    for name in state:
        layer = _LAYER.fullmatch(name)
        if layer and layer["block"] and layer["prefix"] not in prefixes:
            prefixes.append(layer["prefix"])
    if not prefixes:
        there = ", ".join(list(state)[:5]) or "no arrays at all"
        raise InputError(
            "there is no residual network in it: expected leaves such as "
            f"layer1.0.conv1.weight, found {there}"
        )
    if len(prefixes) > 1:
        raise InputError(
            f"it holds {len(prefixes)} networks, under {', '.join(map(repr, prefixes))}"
            ": name one with --part"
        )
    return prefixes[0]


def _ours(source: str, prefix: str, names: Mapping[str, str]) -> str | None:
    """Our name of a leaf of the file; None if it is no leaf of this network."""
    layer, head = _LAYER.fullmatch(source), _HEAD.fullmatch(source)
    if layer and layer["prefix"] == prefix:
        plain = source.removeprefix(prefix).replace("shortcut", "downsample")
        return names.get(plain)
    if head:
        return names.get(f"fc.{head['leaf']}")
    return None


def _float32(array: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"{source} holds {array.dtype}, which are no weights: expected floats; a "
            "quantised network has to be restored first"
        )
    with np.errstate(over="ignore"):
        wide = array.astype(np.float32)
    if not np.isfinite(wide).all():
        raise InputError(
            f"{source} ({array.dtype}) holds {(~np.isfinite(wide)).sum()} numbers that "
            "are not finite in float32; a network that diverged or overflowed is no use"
        )
    return wide, "" if array.dtype == np.float32 else f"was {array.dtype}"
