"""Opening a workdir for a command: everything is checked before work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import hashlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from lt_jax import losses, metrics, models
from lt_jax.data.augment.transforms import Augment
from lt_jax.data.dataset import Splits
from lt_jax.distributed import processes, sharding
from lt_jax.distributed.interrupt import EXIT_CODES, catch_signals
from lt_jax.errors import InputError, Interrupted
from lt_jax.experiment import checks, results
from lt_jax.experiment.config import (
    FREE,
    UserConfig,
    as_dict,
    earlier_value,
    read_config,
    resolve,
    without_dropped,
)
from lt_jax.experiment.records import Config
from lt_jax.experiment.splits import describe, load_splits
from lt_jax.files import as_json, claim, jsonable, open_regular, write
from lt_jax.heads import Head
from lt_jax.methods import Method
from lt_jax.recipes import FROM_DATA
from lt_jax.retraining.analysis import fit_temperature
from lt_jax.retraining.engine import measure_heads
from lt_jax.retraining.features import plain_features
from lt_jax.training import sinks
from lt_jax.training.log import Logger
from lt_jax.training.stage import Task
from lt_jax.types import Weights

# Keys that may differ between processes: where and how a host reads its data.
PER_HOST = ("data.dir", "data.table", "data.workers")


class Session(NamedTuple):
    """A command that works in a workdir."""

    config: Config
    workdir: Path
    task: Task
    dataset: dict[str, Any]  # as in result.json
    log: Logger
    methods: dict[str, Method]  # stage 2 by name, and the cross-entropy of "stage1"

    def finished(self, title: str) -> dict[str, Any] | None:
        """Return the outcome of a fit as process 0 reads it; None if not finished."""
        directory = self.workdir / "checkpoints" / title
        report = self.log.warning
        found = processes.from_process_zero(lambda: results.outcome(directory, report))
        examples = self.task.splits.train.hash
        before = found.get("adopted_for", found["fitted_on"]) if found else examples
        if before != examples:
            raise InputError(
                f"{directory} was fitted on other training examples: split {before}, "
                f"but the data now give {examples}. Use another --workdir"
            )
        return found

    def validate(self, head: Head, network: Weights) -> results.Validation | None:
        """Measure a network on the validation set; None if there is none."""
        task, valid = self.task, self.task.splits.valid
        if not len(valid):
            return None
        found, params = plain_features(task, network, valid), network.params["head"]
        memory = self.config.method.memory * 2**30
        (tally,) = measure_heads(head, [params], found, task.eval_batch, memory)
        temperature = fit_temperature(head.apply, [(params, found)], task.eval_batch)
        return results.Validation(tally, temperature)

    def raise_if_stopped(self, where: str) -> None:
        """Raise `Interrupted` if a signal has reached any process."""
        if by := self.task.stop_requested():
            raise Interrupted(where, by)


def make_task(config: Config, splits: Splits, groups: dict[str, np.ndarray]) -> Task:
    """Make what all fits of a config share."""
    c = config
    if c.model.name == "none":  # the examples are features
        shape, scaled = splits.train.shape, c.data.norm > 0
        backbone: Any = models.Identity(math.prod(shape), scaled)
    else:
        engine, values = models.fastest_engine(), dataclasses.asdict(c.model)
        backbone = models.create(**values, axis_name=sharding.AXIS, engine=engine)
    return Task(
        splits=splits,
        groups=groups,
        group_average=c.eval.group_average,
        backbone=backbone,
        augment=Augment(*(getattr(c.data, key) for key in Augment._fields)),
        flip=c.eval.flip,
        eval_batch=c.eval.batch,
        eval_every=c.eval.every,
        save_every=c.save.every,
        select=c.eval.select,
        resident=c.optim.resident,
        log_seconds=c.log.seconds,
        profile=c.log.profile,
    )


@contextlib.contextmanager
def open_session(
    config: UserConfig,
    workdir: Path,
    writes: bool = True,
    sweeps: bool = False,
    check: Callable[[Config, Task], None] | None = None,
) -> Iterator[Session]:
    """Check a command completely, then open its workdir, locked if it writes.

    Args:
      writes: whether the command logs and writes. If not, Ctrl-C stops it at once, and
        SIGTERM, which may reach one of several processes, at the next batch.
      sweeps: whether the command tries the methods' grids.
      check: raises InputError if the command cannot start in a new workdir.
    """
    c = processes.together(lambda: resolve(config), _shared_values)
    if scheme := re.match(r"(\w+):/", str(workdir)):  # Path has removed a slash
        raise InputError(
            f"--workdir {scheme[1]}://...: a workdir must be in a file system that all "
            "processes share; mount the bucket (gcsfuse, s3fs) and use the mount"
        )
    processes.on_process_zero(lambda: _check_same_config(c, workdir))
    splits, groups = processes.together(lambda: load_splits(c), _split_digests)
    c = checks.from_data(c, splits.full_class_counts)
    checks.check_data(c, splits)
    given, file = c, workdir / "config.json"  # which keeps the given batches
    c, cuts = checks.cut_batches(c, splits)
    task = make_task(c, processes.together(splits.in_memory), groups)
    if sweeps:
        cuts += checks.check_sweep(c, splits)
    methods = checks.make_methods(c, splits, task.backbone, grids=sweeps)
    loss = losses.cross_entropy(len(splits.full_class_counts))
    methods["stage1"] = Method(loss, c.optim.sampler, "fresh")
    if check and processes.from_process_zero(lambda: not file.exists()):
        check(c, task)
    lock = workdir_lock(workdir) if writes else contextlib.nullcontext(lambda: None)
    signals = EXIT_CODES if writes else ["SIGTERM"]
    dataset = describe(c.data.name, splits, groups)
    log = Logger(workdir, writes)
    if writes:
        processes.on_process_zero(lambda: sinks.check_installed(c.log.sinks))
    closing, catching = contextlib.closing(log), catch_signals(*signals)
    with lock as check_workdir, catching as signalled, closing:

        def stop_requested() -> str:
            check_workdir()
            return signalled()

        task = task._replace(log=log, stop_requested=stop_requested)
        session = Session(c, workdir, task, dataset, log, methods)
        if writes:
            # Another job may have run in the meantime.
            processes.on_process_zero(lambda: _check_same_config(given, workdir))
            processes.on_process_zero(lambda: write(file, as_json(as_dict(given))))
            log.detail(results.command())
            for line in (*_announcement(session), *cuts):
                log.info(line)
            about = {"config": as_dict(given), "dataset": dataset}
            log.open_sinks(c.log.sinks, jsonable(about))
        yield session


def _shared_values(config: Config) -> dict[str, Any]:
    """Return the values of a config that all processes must have."""
    values = flatten_dict(jsonable(as_dict(config)), sep=".")
    return {key: value for key, value in values.items() if key not in PER_HOST}


def _split_digests(loaded: tuple[Splits, Any]) -> dict[str, str]:
    """Return a digest of the examples and labels of each split, in their order."""
    digests = {}
    for name in ("train", "valid", "test"):
        dataset = getattr(loaded[0], name)
        text = "\n".join(map(str, dataset.ids)).encode(errors="surrogateescape")
        labels = np.ascontiguousarray(dataset.labels).tobytes()
        digests[f"data split {name}"] = hashlib.sha256(text + labels).hexdigest()[:16]
    return digests


@contextlib.contextmanager
def workdir_lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Keep a second job out of a workdir; raise InputError if one is running there.

    The operating system releases the lock when process 0 ends, however it ends. A file
    system without locks is not protected. Yields a function that raises InputError if
    the workdir was deleted or moved since.
    """
    path, held = workdir / "lock", list[int]()

    def lock() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open_regular(path, os.O_RDWR | os.O_CREAT)
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
        claim(workdir, workdir)

    def check() -> None:
        try:
            same = all(os.path.samestat(os.fstat(f), os.stat(path)) for f in held)
        except FileNotFoundError:
            same = False
        if processes.max_over_processes(not same):
            raise InputError(
                f"{workdir} was deleted or moved while this job worked in it. Rerun "
                "the same command"
            )

    try:
        processes.on_process_zero(lock)
        yield check
    finally:
        for file in held:
            os.close(file)


def _check_same_config(config: Config, workdir: Path) -> None:
    """Refuse a config that would mix two experiments in one workdir."""
    if not (workdir / "config.json").exists():
        return
    old = flatten_dict(without_dropped(read_config(workdir)), sep=".")
    now = flatten_dict(jsonable(as_dict(config)), sep=".")
    old |= {key: earlier_value(key) for key in now.keys() - old.keys()}
    lines = [
        f"  {key}: {old[key]!r} there, {now.get(key)!r} now\n"
        for key in sorted(old)
        if old[key] != now.get(key)
        and now.get(key) != FROM_DATA  # compared once it is known
        and not any(fnmatch.fnmatch(key, free) for free in FREE)
    ]
    if lines:
        remedy = "Use another --workdir; a stage 1 is shared by --config.init.path."
        if config.eval.folds or old["eval.folds"]:  # trains its own without each fold
            remedy = "Use another --workdir."
        raise InputError(
            f"{workdir} holds a run of another config:\n{''.join(lines)}{remedy}"
        )


def _announcement(session: Session) -> list[str]:
    """Describe the data, the groups of classes and the protocol."""
    c, d = session.config, session.dataset
    many, medium, few = (d["groups"][name] for name in metrics.GROUPS)
    mirror = "averages over mirror images" if c.eval.flip else "sees each image once"
    kept = {
        "last": "the last checkpoint is kept",
        "validation": "the best checkpoint on validation is kept",
        "test": "THE TEST SET PICKS THE CHECKPOINT, as in the authors' code",
    }
    held = f"{d['num_valid']:,} held out for validation"
    if c.eval.folds:
        held = f"validated in {c.eval.folds} stratified folds"
    return [
        f"{d['name']}: {d['num_train']:,} training images ({held}), "
        f"{d['num_test']:,} test images, {d['num_classes']} classes of "
        f"{d['counts_min']} to {d['counts_max']}, split {d['split_hash']}",
        f"groups by training images: many > {c.data.many} ({many} classes), medium "
        f"({medium}), few < {c.data.few} ({few}); accuracy of a group: mean over "
        f"{c.eval.group_average}",
        f"protocol: {kept[c.eval.select]}; evaluation {mirror}; stage-2 batch norm "
        f"{c.method.batch_norm}",
    ]
