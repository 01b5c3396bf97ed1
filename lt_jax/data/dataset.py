"""Labelled images with random access, and a task of three splits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Decoder(NamedTuple):
    """How images are read that are decoded anew for every use, and may be damaged."""

    # (int[n], what decides their random crops: float64[n, numbers] of uniform numbers,
    # None: no random crops; uint8[H, W, C] for each, to be filled) -> for each what is
    # wrong with it, "" if nothing is. Several threads call it at once.
    fill: Callable[
        [np.ndarray, np.ndarray | None, Sequence[np.ndarray]],
        list[str],
    ]
    numbers: int
    workers: int  # threads
    broken: float  # share of the images that may be damaged before a run stops
    looks: dict[str, Any]  # what pixels depend on, as JSON knows it


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of labelled images with random access.

    Order is not the data set's business but the sampler's, so ``read`` takes indices.
    """

    name: str
    classes: tuple[str, ...]  # K names
    labels: np.ndarray  # int32[N], 0 .. K-1
    ids: np.ndarray  # str[N], unique names given by the source
    shape: tuple[int, int, int]  # H, W, C
    # int[n] -> uint8[n, H, W, C]; of features float32[n, 1, 1, D]
    read: Callable[[np.ndarray], np.ndarray]
    # Of photographs, which are too many to be held as pixels; see data/photos.py.
    decoder: Decoder | None = None

    @property
    def class_counts(self) -> np.ndarray:
        """int64[K], the number of examples of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the sorted ids: names the set of examples."""
        text = "\n".join(sorted(str(i) for i in self.ids))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Dataset:
        """The subset of these examples, in this order."""
        decoder = self.decoder
        if decoder is not None:
            fill = decoder.fill
            decoder = decoder._replace(
                fill=lambda rows, numbers, out: fill(indices[rows], numbers, out)
            )
        return dataclasses.replace(
            self,
            labels=self.labels[indices],
            ids=self.ids[indices],
            read=lambda rows: self.read(indices[rows]),
            decoder=decoder,
        )

    def in_memory(self) -> Dataset:
        """The same data set, read once into one array; photographs never are."""
        if self.decoder is not None:
            return self
        images = self.read(np.arange(len(self)))
        return dataclasses.replace(self, read=lambda rows: images[rows])


@dataclasses.dataclass(frozen=True)
class Splits:
    """A long-tailed task: what is fitted, what chooses, what is reported."""

    train: Dataset  # the examples that are fitted
    valid: Dataset  # held out of the training set; may be empty
    test: Dataset
    full_class_counts: (
        np.ndarray
    )  # int64[K] of the whole training set: decides the groups
    hash: str  # of the whole training set

    def in_memory(self) -> Splits:
        """The same splits, their images read once, but for photographs."""
        return dataclasses.replace(
            self,
            train=self.train.in_memory(),
            valid=self.valid.in_memory(),
            test=self.test.in_memory(),
        )
