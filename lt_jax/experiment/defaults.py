"""The base config: every key with its default, one comment each.

Files in configs/ start from ``base_config`` or ``photo_config``, set what differs, and
add the methods with ``set_methods``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lt_jax import recipes
from lt_jax.errors import InputError


def base_config() -> Any:
    """Return a ConfigDict of the defaults for small images, without methods."""
    config = ConfigDict()
    config.seed = 0  # first seed of everything random; further ones count up

    config.data = data = ConfigDict()
    data.name = "cifar100"  # a key of catalogue.SOURCES or catalogue.PHOTOS
    data.dir = ""  # folder of the data; "": where the source looks, as TFDS_DATA_DIR
    data.imbalance = 1.0  # largest class over smallest class; not read for "whole"
    data.split = "first"  # images kept per class: "first", "cao", or "whole" for all
    data.valid = 0.1  # share of each training class held out for validation; 0: none
    data.valid_seed = 0  # which images are held out
    data.many = 100  # a class with more training images is many-shot
    data.few = 20  # a class with fewer training images is few-shot
    data.pad = 4  # pixels of black padding for random crops
    data.flip = True  # mirror images at random
    # Strength of random brightness, contrast, saturation and hue; zeros: none.
    data.jitter = (0.0, 0.0, 0.0, 0.0)
    data.randaugment = (0, 9.0)  # operations per image; magnitude, up to 30
    data.mean = (0.4914, 0.4822, 0.4465)  # per channel, pixels in 0..1; (): unscaled
    data.std = (0.2023, 0.1994, 0.2010)  # standard deviation, likewise

    config.model = model = ConfigDict()
    model.name = "resnet32"  # a key of models.ARCHS; "none": the examples are features
    # Of a ResNet; "cifar": 3x3, no pooling; "imagenet": 7x7, pooling.
    model.stem = "cifar"
    model.width = 16  # channels of the first stage of a ResNet
    model.pool = "token"  # features of a ViT: class "token", or "mean" of the patches
    model.init = "torch"  # initial values as in "torch" or "flax"
    model.zero_init = False  # residual branches start at zero
    model.dtype = "float32"  # of the computation; parameters are float32

    config.init = init = ConfigDict()
    # Initial weights of stage 1; "": random. A workdir of a finished stage 1 (its first
    # seed), which stage 2 uses too if this workdir has no stage 1. Or a backbone of the
    # architecture model.name under PyTorch's names: a file, a folder with
    # model.safetensors and timm's config.json, or hf:OWNER/NAME[@REVISION].
    init.path = ""
    init.sha256 = ""  # expected SHA-256 of the file of such a backbone; "": any
    init.skip = ""  # regex of parameters not loaded from it, such as "head/.*"

    _add_stages(config)

    config.eval = evaluation = ConfigDict()
    evaluation.batch = 500  # images per evaluation step
    evaluation.every = 5  # epochs between evaluations on validation
    evaluation.select = "last"  # checkpoint: "last", or best on "validation" or "test"
    evaluation.flip = False  # average logits over the mirror image
    # Accuracy of a group: mean over its "classes", or over its "examples".
    evaluation.group_average = "classes"
    # Validation metric that a sweep chooses by: "balanced", "all", "many", "medium",
    # "few", "worst", "top5" (highest mean over seeds) or "nll", "ece" (lowest).
    evaluation.choose = "balanced"
    # Split that every head of a sweep is measured on for figures: "valid" or "test".
    evaluation.curves = "valid"

    config.save = ConfigDict()
    config.save.every = 5  # epochs between checkpoints

    config.log = ConfigDict()
    config.log.seconds = 30.0  # between progress lines when there is no terminal
    config.log.profile = ""  # folder for a profiler trace of five steps per fit
    return config


def _add_stages(config: Any) -> None:
    """Add the groups ``method`` (stage 2) and ``optim`` (stage 1)."""
    config.method = method = ConfigDict()  # stage 2
    method.names = ("ce", "los")  # entries to fit; on the command line: ce,los
    method.repeats = 3  # seeds per method and stage 1
    # "online": the backbone sees augmented images in every epoch, as in the paper;
    # "cached": it sees each image once, un-augmented, and all heads are fitted at once.
    method.features = "online"
    method.views = 1  # cached views per image; 1: un-augmented; V: epoch e uses e mod V
    method.feature_dtype = "float32"  # of cached features; "bfloat16" halves them
    method.memory = 1.0  # GiB per device for features and heads together
    method.batch = 64  # images per step, all devices together
    method.lr_batch = 64  # batch that lr belongs to; lr scales with the batch
    method.accumulate = 1  # micro-batches per step, to save memory
    method.batch_norm = "frozen"  # or "drift": the authors' moving statistics
    method.momentum = 0.9  # of SGD, as in PyTorch
    method.decay_on = ".*"  # regex of parameters that decay
    method.schedule = "epoch"  # the cosine moves per "epoch" or per "step"
    method.warmup = 0.0  # epochs of linear warm-up

    config.optim = optim = ConfigDict()  # stage 1
    optim.repeats = 1  # representations, one per seed
    optim.epochs = 200  # passes over the training images
    optim.batch = 64  # images per step, all devices together
    optim.lr_batch = 64  # batch that lr belongs to
    optim.accumulate = 1  # micro-batches per step; batch norm sees one at a time
    optim.lr = 0.01  # highest learning rate
    optim.momentum = 0.9  # of SGD
    optim.decay = 5e-3  # weight decay, coupled
    optim.decay_on = ".*"  # batch norm and biases too, as in PyTorch
    optim.schedule = "epoch"  # the cosine moves per "epoch" or per "step"
    optim.warmup = 0.0  # epochs; 5 for batches of thousands
    optim.mixup = 0.0  # alpha of mixing pairs of images and targets; 0: none
    optim.sampler = "instance"  # "instance", "class" or "sqrt"
    optim.drop_last = False  # drop an epoch's last batch if it is incomplete
    optim.resident = 1.0  # GiB of training images per device; larger sets are streamed
    optim.trains = ".*"  # regex of parameters that are trained
    optim.batch_norm = "train"  # "train", "drift" or "frozen"


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
