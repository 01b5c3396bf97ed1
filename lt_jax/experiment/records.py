"""The keys of a config, each with its type, rule, default and meaning.

The second part of ``Annotated`` is the rule: an interval of numbers, the choices for a
string, or ``re.compile``; for a tuple it applies to every value. Files in configs/
start from the defaults, see ``defaults.py``.
"""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from lt_jax import (
    heads,
    initializers,
    losses,
    methods,
    metrics,
    models,
    recipes,
    samplers,
)
from lt_jax.data import catalogue, longtail
from lt_jax.errors import InputError
from lt_jax.retraining.features import DTYPES
from lt_jax.training import steps
from lt_jax.training.sinks import MODULES as SINKS

# A program may add to both.
DATASETS = ChainMap[str, Any](catalogue.PHOTOS, catalogue.SOURCES)
NETWORKS = ChainMap[str, Any]({"none": None}, models.ARCHS)

Count = Annotated[int, "[1, 1e9]"]
Size = Annotated[int, "[1, 10000]"]
Seed = Annotated[int, "[0, 4294967295]"]  # what JAX takes
Threshold = Annotated[int, "[0, 1e9] or -1"]  # -1: from the class counts
Share = Annotated[float, "[0, 1)"]
Limit = Annotated[float, "[0, 1e9]"]
Pair = tuple[float, float]
Strengths = tuple[float, float, float, float]
Regex = Annotated[str, re.compile]


@dataclass(frozen=True)
class DataConfig:
    name: Annotated[str, DATASETS] = "cifar100"  # a key of `lt-jax list data`
    dir: str = ""  # folder of the data; "": where the source looks, as TFDS_DATA_DIR
    # Largest class over smallest class; not read for "whole".
    imbalance: Annotated[float, "[1, 1e9]"] = 1.0
    # Images kept per class: "first", "cao", or "whole" for all.
    split: Annotated[str, (*longtail.SPLITS, longtail.WHOLE)] = "first"
    valid: Share = 0.1  # share of each training class held out for validation; 0: none
    valid_seed: Seed = 0  # which images are held out
    # A class with more training images is many-shot; -1: from the class counts.
    many: Threshold = 100
    few: Threshold = 20  # a class with fewer training images is few-shot; -1: likewise
    # Pixels of black padding for random crops.
    pad: Annotated[int, "[0, 10000]"] = 4
    flip: bool = True  # mirror images at random
    # Strength of random brightness, contrast, saturation and hue; zeros: none.
    jitter: Annotated[Strengths, "[0, 10]"] = (0.0, 0.0, 0.0, 0.0)
    # Operations per image; magnitude, up to 30.
    randaugment: Annotated[Pair, "[0, 30]"] = (0, 9.0)
    # Per channel, pixels in 0..1; (): unscaled.
    mean: Annotated[tuple[float, ...], "[-1e6, 1e6]"] = (0.4914, 0.4822, 0.4465)
    # Standard deviation, likewise.
    std: Annotated[tuple[float, ...], "[1e-6, 1e6]"] = (0.2023, 0.1994, 0.2010)
    norm: Limit = 0.0  # centre features, scale them to this mean norm; 0: as they are

    # Photographs only, see photo_config.
    size: Size | None = None  # side of the network's input, pixels
    resize: Size | None = None  # shorter side before the centre crop of an evaluation
    # Share of the area that a random crop covers.
    scale: Annotated[Pair, "(0, 1]"] | None = None
    ratio: Annotated[Pair, "(0, 1e6]"] | None = None  # its width over its height
    broken: Share | None = None  # share of undecodable images that stops a run
    # Decoding threads; no result depends on them.
    workers: Annotated[int, "[1, 1000]"] | None = None

    # The source "folder" only.
    table: str | None = None  # CSV or Parquet of path,label; "": folders
    test: Share | None = None  # share that becomes the test set if there is no test/


@dataclass(frozen=True)
class ModelConfig:
    # A key of models.ARCHS; "none": the examples are features.
    name: Annotated[str, NETWORKS] = "resnet32"
    # Of a ResNet; "cifar": 3x3, no pooling; "imagenet": 7x7, pooling.
    stem: Annotated[str, models.STEMS] = "cifar"
    # Channels of the first stage of a ResNet.
    width: Annotated[int, "[1, 1e6]"] = 16
    # Features of a ViT: class "token", or "mean" of the patches.
    pool: Annotated[str, models.POOLS] = "token"
    # Initial values as in "torch" or "flax".
    init: Annotated[str, initializers.NAMES] = "torch"
    zero_init: bool = False  # residual branches start at zero
    # Of the computation; parameters are float32.
    dtype: Annotated[str, ("float32", "bfloat16")] = "float32"


@dataclass(frozen=True)
class InitConfig:
    # Initial weights of stage 1; "": random. A workdir of a finished stage 1 (its first
    # seed), which stage 2 uses too if this workdir has no stage 1. Or a backbone of the
    # architecture model.name under PyTorch's names: a file, a folder with
    # model.safetensors and timm's config.json, or hf:OWNER/NAME[@REVISION].
    path: str = ""
    sha256: str = ""  # expected SHA-256 of the file of such a backbone; "": any
    skip: Regex = ""  # regex of parameters not loaded from it, such as "head/.*"


@dataclass(frozen=True)
class FitConfig:
    """The keys that both stages have."""

    batch: Count = 64  # images per step, all devices together
    lr_batch: Count = 64  # batch that lr belongs to; lr scales with the batch
    # Micro-batches per step, to save memory; batch norm sees one at a time.
    accumulate: Count = 1
    momentum: Share = 0.9  # of SGD, as in PyTorch
    # Regex of parameters that decay; batch norm and biases too, as in PyTorch.
    decay_on: Regex = ".*"
    schedule: Annotated[str, ("step", "epoch")] = "epoch"  # when the cosine moves
    # Epochs of linear warm-up; 5 for batches of thousands.
    warmup: Annotated[float, "[0, 1e6]"] = 0.0
    # Epochs at which lr is multiplied by fall; (): it follows half a cosine.
    milestones: Annotated[tuple[float, ...], "(0, 1e6]"] = ()
    fall: Annotated[float, "(0, 1]"] = 0.1  # at a milestone


@dataclass(frozen=True)
class RetrainConfig(FitConfig):
    """Stage 2."""

    # Entries to fit; on the command line: ce,los.
    names: tuple[str, ...] = ("ce", "los")
    repeats: Size = 3  # seeds per method and stage 1
    # "online": the backbone sees augmented images in every epoch, as in the paper;
    # "cached": it sees each image once, un-augmented, and all heads are fitted at once.
    features: Annotated[str, ("online", "cached")] = "online"
    # Cached views per image; 1: un-augmented; V: epoch e uses e mod V.
    views: Size = 1
    # Of cached features; "bfloat16" halves them.
    feature_dtype: Annotated[str, DTYPES] = "float32"
    # sweep on features: fit the recommended head again, on training and validation
    # examples together, for `predict`.
    refit: bool = False
    # GiB per device for features and heads together.
    memory: Annotated[float, "(0, 1e9]"] = 1.0
    # "frozen", or "drift": the authors' moving statistics.
    batch_norm: Annotated[str, steps.BATCH_NORM] = "frozen"
    # By method, as in a config file, keys sorted.
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimConfig(FitConfig):
    """Stage 1."""

    repeats: Size = 1  # representations, one per seed
    epochs: Annotated[int, "[1, 1e6]"] = 200  # passes over the training images
    lr: Annotated[float, "(0, 1e38]"] = 0.01  # highest learning rate
    decay: Annotated[float, "[0, 1e6]"] = 5e-3  # weight decay, coupled
    # Alpha of mixing pairs of images and targets; 0: none.
    mixup: Annotated[float, "[0, 100]"] = 0.0
    # "instance", "class" or "sqrt".
    sampler: Annotated[str, samplers.POWERS] = "instance"
    drop_last: bool = False  # drop an epoch's last batch if it is incomplete
    resident: Limit = 1.0  # GiB of training images per device; larger sets are streamed
    trains: Regex = ".*"  # regex of parameters that are trained
    # "train", "drift" or "frozen".
    batch_norm: Annotated[str, steps.BATCH_NORM] = "train"


@dataclass(frozen=True)
class EvalConfig:
    batch: Count = 500  # images per evaluation step
    every: Count = 5  # epochs between evaluations on validation
    # Checkpoint: "last", or best on "validation" or "test".
    select: Annotated[str, ("last", "validation", "test")] = "last"
    flip: bool = False  # average logits over the mirror image
    # Accuracy of a group: mean over its "classes", or over its "examples".
    group_average: Annotated[str, metrics.GROUP_AVERAGES] = "classes"
    # Validation metric that a sweep chooses by: "balanced", "all", "many", "medium",
    # "few", "worst", "top5" (highest mean over seeds), "nll", "ece" or "balanced_nll"
    # (lowest), the mean over classes of nll after a temperature.
    choose: Annotated[str, metrics.CHOOSE] = "balanced"
    # A setting replaces the method's own values only if it is better by this many
    # standard errors of the validation accuracy; 0: the best one always does.
    margin: Annotated[float, "[0, 1e6]"] = 1.0
    # Features only: a sweep chooses by this many stratified folds of all training
    # examples, and every head is fitted on all of them too; 0: by held-out examples.
    folds: Annotated[int, "[2, 1000] or 0"] = 0
    # Split that every head of a sweep is measured on for figures: "valid" or "test".
    curves: Annotated[str, ("valid", "test")] = "valid"


@dataclass(frozen=True)
class SaveConfig:
    every: Count = 5  # epochs between checkpoints


@dataclass(frozen=True)
class LogConfig:
    seconds: Limit = 30.0  # between progress lines when there is no terminal
    profile: str = ""  # folder for a profiler trace of five steps per fit
    # Where records go too: some of "tensorboard", "wandb", "mlflow", each an extra.
    sinks: Annotated[tuple[str, ...], SINKS] = ()


@dataclass(frozen=True)
class Config:
    """Every value of a run.

    Raises:
      InputError: values do not fit together.
    """

    seed: Seed = 0  # first seed of everything random; further ones count up
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    method: RetrainConfig = RetrainConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    save: SaveConfig = SaveConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        for problem, holds in ACROSS.items():
            if not holds(self):
                raise InputError(problem.format(c=self))


# Rules of hyperparameters of methods, whose functions check further.
ENTRIES: dict[str, Any] = {
    **dict.fromkeys(
        "epochs decay scale alpha square max_margin penalty".split(), "[0, 1e6]"
    ),
    "lr": "[0, 1e38]",
    "delta": "[0, 1) or -1",  # -1: from the number of classes
    "beta": "[0, 1)",
    **dict.fromkeys(("defer", "head", "tail", "quantile"), "[0, 1]"),
    "gamma": "[0, 100]",
    **dict.fromkeys(("power", "tau"), "[-100, 100]"),
    "start": methods.STARTS,
    "sampler": samplers.POWERS,
    "every": methods.PROJECT_EVERY,
    "kind": heads.NEAREST,
    "mean": losses.MEANS,
    "form": heads.ALIGNED,
}

# Rules about several keys, by their message.
ACROSS: dict[str, Callable[[Config], bool]] = {
    "data.few must be at most data.many, got {c.data.few} and {c.data.many}": (
        lambda c: c.data.few <= c.data.many or c.data.many == recipes.FROM_DATA
    ),
    "the last seed, seed + optim.repeats + method.repeats, must be below 2 ** 32, got "
    "seed={c.seed}": lambda c: c.seed + c.optim.repeats + c.method.repeats < 2**32,
    "optim.repeats * method.repeats must be at most 10,000 fits of a method, got "
    "{c.optim.repeats} * {c.method.repeats}": (
        lambda c: c.optim.repeats * c.method.repeats <= 10_000
    ),
    "method.names must hold at least one method and none twice, got {c.method.names}": (
        lambda c: 0 < len(set(c.method.names)) == len(c.method.names)
    ),
    "data.jitter: the hue must be at most 0.5, got {c.data.jitter}": (
        lambda c: c.data.jitter[3] <= 0.5
    ),
    "data.randaugment must be an integer number of operations and a magnitude, got "
    "{c.data.randaugment}": lambda c: isinstance(c.data.randaugment[0], int),
    "data.size must be at most data.resize, got {c.data.size} and {c.data.resize}": (
        lambda c: (c.data.size or 0) <= (c.data.resize or math.inf)
    ),
    "data.scale and data.ratio must hold the smaller value first, got {c.data.scale} "
    "and {c.data.ratio}": lambda c: all(
        pair is None or pair[0] <= pair[1] for pair in (c.data.scale, c.data.ratio)
    ),
    "method.accumulate must be at most method.batch, {c.method.batch}, got "
    "{c.method.accumulate}": lambda c: c.method.accumulate <= c.method.batch,
    "optim.accumulate must be at most optim.batch, {c.optim.batch}, got "
    "{c.optim.accumulate}": lambda c: c.optim.accumulate <= c.optim.batch,
    "data.norm, method.refit and eval.folds are for features, model.name='none' "
    "without data.mean: expected 0, False and 0, got {c.data.norm}, {c.method.refit} "
    "and {c.eval.folds}": lambda c: (
        not (c.data.norm or c.method.refit or c.eval.folds)
        or (c.model.name == "none" and not c.data.mean)
    ),
    "eval.folds trains a stage 1 without each fold: expected init.path='', "
    "optim.mixup=0, optim.drop_last=False and optim.trains='.*', got {c.init.path!r}, "
    "{c.optim.mixup}, {c.optim.drop_last} and {c.optim.trains!r}": lambda c: (
        not c.eval.folds
        or (c.init.path, c.optim.mixup, c.optim.drop_last, c.optim.trains)
        == ("", 0, False, ".*")
    ),
    "eval.folds needs cached features and fits every head on all examples: expected "
    "method.features='cached', method.batch_norm='frozen', eval.select='last' and "
    "method.refit=False, got {c.method.features!r}, {c.method.batch_norm!r}, "
    "{c.eval.select!r} and {c.method.refit}": lambda c: (
        not c.eval.folds
        or (c.method.features, c.method.batch_norm, c.eval.select, c.method.refit)
        == ("cached", "frozen", "last", False)
    ),
    "cached features need a frozen backbone and the last step: expected "
    "method.batch_norm='frozen' and eval.select='last', got {c.method.batch_norm!r} "
    "and {c.eval.select!r}; or fit online: `lt-jax retrain` with "
    "method.features='online'": lambda c: (
        c.method.features != "cached"
        or (c.method.batch_norm == "frozen" and c.eval.select == "last")
    ),
}
