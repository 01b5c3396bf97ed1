"""Datasets of labelled images with random access, and the splits of a task."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Decoder(NamedTuple):
    """How the images of a dataset are decoded on every use, with errors collected."""

    # (indices int[n], float64[n, crop_numbers] uniform in [0, 1) for random crops or
    # None for centre crops, n arrays uint8[H, W, C] to fill) -> n error messages, each
    # "" for success. Called from several threads at once.
    fill: Callable[[np.ndarray, np.ndarray | None, Any], list[str]]
    crop_numbers: int  # random numbers that a crop takes
    workers: int  # threads
    max_broken: float  # share of undecodable images that a run tolerates
    settings: dict[str, Any]  # everything the pixels depend on, JSON-compatible


def _digest(ids: Iterable[str]) -> str:
    # File names may have bytes that are not UTF-8.
    text = "\n".join(ids).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Sort names as text, before numbers, which are sorted as numbers.

    >>> sorted_classes(["10", "9", "b", "a"])
    ['a', 'b', '9', '10']
    """
    return sorted(names, key=lambda n: (int(n[:99]) if n.isdecimal() else -1, n))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of labelled images, read by index."""

    name: str
    classes: tuple[str, ...]  # K names
    labels: np.ndarray  # int32[N], 0 .. K-1
    ids: np.ndarray  # str[N], unique
    shape: tuple[int, int, int]  # H, W, C
    # int[n] -> uint8[n, H, W, C]; for features float32[n, 1, 1, D]
    read: Callable[[np.ndarray], np.ndarray]
    # For photographs only, which do not fit in memory as pixels; see images/photos.py.
    decoder: Decoder | None = None
    # By size and resize of the options, and interpolation.
    at_size: Callable[[int, int, str], Dataset] | None = None

    @property
    def class_counts(self) -> np.ndarray:
        """int64[K], examples per class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits of the SHA-256 of the sorted ids; identifies the examples."""
        return _digest(sorted(self.ids))[:16]

    @property
    def hash_of_order(self) -> str:
        """SHA-256 of the ids in their order, in hex."""
        return _digest(self.ids)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Dataset:
        """Select these examples, in this order."""
        decoder, at_size = self.decoder, self.at_size
        if decoder is not None:
            fill = decoder.fill
            decoder = decoder._replace(fill=lambda rows, *a: fill(indices[rows], *a))
        return dataclasses.replace(
            self,
            labels=self.labels[indices],
            ids=self.ids[indices],
            read=lambda rows: self.read(indices[rows]),
            decoder=decoder,
            at_size=at_size and (lambda *looks: at_size(*looks).take(indices)),
        )

    def in_memory(self) -> Dataset:
        """Read all images into one array, unless they are photographs."""
        if self.decoder is not None:
            return self
        images = self.read(np.arange(len(self)))
        return dataclasses.replace(self, read=lambda rows: images[rows])


@dataclasses.dataclass(frozen=True)
class Splits:
    """The splits of a long-tailed task."""

    train: Dataset
    valid: Dataset  # held out of the training set or given by the source; may be empty
    test: Dataset
    full_class_counts: np.ndarray  # int64[K] before holding out; defines the groups
    hash: str  # of the training set before holding out, or of all examples by folds

    def in_memory(self) -> Splits:
        """Read the images of all splits into memory, except photographs."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        loaded = {name: part.in_memory() for name, part in parts.items()}
        return dataclasses.replace(self, **loaded)

    def joined(self) -> Splits:
        """Move the validation examples to the training set; not for photographs."""
        parts = self.train, self.valid
        images = np.concatenate([part.read(np.arange(len(part))) for part in parts])
        train = dataclasses.replace(
            self.train,
            labels=np.concatenate([part.labels for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            read=lambda rows: images[rows],
        )
        none = self.valid.take(np.arange(0))
        return dataclasses.replace(self, train=train, valid=none)
