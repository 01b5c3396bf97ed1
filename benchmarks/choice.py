"""How far is the setting that a rule chooses from the best one on the test set?

Every rule sees the same heads on validation images, of which tail classes have one:

    published    the values of recipes.py, no tuning
    best         the best balanced accuracy
    one error    the published values, unless another setting is better by more than
                 the standard error of the balanced accuracy
    likelihood   the best balanced log-likelihood after a temperature

on a tenth of the training images that is held out, and on all of them by
cross-validation, after which the chosen setting is fitted on all. The table has the
balanced accuracy on test of the choice in each method (mean), of the choice among all
settings of all methods, and of scikit-learn's balanced logistic regression with C
chosen on the same validation images.

    python benchmarks/choice.py --json benchmarks/choice.json
    python benchmarks/choice.py --features FOLDER   # adds train.npz, test.npz
    python benchmarks/choice.py --norms             # published values by feature norm
    python benchmarks/choice.py --table benchmarks/choice.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from lt_jax import __version__, api, recipes
from lt_jax.data import longtail
from lt_jax.retraining import selection
from lt_jax.retraining.features import NORM, standardise

METHODS = (
    *("ce", "los", "reweight", "balanced_softmax", "crt", "tau_norm"),
    *("logit_adjust_posthoc", "logistic", "logistic_balanced"),
)
FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-4, 4)


def cut(labels, largest, imbalance, seed):
    """Positions of a long-tailed subset; the order of the classes is random."""
    random = np.random.default_rng(seed)
    classes = labels.max() + 1
    sizes = longtail.class_sizes(largest, classes, imbalance)[
        random.permutation(classes)
    ]
    members = longtail.by_class(labels, classes)
    return np.concatenate(
        [random.permutation(m)[:n] for m, n in zip(members, sizes, strict=True)]
    )


def digits(seed):
    values, labels = load_digits(return_X_y=True)
    values = (values / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[:1000], order[1000:]
    rows = train[cut(labels[train], 80, 20, seed)]
    return values[rows], labels[rows], values[test], labels[test]


def network(seed):
    """Hidden units of a network that was trained on the long-tailed images."""
    train, own, test, truth = digits(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = MLPClassifier((64,), max_iter=150, random_state=seed).fit(train, own)

    def hidden(values):
        units = np.maximum(values @ net.coefs_[0] + net.intercepts_[0], 0)
        return units.astype(np.float32)

    return hidden(train), own, hidden(test), truth


def made(seed):
    """Gaussian classes with a shared covariance of falling variances."""
    random = np.random.default_rng(seed)
    classes, width = 20, 32
    means = random.normal(size=(classes, width))
    shape = 2.2 * np.linspace(1.5, 0.5, width)
    labels = np.repeat(np.arange(classes), longtail.class_sizes(150, classes, 50))
    truth = np.repeat(np.arange(classes), 100)

    def draw(of):
        noise = random.normal(size=(len(of), width)) * shape
        return (means[of] + noise).astype(np.float32)

    return draw(labels), labels, draw(truth), truth


def photos(folder, first):
    """20 classes of features in a folder, imbalance 100, on 64 principal axes."""

    def load(seed):
        files = [np.load(Path(folder) / f"{part}.npz") for part in ("train", "test")]
        parts = []
        for file in files:
            labels = file["labels"]
            kept = (labels >= first) & (labels < first + 20)
            parts += [file["features"][kept].astype(np.float32), labels[kept] - first]
        train, own, test, truth = parts
        rows = cut(own, 200, 100, seed)
        train, own = train[rows], own[rows]
        centre = train.mean(axis=0)
        axes = np.linalg.svd(train - centre, full_matrices=False)[2][:64].T
        return (train - centre) @ axes, own, (test - centre) @ axes, truth

    return load


def settings(classes, thin):
    """Every n-th row of every grid, and the positions of the published values."""
    case = recipes.Case(recipes.smoothing(classes))
    rows, published = [], {}
    for name in METHODS:
        entry = recipes.RECIPES[name](case)
        own = recipes.own(entry)
        grid = [row for row in recipes.expand(entry) if row != own]
        published[name] = len(rows)
        rows += [(name, row) for row in [own, *grid[::thin]]]
    return rows, published


def logits_of(rows, train, labels, *others, with_start=False):
    """Fit all rows on the same examples; logits float[R, N, K] for each of others.

    ``with_start`` adds a list of the logits float[N, K] of stage 1.
    """
    counts = np.bincount(labels)
    start = api.fit_head(train, labels, api.stage1(counts))
    made = {
        str(i): api.published(name, counts, **row) for i, (name, row) in enumerate(rows)
    }
    heads = api.fit_heads(train, labels, made, start=start)
    found = [np.stack([h.logits(values) for h in heads.values()]) for values in others]
    return [*found, [start.logits(v) for v in others]] if with_start else found


def balanced(logits, labels):
    right = logits.argmax(axis=-1) == labels
    classes = np.unique(labels)
    return np.mean([right[..., labels == k].mean(axis=-1) for k in classes], axis=0)


def likelihood(logits, labels):
    """Balanced log-likelihood at the best temperature."""
    weight = 1 / np.bincount(labels)[labels]

    def loss(log_inverse):
        found = log_softmax(np.exp(log_inverse) * logits, axis=1)
        return -np.sum(weight * found[np.arange(len(labels)), labels])

    return -minimize_scalar(loss, bounds=(-7, 7), method="bounded").fun


def choices(rows, published, valid, truth):
    """Chosen positions by rule: in every method, and among all of them."""
    scores = balanced(valid, truth)
    smooth = np.array([likelihood(each, truth) for each in valid])
    counts = np.bincount(truth)
    found = {}
    own = {
        n: np.array([i for i, row in enumerate(rows) if row[0] == n]) for n in published
    }

    def cautious(candidates, default):
        best = candidates[scores[candidates].argmax()]
        error = selection.standard_error(scores[default], "balanced", counts)
        return best if scores[best] > scores[default] + error else default

    rules = {
        "published": lambda at, default: default,
        "best": lambda at, default: at[scores[at].argmax()],
        "one error": cautious,
        "likelihood": lambda at, default: at[smooth[at].argmax()],
    }
    for rule, choose in rules.items():
        each = {name: choose(own[name], published[name]) for name in published}
        finalists = np.array([*each.values()])
        found[rule] = [*each.values()], choose(finalists, each["logistic"])
    return found


def scikit(train, labels, valid, truth, test):
    """Balanced logistic regression: C by validation, logits on test."""
    scale = np.linalg.norm(train, axis=1).mean()
    made = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(train / scale, labels)
        made.append(
            (balanced(model.decision_function(valid / scale), truth), strength, model)
        )
    _, _, model = max(made, key=lambda m: m[:2])
    return model.decision_function(test / scale)


def measure(load, seed, thin):
    """One split: balanced accuracy on test of every choice."""
    train, labels, test, truth = load(seed)
    train, centre, scale = standardise(train)
    test = (test - centre) * scale
    rows, published = settings(labels.max() + 1, thin)
    kept, held = longtail.hold_out(labels, 0.1, seed, labels.max() + 1)
    result = {}

    def add(name, valid, valid_labels, tested):
        on_test = balanced(tested, truth)
        groups = [[i for i, r in enumerate(rows) if r[0] == n] for n in published]
        best = [on_test[g].max() for g in groups]
        for rule, (each, one) in choices(rows, published, valid, valid_labels).items():
            result[f"{rule}, {name}"] = {
                "methods": {
                    n: float(on_test[i]) for n, i in zip(published, each, strict=True)
                },
                "regret": float(np.mean(best - on_test[each])),
                "one": float(on_test[one]),
                "one_regret": float(on_test.max() - on_test[one]),
                "chosen": rows[one][0],
            }

    valid, tested = logits_of(rows, train[kept], labels[kept], train[held], test)
    add("held out", valid, labels[held], tested)
    parts, order = [], []
    for _, inside in longtail.cross_validation(labels, FOLDS, seed, labels.max() + 1):
        outside = np.setdiff1d(np.arange(len(labels)), inside)
        parts += logits_of(rows, train[outside], labels[outside], train[inside])
        order.append(inside)
    (tested,) = logits_of(rows, train, labels, test)
    add("folds", np.concatenate(parts, axis=1), labels[np.concatenate(order)], tested)
    found = scikit(train[kept], labels[kept], train[held], labels[held], test)
    result["scikit-learn balanced"] = {"one": float(balanced(found, truth))}
    return result


NORMS = (1, 2, 4, 8, 16, 32)
BY_NORM = ("ce", "los", "reweight", "balanced_softmax", "crt", "los_fresh", "logistic")


def by_norm(load, seed):
    """Balanced accuracy on test of published values, by mean norm of the features."""
    train, labels, test, truth = load(seed)
    train, centre, scale = standardise(train)
    test = (test - centre) * scale
    case = recipes.Case(recipes.smoothing(labels.max() + 1))
    rows = [(n, recipes.own(recipes.RECIPES[n](case))) for n in BY_NORM]
    found = {}
    for norm in NORMS:
        factor = np.float32(norm / NORM)
        given = rows, train * factor, labels, test * factor
        logits, (untouched,) = logits_of(*given, with_start=True)
        accuracies = balanced(np.stack([untouched, *logits]), truth)
        found[str(norm)] = dict(
            zip(("none", *BY_NORM), map(float, accuracies), strict=True)
        )
    return found


def table(report):
    """Markdown of a report: by rule or by norm."""
    lines = []
    if "none" in (first := next(iter(report["data"].values()))[0].get("1", {})):
        lines += [f"| data | norm | {' | '.join(f'`{n}`' for n in first)} |"]
        lines += ["| --- |" + " ---: |" * (1 + len(first))]
        for name, splits in report["data"].items():
            for norm in splits[0]:
                means = [100 * np.mean([s[norm][n] for s in splits]) for n in first]
                cells = " | ".join(f"{mean:.1f}" for mean in means)
                lines += [f"| {name} | {norm} | {cells} |"]
        return "\n".join(lines)
    lines += [f"| rule | {' | '.join(report['data'])} | mean regret |"]
    lines += ["| --- |" + " ---: |" * (1 + len(report["data"]))]
    for rule in next(iter(report["data"].values()))[0]:
        cells, regrets = [], []
        for splits in report["data"].values():
            one = [100 * split[rule]["one"] for split in splits]
            spread = f" ± {np.std(one, ddof=1):.1f}" if len(one) > 1 else ""
            cells += [f"{np.mean(one):.1f}{spread}"]
            regrets += [100 * split[rule].get("regret", np.nan) for split in splits]
        cells += [f"{np.mean(regrets):.2f}".replace("nan", "")]
        lines += [f"| {rule} | {' | '.join(cells)} |"]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="", help="folder of train.npz, test.npz")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--thin", type=int, default=3, help="take every n-th setting")
    parser.add_argument("--data", default="", help="only these, separated by commas")
    parser.add_argument("--json", default="", help="write the result to this file")
    parser.add_argument("--table", default="", help="print the table of such a file")
    parser.add_argument("--norms", action="store_true", help="by feature norm instead")
    parser.add_argument(
        "--quick", action="store_true", help="one split, a sixth of the grids"
    )
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(Path(args.table).read_text())))
        return
    thin = 6 if args.quick else args.thin
    loads = {"digits": digits, "network": network, "made": made}
    if args.features:
        loads |= {
            f"photos{first}": photos(args.features, first) for first in (0, 40, 80)
        }
    loads = {
        n: v for n, v in loads.items() if not args.data or n in args.data.split(",")
    }
    report = {
        "versions": {"lt_jax": __version__, "scikit-learn": sklearn.__version__},
        "device": f"{platform.machine()}, CPU",
        "date": time.strftime("%Y-%m-%d"),
        "thin": thin,
        "data": {},
    }
    for name, load in loads.items():
        report["data"][name] = []
        for seed in range(1 if args.quick else args.splits):
            started = time.monotonic()
            one = by_norm(load, seed) if args.norms else measure(load, seed, thin)
            report["data"][name].append(one)
            print(f"{name} {seed}: {time.monotonic() - started:.0f} s", flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(report) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
