"""Tables and the figure of docs/benchmarks/results.md, from the stored results.

    python benchmarks/leaderboard.py             # prints every table
    python benchmarks/leaderboard.py --image docs/images/delta_by_ratio.png

Reads RUNS/NAME/heads.json, which all_methods.py writes, and published.json, the figures
of others. A cell is the mean over seeds or splits, ± their standard deviation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RUNS = HERE / "runs"
OWN, FROZEN = "cifar100_resnet32", "cifar100_efficientnet"
NOT_MEASURED = "Not measured yet."
SUBSET = 1.0  # points between long-tailed subsets; of figures without a deviation


def read(name: str) -> dict[str, Any]:
    """Read a report of all_methods.py; without groups if there is none."""
    file = RUNS / name / "heads.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {"groups": {}}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Lay a table out; the first ``left`` columns are text."""
    line = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, line, *rows])


def mean(values: Iterable[float | None], factor: float = 100, digits: int = 1) -> str:
    """Mean ± standard deviation; "" without a value."""
    found = factor * np.array([v for v in values if v is not None], float)
    if not len(found):
        return ""
    spread = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{spread}"


def of(cell: dict[str, Any], method: str, column: str) -> dict[str, float]:
    """Return the metrics of a method; stage 1 has no columns."""
    return cell["none"] if method == "none" else cell["methods"][method][column]


def score(cells: Sequence[Any], method: str, column: str) -> float:
    return float(np.mean([of(cell, method, column)["all"] for cell in cells]))


def made(report: dict[str, Any]) -> str:
    """Name what a table came from."""
    m = report["made"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return f"{m['device']}, {versions}, commit {m['commit']}, {m['date']}"


def runs() -> str:
    """One row per representation and imbalance ratio, with its provenance."""
    rows = []
    for name, title, link in (
        (OWN, "ResNet-32", "#resnet-32-200-epochs-next-to-published-figures"),
        (FROZEN, "EfficientNet-Lite0", "#pre-trained-features-five-imbalance-ratios"),
    ):
        report = read(name)
        for ratio in ratios(report):
            cells = report["groups"][ratio]["cells"]
            best = max(cells[0]["methods"], key=lambda n: score(cells, n, "tuned"))
            shown = [("none", "published"), ("ce", "published"), ("los", "published")]
            shown += [("los", "tuned"), (best, "tuned")]
            values = [mean(of(c, *each)["all"] for c in cells) for each in shown]
            values[-1] += f" `{best}`"
            seeds = ", ".join(str(cell["seed"]) for cell in cells)
            where = f"{seeds}; {report['made']['commit']}, {report['made']['date']}"
            rows.append([f"{title}, IR {ratio or 100}", f"[{where}]({link})", *values])
    head = ("representation", "seeds; commit, date; command", "stage 1", "CE", "LOS")
    head += ("LOS, tuned", "best, tuned")
    return markdown(head, rows, left=2) if rows else NOT_MEASURED


def literature() -> str:
    """Every method on an own stage 1, sorted, with the figures of others."""
    report = read(OWN)
    if not report["groups"]:
        return NOT_MEASURED
    figures = json.loads((HERE / "published.json").read_text("utf-8"))["figures"]
    ((_, group),) = report["groups"].items()
    cells, sizes = group["cells"], group["data"]
    names = sorted(cells[0]["methods"], key=lambda n: -score(cells, n, "published"))
    rows = []
    for name in ["none", *names]:
        found = [of(cell, name, "published") for cell in cells]
        groups = (
            mean([f.get(g) for f in found]).partition(" ")[0]
            for g in ("many", "medium", "few")
        )
        others = [
            f"{f['name']} {f['all']:g}"
            + (f" ± {f['spread']:g}" if "spread" in f else "")
            for f in figures
            if f["method"] == name
        ]
        tuned = mean(of(cell, name, "tuned")["all"] for cell in cells)
        rows.append(
            [
                f"`{name}`",
                mean(f["all"] for f in found),
                " / ".join(groups),
                mean(f["ece"] for f in found).partition(" ")[0],
                mean((f["loma_row_spread"] for f in found), 1, 2).partition(" ")[0],
                "" if name == "none" else tuned,
                "; ".join(others),
            ]
        )
    head = ("method", "all", "many / medium / few", "ECE", "LoMa's spread")
    table = markdown([*head, "all, tuned", "printed by others"], rows)
    return (
        f"{table}\n\n({sizes['train']:,} training and {sizes['test']:,} test images, "
        f"tuned on {sizes['valid']:,} others; {sizes['heads']:,} heads, of which "
        f"{sizes['diverged']:,} diverged. {made(report)}.)"
    )


def pairs() -> str:
    """Compare each figure of others with ours."""
    report = read(OWN)
    if not report["groups"]:
        return NOT_MEASURED
    published = json.loads((HERE / "published.json").read_text("utf-8"))
    ((_, group),) = report["groups"].items()
    rows = []
    for f in published["figures"]:
        found = mean(of(c, f["method"], "published")["all"] for c in group["cells"])
        ours = float(found.partition(" ")[0])
        spread = f.get("spread", 0.0) + SUBSET
        difference = round(ours - f["all"], 1)
        within = "yes" if abs(difference) <= spread else "no"
        theirs = f"{f['all']:g}" + (f" ± {f['spread']:g}" if "spread" in f else "")
        rows.append(
            [
                f"`{f['method']}`",
                f"{f['name']}: {f['source']}",
                published["ways"][f["way"]],
                f"{ours:.1f}",
                theirs,
                f"{difference:+.1f}",
                within,
            ]
        )
    head = (
        "ours",
        "others",
        "what theirs is",
        "ours",
        "theirs",
        "difference",
        "within",
    )
    return markdown(head, rows, left=3)


def pretrained() -> str:
    """Every method on frozen features, a column for each imbalance ratio."""
    report = read(FROZEN)
    if not report["groups"]:
        return NOT_MEASURED
    groups = {k: report["groups"][k]["cells"] for k in ratios(report)}
    first = next(iter(groups.values()))[0]
    rows = []

    def row(title: str, values: Any) -> None:
        rows.append([title, *(values(cells) for cells in groups.values())])

    row("`none`: stage 1", lambda cells: mean(c["none"]["all"] for c in cells))
    for name in first["methods"]:
        row(
            f"`{name}`",
            lambda cells, n=name: " / ".join(
                f"{100 * score(cells, n, column):.1f}"
                for column in ("unscaled", "published", "tuned")
            ),
        )
    for name in first["others"]:
        row(name, lambda cells, n=name: mean(c["others"][n]["all"] for c in cells))
    splits = (f"IR {k}, {_splits(cells)}" for k, cells in groups.items())
    sizes = ", ".join(f"{report['groups'][k]['data']['train']:,}" for k in groups)
    return (
        f"{markdown(['head', *splits], rows)}\n\n(Training examples: {sizes}. Mean "
        f"over splits. {made(report)}.)"
    )


def _splits(cells: Sequence[Any]) -> str:
    return f"{len(cells)} split{'s'[: len(cells) > 1]}"


def ratios(report: dict[str, Any]) -> list[str]:
    return sorted(report["groups"], key=lambda ratio: int(ratio or 0))


def standing() -> str:
    """Rank LOS among all methods, for every imbalance ratio."""
    report = read(FROZEN)
    if not report["groups"]:
        return NOT_MEASURED
    rows = []
    for ratio in ratios(report):
        cells = report["groups"][ratio]["cells"]
        methods = [*cells[0]["methods"]]
        cell = [ratio]
        for column in ("published", "tuned"):
            order = sorted(methods, key=lambda n: -score(cells, n, column))
            cell += [
                f"{100 * score(cells, 'los', column):.1f}, "
                f"{1 + order.index('los')} of {len(order)}"
            ]
        best = max(methods, key=lambda n: score(cells, n, "tuned"))
        cell += [f"`{best}` {100 * score(cells, best, 'tuned'):.1f}"]
        for column in ("published", "unscaled"):
            cell += [mean(difference(c, "los", "ce", column) for c in cells)]
        at = max(cells[0]["curve"], key=lambda d: _curve(cells, d))
        cell += [f"{at}: {100 * _curve(cells, at):.1f}"]
        rows.append(cell)
    head = ("IR", "LOS, published values", "LOS, tuned", "best, tuned")
    head += ("LOS minus CE", "the same, features as they are", "best δ on test")
    return markdown(head, rows)


def difference(cell: Any, one: str, other: str, column: str) -> float:
    return of(cell, one, column)["all"] - of(cell, other, column)["all"]


def _curve(cells: Sequence[Any], delta: str, key: str = "all") -> float:
    return float(np.mean([cell["curve"][delta][key] for cell in cells]))


def indicators() -> str:
    """Spearman's correlation of accuracy and each indicator over methods."""
    from scipy.stats import spearmanr

    keys = {
        "LoMa": "loma_row",
        "LoMa's spread": "loma_row_spread",
        "RSD, true": "rsd_row_true",
        "RSD, other": "rsd_row_false",
    }
    rows = []
    for name, title in (
        (OWN, "ResNet-32, IR 100"),
        (FROZEN, "EfficientNet-Lite0, IR {}"),
    ):
        report = read(name)
        for ratio, group in sorted(
            report["groups"].items(), key=lambda g: int(g[0] or 0)
        ):
            cells = group["cells"]
            row = [title.format(ratio)]
            for key in keys.values():
                found = [
                    (m["published"]["all"], m["published"][key])
                    for cell in cells
                    for m in cell["methods"].values()
                    if key in m["published"]
                ]
                rho = spearmanr(*zip(*found, strict=True))[0] if found else np.nan
                row.append(f"{rho:+.2f}" if rho == rho else "")
            rows.append(row)
    return markdown(["representation", *keys], rows) if rows else NOT_MEASURED


def draw(image: Path) -> None:
    """Draw the accuracy of LOS by the amount of smoothing, for each ratio."""
    from lt_jax.report import drawing
    from lt_jax.report.charts import Panel, Series

    report = read(FROZEN)
    label = "K(1-δ)/δ, more smoothing to the left"
    panels = []
    for key, title in (("all", "accuracy (%)"), ("few", "few-shot accuracy (%)")):
        lines = []
        for look, ratio in enumerate(ratios(report)):
            cells = report["groups"][ratio]["cells"]
            found = {
                100 * (1 - float(d)) / float(d): [
                    100 * c["curve"][d].get(key, np.nan) for c in cells
                ]
                for d in cells[0]["curve"]
            }
            x = sorted(found)
            y = [float(np.mean(found[at])) for at in x]
            if not np.isnan(y).any():
                lines.append(Series(f"IR {ratio}", x, y, look))
        if lines:
            panels.append(Panel(label, title, lines, xlog=True))
    image.write_bytes(drawing.draw(panels)["png"])


TABLES = (runs, literature, pairs, pretrained, standing, indicators)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="draw the figure into this file")
    args = parser.parse_args()
    if args.image:
        draw(args.image)
        return
    for table in TABLES:
        print(f"{table.__name__}\n\n{table()}\n")


if __name__ == "__main__":
    main()
