"""Effect of each choice of the protocol: clean, the authors', and in between.

Stage 1, CE and LOS re-training on CIFAR100-LT under the clean protocol, under that of
the authors' code, and under the clean one with a single choice changed. Means over
seeds of both stages; differences are paired by seeds.

    TFDS_DATA_DIR=... python benchmarks/protocol.py [--imbalance 100] [--net resnet32]
        [--epochs 200] [--retrain_epochs 20] [--seeds 3] [--workdir DIR]
        [--json] [--quick]

Three runs of stage 1 per seed suffice for seven rows: the last epoch and the best one
on the test set are two checkpoints of one run, and mirror averaging is another
evaluation of the same heads. Everything is in --workdir; rerun the same command to
resume. --quick uses the digits, a tiny network and two seeds, to test the script.

JSON keys: `accuracy` and `difference` (to `clean`) by row and head (`none`: stage 1),
fractions, each `mean`, `std`, `values`; `rows` describes them; `split`, `seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HEADS = {"none": "stage 1", "ce": "CE", "los": "LOS"}
FOLDERS = {"none": "stage1/", "ce": "ce/", "los": "los/"}
TEST = {"eval.select": "test", "eval.every": 1}
ALL_IMAGES = {"data.valid": 0.0}
FLIP = {"eval.flip": True}
DRIFT = {"method.batch_norm": "drift"}
PAPER = {**TEST, **ALL_IMAGES, **FLIP, **DRIFT}

# Runs, by their changes to the clean config. With the test set, the best epoch is kept
# in addition to the last one; the kind of evaluation decides which epoch is best.
STAGE1 = {
    "held_out": TEST,
    "whole_batches": {"optim.drop_last": True},
    "all_images": {**TEST, **ALL_IMAGES, **FLIP},
}


class Row(NamedTuple):
    title: str
    stage1: str  # a key of STAGE1
    kept: str  # its "last" or its "best" epoch
    changes: dict[str, Any]  # for stage 2 and evaluation


ROWS = {
    "clean": Row("clean", "held_out", "last", {}),
    "test": Row("the test set picks the epochs", "held_out", "best", TEST),
    "flip": Row("mirror averaging", "held_out", "last", FLIP),
    "drift": Row("moving batch norm in stage 2", "held_out", "last", DRIFT),
    "drop_last": Row("no partial batches in stage 1", "whole_batches", "last", {}),
    "all_images": Row("no images held out", "all_images", "last", ALL_IMAGES),
    "paper": Row("the authors' protocol", "all_images", "best", PAPER),
}


def command(words: list[str], changes: dict[str, Any]) -> str:
    """Run ``lt-jax`` and return its output; exit with its code if it fails."""
    from lt_jax.cli import main as cli

    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    print("lt-jax", *words, *flags, file=sys.stderr)
    out = io.StringIO() if "--json" in words else sys.stderr
    with contextlib.redirect_stdout(out):
        code = cli.main([*words, *flags])
    if code:
        sys.exit(code)
    return out.getvalue() if isinstance(out, io.StringIO) else ""


def noted(there: Path, here: Path, pattern: str, last: bool = False) -> None:
    """Copy the finished fits of another workdir to one, or their last epochs."""
    for file in there.glob(f"checkpoints/{pattern}/outcome.json"):
        outcome = json.loads(file.read_text(encoding="utf-8"))
        if last:
            steps = [int(p.name) for p in file.parent.iterdir() if p.name.isdigit()]
            outcome["step"] = max(steps)
        outcome.pop("digest", None)
        note = here / file.relative_to(there)
        shutil.copytree(file.parent, note.parent, dirs_exist_ok=True)
        note.write_text(json.dumps(outcome), encoding="utf-8")


def accuracies(config: str, base: dict[str, Any], at: Path) -> dict[str, Any]:
    """Train missing runs; return values over seeds by row and head, and the split."""
    for name, changes in STAGE1.items():
        workdir = at / "stage1" / name
        command(["train", config, f"--workdir={workdir}"], {**base, **changes})
        noted(workdir, at / "last" / name, "stage1/*", last=True)
    found: dict[str, Any] = {}
    for name, row in ROWS.items():
        workdir, changes = at / name, {**base, **row.changes}
        if row.changes == FLIP:  # another evaluation of the clean row
            noted(at / "clean", workdir, "*/*")
            words = ["evaluate", config, f"--workdir={workdir}", "--json"]
            seen = json.loads(command(words, changes).splitlines()[-1])
            for head, folder in FOLDERS.items():
                own = [seen[fit]["all"] for fit in seen if fit.startswith(folder)]
                found.setdefault(name, {})[head] = own
            continue
        kept = at / ("last" if row.kept == "last" else "stage1") / row.stage1
        changes["init.path"] = str(kept)
        command(["retrain", config, f"--workdir={workdir}"], changes)
        result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
        found[name] = {h: result["methods"][h]["all"]["values"] for h in HEADS}
        found.setdefault("split", result["dataset"]["split_hash"])
    return found


def spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return means, deviations, and differences to the clean protocol by seed."""
    result: dict[str, Any] = {"split": found["split"], "rows": {}}
    result |= {"accuracy": {}, "difference": {}}
    for name, row in ROWS.items():
        pairs = {h: zip(found[name][h], found["clean"][h], strict=True) for h in HEADS}
        result["rows"][name] = row.title
        result["accuracy"][name] = {h: spread(found[name][h]) for h in HEADS}
        result["difference"][name] = {
            h: spread([own - clean for own, clean in pairs[h]]) for h in HEADS
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Format as Markdown: per cent and points, mean ± standard deviation over seeds."""

    def cell(value: dict[str, Any], sign: str = "") -> str:
        std = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
        return f"{100 * value['mean']:{sign}.1f}{std}"

    titles = [*HEADS.values(), *(f"{title}, less clean" for title in HEADS.values())]
    lines = ["| protocol | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * 6]
    for name, title in result["rows"].items():
        cells = [cell(result["accuracy"][name][head]) for head in HEADS]
        less = [cell(result["difference"][name][head], "+") for head in HEADS]
        cells += less if name != "clean" else [""] * len(HEADS)
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imbalance", type=float, default=100, help="%(default)g")
    parser.add_argument("--net", default="resnet32", help="or resnet34; %(default)s")
    parser.add_argument("--epochs", type=int, default=200, help="%(default)s")
    parser.add_argument("--retrain_epochs", type=int, default=20, help="%(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="%(default)s")
    parser.add_argument("--workdir", type=Path, default=Path("runs/protocol_table"))
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="digits, 2 seeds, tiny")
    options = parser.parse_args()
    argument = f":ir={options.imbalance:g},net={options.net}"
    config = f"--config={CONFIGS / 'cifar100_lt.py'}{argument}"
    epochs, more, seeds = options.epochs, options.retrain_epochs, options.seeds
    base: dict[str, Any] = {}
    if options.quick:
        config = f"--config={CONFIGS / 'digits_lt.py'}"
        epochs, more, seeds, base = 3, 2, 2, {"model.width": 4}
    base |= {
        "optim.epochs": epochs,
        "optim.repeats": seeds,
        "method.repeats": 1,
        "method.names": "('ce','los')",
        "eval.every": epochs,  # where it chooses nothing
        **{f"method.{name}.epochs": more for name in ("ce", "los")},
    }
    began = time.monotonic()
    result = summary(accuracies(config, base, options.workdir))
    result["seconds"] = time.monotonic() - began
    what = "digits" if options.quick else f"CIFAR100-LT{argument}"
    print(f"{what}, {epochs} + {more} epochs, {seeds} seeds of both stages,")
    print(f"split {result['split']}; accuracy over all test images, per cent\n")
    print(table(result))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
