"""Vision transformers of Hugging Face's transformers, renamed to timm's names.

ViT, DINOv2 and CLIP, alone, below another model, or with a classifier. transformers
keeps the projections to query, key and value apart, timm joins them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from lt_jax.pretrained.weight_files import Array, Stored

_TOKEN = re.compile(r"(?P<prefix>(?:\w+\.)*)embeddings\.(?:cls_token|class_embedding)")
_BLOCK = re.compile(r"encoder\.layers?\.(?P<number>\d+)\.(?P<rest>.+)")
_PART = re.compile(
    r"(?:attention\.attention\.(?:query|key|value)|self_attn\.[qkv]_proj)\.(?P<leaf>\w+)"
)
# Begin of a name inside a block, then outside -> timm's. The second of each is CLIP's.
_IN_BLOCK = {
    "layernorm_before.": "norm1.",
    "layer_norm1.": "norm1.",
    "layernorm_after.": "norm2.",
    "layer_norm2.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "self_attn.out_proj.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "embeddings.mask_token": "mask_token",
    "pre_layrnorm.": "norm_pre.",
    "layernorm.": "norm.",
    "post_layernorm.": "norm.",
}
_UNUSED = "pooler.", "embeddings.position_ids"  # of classification, and a counter


def to_timm(state: Mapping[str, Array]) -> dict[str, Array]:
    """Rename the arrays of a file; those of other libraries are returned as they are.

    Leaves out what is not below the prefix of the vision transformer, such as the text
    model of CLIP and a classifier.
    """
    tokens = [token for token in map(_TOKEN.fullmatch, state) if token]
    if len(tokens) != 1:
        return dict(state)
    prefix = tokens[0]["prefix"]
    renamed: dict[str, Array] = {}
    joined: dict[str, list[Array]] = {}
    for name in sorted(state):  # key, query, value; k, q, v
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or short.startswith(_UNUSED):
            continue
        block = _BLOCK.fullmatch(short)
        if block is None:
            renamed[_rename(short, _OUTSIDE)] = state[name]
            continue
        start = f"blocks.{block['number']}."
        if part := _PART.fullmatch(block["rest"]):
            joined.setdefault(f"{start}attn.qkv.{part['leaf']}", []).append(state[name])
        else:
            renamed[start + _rename(block["rest"], _IN_BLOCK)] = state[name]
    for name, parts in joined.items():
        if len(parts) == 3:
            key, query, value = parts
            renamed[name] = _join(query, key, value)
    for name, rank in (("cls_token", 3), ("pos_embed", 3)):
        if name in renamed:
            renamed[name] = _with_rank(renamed[name], rank)
    return renamed


def _rename(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _join(*parts: Array) -> Stored:
    """Stack arrays along their first axis when they are loaded."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Stored(
        shape, str(parts[0].dtype), lambda: np.concatenate([*map(np.asarray, parts)])
    )


def _with_rank(leaf: Array, rank: int) -> Stored:
    """Add leading axes of length 1."""
    shape = (1,) * (rank - leaf.ndim) + tuple(leaf.shape)
    return Stored(shape, str(leaf.dtype), lambda: np.asarray(leaf).reshape(shape))
