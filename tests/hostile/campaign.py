"""Run hostile cases outside pytest: all of them, or a sample.

python tests/hostile/campaign.py [--cases N] [--seed S] [--match REGEX] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # the helpers that tests share

import input_cases
import workdir_cases
from harness import Server, make_workdir


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=0, help="0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match", default="", help="regular expression for case ids")
    parser.add_argument(
        "--part", choices=("workdirs", "inputs", "both"), default="both"
    )
    parser.add_argument("--values", action="store_true", help="also single JSON values")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder / "cache")
        workdir = make_workdir(server, folder / "workdir")
        runs: list[tuple[str, Callable[[Path], list[str]]]] = [
            *(
                (c.id, lambda root, c=c: workdir_cases.run(c, server, workdir, root))
                for c in workdir_cases.whole_files()
            ),
            *(
                (c.id, lambda root, c=c: input_cases.run(c, server, workdir, root))
                for c in input_cases.CASES
            ),
        ]
        if options.values:
            runs += [
                (c.id, lambda root, c=c: workdir_cases.run(c, server, workdir, root))
                for c in workdir_cases.values(workdir)
            ]
        inputs = {c.id for c in input_cases.CASES}
        if options.part != "both":
            runs = [r for r in runs if (r[0] in inputs) == (options.part == "inputs")]
        runs = [run for run in runs if re.search(options.match, run[0])]
        if options.cases:
            runs = random.Random(options.seed).sample(
                runs, min(options.cases, len(runs))
            )
        failures = {}
        for number, (id, run) in enumerate(runs, 1):
            box = folder / "box"
            if wrong := run(box):
                failures[id] = wrong
                print(f"{id}: {'; '.join(wrong)}", flush=True)
            if number % 100 == 0:
                print(f"{number} of {len(runs)}, {len(failures)} fail", file=sys.stderr)
        server.close()
    found = {
        "cases": len(runs),
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }
    print(f"{len(failures)} of {len(runs)} cases fail", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
