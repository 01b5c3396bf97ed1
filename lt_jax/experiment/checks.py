"""What can be wrong with the values of a config, told before anything is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from lt_jax import methods, metrics, models, recipes, samplers, trees
from lt_jax.data.augment import randaugment
from lt_jax.data.dataset import Splits
from lt_jax.errors import InputError, one_of
from lt_jax.heads import linear
from lt_jax.methods import Method
from lt_jax.training import optim, steps
from lt_jax.training.optim import Sgd
from lt_jax.types import Config

# What a method's entry in the config holds beside the numbers the method itself reads.
RECIPE = ("lr", "epochs", "decay")

SELECT = ("last", "validation", "test")

# Stage 2 sees augmented images anew in every epoch, or the features of each image once.
FEATURES = ("online", "cached")
FEATURE_DTYPES = ("float32", "bfloat16")

CURVES = ("valid", "test")

AT_LEAST_ONE = (
    "optim.repeats",
    "optim.epochs",
    "optim.batch",
    "optim.lr_batch",
    "optim.accumulate",
    "method.repeats",
    "method.batch",
    "method.lr_batch",
    "method.accumulate",
    "method.views",
    "eval.batch",
    "eval.every",
    "save.every",
)
NOT_NEGATIVE = (
    "seed",
    "data.pad",
    "optim.decay",
    "optim.momentum",
    "optim.mixup",
    "method.momentum",
    "log.seconds",
)
PATTERNS = ("init.skip", "optim.trains", "optim.decay_on", "method.decay_on")


def check_values(config: Config, splits: Splits) -> None:
    """Checks what needs no network.

    Raises:
      InputError: names the key, what was expected and what was found.
    """
    c = config
    for key in AT_LEAST_ONE:
        _number(key, _value(c, key), least=1)
    for key in NOT_NEGATIVE:
        _number(key, _value(c, key), least=0)
    for key in PATTERNS:
        try:
            re.compile(_value(c, key))
        except re.error as error:
            raise InputError(
                f"{key} is no regular expression: {_value(c, key)!r}: {error}"
            ) from error
    one_of("eval.select", c.eval.select, SELECT)
    one_of("eval.choose", c.eval.choose, metrics.CHOOSE)
    one_of("eval.curves", c.eval.curves, CURVES)
    one_of("method.features", c.method.features, FEATURES)
    one_of("method.feature_dtype", c.method.feature_dtype, FEATURE_DTYPES)
    if not (math.isfinite(c.method.memory) and c.method.memory > 0):
        raise InputError(
            f"method.memory must be a positive number of GiB, found {c.method.memory}"
        )
    one_of("optim.sampler", c.optim.sampler, samplers.POWERS)
    for group in ("optim", "method"):
        one_of(f"{group}.batch_norm", c[group].batch_norm, steps.BATCH_NORM)
        if c[group].accumulate > c[group].batch:
            raise InputError(
                f"{group}.accumulate cuts a batch of {c[group].batch} images into "
                f"parts of at least one, found {c[group].accumulate}"
            )
    if not samplers.examples_per_epoch(
        len(splits.train), c.optim.batch, c.optim.drop_last
    ):
        raise InputError(
            f"optim.drop_last leaves nothing of {len(splits.train)} training images in "
            f"batches of {c.optim.batch}: set it to False, or optim.batch lower"
        )
    _check_colours(c, splits)
    *sides, channels = splits.train.shape
    given = c.data.mean or c.data.std  # both empty: the values are taken as they are
    for key in ("data.mean", "data.std"):
        if given and len(_value(c, key)) != channels:
            raise InputError(
                f"{key} must have a value for each of the {channels} channels of "
                f"{c.data.name}, found {_value(c, key)}"
            )
    if given and not min(c.data.std) > 0:
        raise InputError(f"data.std must be positive, found {c.data.std}")
    if sides == [1, 1] and (c.data.pad or c.data.flip or c.eval.flip):
        raise InputError(
            f"the examples of {c.data.name} are features, which cannot be cropped or "
            "mirrored: expected data.pad=0, data.flip=False and eval.flip=False, found "
            f"{c.data.pad}, {c.data.flip} and {c.eval.flip}"
        )
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )
    if c.method.features == "cached":
        check_cached(c)


def _check_colours(config: Config, splits: Splits) -> None:
    """Raises ``InputError`` where colours cannot be changed as the config asks."""
    jitter, rand = tuple(config.data.jitter), tuple(config.data.randaugment)
    limits = (math.inf, math.inf, math.inf, 0.5)
    if len(jitter) != 4 or not all(
        0 <= s <= limit and math.isfinite(s)
        for s, limit in zip(jitter, limits, strict=True)
    ):
        raise InputError(
            "data.jitter must be four numbers of at least 0, of brightness, contrast, "
            f"saturation and hue (at most 0.5), found {jitter}"
        )
    if (
        len(rand) != 2
        or rand[0] != int(rand[0])
        or not (rand[0] >= 0 and 0 <= rand[1] <= randaugment.TOP)
    ):
        raise InputError(
            "data.randaugment must be a whole number of operations and their magnitude "
            f"from 0 to {randaugment.TOP}, found {rand}"
        )
    if (any(jitter) or rand[0]) and splits.train.shape[-1] != 3:
        raise InputError(
            "data.jitter and data.randaugment change colours, but the images of "
            f"{config.data.name} have {splits.train.shape[-1]} channel(s), not 3: "
            "set them to (0, 0, 0, 0) and (0, 0)"
        )


def check_cached(config: Config) -> None:
    """Raises ``InputError`` where cached features cannot do what the config asks."""
    c = config
    if c.method.batch_norm != "frozen" or c.eval.select != "last":
        raise InputError(
            "heads on cached features need a frozen backbone and keep the last step: "
            "expected method.batch_norm='frozen' and eval.select='last', found "
            f"{c.method.batch_norm!r} and {c.eval.select!r}; or fit online, with "
            "`lt-jax retrain` and method.features='online'"
        )


def check_sweep(config: Config, splits: Splits, backbone: Any) -> None:
    """Checks what a sweep needs, every row of every grid included.

    Raises:
      InputError: as ``check_values``.
    """
    check_cached(config)
    check_choice(config, splits)
    for name in config.method.names:
        check_grid(config, splits, backbone, name)


def check_choice(config: Config, splits: Splits) -> None:
    """Checks that the validation set can choose by ``eval.choose``.

    Raises:
      InputError: it is empty, or lacks classes that the metric is a mean over.
    """
    choose, valid = config.eval.choose, splits.valid
    if not len(valid):
        raise InputError(
            "a sweep chooses on validation images, but data.valid is 0: hold out a "
            "share of the training set"
        )
    held = valid.class_counts > 0
    without: list[str] = []
    if choose in ("balanced", "worst"):
        without = [str(valid.classes[k]) for k in (~held).nonzero()[0]]
    elif choose in metrics.GROUPS:
        limits = config.data.many, config.data.few
        if not held[metrics.groups(splits.full_class_counts, *limits)[choose]].any():
            raise InputError(
                f"eval.choose is {choose!r}, but no class of that group has a "
                "validation image: hold out a larger share with data.valid, or choose "
                "by another group"
            )
    if without:
        more = f" and {len(without) - 10} more" if len(without) > 10 else ""
        raise InputError(
            f"eval.choose is {choose!r}, a figure over all classes, but {len(without)} "
            f"have no validation image: {', '.join(without[:10])}{more}. Hold out a "
            "larger share with data.valid (a class of one training image gives none), "
            "or choose by eval.choose='all'"
        )


def check_training(
    config: Config, splits: Splits, backbone: Any, entries: dict[str, Method]
) -> None:
    """Checks schedules, and patterns against the parameters, without computing any.

    Raises:
      InputError: as ``check_values``.
    """
    c, o = config, config.optim
    key = jax.eval_shape(lambda: jax.random.key(0))

    sizes = models.features_of(backbone), len(splits.full_class_counts)

    def fresh(key: jax.Array) -> Any:
        params, _ = models.init(backbone, key, splits.train.shape)
        return {
            "backbone": params,
            "head": linear.init(key, None, *sizes, c.model.init),
        }

    params = jax.eval_shape(fresh, key)
    optim.rates(o.lr, o.epochs, 1, o.warmup, o.schedule)
    trained, _ = trees.partition(params, o.trains)
    sgd = Sgd(o.momentum, o.decay, o.decay_on)
    sgd.check(trained)
    for name, method in entries.items():
        try:
            _check_recipe(c, c.method[name])
            _check_head(c, method, c.method[name].decay, sizes)
        except InputError as error:
            raise InputError(f"method {name!r}: {error}") from error


def _check_recipe(config: Config, hyper: Mapping[str, Any]) -> None:
    """Checks learning rate, epochs and decay."""
    m = config.method
    _number("decay", hyper["decay"], least=0)
    optim.rates(hyper["lr"], hyper["epochs"], 1, m.warmup, m.schedule)


def _check_head(
    config: Config, method: Method, decay: float, sizes: tuple[int, int]
) -> None:
    """Checks that the decay acts on what the head trains, without computing it."""
    m = config.method
    head = jax.eval_shape(
        lambda key: method.head.init(key, None, *sizes, config.model.init),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    trained, _ = trees.partition({"head": head}, f"head/(?:{method.head.trains})")
    sgd = Sgd(m.momentum, decay, m.decay_on)
    sgd.check(trained)


def check_grid(
    config: Config, splits: Splits, backbone: Any, name: str
) -> list[tuple[dict[str, Any], Method]]:
    """The rows of ``config.method.NAME.grid``, each with the method that it makes.

    All are checked, so that none fails after others were fitted. ``check_values`` and
    ``check_training`` are taken to have passed.

    Raises:
      InputError: names the value that is wrong, or the row of which each value alone
        would do.
    """
    counts = splits.train.class_counts
    where = f"config.method.{name}"
    make_method(config, name, counts)
    entry = config.method[name]
    try:
        rows = recipes.expand(entry)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    sizes = models.features_of(backbone), len(splits.full_class_counts)
    heads_seen = set()

    def made(hyper: dict[str, Any], changed: Iterable[str]) -> Method:
        try:
            _check_recipe(config, hyper)
            method = methods.make(name, counts, _numbers(hyper))
            # A grid of hundreds of rows has few of these.
            head = (method.head, hyper["decay"])
            if head not in heads_seen:
                _check_head(config, method, hyper["decay"], sizes)
                heads_seen.add(head)
        except InputError as error:
            told = ", ".join(f"{key}={hyper[key]!r}" for key in changed)
            raise InputError(f"{where}.grid, {told}: {error}") from error
        return method

    base = recipes.own(entry)
    for key, values in entry.grid.items():
        for value in values:
            made({**base, key: value}, [key])
    return [(hyper, made(hyper, entry.grid)) for hyper in rows]


def make_method(
    config: Config, name: str, counts: Any, hyper: Mapping[str, Any] | None = None
) -> Method:
    """The method of ``config.method.NAME``, whose grid is left to ``check_grid``.

    Args:
      hyper: the values of its entry, where they are others than the config's.

    Raises:
      InputError: there is no such entry, or its values are not the method's.
    """
    entries = {key: v for key, v in config.method.items() if hasattr(v, "items")}
    if name not in entries:
        raise InputError(
            f"config.method.names has {name!r}, but config.method has no entry of that "
            f"name: expected some of {', '.join(entries)}; several are written "
            "--config.method.names=\"('ce','los')\""
        )
    hyper = recipes.own(entries[name] if hyper is None else hyper)
    for key in RECIPE:
        if key not in hyper:
            raise InputError(f"config.method.{name} needs a value for {key!r}")
    try:
        return methods.make(name, counts, _numbers(hyper))
    except InputError as error:
        raise InputError(f"config.method.{name}: {error}") from error


def _numbers(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """What the method itself reads."""
    return {key: value for key, value in hyper.items() if key not in RECIPE}


def _value(config: Config, dotted: str) -> Any:
    value = config
    for part in dotted.split("."):
        value = value[part]
    return value


def _number(key: str, value: float, least: int) -> None:
    if not (math.isfinite(value) and value >= least):
        raise InputError(f"{key} must be a number of at least {least}, found {value}")
