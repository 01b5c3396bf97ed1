"""``lt-jax report``: figures, tables and one page from finished workdirs.

Every part says its numbers once, as a table for its file, and draws from them; what a
workdir does not hold is said in a sentence in the figure's place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lt_jax.errors import InputError
from lt_jax.experiment import workdirs
from lt_jax.experiment.tables import caption
from lt_jax.experiment.workdirs import Run
from lt_jax.report import figures as drawn
from lt_jax.report import page, style, tables
from lt_jax.report.page import Chapter, Part
from lt_jax.training.log import write_whole


def write(paths: Sequence[Path], out: Path) -> Path:
    """Writes the report on these workdirs.

    Returns:
      The page.

    Raises:
      InputError: a workdir cannot be read, or ``out`` cannot be written.
    """
    runs = workdirs.read(paths)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with style.style():
            chapters = _chapters(runs)
        for part in (part for chapter in chapters for part in chapter.parts):
            for kind, content in part.picture.items():
                (out / "figures" / f"{part.name}.{kind}").write_bytes(content)
            if part.numbers is not None:
                write_whole(out / "figures" / f"{part.name}.csv", part.numbers.csv())
        names = ", ".join(run.label for run in runs)
        intro = (
            "Accuracies are in per cent, on the test set unless a figure says "
            "otherwise; ± is the standard deviation over seeds."
        )
        text = page.html(f"Long-tailed recognition: {names}", intro, chapters)
        write_whole(out / "index.html", text)
    except OSError as error:
        where = error.filename or out
        raise InputError(
            f"cannot write the report to {out}: {error.strerror or error} ({where}). "
            "Give another folder with --out"
        ) from error
    return out / "index.html"


def _chapters(runs: Sequence[Run]) -> list[Chapter]:
    if len(runs) == 1:
        return [Chapter(runs[0].label, _facts(runs[0]), _parts(runs[0]))]
    chapters = [
        Chapter("Effect of the protocol's choices", (), [tables.protocol(runs)])
    ]
    for i, run in enumerate(runs, 1):
        # Numbered, as two names may look the same once they are fit for a file.
        end = f"{i}-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", run.label)
        parts = [part._replace(name=f"{part.name}-{end}") for part in _parts(run)]
        chapters.append(Chapter(run.label, _facts(run), parts))
    return chapters


def _parts(run: Run) -> list[Part]:
    return [
        tables.main(run),
        tables.hyper(run),
        drawn.groups(run),
        tables.versus(run),
        drawn.per_class(
            run,
            "accuracy",
            "Accuracy of each class against its count",
            "accuracy (per cent)",
            {"": "accuracy"},
            100,
        ),
        drawn.per_class(
            run,
            "loma_row",
            "Logits Magnitude of each class, row reading",
            "LoMa row (nats)",
            {"": "loma_row"},
            words="Over the examples of a class: true logit minus the mean of the "
            "example's other logits. A level line is a balanced head. ",
        ),
        drawn.per_class(
            run,
            "loma_col",
            "Logits Magnitude of each class, column reading",
            "LoMa col (nats)",
            {"": "loma_col"},
            words="Logit k over the examples of class k, minus the same logit over all "
            "others. A level line is a balanced head. ",
        ),
        *(
            drawn.per_class(
                run,
                f"rsd_{reading}",
                f"RSD of each class, {word} reading",
                f"RSD {reading} (log scale)",
                {"true": f"rsd_{reading}_true", "false": f"rsd_{reading}_false"},
                words="Standard deviation of a class's logits over its LoMa; true: "
                "over its own examples, false: over the others. Lower is steadier. ",
                log=True,
            )
            for reading, word in (("row", "row"), ("col", "column"))
        ),
        drawn.per_class(
            run,
            "weight_norm",
            "Weight norm of each class",
            "norm of the class vector",
            {"": "weight_norm"},
        ),
        drawn.delta(run),
        drawn.rates(run),
        drawn.correlation(run),
        drawn.reliability(run),
        drawn.confusion(run),
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    r, d = run.result, run.result["dataset"]
    what, how = caption(r).split("\n")
    fits = [fit for held in run.fits.values() for fit in held]
    seeds = sorted({tuple(fit["seeds"]) for fit in fits}, key=lambda s: (len(s), s))
    told = ", ".join(".".join(map(str, s)) for s in seeds)
    facts = [
        ("Measured", what),
        ("Protocol", how),
        (
            "Training set",
            f"{d['num_train']:,} images, {d['num_classes']:,} classes of "
            f"{d['counts_min']:,} to {d['counts_max']:,}, split {d['split_hash']}",
        ),
        ("Seeds", f"{told} (of stage 1; of stage 1 and, after the dot, stage 2)"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in r["versions"].items())),
        ("Device", str(r["device"])),
    ]
    if run.swept:
        heads, bad = (
            len(run.rows),
            sum(row.get("diverged") is not None for row in run.rows),
        )
        text = (
            f"{heads:,} heads, {bad:,} diverged; of each method the setting that is "
            f"best on validation ({run.choose}, mean over seeds) is chosen"
        )
        facts.insert(2, ("Sweep", text))
    if r["protocol"].get("interrupted"):
        facts.insert(0, ("Unfinished", "the run was interrupted; more may come"))
    return facts
