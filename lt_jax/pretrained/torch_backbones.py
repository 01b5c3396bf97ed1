"""Backbones of timm and open_clip, computed by PyTorch (the extra ``torch``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError
from lt_jax.pretrained.table import Recipe

LIBRARIES = ("timm", "open_clip")


class Loaded(NamedTuple):
    """A backbone with its weights."""

    apply: Callable[[np.ndarray], np.ndarray]  # float32[B, H, W, 3] -> float32[B, D]
    recipe: Recipe
    notes: dict[str, Any]  # provenance


def load(model: str, dtype: str, size: int) -> Loaded:
    """Load ``torch:timm/NAME`` or ``torch:open_clip/NAME/WEIGHTS``.

    The libraries find the weights: on the hub, or in its cache.

    Args:
      dtype: of the computation, float32 or bfloat16.
      size: side of the images in pixels; 0: that of the model.

    Raises:
      InputError: the library is missing, or has no such weights.
    """
    library, _, name = model.removeprefix("torch:").partition("/")
    if library not in LIBRARIES or not name:
        raise InputError(
            f"expected torch:timm/NAME or torch:open_clip/NAME/WEIGHTS, got {model!r}"
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]

        make = _timm if library == "timm" else _open_clip
        module, recipe = make(name, size)
    except ImportError as error:
        raise InputError(
            f"{model} needs PyTorch and {library} ({error}): pip install "
            "'lt_jax[torch]'"
        ) from error
    except Exception as error:  # whatever the library raises for a name or a download
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{library} cannot load {name!r}: {first:.300}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    module = module.eval().to(device, number)

    def apply(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            return module(pixels.to(device, number)).float().cpu().numpy()

    notes = {"weights": {"library": library, "name": name}, "torch": torch.__version__}
    return Loaded(apply, recipe, notes)


def _timm(name: str, size: int) -> tuple[Any, Recipe]:
    import timm  # pyright: ignore[reportMissingImports]

    sizes = {"img_size": size} if size and name.startswith("vit_") else {}
    module = timm.create_model(name, pretrained=True, num_classes=0, **sizes)
    looks = timm.data.resolve_model_data_config(module)
    side = size or looks["input_size"][1]
    colours = tuple(looks["mean"]), tuple(looks["std"])
    resize = int(side / looks["crop_pct"])
    licence = str(module.pretrained_cfg.get("license") or "unknown")
    return module, Recipe(
        colours, side, resize, looks["interpolation"], licence, f"timm {name}"
    )


def _open_clip(name: str, size: int) -> tuple[Any, Recipe]:
    import open_clip  # pyright: ignore[reportMissingImports]

    arch, _, weights = name.partition("/")
    module = open_clip.create_model(arch, pretrained=weights or None).visual
    side = module.image_size
    side = side if isinstance(side, int) else side[0]
    if size not in (0, side):
        raise ValueError(f"it takes images of {side} pixels, not {size}")
    colours = tuple(module.image_mean), tuple(module.image_std)
    return module, Recipe(
        colours, side, side, "bicubic", "unknown", f"open_clip {name}"
    )
