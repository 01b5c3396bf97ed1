"""Backbones that PyTorch computes (the extra ``torch``)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lt_jax.errors import InputError, brief
from lt_jax.pretrained.table import Recipe

LIBRARIES = ("timm", "open_clip")


class Loaded(NamedTuple):
    """A backbone with its weights."""

    apply: Callable[[np.ndarray], np.ndarray]  # float32[B, H, W, 3] -> float32[B, D]
    recipe: Recipe
    notes: dict[str, Any]  # provenance


def load(model: str, dtype: str, size: int, recipe: Recipe | None = None) -> Loaded:
    """Load ``torch:timm/NAME``, ``torch:open_clip/NAME/WEIGHTS``, or any other module.

    ``torch:MODULE:CALLABLE`` calls a function or class of an importable module, also
    of a file in the current folder, which returns a ``torch.nn.Module``: float[B, 3, H,
    W] -> float[B, D]. The libraries find their weights: on the hub, or in its cache.

    Args:
      dtype: of the computation, float32 or bfloat16.
      size: side of the images in pixels; 0: that of the model.
      recipe: images for ``torch:MODULE:CALLABLE``.

    Raises:
      InputError: the library or module is missing, or has no such weights.
    """
    full = model.removeprefix("torch:")
    library, _, name = full.partition("/")
    if library not in LIBRARIES:
        library, _, name = full.partition(":")
    if not library or not name:
        raise InputError(
            "expected torch:timm/NAME, torch:open_clip/NAME/WEIGHTS or "
            f"torch:MODULE:CALLABLE, got {model!r}"
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]

        makers = {"timm": _timm, "open_clip": _open_clip}
        with contextlib.redirect_stdout(sys.stderr):  # stdout has results, as JSON too
            if library in makers:
                module, recipe = makers[library](name, size)
            else:
                module = _module(full)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{model} needs PyTorch and {library} ({error}): pip install "
            "'lt_jax[torch]', and run the command where the module can be imported"
        ) from error
    except Exception as error:  # whatever the library raises for a name or a download
        raise InputError(f"{library} cannot load {name!r}: {brief(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{model} must return a torch.nn.Module, got {module!r:.100}")
    if recipe is None:
        raise InputError(f"{model} takes photographs: --data must be a folder of them")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        )
    module = module.eval().to(device, number)

    def apply(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        try:
            with torch.inference_mode():
                found = module(pixels.to(device, number))
        except Exception as error:  # for example of images that are too small
            raise InputError(
                f"{model} fails on images of {images.shape[1]} pixels: {brief(error)}"
            ) from error
        if found.ndim != 2 or len(found) != len(images):
            raise InputError(
                f"{model} must return features [B, D], got {list(found.shape)} for "
                f"{len(images)} images"
            )
        return found.float().cpu().numpy()

    known = {"library": library, "name": name, "sha256": digest.hexdigest()}
    return Loaded(apply, recipe, {"weights": known, "torch": torch.__version__})


def _module(name: str) -> Any:
    """Call ``MODULE:CALLABLE``, also of a file in the current folder."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return pkgutil.resolve_name(name)()
    except AttributeError as error:
        raise InputError(f"torch:{name}: {error}") from error


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
