"""What can be wrong with the values of a config, told before anything is written."""

from __future__ import annotations

import math
import re
from typing import Any

import jax

from lt_jax import methods, models, optim, samplers, steps, trees
from lt_jax.heads import linear
from lt_jax.methods import Method
from lt_jax.optim import Sgd
from lt_jax.types import Config, InputError, Splits, known

# What a method's entry in the config holds beside the numbers the method itself reads.
RECIPE = ("lr", "epochs", "decay")

SELECT = ("last", "validation", "test")

# Stage 2 sees augmented images anew in every epoch, or the features of each image once.
FEATURES = ("online", "cached")

AT_LEAST_ONE = (
    "optim.repeats",
    "optim.epochs",
    "optim.batch",
    "method.repeats",
    "method.batch",
    "eval.batch",
    "eval.every",
    "save.every",
)
NOT_NEGATIVE = (
    "seed",
    "data.pad",
    "optim.decay",
    "optim.momentum",
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
    known("eval.select", c.eval.select, SELECT)
    known("method.features", c.method.features, FEATURES)
    known("optim.sampler", c.optim.sampler, samplers.POWERS)
    for group in ("optim", "method"):
        known(f"{group}.batch_norm", c[group].batch_norm, steps.BATCH_NORM)
    channels = splits.train.shape[-1]
    for key in ("data.mean", "data.std"):
        if len(_value(c, key)) != channels:
            raise InputError(
                f"{key} must have a value for each of the {channels} channels of "
                f"{c.data.name}, found {_value(c, key)}"
            )
    if not min(c.data.std) > 0:
        raise InputError(f"data.std must be positive, found {c.data.std}")
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )
    if c.method.features == "cached":
        check_cached(c)


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


def check_sweep(config: Config, splits: Splits) -> None:
    check_cached(config)


def check_training(
    config: Config, splits: Splits, backbone: Any, entries: dict[str, Method]
) -> None:
    """Checks schedules, and patterns against the parameters, without computing any.

    Raises:
      InputError: as ``check_values``.
    """
    c, o, m = config, config.optim, config.method
    key = jax.eval_shape(lambda: jax.random.key(0))

    sizes = models.features_of(backbone), len(splits.counts)

    def fresh(key: jax.Array) -> Any:
        params, _ = models.init(backbone, key, splits.train.shape)
        return {
            "backbone": params,
            "head": linear.init(key, None, *sizes, c.model.init),
        }

    params = jax.eval_shape(fresh, key)
    optim.rates(o.lr, o.epochs, 1, o.warmup, o.schedule)
    trained, _ = trees.partition(params, o.trains)
    sgd = Sgd(o.momentum, o.nesterov, o.decay, o.decay_on)
    sgd.check(trained)
    for name, method in entries.items():
        _number(f"method.{name}.decay", m[name].decay, least=0)
        sgd = Sgd(m.momentum, m.nesterov, m[name].decay, m.decay_on)
        try:
            optim.rates(m[name].lr, m[name].epochs, 1, m.warmup, m.schedule)
            head = jax.eval_shape(
                lambda key, method=method: method.head.init(
                    key, None, *sizes, c.model.init
                ),
                key,
            )
            trained, _ = trees.partition(
                {"head": head}, f"head/(?:{method.head.trains})"
            )
            sgd.check(trained)
        except InputError as error:
            raise InputError(f"method {name!r}: {error}") from error


def make_method(
    config: Config, name: str, counts: Any, values: dict[str, Any] | None = None
) -> Method:
    """The method of ``config.method.NAME``.

    Args:
      values: all of its entry's, where they are others than the config's.

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
    entry = entries[name] if values is None else values
    hyper = {k: v for k, v in entry.items() if k not in (*RECIPE, "grid")}
    for key in RECIPE:
        if key not in entry:
            raise InputError(f"config.method.{name} needs a value for {key!r}")
    return methods.make(name, counts, hyper)


def _value(config: Config, dotted: str) -> Any:
    value = config
    for part in dotted.split("."):
        value = value[part]
    return value


def _number(key: str, value: float, least: int) -> None:
    if not (math.isfinite(value) and value >= least):
        raise InputError(f"{key} must be a number of at least {least}, found {value}")
