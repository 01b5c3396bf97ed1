"""Scikit-learn's handwritten digits: real images without a download, for a first run.

1,797 grey images of 8x8 (the test part of UCI's "Optical Recognition of Handwritten
Digits"), which scikit-learn carries in its package. No split comes with them, so one is
fixed here.
"""

from __future__ import annotations

import numpy as np

from lt_jax.data.dataset import Dataset
from lt_jax.errors import InputError

TEST_PER_CLASS = 60


def load(dir: str) -> tuple[Dataset, Dataset]:
    """The training pool (114 a class) and the test set (60 a class), both balanced.

    The file holds several writers one after the other, so the tail of the file would
    test on writers that were never seen, and on few of them. Instead one permutation,
    fixed in this function, orders the file: of each class the first 60 are the test
    set and the next 114 the pool. 114 is what the smallest class has left; the up to
    nine more of the other classes are left out, so that the largest size is the same
    for every class. Both sets stand in the order of the file, which their ids count
    (``digits_00017``).

    Args:
      dir: not read; the images come with scikit-learn.

    Raises:
      InputError: scikit-learn is not installed.
    """
    del dir
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'lt_jax[demo]'"
        ) from error
    values, labels = load_digits(return_X_y=True)
    # 0 .. 16 onto 0 .. 255; the one tie (8, 127.5) goes up to 128 as in PNG viewers.
    images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)

    # The legacy generator's stream is frozen for good, and a pinned split needs that.
    order = np.random.RandomState(0).permutation(len(labels))
    members = [order[labels[order] == c] for c in range(10)]
    smallest = min(len(rows) for rows in members)
    test = np.sort(np.concatenate([rows[:TEST_PER_CLASS] for rows in members]))
    pool = np.sort(np.concatenate([rows[TEST_PER_CLASS:smallest] for rows in members]))

    whole = Dataset(
        name="digits",
        classes=tuple(str(c) for c in range(10)),
        labels=labels,
        ids=np.array([f"digits_{i:05d}" for i in range(len(labels))]),
        shape=(8, 8, 1),
        read=lambda rows: images[rows],
    )
    return whole.take(pool), whole.take(test)
