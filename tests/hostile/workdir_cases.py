"""Damaged workdirs: every file times every damage times every command that reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import damages
from harness import FLAGS, Box, Guard, Server, faults

IMAGE = Path(__file__).parent / "digit.png"

STAGE1 = "checkpoints/stage1/0"
JSON_FILES = {
    "config": "config.json",
    "stage 1's outcome": f"{STAGE1}/outcome.json",
    "method's outcome": "checkpoints/los/0.0/outcome.json",
    "chosen outcome": "checkpoints/chosen/los/0.0/outcome.json",
    "rows": "sweep/0/*/rows.json",
    "result": "result.json",
    "metrics": "metrics.jsonl",
    "feature note": "features/0/train.json",
    "checkpoint's notes": f"{STAGE1}/20/notes/metadata",
    "note of an artefact": "a.stablehlo.json",
}
OTHER_FILES = {
    "features": "features/0/train.npy",
    "log": "log.txt",
    "lock": "lock",
    "draft of config": "config.json.tmp",
    "draft of result": "result.json.tmp",
    "table": "report/table.md",
    "page": "report/index.html",
    "checkpoint's metadata": f"{STAGE1}/20/_CHECKPOINT_METADATA",
    "checkpoint's manifest": f"{STAGE1}/20/state/manifest.ocdbt",
    "checkpoint's names": f"{STAGE1}/20/state/_METADATA",
    "folder of the step": f"{STAGE1}/20",
    "folder of checkpoints": "checkpoints",
    "folder of features": "features",
    "folder of the report": "report",
    "artefact": "a.stablehlo",
}
FILES = JSON_FILES | OTHER_FILES


def find(work: Path, file: str) -> Path:
    """Return the path of a file of ``FILES``."""
    pattern = FILES[file]
    return next(work.glob(pattern)) if "*" in pattern else work / pattern


class Command(NamedTuple):
    argv: tuple[str, ...]
    reads: tuple[str, ...]  # names in FILES
    writes: bool = False  # whether it may write in the workdir
    unlink: tuple[str, ...] = ()  # removed before, so that there is work to do
    quick: bool = True  # a second or less


_OUTCOMES = ("stage 1's outcome", "method's outcome", "chosen outcome")
_CHECKPOINT = tuple(
    n for n in FILES if n.startswith(("checkpoint's", "folder of the s"))
)
_WRITTEN = ("log", "lock", "metrics", "draft of config", "draft of result", "result")
_WRITTEN += ("table", "page", "folder of the report", "folder of checkpoints")
_FEATURES = ("features", "feature note", "folder of features")

COMMANDS = {
    "predict": Command(
        ("predict", "--workdir", "{work}", str(IMAGE)),
        ("config", *_OUTCOMES, *_CHECKPOINT, "folder of checkpoints"),
    ),
    "predict --artefact": Command(
        ("predict", "--artefact", "{work}/a.stablehlo", str(IMAGE)),
        ("artefact", "note of an artefact"),
    ),
    "convert": Command(
        ("convert", "{work}", "{out}/w.safetensors"),
        ("config", *_OUTCOMES, *_CHECKPOINT, "folder of checkpoints"),
    ),
    "report": Command(
        ("report", "{work}", "--out", "{out}/report"),
        ("config", *_OUTCOMES, "rows", "result", "folder of checkpoints"),
        quick=False,  # unless it refuses, it draws the figures
    ),
    "evaluate": Command(
        ("evaluate", *FLAGS, "--workdir", "{work}"),
        ("config", *_OUTCOMES, *_CHECKPOINT),
        quick=False,
    ),
    "evaluate --heads": Command(
        ("evaluate", *FLAGS, "--workdir", "{work}", "--heads", ".*"),
        ("config", "rows", "lock", *_FEATURES),
        writes=True,
        quick=False,
    ),
    "run": Command(
        ("run", *FLAGS, "--workdir", "{work}"),
        ("config", *_OUTCOMES, "rows", *_WRITTEN),
        writes=True,
        quick=False,
    ),
    "resume": Command(
        ("train", *FLAGS, "--workdir", "{work}"),
        (*_CHECKPOINT, *_WRITTEN),
        writes=True,
        unlink=(f"{STAGE1}/outcome.json",),
        quick=False,
    ),
    "retrain": Command(
        ("retrain", *FLAGS, "--workdir", "{work}"),
        ("config", "stage 1's outcome", *_CHECKPOINT, *_FEATURES, *_WRITTEN),
        writes=True,
        unlink=("checkpoints/los/0.0/outcome.json",),
        quick=False,
    ),
    "sweep": Command(
        ("sweep", *FLAGS, "--workdir", "{work}"),
        ("config", *_OUTCOMES, "rows", *_FEATURES, *_WRITTEN),
        writes=True,
        unlink=("checkpoints/chosen/los/0.0/outcome.json",),
        quick=False,
    ),
    "from it": Command(  # stage 1 of another workdir
        (
            *("retrain", *FLAGS, "--config.init.path={work}"),
            *("--config.method.features=online", "--workdir", "{out}/new"),
        ),
        ("stage 1's outcome", *_CHECKPOINT, "folder of checkpoints"),
        quick=False,
    ),
}


class Case(NamedTuple):
    """A command in a workdir with one damaged file.

    The damage is a name in ``damages.JSON``; or, with a place in the file, in
    ``damages.VALUES``.
    """

    command: str
    file: str
    damage: str
    place: tuple[str | int, ...] = ()

    @property
    def quick(self) -> bool:
        return COMMANDS[self.command].quick

    @property
    def id(self) -> str:
        at = ".".join(map(str, self.place))
        return f"{self.command} | {self.file}{at and ' ' + at} | {self.damage}"


def whole_files() -> Iterator[Case]:
    """List the cases that damage a complete file."""
    for name, command in COMMANDS.items():
        for file in command.reads:
            if FILES[file] in command.unlink:
                continue
            kinds = damages.JSON if file in JSON_FILES else damages.ANY
            if file.startswith(("folder", "draft")):
                kinds = [k for k in damages.ANY if k not in ("half", "flipped")]
            for damage in kinds:
                if not (damage == "missing" and file.startswith("draft")):
                    yield Case(name, file, damage)


def values(workdir: Path) -> Iterator[Case]:
    """List the cases that replace one value of a JSON file."""
    for name, command in COMMANDS.items():
        for file in command.reads:
            skipped = file == "metrics" or FILES[file] in command.unlink
            if file not in JSON_FILES or skipped:
                continue
            text = find(workdir, file).read_text(encoding="utf-8")
            for place in damages.places(json.loads(text)):
                if place == (damages.DIGEST,):
                    continue
                for damage in damages.VALUES:
                    yield Case(name, file, damage, place)


def run(case: Case, server: Server, workdir: Path, root: Path) -> list[str]:
    """Run a case in a new box; return what is wrong."""
    command = COMMANDS[case.command]
    box = Box(root, workdir)
    for name in command.unlink:
        (box.work / name).unlink()
    file = find(box.work, case.file)
    if case.place:
        damages.set_value(file, case.place, damages.VALUES[case.damage])
    else:
        damages.JSON[case.damage](file, box.victim)
    guard = Guard(box, command.writes)
    ended = box.run(server, command.argv)
    found = faults(ended) + guard.faults(ended)
    box.remove()
    return found
