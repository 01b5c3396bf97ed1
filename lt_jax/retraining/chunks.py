"""Heads to fit, and which of them one compiled program fits at once."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_jax.distributed import sharding
from lt_jax.methods import Method
from lt_jax.training.optim import Sgd
from lt_jax.types import Params

# Arrays as large as a head and its logits on a batch that are in memory at a time:
# parameters, start, momentum, gradient, temporaries.
ARRAYS_PER_HEAD = 6
# Of a program on a CPU: more no longer fit its caches, and each takes longer.
HEADS_PER_CPU = 64
# Multiplications and additions that take about as long as compiling a program, on two
# cores. More are not spent on heads that only fill up a chunk.
COMPILATION = 5e10


class HeadJob(NamedTuple):
    """A head to fit."""

    run: str  # unique name, for example los/0.2
    method: Method
    start: Params
    rates: np.ndarray  # float32[steps]
    epochs: int
    sgd: Sgd
    order: tuple[int, ...]  # determines the order of examples, see seeds.generator


class Chunk(NamedTuple):
    """Heads that are fitted at once, on the same examples in the same order."""

    jobs: tuple[HeadJob, ...]
    width: int  # heads per program; repeats of the last job fill it up


def plan_chunks(jobs: Sequence[HeadJob], batch: int, memory: float) -> list[Chunk]:
    """Split jobs into chunks that fit the memory; a program fits a kind and a width.

    ``batch`` counts examples per step, ``memory`` is in bytes per device for heads.
    """
    programs: dict[Any, dict[Any, list[HeadJob]]] = {}
    for job in jobs:
        orders = programs.setdefault(program_of(job), {})
        key = job.method.sampler, job.epochs, job.order
        orders.setdefault(key, []).append(job)
    chunks = []
    for orders in programs.values():
        widths: set[int] = set()
        for group in sorted(orders.values(), key=len, reverse=True):
            width = _chunk_width(group, widths, batch, memory)
            widths.add(width)
            pieces = range(0, len(group), width)
            chunks += [Chunk(tuple(group[i : i + width]), width) for i in pieces]
    return chunks


def _chunk_width(
    group: Sequence[HeadJob], widths: Collection[int], batch: int, memory: float
) -> int:
    """Choose one of the widths that have a program, if it costs less than another."""
    one = group[0]
    limit, padding = max_heads(memory, one.start, batch), math.inf
    if jax.default_backend() == "cpu":
        limit = min(limit, HEADS_PER_CPU * sharding.padded_size(1))
        padding = COMPILATION / max(len(one.rates), 1)
    work = 4 * batch * np.size(one.start["kernel"])  # of a step of a head
    for width in sorted(widths):
        if -len(group) % width * work <= padding:
            return width
    return sharding.padded_size(-(-len(group) // -(-len(group) // limit)))


def max_heads(memory: float, head: Params, batch: int) -> int:
    """Return how many heads fit on the devices at once, at least one on each."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(head))
    num_classes = head["kernel"].shape[1]
    bytes_each = 4 * ARRAYS_PER_HEAD * (size + batch * num_classes)
    return max(1, int(memory / bytes_each)) * sharding.padded_size(1)


def count_programs(chunks: Sequence[Chunk]) -> int:
    """Count the programs that must be compiled to fit these chunks."""
    return len({(program_of(c.jobs[0]), c.width) for c in chunks if c.jobs[0].epochs})


def program_of(job: HeadJob) -> tuple[Any, ...]:
    """Return the arguments of `make_fit`: what the program is compiled for."""
    head, method = job.method.head, job.method
    sgd = job.sgd._replace(decay=0.0)  # an argument, see Settings
    return head.apply, head.trains, method.loss, method.project, sgd
