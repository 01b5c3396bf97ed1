"""Classes of single images, by a finished fit of a workdir.

The data set is not needed: the outcome of a fit holds the names of its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lt_jax.data import catalogue
from lt_jax.data.dataset import Dataset, Splits
from lt_jax.data.loader import DecodeErrors
from lt_jax.errors import InputError
from lt_jax.experiment import weights
from lt_jax.experiment.config import Config, workdir_config
from lt_jax.experiment.session import make_task, photo_options
from lt_jax.export.pictures import check_top, pictures, ranked
from lt_jax.retraining.features import Request, evaluated_views, extract
from lt_jax.training.log import Logger


def predict(
    workdir: Path, images: Sequence[Path], method: str, top: int
) -> dict[str, Any]:
    """The most probable classes of images.

    Args:
      workdir: of a finished run.
      images: paths.
      method: whose head: a method, a fit as ``los/0.0``, ``none`` for that of stage 1;
        "": the last of ``config.method.names`` that is finished.
      top: classes told of each image.

    Returns:
      ``{"head": fit, "images": [{"path", "top": [{"class", "probability"}]}]}``, the
      most probable class first. Probabilities are the softmax of the head's logits,
      averaged over the mirror image where ``eval.flip`` says so.

    Raises:
      InputError: no finished fit, an unknown method, a file that is no image, or one of
        another size than the network was trained on where that size is fixed.
    """
    config = workdir_config(workdir)
    names = [method] if method else [*reversed(config.method.names), "stage1"]
    source = weights.find(workdir, names)
    outcome = source.outcome
    classes = tuple(outcome["per_class"]["class"])
    check_top(top)
    dataset = _dataset(config, classes, images)
    counts = np.array(outcome["per_class"]["train_count"])
    splits = Splits(dataset, dataset, dataset, counts, "")
    task = make_task(config, splits, {})
    task = task._replace(eval_batch=min(task.eval_batch, len(images)))
    head, network = weights.load_fit(source, task.backbone, dataset.shape, len(classes))
    views = evaluated_views(task.flip)
    request = Request(views, (), "float32")
    silent = Logger(workdir, talks=False)
    decode_errors = DecodeErrors(dataset)  # any error is fatal here
    blocks = list(extract(task, *network, dataset, request, silent, decode_errors))
    if decode_errors.reasons:
        reasons = decode_errors.reasons.items()
        told = "; ".join(f"{images[i]}: {why}" for i, why in reasons)
        raise InputError(f"cannot decode {told}")
    features = np.concatenate(blocks).reshape(len(views) * len(images), -1)
    logits = np.asarray(jax.jit(head.apply)(network.params["head"], features))
    mean = logits.reshape(len(views), len(images), -1).mean(axis=0)
    return ranked(outcome["run"], images, classes, mean, top)


def _dataset(
    config: Config, classes: tuple[str, ...], images: Sequence[Path]
) -> Dataset:
    """The images as a data set whose labels mean nothing."""
    name = config.data.name
    shape = catalogue.SHAPES.get(name)
    return pictures(images, classes, shape or photo_options(config.data), name)
