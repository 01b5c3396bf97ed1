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
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lt_jax import (
    heads,
    initializers,
    losses,
    methods,
    metrics,
    models,
    recipes,
    samplers,
    trees,
)
from lt_jax.data import catalogue, longtail
from lt_jax.data.augment import randaugment
from lt_jax.data.dataset import Splits
from lt_jax.distributed import sharding
from lt_jax.errors import InputError, first_few, in_range, located, one_of, suggest
from lt_jax.files import Schema, read_json
from lt_jax.heads import Head, linear
from lt_jax.methods import Method
from lt_jax.retraining.features import DTYPES
from lt_jax.training import optim, steps
from lt_jax.training.optim import Sgd

UserConfig = ConfigDict  # what config files return and `resolve` takes

# The values of a method's entry that belong to its optimiser, not to the method.
OPTIMISER = ("lr", "epochs", "decay")

# Former keys: one is ignored at the value that it had everywhere, one at any value.
DROPPED = {"nesterov": (False,), "at_once": range(10001)}
# Keys that ``config.json`` of earlier versions lacks, with what those versions did.
ADDED = {
    "model.pool": "token",
    "init.sha256": "",
    "eval.group_average": "examples",
    **{f"method.*.{key}": value for key, value in methods.ADDED.items()},
}

# May change between two commands in one workdir: no result depends on these keys.
FREE = (
    *("data.dir", "data.table", "data.workers", "optim.resident"),
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
    pool: str


@dataclass(frozen=True)
class InitConfig:
    path: str
    skip: str
    sha256: str


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
    trains: str


@dataclass(frozen=True)
class EvalConfig:
    batch: int
    every: int
    select: str
    flip: bool
    choose: str
    curves: str
    group_average: str


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
        # A program may add to these two.
        one_of("data.name", self.data.name, [*catalogue.SOURCES, *catalogue.PHOTOS])
        one_of("model.name", self.model.name, [*models.ARCHS, "none"])
        values: Any = flatten_dict(as_dict(self), sep=".")
        for key, value in values.items():
            # A grid holds values for the keys of its entry.
            rule = re.sub(r"^method\.[^.]+\.(grid\.)?", "method.*.", key)
            parts = value if isinstance(value, tuple) else (value,)
            if len(parts) != LENGTHS.get(rule, len(parts)):
                found = f"got {reprlib.repr(value)}"
                raise InputError(f"{key} must have {LENGTHS[rule]} values, {found}")
            for part in parts:
                if rule in CHOICES:
                    one_of(key, part, CHOICES[rule])
                elif rule in PATTERNS:
                    _check_pattern(key, part)
                elif rule in RANGES:
                    in_range(key, part, RANGES[rule])
        for problem, holds in ACROSS.items():
            if not holds(self):
                raise InputError(problem.format(c=self))


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"{key} must be a regular expression, got {pattern!r} ({error})"
        ) from error


# Keys by the interval of their values. ``method.*`` are the entries of the methods,
# whose functions check further.
INTERVALS = {
    "[0, 4294967295]": "seed data.valid_seed",  # what JAX takes
    "[1, 1e9]": "data.imbalance method.batch method.lr_batch method.accumulate "
    "optim.batch optim.lr_batch optim.accumulate eval.batch eval.every save.every",
    "[0, 1e9]": "data.many data.few optim.resident log.seconds",
    "(0, 1e9]": "method.memory",
    "[1, 10000]": "data.size data.resize method.repeats method.views optim.repeats",
    "[0, 10000]": "data.pad",
    "[1, 1000]": "data.workers",
    "[1, 1e6]": "model.width optim.epochs",
    "[0, 1e38]": "method.*.lr",
    "(0, 1e38]": "optim.lr",
    "[0, 1e6]": "optim.decay method.warmup method.*.epochs method.*.decay "
    "method.*.scale method.*.alpha method.*.square method.*.max_margin",
    "(0, 1e6]": "data.ratio",
    "[-1e6, 1e6]": "data.mean",
    "[1e-6, 1e6]": "data.std",
    "[0, 1)": "data.valid data.test data.broken optim.momentum method.momentum "
    "method.*.delta method.*.beta",
    "(0, 1]": "data.scale",
    "[0, 1]": "method.*.defer method.*.head method.*.tail method.*.quantile",
    "[0, 10]": "data.jitter",
    f"[0, {randaugment.MAX_MAGNITUDE}]": "data.randaugment",
    "[0, 100]": "optim.mixup method.*.gamma",
    "[-100, 100]": "method.*.power method.*.tau",
}
RANGES = {key: text for text, keys in INTERVALS.items() for key in keys.split()}
LENGTHS = {"data.jitter": 4, "data.randaugment": 2, "data.scale": 2, "data.ratio": 2}
PATTERNS = ("init.skip", "method.decay_on", "optim.decay_on", "optim.trains")
CHOICES: dict[str, Iterable[str]] = {
    "data.split": (*longtail.SPLITS, longtail.WHOLE),
    "model.stem": models.STEMS,
    "model.init": initializers.NAMES,
    "model.pool": models.POOLS,
    "model.dtype": ("float32", "bfloat16"),
    "method.features": ("online", "cached"),
    "method.feature_dtype": DTYPES,
    "method.batch_norm": steps.BATCH_NORM,
    "method.schedule": ("step", "epoch"),
    "method.*.start": methods.STARTS,
    "method.*.sampler": samplers.POWERS,
    "method.*.every": methods.PROJECT_EVERY,
    "method.*.kind": heads.NEAREST,
    "optim.batch_norm": steps.BATCH_NORM,
    "optim.schedule": ("step", "epoch"),
    "optim.sampler": samplers.POWERS,
    "method.*.mean": losses.MEANS,
    "method.*.form": heads.ALIGNED,
    "eval.group_average": metrics.GROUP_AVERAGES,
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
    tree = without_dropped(_group("the config", plain))
    groups: dict[str, Any] = {}
    for name, group in GROUPS.items():
        values = dict(_group(name, tree.pop(name, {})))
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
                raise InputError(
                    f"the config has no data.{key}, which data.name={found.data.name} "
                    "needs: see photo_config, or start from configs/folder.py"
                )
    return found


def _group(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise InputError(f"{key} must be a group of keys, got {reprlib.repr(value)}")
    return value


def _entry(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a method in the order of their keys, its grid last."""
    for key in OPTIMISER:
        if key not in values:
            raise InputError(f"{where} needs a value for {key!r}")
    kinds = {"epochs": "int"}
    entry = {
        key: _value(f"{where}.{key}", value, kinds.get(key, "entry"))
        for key, value in sorted(_group(where, values).items())
        if key != recipes.GRID
    }
    if recipes.GRID not in values:
        return entry
    where, grid = f"{where}.{recipes.GRID}", values[recipes.GRID]
    tried = {
        key: _value(f"{where}.{key}", values, "tuple[entry, ...]")
        for key, values in _group(where, grid).items()
    }
    for key, values in tried.items():
        if key not in entry:
            raise InputError(f"{where} has an unknown key {key!r}{suggest(key, entry)}")
        if not values:
            raise InputError(f"{where}.{key} must have at least one value, got ()")
    if (rows := math.prod(map(len, tried.values()))) > MAX_ROWS:
        raise InputError(f"{where} has {rows:,} rows, expected at most {MAX_ROWS:,}")
    return {**entry, recipes.GRID: tried}


# Types of scalars by their annotation: what is accepted, and its name. ``entry`` is a
# value of a method.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((float, int), "a number"),
    "number": ((float, int), "a number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a string"),
    "entry": ((float, int, bool, str), "a number or a string"),
}
MAX_CHARACTERS = 4096
MAX_ROWS = 10_000  # of a grid


def _typed(
    group: Any, values: Mapping[str, Any], prefix: str, skip: Iterable[str] = ()
) -> dict[str, Any]:
    """Check that the keys are the fields of a group and that their types fit."""
    fields = {f.name: f for f in dataclasses.fields(group) if f.name not in skip}
    for key in values:
        if key not in fields:
            hint = suggest(key, fields)
            raise InputError(f"unknown config key {prefix + key!r:.100}{hint}")
    added = {name.removeprefix(prefix): value for name, value in ADDED.items()}
    values, found = {**added, **values}, {}
    for key, field in fields.items():
        if key not in values:
            if field.default is dataclasses.MISSING:
                raise InputError(f"the config has no {prefix}{key}")
            continue
        kind = str(field.type).removesuffix(" | None")
        found[key] = _value(f"{prefix}{key}", values[key], kind)
    return found


def _value(key: str, value: Any, kind: str) -> Any:
    """Return a value as a Python one of an annotated type, such as ``tuple[str, ...]``.

    Numbers are finite, and strings can be paths.
    """
    if kind.startswith("Mapping"):
        return value  # checked by _entry
    if kind.startswith("tuple"):
        if not isinstance(value, tuple):
            raise InputError(f"{key} must be a tuple, got {reprlib.repr(value)}")
        inner = kind[6:].partition(",")[0]
        inner = "number" if inner in ("int", "float") else inner  # keeps integers
        return tuple(_value(f"each value of {key}", part, inner) for part in value)
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    accepted, name = TYPES[kind]
    if type(value) not in accepted or (
        len(value) > MAX_CHARACTERS or "\0" in value
        if isinstance(value, str)
        else not abs(value) <= 1e38  # fits float32
    ):
        raise InputError(f"{key} must be {name}, got {reprlib.repr(value)}")
    return float(value) if kind == "float" else value


def without_dropped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested config without the keys of ``DROPPED``."""
    return {
        name: {k: v for k, v in group.items() if v not in DROPPED.get(k, ())}
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


def read_config(workdir: Path) -> dict[str, Any]:
    """Read ``config.json`` as it is, of another version too."""
    file = workdir / "config.json"
    if not file.exists():
        raise InputError(
            f"{workdir} is not a workdir: it has no config.json. Give the --workdir of "
            "an earlier `lt-jax run`"
        )
    schema: Schema = {f"{name}?": {str: object} for name in GROUPS}
    remedy = "Restore the file, or run the same command in another --workdir"
    return read_json(file, {**schema, "method": {str: object}}, remedy)


def workdir_config(workdir: Path) -> Config:
    """Read and resolve ``config.json``, of version 0.1 too."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    tree = tuples(read_config(workdir))
    with located(f"{workdir / 'config.json'}"):
        return resolve(tree)


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
    if c.data.pad >= max(sides) > 1:
        raise InputError(
            f"data.pad must be smaller than the images, {max(sides)} pixels, got "
            f"{c.data.pad}: crops would miss the image"
        )
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )


def cut_batches(config: Config, splits: Splits) -> tuple[Config, list[str]]:
    """Cut batches to the examples there are; return a note for each that was cut."""
    train, notes = len(splits.train), []
    largest = max(train, len(splits.valid), len(splits.test))
    for name, limit in {"optim": train, "method": train, "eval": largest}.items():
        group = getattr(config, name)
        if group.batch > limit:
            notes.append(
                f"{name}.batch is {group.batch:,}, but a pass has {limit:,} examples: "
                f"using {limit:,}"
            )
            cut: Any = {name: dataclasses.replace(group, batch=limit)}
            config = dataclasses.replace(config, **cut)
    return config, notes


def _check_memory(config: Config, splits: Splits, params: Any, trained: Any) -> None:
    """Refuse what cannot fit: less than this no step of stage 1 can use."""

    def size(tree: Any) -> int:
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    # Parameters, and gradients and momentum of the trained ones, on every device.
    network = size(params) + 2 * size(trained)
    batch = max(config.optim.batch, config.eval.batch)
    images = batch * math.prod(splits.train.shape) // jax.device_count()
    needed, there = network + images, sharding.device_memory()
    if needed > there:
        raise InputError(
            f"training needs at least {needed / 2**30:,.1f} GiB per device, "
            f"{network / 2**30:,.1f} of them for parameters, gradients and momentum, "
            f"but {there / 2**30:,.1f} are there: lower model.width, data.size or "
            "the batches"
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
    counts, size = splits.train.class_counts, len(splits.train)
    sizes = models.features_of(backbone), len(counts)

    @functools.cache
    def shapes(head: Head) -> Any:
        return jax.eval_shape(lambda: head.init(jax.random.key(0), None, *sizes, init))

    params, _ = models.shapes(backbone, shape)
    network = {"backbone": params, "head": shapes(linear)}
    with located("optim.trains"):
        trained, _ = trees.partition(network, o.trains)
    with located("optim.decay_on"):
        Sgd(o.momentum, o.decay, o.decay_on).check(trained)
    _check_memory(config, splits, network, trained)
    with located("optim.epochs"):
        optim.rates(o.lr, o.epochs, -(-size // o.batch), o.warmup, o.schedule)

    def checked(name: str, hyper: Mapping[str, Any]) -> Method:
        method, m = make_method(name, counts, hyper), config.method
        steps = -(-size // m.batch)
        optim.rates(hyper["lr"], hyper["epochs"], steps, m.warmup, m.schedule)
        trains = f"head/(?:{method.head.trains})"
        trained, _ = trees.partition({"head": shapes(method.head)}, trains)
        with located("method.decay_on"):
            Sgd(m.momentum, hyper["decay"], m.decay_on).check(trained)
        return method

    made, entries = {}, config.method.entries
    for name in config.method.names:
        if name not in entries:
            raise InputError(
                f"method.names has {name!r}, but config.method has no entry of that "
                f"name: expected some of {', '.join(entries)}; several are written "
                "--config.method.names=ce,los"
            )
        with located(f"method.{name}"):
            made[name] = checked(name, recipes.own(entries[name]))
            rows = recipes.expand(entries[name]) if grids else ()
        for row in rows:
            tried = (f"{key}={row[key]!r}" for key in entries[name][recipes.GRID])
            with located(f"method.{name}.grid, {', '.join(tried)}"):
                checked(name, row)
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
