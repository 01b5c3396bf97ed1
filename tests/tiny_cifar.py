"""A miniature CIFAR as TFDS writes it, without TensorFlow, download or real images.

``write(dir)`` leaves ``<dir>/cifar100/3.0.2`` with the features, ids and file names of
the TFDS builder. It yields encoded bytes, which is what keeps TensorFlow out of it.
"""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SHAPE = (32, 32, 3)
Png = tuple[str, int, bytes]  # id, label, PNG


def images(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """uint8[N, 32, 32, 3]: a pattern per class, with noise."""
    patterns = np.random.default_rng(0).uniform(40, 215, (num_classes, 4, 4, 3))
    noise = np.random.default_rng(seed).normal(0, 25, (len(labels), *SHAPE))
    plain = patterns[labels].repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(plain + noise, 0, 255).astype(np.uint8)


def examples(prefix: str, per_class: int, num_classes: int, seed: int) -> list[Png]:
    """Balanced examples in id order, their labels shuffled."""
    labels = np.repeat(np.arange(num_classes), per_class)
    labels = np.random.default_rng(seed).permutation(labels)
    made = []
    for i, array in enumerate(images(labels, num_classes, seed)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        made.append((f"{prefix}_{i:05d}", int(labels[i]), file.getvalue()))
    return made


def write(
    dir: str | os.PathLike[str],
    per_class: int = 20,
    num_classes: int = 100,
    test_per_class: int = 3,
) -> pathlib.Path:
    """Write cifar100 (cifar10 for 10 classes); return the version's folder."""
    return write_splits(
        dir,
        num_classes,
        {
            "train": examples("train", per_class, num_classes, seed=1),
            "test": examples("test", test_per_class, num_classes, seed=2),
        },
    )


def write_splits(
    dir: str | os.PathLike[str], num_classes: int, splits: dict[str, list[Png]]
) -> pathlib.Path:
    """Write the given examples."""
    names = [f"class {c}" for c in range(num_classes)]
    features: dict[str, Any] = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=SHAPE),
        "label": tfds.features.ClassLabel(names=names),
    }
    if num_classes == 100:
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)

    # Not registered: TFDS knows these names already, and tests write several times.
    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = f"cifar{num_classes}"
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for i, (name, label, png) in enumerate(splits[split]):
                record = {"id": name, "image": io.BytesIO(png), "label": label}
                if num_classes == 100:
                    record["coarse_label"] = label // 5
                yield i, record  # TFDS shuffles the file by a hash of this key

    tfds.disable_progress_bar()
    builder = Tiny(data_dir=os.fspath(dir), file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)
