"""All methods on pre-trained features of CIFAR100-LT, next to scikit-learn's.

    python benchmarks/pretrained_heads.py --features FOLDER
        [--json benchmarks/pretrained_heads.json] [--quick]

FOLDER has train.npz and test.npz with the features of all images, such as
`lt-jax features` writes for the balanced dataset. Per imbalance ratio and split: a
long-tailed subset with its classes in random order, a tenth of each class held out,
and heads at the published values, at those that `selection.choose` takes (one standard
error), and at the best on validation. Features are projected to the principal axes of
the training images, to save time; every grid is thinned to a few settings.

    python benchmarks/pretrained_heads.py --table benchmarks/pretrained_heads.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path

import choice
import jax
import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC

from lt_jax import __version__, metrics, recipes
from lt_jax.data import longtail
from lt_jax.files import jsonable
from lt_jax.retraining import selection
from lt_jax.retraining.features import NORM, standardise

RATIOS = (100, 200, 500)
SPLITS = 3
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
COLUMNS = ("published", "chosen", "best on validation")
UNSCALED = "published, features as they are"


def load(folder, axes, imbalance, seed):
    files = [np.load(Path(folder) / f"{part}.npz") for part in ("train", "test")]
    labels = files[0]["labels"]
    rows = choice.cut(labels, np.bincount(labels).max(), imbalance, seed)
    train = files[0]["features"][rows].astype(np.float32)
    test = files[1]["features"].astype(np.float32)
    if axes:
        centre = train.mean(axis=0)
        spread = np.cov(train - centre, rowvar=False)
        top = np.linalg.eigh(spread)[1][:, ::-1][:, :axes].astype(np.float32)
        train, test = (train - centre) @ top, (test - centre) @ top
    norm = np.linalg.norm(train, axis=1).mean()
    return train, labels[rows], test, files[1]["labels"], float(norm)


def thinned(name, case, count):
    entry = recipes.RECIPES[name](case)
    own = recipes.own(entry)
    others = [row for row in recipes.expand(entry) if row != own]
    take = np.unique(np.linspace(0, len(others) - 1, count - 1).round().astype(int))
    return [own, *(others[i] for i in take)]


def accuracies(logits, truth, groups):
    """Per cent: all classes, which is balanced here, and every group."""
    right = logits.argmax(axis=1) == truth
    each = np.array([right[truth == k].mean() for k in range(len(groups["few"]))])
    found = {name: each[where].mean() for name, where in groups.items() if where.any()}
    return {"all": 100 * each.mean()} | {n: 100 * v for n, v in found.items()}


def scikit(train, labels, valid, truth):
    """Name -> model, C chosen on validation."""
    plain = {"max_iter": 200, "tol": 1e-3}
    made = {
        "scikit-learn logistic": lambda c: LogisticRegression(C=c, **plain),
        "scikit-learn logistic, balanced": lambda c: LogisticRegression(
            C=c, class_weight="balanced", **plain
        ),
        "scikit-learn linear SVC": lambda c: LinearSVC(C=c / 10, dual=False, tol=1e-2),
        "scikit-learn nearest centroid": None,
    }
    for name, make in made.items():
        if make is None:
            yield name, NearestCentroid().fit(train, labels)
            continue
        tried = []
        for strength in STRENGTHS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = make(strength).fit(train, labels)
            score = choice.balanced(model.decision_function(valid), truth)
            tried.append((score, strength, model))
        yield name, max(tried, key=lambda t: t[:2])[2]


def cell(folder, axes, imbalance, seed, count):
    train, labels, test, truth, norm = load(folder, axes, imbalance, seed)
    counts = np.bincount(labels)
    groups = metrics.groups(counts, 100, 20)
    kept, held = longtail.hold_out(labels, 0.1, seed, len(counts))
    case = recipes.Case(recipes.smoothing(len(counts)))
    rows = [(n, row) for n in recipes.RECIPES for row in thinned(n, case, count)]
    own = {name: thinned(name, case, 1)[0] for name in recipes.RECIPES}
    (raw,) = choice.logits_of([*own.items()], train[kept], labels[kept], test)
    train, centre, scale = standardise(train)
    test = (test - centre) * scale
    inner = (train[kept], labels[kept], train[held], test)
    valid, tested, untouched = choice.logits_of(rows, *inner, with_start=True)
    result = {"norm": norm, "train": len(kept), "valid": len(held)}
    result["none"] = accuracies(untouched[1], truth, groups)
    scored = [
        {
            "method": name,
            "hyper": jsonable(row),
            "seeds": [0, 0],
            "diverged": None,
            "metrics": {
                "valid": {
                    "balanced": float(choice.balanced(z, labels[held])),
                    "all": float((z.argmax(axis=1) == labels[held]).mean()),
                }
            },
        }
        for (name, row), z in zip(rows, valid, strict=True)
    ]
    held_counts = np.bincount(labels[held], minlength=len(counts))
    given = scored, "balanced", own, held_counts
    chosen = {
        "published": own,
        "chosen": selection.choose(*given),
        "best on validation": selection.choose(*given, margin=0),
    }

    def on_test(method, hyper):
        pair = method, jsonable(hyper)
        at = next(i for i, r in enumerate(scored) if (r["method"], r["hyper"]) == pair)
        return accuracies(tested[at], truth, groups)

    result["methods"] = {
        name: {column: on_test(name, chosen[column][name]) for column in COLUMNS}
        | {UNSCALED: accuracies(z, truth, groups)}
        for name, z in zip(recipes.RECIPES, raw, strict=True)
    }
    found = selection.recommend(
        scored,
        held_counts,
        chosen=chosen["chosen"],
        untouched=float((untouched[0].argmax(1) == labels[held]).mean()),
    )
    result["recommended"] = found._asdict() | on_test(found.method, found.hyper)
    # Of norm 1, which suits the strengths.
    given = train[kept] / NORM, labels[kept], train[held] / NORM, labels[held]
    for name, model in scikit(*given):
        predicted = np.eye(len(counts))[model.predict(test / NORM)]
        result[name] = accuracies(predicted, truth, groups)
    return result


def table(report):
    """Markdown: mean accuracy over the splits, three columns as `a / b / c`."""
    ratios = report["cells"]
    splits = [
        f"IR {r}, {len(of)} split{'s'[: len(of) > 1]}" for r, of in ratios.items()
    ]
    lines = [f"| head | {' | '.join(splits)} |", "| --- |" + " ---: |" * len(ratios)]

    def line(title, *picks):
        cells = []
        for of in ratios.values():
            means = [np.mean([pick(split)["all"] for split in of]) for pick in picks]
            cells.append(" / ".join(f"{mean:.1f}" for mean in means))
        lines.append(f"| {title} | {' | '.join(cells)} |")

    first = next(iter(ratios.values()))[0]
    line("`none`: stage 1", lambda split: split["none"])
    for name in first["methods"]:
        line(
            f"`{name}`",
            *(
                lambda split, n=name, c=column: split["methods"][n][c]
                for column in (UNSCALED, *COLUMNS[:2])
            ),
        )
    line("**recommended**", lambda split: split["recommended"])
    for name in [n for n in first if n.startswith("scikit-learn")]:
        line(name, lambda split, n=name: split[n])
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="", help="folder of train.npz, test.npz")
    parser.add_argument("--axes", type=int, default=128, help="0: all features")
    parser.add_argument("--settings", type=int, default=4, help="per method")
    parser.add_argument("--json", default="", help="write the result to this file")
    parser.add_argument("--table", default="", help="print the table of such a file")
    parser.add_argument("--quick", action="store_true", help="one cell, 8 axes")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(Path(args.table).read_text())))
        return
    axes, count = (8, 2) if args.quick else (args.axes, args.settings)
    report = {
        "versions": {
            "lt_jax": __version__,
            "jax": jax.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "axes": axes,
        "settings": count,
        "cells": {},
    }
    if args.json and Path(args.json).exists():  # resume
        report = json.loads(Path(args.json).read_text())
    for seed in range(1 if args.quick else SPLITS):
        for ratio in RATIOS[: 1 if args.quick else None]:
            if len(report["cells"].get(str(ratio), ())) > seed:
                continue
            started = time.monotonic()
            found = cell(args.features, axes, ratio, seed, count)
            report["cells"].setdefault(str(ratio), []).append(found)
            print(f"IR {ratio}, split {seed}: {time.monotonic() - started:.0f} s")
            if args.json:
                Path(args.json).write_text(json.dumps(jsonable(report)) + "\n")
            print(table(report), flush=True)


if __name__ == "__main__":
    main()
