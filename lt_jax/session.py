"""A command at work in a workdir: its config, checked before long work starts."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_jax import (
    data,
    losses,
    methods,
    metrics,
    models,
    results,
    samplers,
    steps,
)
from lt_jax.data.augment import Augment
from lt_jax.log import Log, plain, write_whole
from lt_jax.loop import Task
from lt_jax.methods import Method
from lt_jax.types import Config, InputError, Splits, known

# May change between two commands in one workdir: no result depends on them.
FREE = ("data.dir", "save.", "log.", "eval.batch")

# What a method's entry in the config holds beside the numbers the method itself reads.
RECIPE = ("lr", "epochs", "decay")

SELECT = ("last", "validation", "test")


class Session(NamedTuple):
    """A command at work in a workdir."""

    config: Config
    workdir: Path
    task: Task
    dataset: dict[str, Any]  # as in result.json
    log: Log
    stopped: Callable[[], bool]  # whether Ctrl-C was pressed
    methods: dict[str, Method]  # stage 2 by name, and the cross-entropy of "stage1"


def load_splits(config: Config) -> tuple[Splits, dict[str, np.ndarray]]:
    """The data of a config and the groups of its classes."""
    c = config.data
    splits = data.load(
        c.name,
        dir=c.dir,
        imbalance=c.imbalance,
        split=c.split,
        valid=c.valid,
        seed=c.valid_seed,
    )
    if not 0 <= c.few <= c.many:
        raise InputError(
            f"group limits must satisfy 0 <= few <= many, got {c.few} and {c.many}"
        )
    return splits, metrics.groups(splits.counts, c.many, c.few)


@contextlib.contextmanager
def open_session(
    config: Config, workdir: Path, talks: bool = True
) -> Iterator[Session]:
    """Checks everything that can be checked before the long work starts."""
    splits, groups = load_splits(config)
    c = config
    known("eval.select", c.eval.select, SELECT)
    known("optim.batch_norm", c.optim.batch_norm, steps.BATCH_NORM)
    known("method.batch_norm", c.method.batch_norm, steps.BATCH_NORM)
    known("optim.sampler", c.optim.sampler, samplers.POWERS)
    if c.eval.select == "validation" and not len(splits.valid):
        raise InputError(
            "eval.select is 'validation' but data.valid is 0: hold out a share of the "
            "training set, or keep the last checkpoint with eval.select='last'"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    log = Log(workdir, talks)
    _check_same_config(c, workdir)
    task = Task(
        splits=splits,
        groups=groups,
        backbone=models.create(
            c.model.name,
            stem=c.model.stem,
            width=c.model.width,
            zero_init=c.model.zero_init,
            init=c.model.init,
            dtype=c.model.dtype,
            axis_name=steps.AXIS,
        ),
        augment=Augment(
            pad=c.data.pad,
            flip=c.data.flip,
            mean=tuple(c.data.mean),
            std=tuple(c.data.std),
        ),
        flip=c.eval.flip,
        eval_batch=c.eval.batch,
        eval_every=c.eval.every,
        save_every=c.save.every,
        select=c.eval.select,
        log_seconds=c.log.seconds,
    )
    counts = splits.train.counts
    entries = {
        "stage1": Method(losses.cross_entropy(len(counts)), c.optim.sampler, "fresh"),
        **{name: _method(c, name, counts) for name in c.method.names},
    }
    dataset = results.describe(c.data.name, splits, groups)
    with _listening(log) as stopped:
        session = Session(c, workdir, task, dataset, log, stopped, entries)
        _announce(session)
        yield session


def _method(config: Config, name: str, counts: np.ndarray) -> Method:
    if name not in config.method:
        raise InputError(
            f"config.method.names has {name!r}, but there is no config.method.{name}"
        )
    entry = config.method[name]
    hyper = {key: entry[key] for key in entry if key not in RECIPE}
    return methods.make(name, counts, hyper)


@contextlib.contextmanager
def _listening(log: Log) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag; the second one stops at once."""
    pressed = False

    def note(_signal: int, _frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        log.say("Ctrl-C: stops after this step and saves; once more stops at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _check_same_config(config: Config, workdir: Path) -> None:
    """Stores the config, or refuses one that would mix two experiments."""
    file = workdir / "config.json"
    new = plain(config.to_dict())
    if file.exists():
        old = _flat(json.loads(file.read_text(encoding="utf-8")))
        now = _flat(new)
        lines = [
            f"  {key}: {old.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted(old.keys() | now.keys())
            if old.get(key) != now.get(key) and not key.startswith(FREE)
        ]
        if lines:
            raise InputError(
                f"{workdir} holds a run of another config:\n"
                + "\n".join(lines)
                + "\nUse another --workdir; a stage 1 is shared by --config.init.path."
            )
    write_whole(file, json.dumps(new, indent=1) + "\n")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _announce(session: Session) -> None:
    task, d, say = session.task, session.dataset, session.log.say
    config = session.config
    say(
        f"{d['name']}: {d['num_train']:,} training images ({d['num_valid']:,} held out "
        f"for validation), {d['num_test']:,} test images, {d['num_classes']} classes "
        f"of {d['counts_min']} to {d['counts_max']}, split {d['split_hash']}"
    )
    say(
        f"groups by training images: many > {config.data.many} "
        f"({d['groups']['many']} classes), medium ({d['groups']['medium']}), "
        f"few < {config.data.few} ({d['groups']['few']})"
    )
    kept = {
        "last": "the last checkpoint is kept",
        "validation": "the best checkpoint on validation is kept",
        "test": "THE TEST SET PICKS THE CHECKPOINT, as in the authors' code",
    }
    mirror = "averages over mirror images" if task.flip else "sees each image once"
    say(
        f"protocol: {kept[task.select]}; evaluation {mirror}; stage-2 batch norm "
        f"{config.method.batch_norm}; {steps.device_name()}"
    )
