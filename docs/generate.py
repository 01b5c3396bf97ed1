"""Reference pages generated from the code.

A page holds a line ``<!-- generated: NAME -->``. ``conf.py`` replaces it, while the
site is built, with the Markdown that the function in ``PARTS`` returns.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "docs/reference/result.schema.json"
TABLES = runpy.run_path(str(ROOT / "benchmarks/leaderboard.py"))["TABLES"]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def fill(text: str) -> str:
    """Replace every marker of a page with its generated part."""
    return MARK.sub(lambda found: PARTS[found[1]](), text)


def commands() -> str:
    """Help text of every command, from its parser."""
    from lt_jax.cli import main

    # argparse wraps at the width of the terminal.
    with mock.patch.dict(os.environ, COLUMNS="88", NO_COLOR="1"):
        return "\n\n".join(_helps(main.make_parser(), "##"))


def _helps(parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    yield f"{level} {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _helps(inner, "##")


def config() -> str:
    """Return the keys of the base config, then those of photographs."""
    from lt_jax.experiment.defaults import base_config, photo_config

    meanings = _meanings()
    values = dict(_leaves(base_config()))
    base = {key: values[key] for key in meanings if key in values}
    photos = {k: v for k, v in _leaves(photo_config()) if base.get(k, ...) != v}
    photos["data.workers"] = "all cores"
    photos |= {"data.table": "", "data.test": 0.1}  # of configs/folder.py
    parts = []
    for group in dict.fromkeys(key.rpartition(".")[0] for key in base):
        keys = {k: v for k, v in base.items() if k.rpartition(".")[0] == group}
        parts.append((f"`{group}`" if group else "Top level", keys))
    parts.append(("Photographs and folders", photos))
    text = [
        f"## {title}\n\n"
        + _table(
            [
                ("key", "default", "meaning"),
                *((f"`{k}`", f"`{v!r}`", meanings[k]) for k, v in keys.items()),
            ]
        )
        for title, keys in parts
    ]
    return "\n\n".join(text)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _meanings() -> dict[str, str]:
    """Return the comment of every key, in the line of its field or above it."""
    from lt_jax.experiment.config import GROUPS
    from lt_jax.experiment.records import Config

    found = {}
    for group, record in {"": Config, **GROUPS}.items():
        for kind in reversed(record.__mro__[:-1]):
            above: list[str] = []
            for line in map(str.strip, inspect.getsource(kind).splitlines()):
                key = re.match(r"(\w+): .* = [^#]*(?:# (.*))?$", line)
                meaning = " ".join([*above, key[2] or ""]).strip() if key else ""
                if key and meaning:
                    found[f"{group}.{key[1]}".strip(".")] = meaning
                above = [*above, line.lstrip("# ")] if line.startswith("#") else []
    return found


def methods() -> str:
    """Table and details of every method, from the docstrings of METHODS."""
    from lt_jax import recipes
    from lt_jax.methods import METHODS

    entries = recipes.entries(recipes.Case(recipes.CIFAR100))
    rows, texts, seen = [], [], {}
    for name, make in METHODS.items():
        first, _, rest = inspect.getdoc(make).partition("\n\n")
        values = recipes.own(entries[name]).items()
        recipe = ", ".join(f"{key} {value}" for key, value in values)
        rows.append((f"`{name}`", _code(first), recipe))
        if make in seen:
            texts.append(f"`{name}`\n: `{seen[make]}` with a recipe of its own.")
        elif rest:
            body = "\n\n".join(
                " ".join(part.split()) for part in rest.strip().split("\n\n")
            )
            texts.append(f"`{name}`\n: " + _code(body).replace("\n\n", "\n\n  "))
        seen.setdefault(make, name)
    head = ("method", "description", "recipe for CIFAR100-LT, batch 64")
    return _table([head, *rows]) + "\n\n## Details\n\n" + "\n\n".join(texts)


def result() -> str:
    """Keys of ``result.json``, from its JSON schema."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    tables = [("result.json", schema)]
    tables += [(name, schema["$defs"][name]) for name in ("method", "loma", "spread")]
    parts = []
    for title, part in tables:
        rows = [("key", "type", "content"), *_keys(part, "")]
        parts.append(f"## `{title}`\n\n{_table(rows)}")
    return "\n\n".join(parts)


def _keys(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for key, value in schema["properties"].items():
        name = value.get("$ref", "").rpartition("/")[2]
        kind = value.get("type", f"`{name}`")
        if isinstance(kind, list):
            kind = " or ".join(kind)
        of_each = value.get("additionalProperties")
        if isinstance(of_each, dict) and "$ref" in of_each:
            kind = f"object of `{of_each['$ref'].rpartition('/')[2]}`"
        choices = value.get("enum", ())
        content = value["description"]
        if choices:
            content += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
        yield f"`{prefix}{key}`", kind, content
        if "properties" in value and "mean" not in value["properties"]:
            yield from _keys(value, f"{prefix}{key}.")


def gpu() -> str:
    """Table of what benchmarks/gpu/kit.py measured; empty cells name the command."""
    rows = [("measured", "figure", "device, commit, date", "command")]
    for title, command, part, figure in GPU:
        file = GPU_RESULTS / f"{command}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        done = found.get("parts", {}).get(part)
        text = figure(done["found"]) if done else "not measured"
        where = "{device}, {commit}, {date}".format_map(found) if done else ""
        rows.append((title, text, where, f"`{command}`"))
    return _table(rows)


def _passed(found: dict[str, Any]) -> str:
    failed = ", ".join(found["failed"]) or "none"
    return f"{found['tests']} run, {found['skipped']} skipped, failed: {failed}"


def _accuracy(found: dict[str, Any]) -> str:
    parts = [f"stage 1 {found['stage1']['images_per_second']:,.0f} images/s"]
    for name, method in found["result"]["methods"].items():
        groups = [method[key]["mean"] for key in ("all", "many", "medium", "few")]
        parts.append(f"{name} " + " / ".join(f"{100 * value:.1f}" for value in groups))
    return "; ".join(parts)


def _sizes(found: dict[str, Any]) -> str:
    heads = found["heads"]
    return (
        f"{1000 * heads['step_seconds_1']:.1f} ms per step of one head, "
        f"{1000 * heads['step_seconds_4']:.1f} of four"
    )


GPU_RESULTS = ROOT / "benchmarks/gpu/results"
RECIPE = "CIFAR100-LT, IR 100, wide ResNet-34, 200 + 20 epochs, bfloat16, "
GPU: list[tuple[str, str, str, Callable[[Any], str]]] = [
    ("tests of the formulas", "check", "test_laws.py", _passed),
    ("tests of training steps", "check", "training/test_steps.py", _passed),
    ("tests of heads fitted at once", "check", "retraining/test_engine.py", _passed),
    ("agreement with PyTorch", "check", "test_parity.py", _passed),
    (RECIPE + "clean protocol; all / many / medium / few", "train", "clean", _accuracy),
    (RECIPE + "the authors' protocol", "train", "paper", _accuracy),
    (
        "ResNet-50, 224 px, batch 256, bfloat16, training step",
        "speed",
        "resnet50",
        lambda found: f"{found['training_step']:,.0f} images/s",
    ),
    (
        "features of ResNet-50 and ViT-S, 224 px, bfloat16",
        "speed",
        "extraction",
        lambda found: (
            f"{found['resnet50']:,.0f}, {found['vit_small_patch16_224']:,.0f} images/s"
        ),
    ),
    ("stage 2, 437,513 x 2,048 features, 8,142 classes", "speed", "scale", _sizes),
    (
        "training step over PyTorch's: ResNet-32, wide ResNet-34",
        "speed",
        "train_step",
        lambda found: (
            f"{found['resnet32_over_torch']:.2f}, {found['resnet34_over_torch']:.2f}"
        ),
    ),
]


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def _code(text: str) -> str:
    """Turn a docstring's double backquotes into Markdown's single ones."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split(" ")))


PARTS = {
    "commands": commands,
    "config": config,
    "methods": methods,
    "result": result,
    "gpu": gpu,
    **{table.__name__: table for table in TABLES},
}
