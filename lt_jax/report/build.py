"""``lt-jax report``: figures, tables and one HTML page from finished workdirs.

Each part builds its table of numbers first, writes it as CSV, and draws from it. If a
workdir lacks the data of a part, the page explains why instead.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from lt_jax import files
from lt_jax.errors import printable
from lt_jax.experiment import workdirs
from lt_jax.experiment.tables import caption
from lt_jax.experiment.workdirs import Run
from lt_jax.report import figures, style, tables
from lt_jax.report.tables import Part

LARGEST_DOWNLOAD = 2_000_000  # characters of a CSV file that the page may embed


class Chapter(NamedTuple):
    """The parts about one run, or about all of them."""

    title: str
    facts: Sequence[tuple[str, str]]
    parts: Sequence[Part]


def write(paths: Sequence[Path], out: Path) -> Path:
    """Write the report on these workdirs and return the path of the page."""
    runs = workdirs.read(paths)
    files.claim(out, out.parent if out.parent in paths else out)
    with style.style():
        chapters = _chapters(runs)
    for part in (part for chapter in chapters for part in chapter.parts):
        for kind, content in part.picture.items():
            files.write(out / "figures" / f"{part.name}.{kind}", content)
        if part.numbers is not None:
            files.write(out / "figures" / f"{part.name}.csv", part.numbers.csv())
    title = "Long-tailed recognition: " + ", ".join(run.label for run in runs)
    files.write(out / "index.html", render(title, chapters))
    return out / "index.html"


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """Render the page: HTML that is well-formed XML, with everything embedded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lt_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    page = environment.get_template("page.html.j2")
    text = page.render(title=title, chapters=chapters, largest=LARGEST_DOWNLOAD)
    return printable(text)  # XML has no control characters


def _data_uri(content: str | bytes, kind: str) -> str:
    raw = printable(content).encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def _chapters(runs: Sequence[Run]) -> list[Chapter]:
    if len(runs) == 1:
        return [Chapter(runs[0].label, _facts(runs[0]), _parts(runs[0]))]
    chapters = [Chapter("Effect of protocol choices", (), [tables.protocol(runs)])]
    for i, run in enumerate(runs, 1):
        # The number keeps names apart that are equal once they are fit for a file.
        end = f"{i}-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", run.label)
        parts = [part._replace(name=f"{part.name}-{end}") for part in _parts(run)]
        chapters.append(Chapter(run.label, _facts(run), parts))
    return chapters


def _parts(run: Run) -> list[Part]:
    return [
        tables.main(run),
        tables.hyper(run),
        figures.groups(run),
        tables.versus(run),
        *(figures.per_class(run, metric) for metric in figures.CLASS_METRICS),
        figures.delta(run),
        figures.learning_rate(run),
        figures.correlation(run),
        figures.reliability(run),
        figures.confusion(run),
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    result, d = run.result, run.result["dataset"]
    measured, protocol = caption(result).split("\n")
    fits = [fit for of_method in run.fits.values() for fit in of_method]
    seeds = sorted({tuple(fit["seeds"]) for fit in fits}, key=lambda s: (len(s), s))
    listed = ", ".join(".".join(map(str, pair)) for pair in seeds)
    facts = [
        ("Measured", measured),
        ("Protocol", protocol),
        (
            "Training set",
            f"{d['num_train']:,} images, {d['num_classes']:,} classes of "
            f"{d['counts_min']:,} to {d['counts_max']:,}, split {d['split_hash']}",
        ),
        ("Seeds", f"{listed} (stage 1, or stage 1.stage 2)"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
        ("Device", result["device"]),
    ]
    if run.swept:
        diverged = sum(row.get("diverged") is not None for row in run.rows)
        text = (
            f"{len(run.rows):,} heads, {diverged:,} diverged; the setting of each "
            f"method is chosen on validation ({run.choose}, mean over seeds)"
        )
        facts.insert(2, ("Sweep", text))
    if result["protocol"].get("interrupted"):
        facts.insert(0, ("Incomplete", "the run was interrupted"))
    return facts
