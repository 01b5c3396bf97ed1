"""Pre-trained backbones by name: where the weights are, and what images they expect.

Names, repositories and preprocessing are those of timm 1.0.31, licences those of the
original weights. No revision or hash has been checked on the hub yet, so none is given.
Pin your own: ``hf:REPOSITORY@REVISION``, ``init.sha256``.
"""

from __future__ import annotations

from typing import NamedTuple

FILE = "model.safetensors"

# Mean and standard deviation per channel, for pixels in 0 .. 1.
Colours = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: Colours = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP: Colours = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


class Recipe(NamedTuple):
    """How images were prepared for a family of weights, and whose these are."""

    colours: Colours
    size: int  # side of the images in pixels
    resize: int  # shorter side before the centre crop
    interpolation: str  # of that resize
    licence: str
    source: str


class Pretrained(NamedTuple):
    """Weights on the Hugging Face hub, or in a folder with timm's ``config.json``."""

    arch: str  # a key of models.ARCHS
    recipe: Recipe
    repository: str = ""  # OWNER/NAME on the hub
    revision: str = ""  # a commit; "": the newest
    sha256: str = ""  # of FILE in it; "": not checked


AUGREG = Recipe(HALF, 224, 248, "bicubic", "Apache-2.0", "arXiv 2106.10270")
OPENAI = Recipe(CLIP, 224, 224, "bicubic", "MIT", "github.com/openai/CLIP")
LAION = Recipe(CLIP, 224, 224, "bicubic", "MIT", "github.com/mlfoundations/open_clip")
# The sizes of DINOv2's own evaluation; timm's default is 518 pixels without a crop.
DINOV2 = Recipe(IMAGENET, 224, 256, "bicubic", "Apache-2.0", "arXiv 2304.07193")
VISION = Recipe(
    IMAGENET, 224, 256, "bilinear", "BSD-3-Clause", "github.com/pytorch/vision"
)
VISION_V2 = VISION._replace(resize=232)

# By name; the repository is timm/NAME. The part before the dot is the architecture,
# except for OpenAI's weights, which need their own approximation of GELU.
QUICK = "vit_base_patch16_clip_quickgelu_224"
RECIPES: dict[str, Recipe] = {
    "vit_small_patch16_224.augreg_in1k": AUGREG,
    "vit_small_patch16_224.augreg_in21k": AUGREG,
    "vit_small_patch16_224.augreg_in21k_ft_in1k": AUGREG,
    "vit_base_patch16_224.augreg_in1k": AUGREG,
    "vit_base_patch16_224.augreg_in21k": AUGREG,
    "vit_base_patch16_224.augreg_in21k_ft_in1k": AUGREG,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": AUGREG,
    "vit_large_patch16_224.augreg_in21k": AUGREG,
    "vit_large_patch16_224.augreg_in21k_ft_in1k": AUGREG,
    "vit_base_patch16_clip_224.openai": OPENAI,
    "vit_base_patch16_clip_224.laion2b": LAION,
    "vit_small_patch14_dinov2.lvd142m": DINOV2,
    "vit_base_patch14_dinov2.lvd142m": DINOV2,
    "resnet18.tv_in1k": VISION,
    "resnet34.tv_in1k": VISION,
    "resnet50.tv_in1k": VISION,
    "resnet50.tv2_in1k": VISION_V2,
    "resnet101.tv_in1k": VISION,
    "resnet101.tv2_in1k": VISION_V2,
    "resnext50_32x4d.tv_in1k": VISION,
    "resnext50_32x4d.tv2_in1k": VISION_V2,
}
TABLE: dict[str, Pretrained] = {
    name: Pretrained(
        QUICK if recipe == OPENAI else name.partition(".")[0], recipe, f"timm/{name}"
    )
    for name, recipe in RECIPES.items()
}
