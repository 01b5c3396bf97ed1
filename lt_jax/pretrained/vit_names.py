"""timm's names of a vision transformer's arrays; DINOv2's own code uses them too."""

from __future__ import annotations

TOKEN = "cls_token"  # every ViT has it, under this name

# Our layers -> timm's.
LAYERS = {
    "stem_conv": "patch_embed.proj",
    "norm_pre": "norm_pre",
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "ls1": "ls1",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "ls2": "ls2",
    "norm": "norm",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gamma": "gamma"}


def torch_name(parts: list[str]) -> str:
    """Translate one of our names, without ``params/backbone/``.

    >>> torch_name(["block3", "qkv", "kernel"])
    'blocks.2.attn.qkv.weight'
    """
    *modules, leaf = parts
    if not modules:
        return leaf  # TOKEN and pos_embed
    *block, layer = modules
    number = "".join(f"blocks.{int(b.removeprefix('block')) - 1}." for b in block)
    return f"{number}{LAYERS[layer]}.{LEAVES[leaf]}"
