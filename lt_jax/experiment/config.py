"""The resolved config: frozen records, checked on construction.

``resolve`` turns a ConfigDict into a ``Config``. Only this file, ``defaults.py`` and
``cli/config_flags.py`` know ConfigDict. Checks come in three steps: values
(``resolve``), values against the data (``check_data``), and values against shapes of
parameters (``check_methods``, ``check_sweep``). All run before anything is written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
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
from lt_jax.errors import InputError, one_of, suggest
from lt_jax.experiment import results
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.retraining.features import DTYPES
from lt_jax.training import optim, steps
from lt_jax.training.optim import Sgd

UserConfig = ConfigDict  # what config files return and `resolve` takes

# The values of a method's entry that belong to its optimiser, not to the method.
OPTIMISER = ("lr", "epochs", "decay")

# Keys of earlier versions, ignored at the value that they had everywhere.
DROPPED = {"method.nesterov": False, "optim.nesterov": False}


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
class MethodEntry:
    """The hyper-parameters of a method, and the grid that a sweep tries."""

    own: Mapping[str, Any]  # by key, sorted; `lr`, `epochs`, `decay` and the method's
    grid: Mapping[str, tuple[Any, ...]] | None = None

    @property
    def lr(self) -> float:
        return self.own["lr"]

    @property
    def epochs(self) -> int:
        return self.own["epochs"]

    @property
    def decay(self) -> float:
        return self.own["decay"]

    def rows(self) -> list[dict[str, Any]]:
        """Return the settings that a sweep tries, see ``recipes.expand``."""
        return recipes.expand(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        return dict(self.own) | ({} if self.grid is None else {"grid": self.grid})


@dataclass(frozen=True)
class RetrainConfig:
    names: tuple[str, ...]
    repeats: int
    features: str
    views: int
    feature_dtype: str
    memory: float
    batch: int
    lr_batch: int
    accumulate: int
    batch_norm: str
    momentum: float
    decay_on: str
    schedule: str
    warmup: float
    entries: Mapping[str, MethodEntry]


@dataclass(frozen=True)
class OptimConfig:
    repeats: int
    epochs: int
    batch: int
    lr_batch: int
    accumulate: int
    lr: float
    momentum: float
    decay: float
    decay_on: str
    schedule: str
    warmup: float
    mixup: float
    sampler: str
    drop_last: bool
    resident: float
    at_once: int
    trains: str
    batch_norm: str


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
    NOT_NEGATIVE: "seed data.pad data.few method.momentum optim.momentum optim.decay "
    "optim.mixup log.seconds",
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


GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "init": InitConfig,
    "method": RetrainConfig,
    "optim": OptimConfig,
    "eval": EvalConfig,
    "save": SaveConfig,
    "log": LogConfig,
}


def resolve(config: UserConfig | Mapping[str, Any]) -> Config:
    """Return the checked, frozen values of a config.

    Raises:
      InputError: an unknown or missing key, or a value that breaks a rule.
    """
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


def _entry(where: str, values: Mapping[str, Any]) -> MethodEntry:
    own = recipes.own({key: values[key] for key in sorted(values)})
    for key in OPTIMISER:
        if key not in own:
            raise InputError(f"{where} needs a value for {key!r}")
    return MethodEntry(own, values.get(recipes.GRID))


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
    group: type, values: Mapping[str, Any], prefix: str, skip: Iterable[str] = ()
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
    """Return a nested config without the keys in ``DROPPED``."""
    return {
        name: {
            key: value
            for key, value in group.items()
            if (dropped := f"{name}.{key}") not in DROPPED or value != DROPPED[dropped]
        }
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
    entries = tree["method"].pop("entries")
    tree["method"] |= {name: entry.as_dict() for name, entry in entries.items()}
    return tree


def workdir_config(workdir: Path) -> Config:
    """Read and resolve ``config.json`` of a workdir, of version 0.1 too.

    Raises:
      InputError: there is none, or it is not a config of this version.
    """

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
    """Check values against the data.

    Raises:
      InputError: they do not fit.
    """
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


def make_method(
    config: Config,
    name: str,
    counts: np.ndarray,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Method:
    """Make the method of ``config.method.NAME``.

    Args:
      counts: int[K], training examples per class.
      hyperparameters: values to use instead of the entry's own.

    Raises:
      InputError: there is no such entry, or a value is not valid for the method.
    """
    entries = config.method.entries
    if name not in entries:
        raise InputError(
            f"method.names has {name!r}, but config.method has no entry of that name: "
            f"expected some of {', '.join(entries)}; several are written "
            "--config.method.names=ce,los"
        )
    values = entries[name].own if hyperparameters is None else hyperparameters
    try:
        return _made(name, counts, values)
    except InputError as error:
        raise InputError(f"method.{name}: {error}") from error


def _made(name: str, counts: np.ndarray, values: Mapping[str, Any]) -> Method:
    numbers = {key: v for key, v in values.items() if key not in OPTIMISER}
    return methods.make(name, counts, numbers)


def check_methods(
    config: Config, splits: Splits, backbone: Any, made: Mapping[str, Method]
) -> None:
    """Check schedules and patterns against parameter shapes, without computing any.

    Raises:
      InputError: a schedule or pattern is not valid.
    """
    o = config.optim
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, _ = jax.eval_shape(
        lambda key: models.init(backbone, key, splits.train.shape), key
    )
    sizes = models.features_of(backbone), len(splits.full_class_counts)
    head = _head_shapes(linear, sizes, config.model.init)
    trained, _ = trees.partition({"backbone": params, "head": head}, o.trains)
    Sgd(o.momentum, o.decay, o.decay_on).check(trained)
    for name, method in made.items():
        try:
            _check_row(config, method, config.method.entries[name].own, sizes)
        except InputError as error:
            raise InputError(f"method.{name}: {error}") from error


@functools.cache
def _head_shapes(head: Head, sizes: tuple[int, int], init: str) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: head.init(key, None, *sizes, init), key)


def _check_row(
    config: Config, method: Method, values: Mapping[str, Any], sizes: tuple[int, int]
) -> None:
    """Check the schedule, and that the decay acts on a parameter that is trained."""
    m, decay = config.method, values["decay"]
    if not 0 <= decay < math.inf:
        raise InputError(f"decay must be at least 0, got {decay}")
    optim.rates(values["lr"], values["epochs"], 1, m.warmup, m.schedule)
    head = {"head": _head_shapes(method.head, sizes, config.model.init)}
    trained, _ = trees.partition(head, f"head/(?:{method.head.trains})")
    Sgd(m.momentum, decay, m.decay_on).check(trained)


def check_sweep(config: Config, splits: Splits, backbone: Any) -> None:
    """Check what a sweep needs, every row of every grid included.

    Raises:
      InputError: features cannot be cached, validation cannot choose, or a row is not
        valid.
    """
    if not _is_cacheable(config):
        raise InputError(CACHED.format(c=config))
    check_choice(config, splits)
    for name in config.method.names:
        check_grid(config, splits, backbone, name)


def check_choice(config: Config, splits: Splits) -> None:
    """Check that the validation set can choose by ``eval.choose``.

    Raises:
      InputError: it is empty, or lacks classes that the metric averages over.
    """
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
        more = f" and {len(without) - 10} more" if len(without) > 10 else ""
        raise InputError(
            f"eval.choose is {choose!r}, a metric over all classes, but {len(without)} "
            f"have no validation image: {', '.join(without[:10])}{more}. Raise "
            "data.valid (a class with one training image gives none), or choose by "
            "eval.choose='all'"
        )


def check_grid(
    config: Config, splits: Splits, backbone: Any, name: str
) -> list[tuple[dict[str, Any], Method]]:
    """Return the rows of ``config.method.NAME.grid``, each with its method.

    Raises:
      InputError: names the invalid value, or the row if each value alone is valid.
    """
    counts, entry = splits.train.class_counts, config.method.entries[name]
    make_method(config, name, counts)
    try:
        rows = entry.rows()
    except InputError as error:
        raise InputError(f"method.{name}: {error}") from error
    sizes = models.features_of(backbone), len(splits.full_class_counts)

    def made(values: dict[str, Any], changed: Iterable[str]) -> Method:
        try:
            method = _made(name, counts, values)
            _check_row(config, method, values, sizes)
        except InputError as error:
            row = ", ".join(f"{key}={values[key]!r}" for key in changed)
            raise InputError(f"method.{name}.grid, {row}: {error}") from error
        return method

    grid = entry.grid or {}
    for key, values in grid.items():
        for value in values:
            made({**entry.own, key: value}, [key])
    return [(values, made(values, grid)) for values in rows]
