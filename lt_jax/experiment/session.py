"""A command that works in a workdir: everything is checked before work starts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import functools
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from lt_jax import losses, metrics, models
from lt_jax.data import catalogue
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.images.photos import PhotoOptions
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import EXIT_CODES, catch_signals
from lt_jax.errors import InputError, Interrupted
from lt_jax.experiment import results
from lt_jax.experiment.config import (
    Config,
    DataConfig,
    OptimConfig,
    RetrainConfig,
    UserConfig,
    as_dict,
    check_data,
    check_methods,
    make_method,
    resolve,
    without_dropped,
)
from lt_jax.heads import Head
from lt_jax.methods import Method
from lt_jax.metrics import Tally
from lt_jax.training import optim
from lt_jax.training.log import Logger, jsonable, write_atomically
from lt_jax.training.loop import Task, evaluate

# May change between two commands in one workdir: no result depends on them.
FREE = (
    "data.dir",
    "data.table",
    "data.workers",
    "optim.resident",
    "optim.at_once",
    "save.*",
    "log.*",
    "eval.batch",
    # Every fit is kept by its method and seeds, so more of them may come.
    "method.names",
    "method.repeats",
    "optim.repeats",
    # Every row of a sweep records its setting; `choose` only reads rows.
    "method.*.grid.*",
    "method.memory",
    "eval.choose",
    "eval.curves",
)


class Session(NamedTuple):
    """A command that works in a workdir."""

    config: Config
    workdir: Path
    task: Task
    dataset: dict[str, Any]  # as in result.json
    log: Logger
    stop_requested: Callable[[], str]  # name of the signal, or ""
    methods: dict[str, Method]  # stage 2 by name, and the cross-entropy of "stage1"

    def rates(
        self,
        lr: float,
        epochs: int,
        group: OptimConfig | RetrainConfig,
        images: int,
    ) -> np.ndarray:
        """Return the learning rate of every step under a group's schedule and batch.

        Args:
          lr: highest rate for a batch of ``group.lr_batch``; it scales with the batch.
          images: per epoch.

        Returns:
          float32[steps].
        """
        per_epoch = -(-images // group.batch)
        lr = optim.scaled(lr, group.batch, group.lr_batch)
        return optim.rates(lr, epochs, per_epoch, group.warmup, group.schedule)

    def finished(self, title: str) -> dict[str, Any] | None:
        """The outcome of a fit on these examples; None if it is not finished."""
        examples = self.task.splits.train.hash
        return results.finished_outcome(self.workdir, title, examples)

    def evaluate(self, head: Head, network: Sequence[Any], dataset: Dataset) -> Tally:
        """Evaluate a network, params and batch_stats, on a split."""
        params, batch_stats = network
        given = {"log": self.log, "stop_requested": self.stop_requested}
        return evaluate(self.task, head, params, batch_stats, dataset, **given)

    def raise_if_stopped(self, where: str) -> None:
        """Raise `Interrupted` if a signal has reached any process."""
        if by := self.stop_requested():
            raise Interrupted(where, by)


def load_splits(config: Config) -> tuple[Splits, dict[str, np.ndarray]]:
    """Load the data of a config and the groups of its classes."""
    c = config.data
    source = catalogue.PHOTOS.get(c.name)
    splits = catalogue.load(
        c.name,
        dir=c.dir,
        imbalance=c.imbalance,
        split=c.split,
        valid=c.valid,
        seed=c.valid_seed,
        photos=photo_options(c) if source else None,
        extra={key: getattr(c, key) for key in source.extra} if source else None,
    )
    return splits, metrics.groups(splits.full_class_counts, c.many, c.few)


def make_backbone(config: Config, shape: tuple[int, int, int]) -> Any:
    """Make the backbone of a config for examples of this shape."""
    m = config.model
    if m.name == "none":
        return models.Identity(math.prod(shape))
    return models.create(
        m.name,
        stem=m.stem,
        width=m.width,
        zero_init=m.zero_init,
        init=m.init,
        dtype=m.dtype,
        axis_name=sharding.AXIS,
    ).clone(engine=models.fastest_engine())


def photo_options(data: DataConfig) -> PhotoOptions:
    """Return how photographs are cropped and decoded."""
    c: Any = data  # photographs have these keys
    return PhotoOptions(c.size, c.resize, c.scale, c.ratio, c.broken, c.workers)


def make_task(config: Config, splits: Splits, groups: dict[str, np.ndarray]) -> Task:
    """Make what all fits of a config share."""
    c = config
    return Task(
        splits=splits,
        groups=groups,
        backbone=make_backbone(c, splits.train.shape),
        augment=Augment(
            pad=c.data.pad,
            flip=c.data.flip,
            mean=c.data.mean,
            std=c.data.std,
            jitter=c.data.jitter,
            randaugment=c.data.randaugment,
        ),
        flip=c.eval.flip,
        eval_batch=c.eval.batch,
        eval_every=c.eval.every,
        save_every=c.save.every,
        select=c.eval.select,
        resident=c.optim.resident,
        at_once=c.optim.at_once,
        log_seconds=c.log.seconds,
    )


@contextlib.contextmanager
def open_session(
    config: UserConfig,
    workdir: Path,
    writes: bool = True,
    check: Callable[[Config, Splits, Any], None] | None = None,
) -> Iterator[Session]:
    """Resolve a config and check all that can be checked before anything is written.

    Args:
      config: what a config file returns.
      writes: whether the command logs and writes. If not, Ctrl-C stops it at once, and
        SIGTERM, which may reach one of several processes, at the next batch.
      check: what the command checks in addition, given the backbone.
    """
    c = resolve(config)
    if scheme := re.match(r"(\w+):/", str(workdir)):  # Path has removed a slash
        raise InputError(
            f"--workdir {scheme[1]}://...: a workdir must be in a file system that all "
            "processes share; mount the bucket (gcsfuse, s3fs) and use the mount"
        )
    _check_same_config(c, workdir)
    splits, groups = load_splits(c)
    check_data(c, splits)
    # Photographs stay on disk, encoded.
    held = splits if c.data.name in catalogue.PHOTOS else splits.in_memory()
    task = make_task(c, held, groups)._replace(profile=c.log.profile)
    counts = splits.train.class_counts
    made = {name: make_method(c, name, counts) for name in c.method.names}
    check_methods(c, splits, task.backbone, made)
    if check:
        check(c, splits, task.backbone)
    made["stage1"] = Method(losses.cross_entropy(len(counts)), c.optim.sampler, "fresh")
    dataset = results.describe(c.data.name, splits, groups)
    log = Logger(workdir, writes)
    session = functools.partial(Session, c, workdir, task, dataset, log, methods=made)
    if not writes:
        with catch_signals("SIGTERM") as stop_requested:
            yield session(stop_requested=stop_requested)
        return
    text = json.dumps(jsonable(as_dict(c)), indent=1, sort_keys=True)
    with workdir_lock(workdir), catch_signals(*EXIT_CODES) as stop_requested:
        _check_same_config(c, workdir)  # another job may have run in the meantime
        write_atomically(workdir / "config.json", text + "\n")
        opened = session(stop_requested=stop_requested)
        _announce(opened)
        yield opened


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[None]:
    """Keep a second job out of a workdir.

    The operating system releases the lock of process 0 when it ends, so no lock is
    stale. A file system without locks is not protected.

    Raises:
      InputError: another job is running there.
    """
    held: list[int] = []

    def lock() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        file = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        held.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 1000).decode(errors="replace").strip()
            raise InputError(
                f"another lt-jax works in {workdir}: {owner or 'unknown'}. Wait for "
                "it, stop it, or use another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        text = f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
        os.pwrite(file, text.encode(), 0)

    try:
        processes.on_process_zero(lock)
        yield
    finally:
        for file in held:
            os.close(file)


def _check_same_config(config: Config, workdir: Path) -> None:
    """Refuse a config that would mix two experiments in one workdir."""
    if (workdir / "config.json").exists():
        old = flatten_dict(without_dropped(results.read_config(workdir)), sep=".")
        now = flatten_dict(jsonable(as_dict(config)), sep=".")
        lines = [
            f"  {key}: {old.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted(old.keys() | now.keys())
            if old.get(key) != now.get(key)
            and not any(fnmatch.fnmatch(key, free) for free in FREE)
        ]
        if lines:
            raise InputError(
                f"{workdir} holds a run of another config:\n"
                + "\n".join(lines)
                + "\nUse another --workdir; a stage 1 is shared by --config.init.path."
            )


def _announce(session: Session) -> None:
    task, d, info = session.task, session.dataset, session.log.info
    config = session.config
    info(
        f"{d['name']}: {d['num_train']:,} training images ({d['num_valid']:,} held out "
        f"for validation), {d['num_test']:,} test images, {d['num_classes']} classes "
        f"of {d['counts_min']} to {d['counts_max']}, split {d['split_hash']}"
    )
    info(
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
    info(
        f"protocol: {kept[task.select]}; evaluation {mirror}; stage-2 batch norm "
        f"{config.method.batch_norm}; {sharding.device_name()}"
    )
