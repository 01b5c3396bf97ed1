"""Classes one by one: accuracy by method, confusions, and the worst mistakes."""

from __future__ import annotations

import base64
import collections
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lt_jax.errors import InputError
from lt_jax.experiment import extraction, splits, workdirs
from lt_jax.experiment.config import workdir_config
from lt_jax.experiment.results import Outcome
from lt_jax.experiment.workdirs import Run
from lt_jax.report.charts import Part, Table
from lt_jax.report.panels import LOS, UNCACHED

MOST_CELLS = 40_000  # accuracies on the page
THUMBNAIL = 96  # pixels


def table(run: Run) -> Part:
    """Count, accuracy by method, most frequent confusion and worst mistakes."""
    first = next(iter(run.fits.values()))[0]["per_class"]
    names, counts = first["class"], np.array(first["train_count"])
    limit = run.result["protocol"]["group_limits"]
    groups = np.where(counts < limit["few"], "few", "medium")
    groups = np.where(counts > limit["many"], "many", groups)
    ranked = _ranked(run)
    kept = ranked[: max(3, MOST_CELLS // len(names))]
    columns: dict[str, Any] = {"class": names, "training images": counts.tolist()}
    columns["group"] = groups.tolist()
    for method in (name for name in run.fits if name in kept):
        values = [fit["per_class"]["accuracy"] for fit in run.fits[method]]
        columns[method] = (100 * np.mean(np.array(values, float), axis=0)).tolist()
    caption, note, images = "Accuracy in per cent, mean over seeds.", "", []
    if len(kept) < len(ranked):
        caption += f" {len(ranked) - len(kept)} methods are only in per_class.csv."
    guessing = [
        name
        for name in [*(name for name in ranked if name != "none"), "none"]
        if all(_taken_for(fit, len(names)) for fit in run.fits.get(name, [{}]))
    ]
    if guessing:
        main = guessing[0]
        columns["taken for"] = _confused(names, run.fits[main])
        caption += (
            f" Taken for: the most frequent wrong prediction of {main}, with its share "
            "of the class's test images."
        )
        note, images = _mistakes(run, main)
    else:
        note = f"What a class is taken for, and the worst mistakes: {UNCACHED}"
    rows = list(zip(*columns.values(), strict=True))
    shown = Table([*columns], rows)
    return Part("classes", "Classes", caption, table=shown, images=images, note=note)


def _ranked(run: Run) -> list[str]:
    """The methods by worth: stage 1 and LOS, then by balanced accuracy."""

    def worth(name: str) -> tuple[bool, float]:
        mean, _ = workdirs.over(run.fits[name], "balanced")
        return name in ("none", LOS), np.nan_to_num(mean)

    return sorted(run.fits, key=worth, reverse=True)


def _taken_for(fit: Outcome, size: int) -> list[tuple[int, float]]:
    """For every class the one that a fit takes it for, and how often; or nothing."""
    taken = (fit.get("analysis") or {}).get("taken_for") or {"class": [], "share": []}
    pairs = list(zip(taken["class"], taken["share"], strict=False))
    valid = len(pairs) == size and max(taken["class"]) < size
    return pairs if valid else []


def _confused(names: list[str], fits: list[Outcome]) -> list[str]:
    """Format the class that each class is most often taken for, over all fits."""
    sums: list[dict[int, float]] = [collections.defaultdict(float) for _ in names]
    for fit in fits:
        for total, (other, share) in zip(sums, _taken_for(fit, len(sums)), strict=True):
            total[other] += share / len(fits)
    most = [max(total.items(), key=lambda pair: pair[1]) for total in sums]
    return [f"{names[k]} ({100 * share:.0f} %)" if share else "" for k, share in most]


def _mistakes(run: Run, method: str) -> tuple[str, list[tuple[str, str]]]:
    """Return a caption or why there are no images, and images with their texts."""
    found = run.fits[method][0]["analysis"].get("mistakes", [])
    if not found:  # ``cached.py`` keeps none if undecodable images shift the rows
        return f"{method} has no mistakes, or some test images are undecodable.", []
    try:
        config = workdir_config(run.path)
        loaded, _ = splits.load_splits(config)
        test = loaded.test
        ids = [test.ids[m["row"]] for m in found if m["row"] < len(test)]
        if loaded.hash != run.result["dataset"]["split_hash"]:
            raise InputError("they are not those of this run any more")
        if ids != [m["id"] for m in found]:
            raise InputError("the test images are not those of this run any more")
        if test.shape[0] == 1:
            test = extraction.test_images(Path(config.data.dir).expanduser(), config)
        images = test.read(np.array([m["row"] for m in found]))
        texts = [
            f"{test.classes[test.labels[m['row']]]} → {test.classes[m['predicted']]}, "
            f"{100 * m['confidence']:.0f} %"
            for m in found
        ]
    except (ValueError, LookupError, OSError, ImportError) as error:
        return f"No images of mistakes, because of the data: {error}.", []
    note = (
        f"Wrong predictions of {method} with the highest confidence: true → predicted."
    )
    return note, list(zip(map(_thumbnail, images), texts, strict=True))


def _thumbnail(pixels: np.ndarray) -> str:
    """Make a data URI of uint8[H, W, C]."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    kind, file = "png" if max(image.size) <= 64 else "jpeg", io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
