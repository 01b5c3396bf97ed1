"""Loss curves of stage 1 from the output of the authors' code and of ours.

Both print the mean loss of the epoch so far: theirs on a terminal only, ours for every
step with a small ``log.seconds``:

    script -qc "python main_stage1.py --seed 0 --epochs 1 ..." theirs0.txt
    lt-jax train --config.seed=0 --config.log.seconds=0.001 --workdir ours0 ...
    python benchmarks/authors_curves.py --theirs theirs0.txt --ours ours0/log.txt \
        [--plot FILE.png]

Full commands: docs/benchmarks/against_authors.md. Each option takes several files, one
per seed. Only the first epoch of a file is used.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

THEIRS = r"Training .*?\((\d+)/\d+\).*?Loss: ([\d.]+)"
OURS = r"\| step ([\d,]+)/[\d,]+ \| loss ([\d.]+)"
PRINTED = (1, 2, 5, 10, 20, 40, 80, 120, 10**9)  # steps; the last is the last


def curve(text: str, pattern: str) -> np.ndarray:
    """Return float[steps]: the mean loss up to each step of the first epoch.

    Raises:
      ValueError: a step is missing, or there are none.
    """
    losses: list[float] = []
    for step, loss in re.findall(pattern, text):
        step = step.replace(",", "")
        if int(step) == len(losses) + 1:
            losses.append(float(loss))
        elif int(step) > len(losses):
            raise ValueError(f"expected step {len(losses) + 1}, found {step}")
        elif int(step) == 1:
            break  # the second epoch; a repeated step is not a new one
    if not losses:
        raise ValueError(f"found no line that matches {pattern!r}")
    return np.array(losses)


def plot(curves: dict[str, list[np.ndarray]], file: Path) -> None:
    from lt_jax.report import drawing
    from lt_jax.report.charts import Panel, Series

    lines = [
        Series(side, range(1, len(losses) + 1), losses, look, marker="")
        for look, (side, some) in enumerate(curves.items(), 1)
        for losses in some
    ]
    labels = "step of the first epoch", "mean cross-entropy so far"
    file.write_bytes(drawing.draw([Panel(*labels, lines)])["png"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    files: dict[str, Any] = {"type": Path, "nargs": "+", "required": True}
    parser.add_argument("--theirs", help="what their bar showed", **files)
    parser.add_argument("--ours", help="log.txt of workdirs", **files)
    parser.add_argument("--plot", type=Path, help="a PNG of the curves")
    options = parser.parse_args()
    curves: dict[str, list[np.ndarray]] = {"lt_jax": [], "the authors' code": []}
    sides = zip(curves, (options.ours, options.theirs), (OURS, THEIRS), strict=True)
    for side, files, pattern in sides:
        for file in files:
            try:
                curves[side].append(curve(file.read_text(errors="replace"), pattern))
            except (OSError, ValueError) as error:
                sys.exit(f"{file}: {error}")
    print("  step" + "".join(f"{s:>18s}" for s, c in curves.items() for _ in c))
    whole = [losses for some in curves.values() for losses in some]
    end = min(map(len, whole))
    for step in sorted({min(step, end) for step in PRINTED}):
        print(f"{step:6d}" + "".join(f"{losses[step - 1]:18.3f}" for losses in whole))
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
