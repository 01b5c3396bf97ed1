"""``lt-jax report``: one HTML page, tables and figures from finished workdirs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from lt_jax import files
from lt_jax._version import __version__
from lt_jax.errors import printable
from lt_jax.experiment import tables, workdirs
from lt_jax.experiment.workdirs import Run
from lt_jax.report import charts, classes, leaderboard, panels
from lt_jax.report.charts import Part


def write(paths: Sequence[Path], out: Path, figures: bool = False) -> Path:
    """Write the report on these workdirs and return the path of the page.

    ``figures``: also draw the charts as PNG and PDF, by matplotlib.
    """
    draw = None
    if figures:
        from lt_jax.report.drawing import draw  # matplotlib is slow, and an extra
    runs = workdirs.read(paths)
    files.claim(out, out.parent if out.parent in paths else out)
    names = [name for run in runs for name in [*run.fits, *run.fixed]]
    looks = charts.looks([*names, *(row["method"] for run in runs for row in run.rows)])
    boards = leaderboard.boards(runs)
    shared = [leaderboard.between(runs)] if len(runs) > 1 else []
    # The number keeps names apart that are equal once they are fit for a file.
    ends = [f"-{i}-{run.label}" * bool(shared) for i, run in enumerate(runs, 1)]
    parts = [_parts(run, looks, end) for run, end in zip(runs, ends, strict=True)]
    first = Part("leaderboard", "Leaderboard", table=leaderboard.table(boards))
    every = [first, *shared, *itertools.chain(*parts)]
    for part in (part for part in every if not part.missing):
        drawn = draw(part.panels) if draw and part.panels else {}
        for kind, content in {"csv": part.csv(), **drawn}.items():
            files.write(out / "figures" / f"{part.name}.{kind}", content)
    own = _numbers({"lt_jax": __version__})
    page = render(
        runs=runs,
        newer=[run for run in runs if _numbers(run.result["versions"]) > own],
        data=sorted({run.dataset for run in runs}),
        looks={name: charts.paint(look) for name, look in looks.items()},
        used=[*dict.fromkeys(names)],
        boards=boards,
        shared=shared,
        parts=parts,
    )
    files.write(out / "index.html", page)
    return out / "index.html"


def render(**values: Any) -> str:
    """Render the page: HTML that is well-formed XML, with everything embedded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lt_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    modules = charts, files, leaderboard, tables, workdirs
    environment.globals |= {m.__name__.rpartition(".")[2]: m for m in modules}
    environment.globals["version"] = __version__
    page = environment.get_template("page.html.j2")
    return printable(page.render(**values))  # XML has no control characters


def _parts(run: Run, looks: panels.Looks, end: str) -> list[Part]:
    parts = (
        leaderboard.versus(run),
        panels.groups(run, looks),
        classes.table(run),
        panels.curves(run, looks, stage=1),
        panels.curves(run, looks, stage=2),
        panels.per_class(run, looks),
        panels.delta(run),
        panels.learning_rate(run),
        panels.correlation(run, looks),
        panels.reliability(run, looks),
        panels.confusion(run),
    )
    end = re.sub(r"[^A-Za-z0-9_.-]+", "-", end)
    return [part._replace(name=part.name + end) for part in parts]


def _numbers(versions: Mapping[str, str]) -> list[int]:
    return [*map(int, re.findall(r"\d+", versions.get("lt_jax", "0"))[:3])]
