"""Every method on one representation, at published and at tuned values.

    python benchmarks/all_methods.py own --stage1 WORKDIR --out FOLDER
    python benchmarks/all_methods.py cut --features FEATURES --out FOLDER
        [--ratios 10 50 100 200 500] [--splits 3] [--axes 64] [--settings 4] [--quick]

`own`: the features of a finished stage 1 on CIFAR100-LT that held out no images, with
its head. Values are tuned on images of CIFAR-100 that are not in the long-tailed
training set, up to 20 per class; the largest class has none left. FOLDER/features.npz
keeps the features as float16; where it exists, WORKDIR is not needed. Three seeds of
stage 2.

`cut`: features of all images of a balanced dataset, as FEATURES/train.npz and test.npz.
Per imbalance ratio and split: a long-tailed subset with its classes in random order,
a tenth of each class held out to tune on, the principal axes of the training features,
and scikit-learn's classifiers. Every grid is thinned to a few settings.

Both write FOLDER/heads.json, which leaderboard.py shows; `cut` resumes it. Published
values stand unless others are better on validation by more than a standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import choice
import jax
import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC

from lt_jax import __version__, api, heads, metrics, recipes
from lt_jax.data import longtail
from lt_jax.files import jsonable
from lt_jax.retraining import engine, selection
from lt_jax.retraining.features import NORM, Features, plain_features, standardise

SEEDS = (0, 1, 2)  # of stage 2, or of the subset
PER_CLASS = 20  # images to tune on
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
KEPT = (
    *("all", "many", "medium", "few", "balanced", "ece", "nll"),
    *("loma_row", "loma_row_spread"),
    *(f"rsd_{part}" for part in metrics.RSD),
)


class Data(NamedTuple):
    """Features float32[N, D] and labels int[N] of three sets, and the initial head."""

    train: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    valid_labels: np.ndarray
    test: np.ndarray
    truth: np.ndarray
    start: Any  # kernel float32[D, K], bias float32[K]


def rows_of(case, settings):
    """(method, hyperparameters) of the published values and others of every grid."""
    found = []
    for name, recipe in recipes.RECIPES.items():
        own = recipes.own(recipe(case))
        others = [row for row in recipes.expand(recipe(case)) if row != own]
        if settings:
            few = np.linspace(0, len(others) - 1, settings - 1).round().astype(int)
            others = [others[i] for i in np.unique(few)] if others else []
        found += [(name, row) for row in [own, *others]]
    return found


def fit(data, rows, seed):
    counts = np.bincount(data.labels)
    made = {
        f"{i}": api.published(name, counts, **row) for i, (name, row) in enumerate(rows)
    }
    how = {"start": data.start, "seed": seed, "memory": 4.0}
    return [*api.fit_heads(data.train, data.labels, made, **how).values()]


def measure(fitted, values, labels, groups):
    """Return the metrics of every head on a set."""
    kinds, found = defaultdict(list), [{}] * len(fitted)
    for i, head in enumerate(fitted):
        kinds[head.head].append(i)
    examples = Features(values[None], labels.astype(np.int32))
    for kind, at in kinds.items():
        many = [fitted[i].params for i in at]
        tallies = engine.measure_heads(kind, many, examples, 2048, 2.0**31)
        for i, tally in zip(at, tallies, strict=True):
            found[i] = metrics.summary(tally, groups)
    return found


def compact(summary):
    return {
        k: round(float(summary[k]), 6)
        for k in KEPT
        if summary.get(k, np.nan) == summary.get(k, np.nan) and k in summary
    }


def all_methods(data, groups, seeds, settings):
    """Fit all rows per seed; return a cell per seed, sizes, and what was chosen."""
    classes = len(np.bincount(data.labels))
    case = recipes.Case(recipes.smoothing(classes))
    rows = rows_of(case, settings)
    curve = [
        ("los", {**recipes.own(recipes.RECIPES["los"](case)), "delta": delta})
        for delta in case.smoothing.curve
    ]
    own = {name: recipes.own(recipes.RECIPES[name](case)) for name in recipes.RECIPES}
    start = api.FittedHead(heads.linear, data.start, None)
    tried, fits = [], []
    for seed in seeds:
        fitted = fit(data, [*rows, *curve], seed)
        on_valid = measure([*fitted, start], data.valid, data.valid_labels, groups)
        fits.append((seed, fitted, on_valid[-1]["all"]))
        for (name, row), head, found in zip(rows, fitted, on_valid, strict=False):
            tried.append(
                {
                    "method": name,
                    "hyper": jsonable(row),
                    "seeds": [0, seed],
                    "diverged": head.diverged,
                    "metrics": {"valid": {k: found[k] for k in ("balanced", "all")}},
                }
            )
    held = np.bincount(data.valid_labels, minlength=classes)
    tuned = selection.choose(tried, "balanced", jsonable(own), held)
    recommended = selection.recommend(
        tried, held, chosen=tuned, untouched=float(np.mean([each for *_, each in fits]))
    )
    names = [(name, jsonable(row)) for name, row in rows]
    cells = []
    for seed, fitted, _ in fits:
        picks = {
            (name, column): names.index((name, jsonable(values[name])))
            for name in own
            for column, values in (("published", own), ("tuned", tuned))
        }
        picked = [*picks.values(), *range(len(rows), len(fitted))]
        different = sorted(set(picked))
        on_test = measure(
            [*(fitted[i] for i in different), start], data.test, data.truth, groups
        )
        found = dict(zip(different, map(compact, on_test[:-1]), strict=True))
        methods: dict[str, Any] = {name: {} for name in own}
        for (name, column), i in picks.items():
            methods[name][column] = found[i]
        cells.append(
            {
                "seed": seed,
                "none": compact(on_test[-1]),
                "methods": methods,
                "curve": {
                    str(row["delta"]): found[len(rows) + i]
                    for i, (_, row) in enumerate(curve)
                },
            }
        )
    sizes = {
        "train": len(data.labels),
        "valid": len(data.valid_labels),
        "test": len(data.truth),
        "width": data.train.shape[1],
        "norm": float(np.linalg.norm(data.train, axis=1).mean()),
        "heads": len(seeds) * len(rows),
        "diverged": sum(row["diverged"] is not None for row in tried),
    }
    chosen = {"tuned": tuned, "recommended": recommended._asdict()}
    return cells, jsonable(sizes), jsonable(chosen)


def of_stage1(workdir, file):
    """Write the features of a stage 1 on all images of CIFAR-100, and its head."""
    from lt_jax.experiment import stored
    from lt_jax.experiment.config import workdir_config
    from lt_jax.experiment.session import make_task
    from lt_jax.experiment.splits import load_splits

    c = workdir_config(workdir)
    splits, groups = load_splits(c)
    task = make_task(c, splits, groups)
    (source,) = stored.stage1(workdir)[:1]
    _, network = stored.load_fit(source, task.backbone, splits.train.shape, 100)
    whole = dataclasses.replace(c, data=dataclasses.replace(c.data, imbalance=1.0))
    everything, _ = load_splits(whole)
    rest = everything.train
    unused = np.flatnonzero(~np.isin(rest.ids, splits.train.ids))
    assert len(rest) - len(unused) == len(splits.train), "the splits do not nest"
    members = longtail.by_class(rest.labels[unused], 100)
    tuned_on = np.concatenate([unused[m[:PER_CLASS]] for m in members])
    arrays = {}
    sets = {"train": splits.train, "valid": rest.take(tuned_on), "test": splits.test}
    for name, dataset in sets.items():
        found = plain_features(task, network, dataset)
        arrays[f"{name}_features"] = found.values[0].astype(np.float16)
        arrays[f"{name}_labels"] = found.labels.astype(np.uint8)
    head = {k: np.asarray(v, np.float32) for k, v in network.params["head"].items()}
    np.savez_compressed(file, **arrays, **head)
    config = json.loads((workdir / "config.json").read_text("utf-8"))
    config["data"]["dir"] = ""  # of another machine
    (file.parent / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copy(source.directory / "outcome.json", file.parent / "stage1.json")


def own(args):
    file = args.out / "features.npz"
    if not file.exists():
        of_stage1(args.stage1, file)
    kept = np.load(file)
    sets = [
        (
            kept[f"{name}_features"].astype(np.float32),
            kept[f"{name}_labels"].astype(int),
        )
        for name in ("train", "valid", "test")
    ]
    start = {"kernel": kept["kernel"], "bias": kept["bias"]}
    groups = metrics.groups(np.bincount(kept["train_labels"]), 100, 20)
    data = Data(*(array for pair in sets for array in pair), start)
    cells, sizes, chosen = all_methods(data, groups, SEEDS, args.settings)
    yield "", {"data": sizes, "chosen": [chosen], "cells": cells}


def subset(folder, axes, imbalance, seed):
    """Return long-tailed training features, the test set, and both labels."""
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
    return train, labels[rows], test, files[1]["labels"]


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


def cell(folder, axes, imbalance, seed, settings):
    """Measure all methods, published values on raw features, and scikit-learn's."""
    train, labels, test, truth = subset(folder, axes, imbalance, seed)
    counts = np.bincount(labels)
    groups = metrics.groups(counts, 100, 20)
    kept, held = longtail.hold_out(labels, 0.1, seed, len(counts))
    case = recipes.Case(recipes.smoothing(len(counts)))
    published = rows_of(case, 1)

    def prepared(train, test):
        given = train[kept], labels[kept]
        start = api.fit_head(*given, api.stage1(np.bincount(given[1]))).params
        return Data(*given, train[held], labels[held], test, truth, start)

    raw = prepared(train, test)
    unscaled = measure(fit(raw, published, 0), test, truth, groups)
    scaled, centre, scale = standardise(train)
    data = prepared(scaled, (test - centre) * scale)
    (found,), sizes, chosen = all_methods(data, groups, (0,), settings)
    found["seed"] = seed
    for (name, _), summary in zip(published, unscaled, strict=True):
        found["methods"][name]["unscaled"] = compact(summary)
    # Of norm 1, which suits the strengths.
    given = data.train / NORM, data.labels, data.valid / NORM, data.valid_labels
    found["others"] = {}
    for name, model in scikit(*given):
        right = model.predict(data.test / NORM) == truth
        each = np.array([right[truth == k].mean() for k in range(len(counts))])
        found["others"][name] = {"all": float(right.mean())} | {
            g: float(each[where].mean()) for g, where in groups.items() if where.any()
        }
    sizes["norm"] = float(np.linalg.norm(raw.train, axis=1).mean())
    return found, sizes, chosen


def cut(args):
    for seed in range(args.splits):
        for ratio in args.ratios:
            done = read(args.out)["groups"].get(str(ratio), {})
            if any(one["seed"] == seed for one in done.get("cells", ())):
                continue
            found, sizes, chosen = cell(
                args.features, args.axes, ratio, seed, args.settings
            )
            yield (
                str(ratio),
                {
                    "data": sizes,
                    "chosen": [*done.get("chosen", ()), chosen],
                    "cells": [*done.get("cells", ()), found],
                },
            )


def read(folder):
    file = folder / "heads.json"
    return json.loads(file.read_text()) if file.exists() else {"groups": {}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("own", "cut"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage1", type=Path, help="workdir")
    parser.add_argument("--features", type=Path, help="folder of train.npz, test.npz")
    parser.add_argument(
        "--ratios", type=int, nargs="*", default=[10, 50, 100, 200, 500]
    )
    parser.add_argument("--splits", type=int, default=len(SEEDS))
    parser.add_argument("--axes", type=int, default=64, help="0: all features")
    parser.add_argument(
        "--settings", type=int, help="per method; 0: all; default 4, own: 0"
    )
    parser.add_argument("--quick", action="store_true", help="one cell, 8 axes")
    args = parser.parse_args()
    if args.settings is None:
        args.settings = 0 if args.command == "own" else 4
    if args.quick:
        args.ratios, args.splits, args.axes, args.settings = [500], 1, 8, 2
    args.out.mkdir(parents=True, exist_ok=True)
    commit = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(commit, capture_output=True, text=True, check=False)
    started = time.monotonic()
    for title, group in own(args) if args.command == "own" else cut(args):
        report = read(args.out)
        seconds = round(time.monotonic() - started)
        report["groups"][title] = {
            **group,
            "seconds": [*report["groups"].get(title, {}).get("seconds", ()), seconds],
        }
        report["made"] = {
            "by": "benchmarks/all_methods.py",
            "command": args.command,
            "axes": args.axes if args.command == "cut" else None,
            "settings": args.settings,
            "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
            "date": time.strftime("%Y-%m-%d"),
            "commit": done.stdout.strip(),
            "versions": {
                "lt_jax": __version__,
                "jax": jax.__version__,
                "scikit-learn": sklearn.__version__,
                "python": platform.python_version(),
            },
        }
        (args.out / "heads.json").write_text(json.dumps(report) + "\n")
        print(f"{title or 'heads'}: {seconds} s", flush=True)
        started = time.monotonic()


if __name__ == "__main__":
    main()
