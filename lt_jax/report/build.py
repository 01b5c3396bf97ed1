"""``lt-jax report``: one HTML page, tables and figures from finished workdirs.

Each part is data first: ``charts.py``. The page is made from the templates in this
folder. If a workdir lacks the data of a part, the page explains why instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
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

    Args:
      figures: also draw the charts as PNG and PDF, by matplotlib.
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
    parts = [_parts(run, looks) for run in runs]
    if len(runs) > 1:
        # The number keeps names apart that are equal once they are fit for a file.
        for i, run in enumerate(runs):
            end = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"-{i + 1}-{run.label}")
            parts[i] = [part._replace(name=part.name + end) for part in parts[i]]
    first = Part("leaderboard", "Leaderboard", table=leaderboard.table(boards))
    for part in [first, *shared, *(part for each in parts for part in each)]:
        if not part.missing:
            _write_files(part, out / "figures", draw)
    page = render(
        runs=runs,
        notes=[*_notes(runs)],
        looks={name: charts.paint(look) for name, look in looks.items()},
        used=[*dict.fromkeys(names)],
        boards=boards,
        shared=shared,
        parts=parts,
    )
    files.write(out / "index.html", page)
    return out / "index.html"


def _write_files(part: Part, folder: Path, draw: Callable | None) -> None:
    files.write(folder / f"{part.name}.csv", part.csv())
    if draw and part.panels:
        for kind, content in draw(part.panels).items():
            files.write(folder / f"{part.name}.{kind}", content)


def render(**values: Any) -> str:
    """Render the page: HTML that is well-formed XML, with everything embedded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lt_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    used = (charts.geometry, charts.paths, charts.paint, tables.caption, files.as_json)
    used += (leaderboard.lead, leaderboard.baseline, leaderboard.plain)
    used += (workdirs.over, workdirs.hyper, workdirs.commands)
    environment.globals |= {function.__name__: function for function in used}
    environment.globals |= {"colours": charts.COLOURS, "columns": leaderboard.TITLES}
    text = environment.get_template("page.html.j2").render(**values)
    return printable(text)  # XML has no control characters


def _parts(run: Run, looks: panels.Looks) -> list[Part]:
    return [
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
    ]


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    """What a reader must know first."""
    if len(data := sorted({leaderboard.dataset(run) for run in runs})) > 1:
        yield (
            f"These workdirs have {len(data)} datasets: {'; '.join(data)}. Their rows "
            "are in separate groups, and no difference between them is computed."
        )
    for run in runs:
        version = run.result["versions"].get("lt_jax", "0")
        if _numbers(version) > _numbers(__version__):
            yield (
                f"{run.label} was written by lt_jax {version}, newer than this "
                f"{__version__}: what it added is not on this page."
            )
        if run.result["protocol"].get("interrupted"):
            yield f"{run.label} was interrupted: it is incomplete."


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
