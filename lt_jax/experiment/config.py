"""The resolved config: frozen records, checked on construction.

``resolve`` turns a ConfigDict into a ``Config``. Only this file, ``defaults.py`` and
``cli/config_flags.py`` know ConfigDict. Before a command writes anything, it checks
values (``resolve``), then values against the data (``check_data``, ``check_sweep``) and
against the shapes of parameters (``make_methods``).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lt_jax import initializers, methods, metrics, models, recipes, samplers, trees
from lt_jax.data import catalogue
from lt_jax.data.augment import randaugment
from lt_jax.data.dataset import Splits
from lt_jax.errors import InputError, first_few, one_of, suggest
from lt_jax.experiment import results
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.retraining.features import DTYPES
from lt_jax.training import optim, steps
from lt_jax.training.optim import Sgd

UserConfig = ConfigDict  # what config files return and `resolve` takes

# The values of a method's entry that belong to its optimiser, not to the method.
OPTIMISER = ("lr", "epochs", "decay")

# A key of version 0.1, ignored at the value that it had everywhere.
DROPPED = ("nesterov", False)

# May change between two commands in one workdir: no result depends on these keys.
FREE = (
    *("data.dir", "data.table", "data.workers", "optim.resident", "optim.at_once"),
    *("save.*", "log.*", "eval.batch", "eval.curves", "method.memory"),
    # Every fit is kept by its method and seeds, so more of them may come.
    *("method.names", "method.repeats", "optim.repeats"),
    # Every row of a sweep records its setting; `choose` only reads rows.
    *("method.*.grid.*", "eval.choose"),
)


@dataclass(frozen=True)
class DataConfig:
    name: str
    dir: str
    imbalance: float
    split: str
    valid: float
    valid_seed: int
    many: int
    few: int
    pad: int
    flip: bool
    jitter: tuple[float, ...]
    randaugment: tuple[int, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Photographs only.
    size: int | None = None
    resize: int | None = None
    scale: tuple[float, ...] | None = None
    ratio: tuple[float, ...] | None = None
    broken: float | None = None
    workers: int | None = None
    # The source "folder" only.
    table: str | None = None
    test: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    name: str
    stem: str
    width: int
    init: str
    zero_init: bool
    dtype: str


@dataclass(frozen=True)
class InitConfig:
    path: str
    skip: str


@dataclass(frozen=True)
class FitConfig:
    """The keys that both stages have."""

    repeats: int
    batch: int
    lr_batch: int
    accumulate: int
    batch_norm: str
    momentum: float
    decay_on: str
    schedule: str
    warmup: float


@dataclass(frozen=True)
class RetrainConfig(FitConfig):
    names: tuple[str, ...]
    features: str
    views: int
    feature_dtype: str
    memory: float
    entries: Mapping[str, Mapping[str, Any]]  # as in a config file, keys sorted


@dataclass(frozen=True)
class OptimConfig(FitConfig):
    epochs: int
    lr: float
    decay: float
    mixup: float
    sampler: str
    drop_last: bool
    resident: float
    at_once: int
    trains: str


@dataclass(frozen=True)
class EvalConfig:
    batch: int
    every: int
    select: str
    flip: bool
    choose: str
    curves: str


@dataclass(frozen=True)
class SaveConfig:
    every: int


@dataclass(frozen=True)
class LogConfig:
    seconds: float
    profile: str


@dataclass(frozen=True)
class Config:
    """Every value of a run; see ``defaults.py`` for what each key means.

    Raises:
      InputError: a value breaks a rule below.
    """

    seed: int
    data: DataConfig
    model: ModelConfig
    init: InitConfig
    method: RetrainConfig
    optim: OptimConfig
    eval: EvalConfig
    save: SaveConfig
    log: LogConfig

    def __post_init__(self) -> None:
        values: Any = flatten_dict(as_dict(self), sep=".")
        # A program may add to these two.
        one_of("data.name", self.data.name, [*catalogue.SOURCES, *catalogue.PHOTOS])
        one_of("model.name", self.model.name, [*models.ARCHS, "none"])
        for key, names in CHOICES.items():
            one_of(key, values[key], names)
        for rule, keys in RULES.items():
            for key in keys.split():
                if not rule.holds(values[key]):
                    found = f"got {values[key]!r}"
                    raise InputError(f"{key} must be {rule.expected}, {found}")
        for problem, holds in ACROSS.items():
            if not holds(self):
                raise InputError(problem.format(c=self))


class Rule(NamedTuple):
    expected: str  # completes "optim.lr must be"
    holds: Callable[[Any], bool]


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


NOT_NEGATIVE = Rule("at least 0", lambda value: 0 <= value < math.inf)
AT_LEAST_ONE = Rule("at least 1", lambda value: 1 <= value < math.inf)
SHARE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE = Rule("positive", lambda value: 0 < value < math.inf)
PATTERN = Rule("a regular expression", _compiles)
JITTER = Rule(
    "four numbers of at least 0: brightness, contrast, saturation and hue (at most "
    "0.5)",
    lambda value: (
        len(value) == 4
        and all(0 <= strength < math.inf for strength in value)
        and value[3] <= 0.5
    ),
)
RANDAUGMENT = Rule(
    "an integer number of operations and a magnitude from 0 to "
    f"{randaugment.MAX_MAGNITUDE}",
    lambda value: (
        len(value) == 2
        and value[0] == int(value[0]) >= 0
        and 0 <= value[1] <= randaugment.MAX_MAGNITUDE
    ),
)

# Keys by the rule for their values.
RULES: dict[Rule, str] = {
    NOT_NEGATIVE: "seed data.valid_seed data.pad data.few method.momentum "
    "optim.momentum optim.decay optim.mixup log.seconds",
    AT_LEAST_ONE: "data.imbalance method.repeats method.views method.batch "
    "method.lr_batch method.accumulate optim.repeats optim.epochs optim.batch "
    "optim.lr_batch optim.accumulate eval.batch eval.every save.every",
    POSITIVE: "optim.lr method.memory",
    SHARE: "data.valid",
    PATTERN: "init.skip method.decay_on optim.decay_on optim.trains",
    JITTER: "data.jitter",
    RANDAUGMENT: "data.randaugment",
}
CHOICES: dict[str, Iterable[str]] = {
    "model.init": initializers.NAMES,
    "method.features": ("online", "cached"),
    "method.feature_dtype": DTYPES,
    "method.batch_norm": steps.BATCH_NORM,
    "method.schedule": ("step", "epoch"),
    "optim.batch_norm": steps.BATCH_NORM,
    "optim.schedule": ("step", "epoch"),
    "optim.sampler": samplers.POWERS,
    "eval.select": ("last", "validation", "test"),
    "eval.choose": metrics.CHOOSE,
    "eval.curves": ("valid", "test"),
}

CACHED = (
    "cached features need a frozen backbone and the last step: expected "
    "method.batch_norm='frozen' and eval.select='last', got {c.method.batch_norm!r} "
    "and {c.eval.select!r}; or fit online: `lt-jax retrain` with "
    "method.features='online'"
)
# Rules about several keys, by their message.
ACROSS: dict[str, Callable[[Config], bool]] = {
    "data.few must be at most data.many, got {c.data.few} and {c.data.many}": (
        lambda c: c.data.few <= c.data.many
    ),
    "data.std must be positive, got {c.data.std}": (
        lambda c: not c.data.std or min(c.data.std) > 0
    ),
    "method.accumulate must be at most method.batch, {c.method.batch}, got "
    "{c.method.accumulate}": lambda c: c.method.accumulate <= c.method.batch,
    "optim.accumulate must be at most optim.batch, {c.optim.batch}, got "
    "{c.optim.accumulate}": lambda c: c.optim.accumulate <= c.optim.batch,
    "optim.warmup must be at least 0 and shorter than optim.epochs, "
    "{c.optim.epochs}, got {c.optim.warmup}": (
        lambda c: 0 <= c.optim.warmup < c.optim.epochs
    ),
    CACHED: lambda c: c.method.features != "cached" or _is_cacheable(c),
}


def _is_cacheable(config: Config) -> bool:
    return config.method.batch_norm == "frozen" and config.eval.select == "last"


# The records of a config by name, without the seed.
GROUPS: dict[str, Any] = {
    name: kind
    for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
}


def resolve(config: UserConfig | Mapping[str, Any]) -> Config:
    """Return the checked, frozen values of a config."""
    plain: Any = config.to_dict() if isinstance(config, ConfigDict) else config
    tree = without_dropped(plain)
    groups: dict[str, Any] = {}
    for name, group in GROUPS.items():
        values = dict(tree.pop(name, {}))
        if name == "method":
            values["entries"] = {
                key: _entry(f"method.{key}", values.pop(key))
                for key in sorted(values)
                if isinstance(values[key], Mapping)
            }
        groups[name] = group(**_typed(group, values, f"{name}."))
    found = Config(**groups, **_typed(Config, tree, "", skip=GROUPS))
    if found.data.name in catalogue.PHOTOS:
        needed = ["size", "resize", "scale", "ratio", "broken", "workers"]
        needed += catalogue.PHOTOS[found.data.name].extra
        for key in needed:
            if getattr(found.data, key) is None:
                raise InputError(f"the config has no data.{key}: see photo_config")
    return found


def _entry(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a method in the order of their keys, its grid last."""
    for key in OPTIMISER:
        if key not in values:
            raise InputError(f"{where} needs a value for {key!r}")
    own = recipes.own({key: values[key] for key in sorted(values)})
    return own | {key: values[key] for key in values if key == recipes.GRID}


# Types by the annotation of a field: what is accepted, and its name.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((float, int), "a number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a string"),
    "tuple": ((tuple,), "a tuple"),
    "Mapping": ((dict,), "a group"),
}


def _typed(
    group: Any, values: Mapping[str, Any], prefix: str, skip: Iterable[str] = ()
) -> dict[str, Any]:
    """Check that the keys are the fields of a group and that their types fit."""
    fields = {f.name: f for f in dataclasses.fields(group) if f.name not in skip}
    for key in values:
        if key not in fields:
            hint = suggest(key, fields)
            raise InputError(f"unknown config key {prefix + key!r}{hint}")
    found = {}
    for key, field in fields.items():
        if key not in values:
            if field.default is dataclasses.MISSING:
                raise InputError(f"the config has no {prefix}{key}")
            continue
        found[key] = _value(f"{prefix}{key}", values[key], str(field.type))
    return found


def _value(key: str, value: Any, annotation: str) -> Any:
    """Return a value as a Python one of the annotated type, such as ``int | None``."""
    kind, _, inner = annotation.removesuffix(" | None").partition("[")
    accepted, name = TYPES[kind]
    value = value.item() if hasattr(value, "item") else value
    fits = any(isinstance(value, each) for each in accepted)
    if kind == "tuple" and fits:
        item = str if inner.startswith("str") else (int, float)
        fits = all(isinstance(part, item) for part in value)
    if not fits or (isinstance(value, bool) and kind != "bool"):  # a bool is an int
        raise InputError(f"{key} must be {name}, got {value!r}")
    return float(value) if kind == "float" else value


def without_dropped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested config without the key of ``DROPPED``."""
    return {
        name: {key: value for key, value in group.items() if (key, value) != DROPPED}
        if isinstance(group, Mapping)
        else group
        for name, group in tree.items()
    }


def as_dict(config: Config) -> dict[str, Any]:
    """Return the nested keys and values, as in a config file and ``config.json``."""
    tree: dict[str, Any] = {"seed": config.seed}
    for name in GROUPS:
        group = vars(getattr(config, name))
        tree[name] = {k: v for k, v in group.items() if v is not None}
    tree["method"] |= tree["method"].pop("entries")
    return tree


def workdir_config(workdir: Path) -> Config:
    """Read and resolve ``config.json`` of a workdir, of version 0.1 too."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    tree = tuples(results.read_config(workdir))
    try:
        return resolve(tree)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'}: {error}") from error


def check_data(config: Config, splits: Splits) -> None:
    """Check values against the data."""
    c, size = config, len(splits.train)
    *sides, channels = splits.train.shape
    if not samplers.examples_per_epoch(size, c.optim.batch, c.optim.drop_last):
        raise InputError(
            f"optim.drop_last leaves none of {size} training images in batches of "
            f"{c.optim.batch}: set it to False, or lower optim.batch"
        )
    if (any(c.data.jitter) or c.data.randaugment[0]) and channels != 3:
        raise InputError(
            f"data.jitter and data.randaugment need 3 channels, but images of "
            f"{c.data.name} have {channels}: set them to (0, 0, 0, 0) and (0, 0)"
        )
    for key, values in (("mean", c.data.mean), ("std", c.data.std)):
        if (c.data.mean or c.data.std) and len(values) != channels:
            raise InputError(
                f"data.{key} must have one value for each of the {channels} channels "
                f"of {c.data.name}, got {values}"
            )
    if sides == [1, 1] and (c.data.pad or c.data.flip or c.eval.flip):
        raise InputError(
            f"the examples of {c.data.name} are features, which cannot be cropped or "
            "mirrored: expected data.pad=0, data.flip=False and eval.flip=False, got "
            f"{c.data.pad}, {c.data.flip} and {c.eval.flip}"
        )
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )


def make_method(name: str, counts: np.ndarray, hyper: Mapping[str, Any]) -> Method:
    """Make a method from the values of its entry, those of its optimiser included.

    Args:
      counts: int[K], training examples per class.
    """
    own = {key: value for key, value in hyper.items() if key not in OPTIMISER}
    return methods.make(name, counts, own)


def make_methods(
    config: Config, splits: Splits, backbone: Any, grids: bool = False
) -> dict[str, Method]:
    """Make the methods of ``method.names``; check all optimisers against parameters.

    Args:
      grids: check every row of every grid as well, as a sweep needs.

    Raises:
      InputError: names the method, and the row of its grid.
    """
    o, init, shape = config.optim, config.model.init, splits.train.shape
    counts = splits.train.class_counts
    sizes = models.features_of(backbone), len(counts)

    @functools.cache
    def shapes(head: Head) -> Any:
        return jax.eval_shape(lambda: head.init(jax.random.key(0), None, *sizes, init))

    params, _ = models.shapes(backbone, shape)
    network = {"backbone": params, "head": shapes(linear)}
    Sgd(o.momentum, o.decay, o.decay_on).check(trees.partition(network, o.trains)[0])

    def checked(name: str, hyper: Mapping[str, Any]) -> Method:
        method, m, decay = (
            make_method(name, counts, hyper),
            config.method,
            hyper["decay"],
        )
        if not 0 <= decay < math.inf:
            raise InputError(f"decay must be at least 0, got {decay}")
        optim.rates(hyper["lr"], hyper["epochs"], 1, m.warmup, m.schedule)
        trains = f"head/(?:{method.head.trains})"
        trained, _ = trees.partition({"head": shapes(method.head)}, trains)
        Sgd(m.momentum, decay, m.decay_on).check(trained)
        return method

    made, entries = {}, config.method.entries
    for name in config.method.names:
        if name not in entries:
            raise InputError(
                f"method.names has {name!r}, but config.method has no entry of that "
                f"name: expected some of {', '.join(entries)}; several are written "
                "--config.method.names=ce,los"
            )
        where = f"method.{name}"
        try:
            made[name] = checked(name, recipes.own(entries[name]))
            for row in recipes.expand(entries[name]) if grids else ():
                tried = (f"{key}={row[key]!r}" for key in entries[name][recipes.GRID])
                where = f"method.{name}.grid, {', '.join(tried)}"
                checked(name, row)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return made


def check_sweep(config: Config, splits: Splits) -> None:
    """Check that features can be cached, and that validation images can choose."""
    if not _is_cacheable(config):
        raise InputError(CACHED.format(c=config))
    choose, valid = config.eval.choose, splits.valid
    if not len(valid):
        raise InputError(
            "a sweep chooses on validation images, but data.valid is 0: hold out a "
            "share of the training set"
        )
    held = valid.class_counts > 0
    if choose in metrics.GROUPS:
        limits = config.data.many, config.data.few
        if not held[metrics.groups(splits.full_class_counts, *limits)[choose]].any():
            raise InputError(
                f"eval.choose is {choose!r}, but no class of that group has a "
                "validation image: raise data.valid, or choose by another group"
            )
    elif choose in ("balanced", "worst") and not held.all():
        without = [str(valid.classes[k]) for k in (~held).nonzero()[0]]
        raise InputError(
            f"eval.choose is {choose!r}, a metric over all classes, but {len(without)} "
            f"have no validation image: {first_few(without, 10)}. Raise data.valid (a "
            "class with one training image gives none), or set eval.choose='all'"
        )
