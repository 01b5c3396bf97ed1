"""Networks under PyTorch's names and under ours, as dicts of arrays.

Supports the names of torchvision's ResNets and ResNeXts, and of timm. The code of LOS,
weight balancing, Decoupling ("classifier-balancing"), MiSLAS and LDAM differs from them
in prefixes, and in the names of the head and the shortcuts. PyTorch stores a
convolution as [out, in, height, width] and a linear layer as [K, D]; we store them as
[height, width, in, out] and [D, K].
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax import trees
from lt_jax.errors import InputError, first_few
from lt_jax.pretrained.weight_files import Array

KERNEL, BIAS = "params/head/kernel", "params/head/bias"
TOKEN = "cls_token"  # every ViT has it, under this name
# Our names of layers and leaves -> PyTorch's; names that are not here are the same.
RESNET = {
    "head": "fc",
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "norm1": "bn1",
    "norm2": "bn2",
    "norm3": "bn3",
    "short_conv": "downsample.0",
    "short_norm": "downsample.1",
}
VIT = {  # timm's; DINOv2's own code uses them too
    "stem_conv": "patch_embed.proj",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

# Order of the axes of a convolution and a linear layer of PyTorch in our layout.
OUR_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}
FLOATS = ("float16", "bfloat16", "float32", "float64")
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


def stages(state: Iterable[str]) -> tuple[int, ...]:
    """Count the blocks of each stage that PyTorch names mention.

    >>> stages(["layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.bn1.bias"])
    (2, 1)
    """
    layers = filter(None, map(_LAYER.fullmatch, state))
    blocks = {m["block"] for m in layers if m["block"]}
    counts = collections.Counter(block.split(".")[0] for block in blocks)
    return tuple(counts[stage] for stage in sorted(counts))


def stem(state: Mapping[str, Array], part: str = "") -> tuple[int, ...] | None:
    """Return the shape of the first convolution in a state dict: [out, in, h, w]."""
    stems = ".conv1.weight", ".patch_embed.proj.weight"
    for name, leaf in state.items():
        is_stem = f".{name}".endswith(stems) and ".layer" not in f".{name}"
        if name.startswith(part) and is_stem and leaf.ndim == 4:
            return leaf.shape
    return None


def torch_name(name: str, layers: Mapping[str, str] = RESNET) -> str:
    """Translate one of our names.

    >>> torch_name("batch_stats/stage2_block1/short_norm/var")
    'layer2.0.downsample.1.running_var'
    >>> torch_name("params/backbone/block3/qkv/kernel", VIT)
    'blocks.2.attn.qkv.weight'
    """
    _, *modules, leaf = name.split("/")  # the first is params or batch_stats
    theirs = []
    for module in modules:
        if block := re.fullmatch(r"(?:stage(\d+)_)?block(\d+)", module):
            start = f"layer{block[1]}" if block[1] else "blocks"
            theirs.append(f"{start}.{int(block[2]) - 1}")
        elif module != "backbone":
            theirs.append(layers.get(module, module))
    return ".".join([*theirs, LEAVES.get(leaf, leaf)])


def torch_names(names: Iterable[str]) -> dict[str, str]:
    """Translate our names of a network: PyTorch's by ours."""
    names = list(names)
    layers = VIT if _is_vit(names) else RESNET
    return {name: torch_name(name, layers) for name in names}


def _is_vit(names: Iterable[str]) -> bool:
    return f"params/backbone/{TOKEN}" in names


def to_torch_layout(array: Any) -> np.ndarray:
    """Transpose an array from our layout to PyTorch's."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(np.ndim(array))
    return np.ascontiguousarray(np.transpose(array, axes) if axes else array)


def to_our_layout(array: np.ndarray) -> np.ndarray:
    """Transpose an array from PyTorch's layout to ours."""
    axes = OUR_AXES.get(array.ndim, range(array.ndim))
    return np.ascontiguousarray(array.transpose(axes))


def to_torch(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Translate the leaves of a network to PyTorch's names and layout.

    ``num_batches_tracked`` is left out, which ``load_state_dict`` accepts.
    """
    head = {n: leaf for n, leaf in leaves.items() if n.startswith("params/head/")}
    rest = {n: leaf for n, leaf in leaves.items() if n not in head}
    linear = _linear(head)
    if scale := rest.pop("batch_stats/scale", None):  # of features, see Identity
        linear[KERNEL] = linear[KERNEL] * scale
        linear[BIAS] = linear[BIAS] - rest.pop("batch_stats/centre") @ linear[KERNEL]
    translated = rest | linear
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


def match(
    state: Mapping[str, Array], expected: Mapping[str, Any], part: str = ""
) -> tuple[dict[str, str], str, list[str]]:
    """Find a network in a state dict by names and shapes, under any prefix.

    A file without a head gives only a backbone. Loads nothing.

    Args:
      state: arrays by PyTorch's names, as ``weight_files.read`` gives them.
      expected: arrays, or their shapes, by our names.
      part: prefix of the names to read, for a file with several networks.

    Returns:
      Names in the file by ours, "" for a bias of zeros; the name of the learned scales
      of the head, or ""; names in the file that are not weights.
    """
    state = {name: leaf for name, leaf in state.items() if name.startswith(part)}
    prefix = _prefix(state, _is_vit(expected))
    ours = {theirs: name for name, theirs in torch_names(expected).items()}
    sources: dict[str, str] = {}
    skipped, unexpected, scale = [], {}, ""
    for source, leaf in state.items():
        head = _HEAD.fullmatch(source)
        name = {"weight": KERNEL, "bias": BIAS}[head["leaf"]] if head else ""
        if not head and source.startswith(prefix):
            short = source.removeprefix(prefix).replace("shortcut", "downsample")
            name = ours.get(short, "")
        if name in expected and name not in sources:
            sources[name] = source
        elif _SCALE.fullmatch(source):
            scale = source
        elif _NOT_WEIGHTS.fullmatch(source) or leaf.size == 1:
            skipped.append(source)
        else:
            unexpected[source] = leaf
    found: dict[str, Any] = {}
    for name, source in sources.items():
        shape = state[source].shape
        shape = [shape[axis] for axis in OUR_AXES.get(len(shape), range(len(shape)))]
        found[name] = jax.ShapeDtypeStruct(shape, np.float32)
    if KERNEL in found and BIAS not in found:
        found[BIAS], sources[BIAS] = expected[BIAS], ""
    absent = () if KERNEL in found else (KERNEL, BIAS)
    wanted = {n: leaf for n, leaf in expected.items() if n not in absent}
    if errors := trees.differences(found | unexpected, wanted):
        raise InputError(first_few(errors, 5, "; "))
    if scale and state[scale].size not in (1, expected[BIAS].size):
        raise InputError(f"{scale} must have one value per class")
    return {name: sources[name] for name in wanted}, scale, skipped


def from_torch(
    state: Mapping[str, Array], expected: Mapping[str, Any], part: str = ""
) -> Found:
    """Load the arrays that ``match`` finds, as finite float32."""
    sources, scale, skipped = match(state, expected, part)
    scales = _float32(state[scale], scale)[0].ravel() if scale else 1
    leaves, lines = {}, []
    for name, source in sources.items():
        if source:
            leaves[name], note = _float32(state[source], source)
        else:
            leaves[name] = np.zeros(expected[name].shape, np.float32)
            note = "zeros: the file has none"
        if scale and name in (KERNEL, BIAS):
            leaves[name], note = leaves[name] * scales, "times learned_norm"
        lines.append(Line(name, source, note))
    return Found(leaves, lines, skipped)


def _prefix(state: Iterable[str], is_vit: bool) -> str:
    """Return the prefix of the only network of this family in a file."""
    if is_vit:
        kind, example, token = "vision transformer", "blocks.0.", TOKEN
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
            f"it holds {len(prefixes)} networks, under "
            f"{first_few(list(map(repr, prefixes)))}: choose one with --part"
        )
    return prefixes[0]


def _float32(stored: Array, source: str) -> tuple[np.ndarray, str]:
    """Load as float32 in our layout, with a note on its former type."""
    if (kind := str(stored.dtype)) not in FLOATS:
        raise InputError(
            f"{source} has dtype {kind}, expected one of {', '.join(FLOATS)}: restore "
            "a quantised or sparse network first"
        )
    with np.errstate(over="ignore"):
        array = np.asarray(stored).astype(np.float32)
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(
            f"{source} ({kind}) has {bad} values that are not finite in float32: the "
            "network diverged, or overflows"
        )
    return to_our_layout(array), "" if kind == "float32" else f"was {kind}"
