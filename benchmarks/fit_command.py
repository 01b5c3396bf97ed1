"""`lt-jax fit` against scikit-learn's balanced logistic regression, on equal features.

    python benchmarks/fit_command.py --features FOLDER --out FOLDER [--seeds 0 1 2]

Per split: a long-tailed subset of train.npz with its classes in random order, a fifth
of each class held out to choose on, and the principal axes of the training features.
`fit` gets the three sets as they are. scikit-learn chooses C on the same held-out
examples; `fit` too, with --config.eval.folds=0 after --. For both there is a second fit
at the chosen values, on training and held-out examples. With folds, `fit` has that one
alone. "scikit-learn, folds" has equal data: C is chosen by the same 5 folds of training
and held-out examples together, and fitted on all of them. Figures are balanced
accuracies on test.npz. FOLDER/report.json keeps those of every seed so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import choice
import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression

from lt_jax import __version__
from lt_jax.data import longtail


def split(folder, ratio, seed, axes):
    """Training, held-out and test set, each with its labels."""
    train, own, test, truth = (
        np.load(folder / f"{part}.npz")[key]
        for part in ("train", "test")
        for key in ("features", "labels")
    )
    classes = own.max() + 1
    rows = choice.cut(own, len(own) // classes, ratio, seed)
    own, train = own[rows], train[rows].astype(np.float32)
    kept, held = longtail.hold_out(own, 0.2, seed, classes)
    centre = train[kept].mean(axis=0)
    found = np.linalg.svd(train[kept] - centre, full_matrices=False)[2][:axes].T
    train, test = ((values - centre) @ found for values in (train, test))
    pairs = ((train[kept], own[kept]), (train[held], own[held]), (test, truth))
    return dict(zip(("train", "val", "test"), pairs, strict=True))


def by_scikit(sets):
    """Balanced accuracy on test of the chosen C, and of two fits on all examples."""
    (train, own), (valid, truth), (test, expected) = sets.values()
    scale = np.linalg.norm(train, axis=1).mean()

    def fitted(strength, values, labels):
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(values / scale, labels)

    def score(model, values, labels):
        return float(choice.balanced(model.decision_function(values / scale), labels))

    models = {c: fitted(c, train, own) for c in choice.STRENGTHS}
    best = max(models, key=lambda c: score(models[c], valid, truth))
    both, labels = np.concatenate([train, valid]), np.concatenate([own, truth])
    pairs = longtail.cross_validation(labels, choice.FOLDS, 0, labels.max() + 1)
    unseen = labels[np.concatenate([held for _, held in pairs])]

    def by_folds(strength):
        models = [fitted(strength, both[kept], labels[kept]) for kept, _ in pairs]
        logits = [
            model.decision_function(both[held] / scale)
            for model, (_, held) in zip(models, pairs, strict=True)
        ]
        return choice.balanced(np.concatenate(logits), unseen)

    chosen = max(choice.STRENGTHS, key=by_folds)
    return {
        "scikit-learn": score(models[best], test, expected),
        "scikit-learn, all": score(fitted(best, both, labels), test, expected),
        "scikit-learn, folds": score(fitted(chosen, both, labels), test, expected),
        "C": float(best),
        "C, folds": float(chosen),
    }


def by_fit(sets, folder, flags):
    """The same of the recommended head of `lt-jax fit`."""
    (folder / "features").mkdir(parents=True, exist_ok=True)
    for name, (features, labels) in sets.items():
        file = folder / "features" / f"{name}.npz"
        np.savez(file, features=np.float32(features), labels=labels)
    run = folder / "run"
    command = [sys.executable, "-m", "lt_jax", "fit", str(folder / "features")]
    began = time.monotonic()
    subprocess.run([*command, "--workdir", str(run), *flags], check=True)
    seconds = time.monotonic() - began
    result = json.loads((run / "result.json").read_text())
    best = result["recommended"]
    methods = {
        name: found["balanced"]["mean"] for name, found in result["methods"].items()
    }
    return {
        "lt-jax fit": methods[best["method"]],
        "lt-jax fit, all": best["test"]["balanced"],
        "folds": best["folds"],
        "method": best["method"],
        "hyper": best["hyper"],
        "methods": methods,
        "seconds": seconds,
    }


COLUMNS = (
    *("lt-jax fit", "scikit-learn", "lt-jax fit, all", "scikit-learn, all"),
    "scikit-learn, folds",  # earlier reports lack it
)
DIFFERENCES = {
    "difference": COLUMNS[:2],
    "of all": COLUMNS[2:4],
    "of folds": ("lt-jax fit, all", "scikit-learn, folds"),
}


def table(report):
    """Markdown, one row per split."""
    splits = sorted(report["splits"].items())
    columns = [name for name in COLUMNS if all(name in found for _, found in splits)]
    apart = {k: pair for k, pair in DIFFERENCES.items() if {*pair} <= {*columns}}
    lines = [f"| split | {' | '.join([*columns, 'method', *apart])} |"]
    lines += [f"| ---: |{' ---: |' * len(columns)} --- |{' ---: |' * len(apart)}"]
    for seed, found in splits:
        cells = [f"{100 * found[name]:.1f}" for name in columns]
        cells += [f"`{found['method']}`"]
        each = (100 * found[own] - 100 * found[other] for own, other in apart.values())
        cells += [f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") for value in each]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--ratio", type=float, default=100, help="largest over smallest"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--axes", type=int, default=64)
    parser.add_argument("flags", nargs="*", help="flags of lt-jax fit, after --")
    args = parser.parse_args()
    report = {
        "versions": {"lt_jax": __version__, "scikit-learn": sklearn.__version__},
        "device": f"{platform.machine()}, CPU",
        "date": time.strftime("%Y-%m-%d"),
        "ratio": args.ratio,
        "axes": args.axes,
        "splits": {},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "report.json"
    if file.exists():
        report["splits"] = json.loads(file.read_text())["splits"]
    for seed in args.seeds:
        sets = split(args.features, args.ratio, seed, args.axes)
        found = by_scikit(sets)
        print(f"split {seed}: {found}", flush=True)
        found |= by_fit(sets, args.out / f"{seed}", args.flags)
        report["splits"][f"{seed}"] = found
        file.write_text(json.dumps(report) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
