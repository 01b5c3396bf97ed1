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
from lt_jax.report.charts import PAGE, Part, Table, part
from lt_jax.report.panels import LOS

TEXT = PAGE["classes"]
MOST_CELLS = 40_000  # accuracies on the page
THUMBNAIL = 96  # pixels


def table(run: Run) -> Part:
    """Count, accuracy by method, most frequent confusion and worst mistakes."""
    first = next(iter(run.fits.values()))[0]["per_class"]
    names, counts = first["class"], np.array(first["train_count"])
    limits = run.result["protocol"]["group_limits"]
    ends = [counts > limits["many"], counts < limits["few"]]
    groups = np.select(ends, ["many", "few"], "medium").tolist()
    worth = {  # stage 1 and LOS, then by balanced accuracy
        name: (name in ("none", LOS), np.nan_to_num(workdirs.over(fits, "balanced")[0]))
        for name, fits in run.fits.items()
    }
    ranked = sorted(worth, key=worth.__getitem__, reverse=True)
    kept = ranked[: max(3, MOST_CELLS // len(names))]
    columns: dict[str, Any] = {"class": names, "training images": counts.tolist()}
    columns["group"] = groups
    for method in (name for name in run.fits if name in kept):
        accuracy = workdirs.over_classes(run.fits[method], "accuracy")
        columns[method] = (100 * accuracy).tolist()
    dropped, guesses, images = len(ranked) - len(kept), "", []
    note = TEXT["uncached"].format(reason=PAGE["uncached"])
    for method in sorted(ranked, key=lambda name: name == "none"):
        if all(_taken_for(fit, len(names)) for fit in run.fits[method]):
            columns["taken for"] = _confused(names, run.fits[method])
            guesses = TEXT["guesses"].format(method=method)
            note, images = _mistakes(run, method)
            break
    return part(
        "classes",
        table=Table([*columns], list(zip(*columns.values(), strict=True))),
        images=images,
        note=note,
        dropped=TEXT["dropped"].format(number=dropped) if dropped else "",
        guesses=guesses,
    )


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
        return TEXT["correct"].format(method=method), []
    try:
        config, rows = workdir_config(run.path), [m["row"] for m in found]
        loaded, _ = splits.load_splits(config)
        test = loaded.test
        ids = [test.ids[row] for row in rows if row < len(test)]
        same = loaded.hash == run.result["dataset"]["split_hash"]
        if not same or ids != [mistake["id"] for mistake in found]:
            raise InputError("the test images are not those of this run any more")
        if test.shape[0] == 1:
            test = extraction.source_images(Path(config.data.dir).expanduser())
        images = map(_thumbnail, test.read(np.array(rows)))
        texts = [
            f"{test.classes[test.labels[m['row']]]} → {test.classes[m['predicted']]}, "
            f"{100 * m['confidence']:.0f} %"
            for m in found
        ]
    except (ValueError, LookupError, OSError, ImportError) as error:
        return TEXT["unread"].format(reason=error), []
    return TEXT["mistakes"].format(method=method), list(zip(images, texts, strict=True))


def _thumbnail(pixels: np.ndarray) -> str:
    """Make a data URI of uint8[H, W, C]."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    kind, file = "png" if max(image.size) <= 64 else "jpeg", io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
