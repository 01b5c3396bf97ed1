"""The start of every config file; the keys and their meanings are in ``records.py``.

Files in configs/ call ``base_config`` or ``photo_config``, set what differs, and add
the methods with ``set_methods``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.errors import InputError
from lt_jax.experiment.config import as_dict
from lt_jax.experiment.records import Config


def base_config() -> Any:
    """Return a ConfigDict of the defaults for small images, without methods."""
    return ConfigDict(as_dict(Config()))


def photo_config() -> Any:
    """Return a ConfigDict for photographs: Decoupling's recipe for ImageNet-LT."""
    config = base_config()
    data = config.data
    data.split = "whole"
    data.pad = 0
    data.mean, data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data.size = 224  # side of the network's input, pixels
    data.resize = 256  # shorter side before the centre crop of an evaluation
    data.scale = (0.08, 1.0)  # share of the area that a random crop covers
    data.ratio = (3 / 4, 4 / 3)  # its width over its height
    data.broken = 0.001  # share of undecodable images that stops a run
    data.workers = os.cpu_count() or 1  # decoding threads; no result depends on them

    model = config.model
    model.name, model.stem, model.width = "resnet50", "imagenet", 64
    model.dtype = "bfloat16"

    config.method.features = "cached"
    config.method.feature_dtype = "bfloat16"
    config.method.memory = 16.0
    config.method.batch = 512

    config.optim.epochs = 90
    config.optim.batch = config.optim.lr_batch = 256
    config.optim.lr = 0.1
    config.optim.decay = 5e-4
    config.eval.batch = 512
    return config


def set_methods(config: Any, case: recipes.Case, names: str = "two") -> None:
    """Add the entries of all methods, and fit ``"two"`` (ce and los) or ``"all"``."""
    for name, entry in recipes.entries(case).items():
        config.method[name] = ConfigDict(entry)
    if names == "all":
        config.method.names = tuple(recipes.RECIPES)


def parse_argument(
    argument: str,
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Any]:
    """Parse ``key=value,...``, the argument of a config file.

    Args:
      argument: the text after the colon of ``--config FILE:ARGUMENT``.
      defaults: every key; a value has the type of its default.
      choices: the values allowed for a key, where not all are.

    Raises:
      InputError: an unknown key or value.
    """
    found, choices = dict(defaults), choices or {}
    for part in filter(None, argument.split(",")):
        key, _, value = part.partition("=")
        try:
            if not value or value not in choices.get(key, (value,)):
                raise ValueError
            found[key] = type(defaults[key])(value)
        except (KeyError, ValueError) as error:
            known = {**defaults, **{k: "|".join(v) for k, v in choices.items()}}
            raise InputError(
                f"config argument {part!r}: expected some of "
                + ", ".join(f"{k}={v}" for k, v in known.items())
            ) from error
    return found
