"""Scikit-learn's handwritten digits: real images without a download.

1,797 grey images of 8x8, the test part of UCI's "Optical Recognition of Handwritten
Digits". They come without a split, so one is fixed here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.errors import InputError

SHAPE = (8, 8, 1)
TEST_PER_CLASS = 60


def load(dir: str) -> tuple[Dataset, Dataset]:
    """Load the training set (114 per class) and the test set (60 per class).

    The file is sorted by writer, so a fixed permutation chooses the test set. The
    smallest class has 114 other images; all classes are cut to that size. Both sets are
    in the order of the file, and ids are positions in it. ``dir`` is ignored.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise InputError(
            "digits needs scikit-learn, which is not installed: run "
            "pip install 'lt_jax[demo]'"
        )
    # The file of `sklearn.datasets.load_digits`, whose import takes half a second.
    file = Path(found.origin).parent / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    values, labels = table[:, :-1], table[:, -1].astype(int)
    # 0 .. 16 to 0 .. 255; the one tie (8, 127.5) rounds up to 128 as in PNG viewers.
    images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, *SHAPE)
    # The stream of the legacy generator never changes, as a fixed split requires.
    order = np.random.RandomState(0).permutation(len(labels))
    members = [order[labels[order] == c] for c in range(10)]
    smallest = min(len(rows) for rows in members)
    test = np.sort(np.concatenate([rows[:TEST_PER_CLASS] for rows in members]))
    train = np.sort(np.concatenate([rows[TEST_PER_CLASS:smallest] for rows in members]))
    full = Dataset(
        name="digits",
        classes=tuple(str(c) for c in range(10)),
        labels=labels.astype(np.int32),
        ids=np.array([f"digits_{i:05d}" for i in range(len(labels))]),
        shape=SHAPE,
        read=lambda rows: images[rows],
    )
    return full.take(train), full.take(test)
