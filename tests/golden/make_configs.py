"""Write ``configs.json``: the resolved value of every key of every config.

    python tests/golden/make_configs.py

Per config: all values at its default argument, and for each other argument the values
that differ from those.
"""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"

# Arguments by config: the values of each key that is varied.
VARIED: dict[str, dict[str, tuple[str, ...]]] = {
    "digits_lt": {},
    "cifar100_lt": {
        "ir": ("100", "50", "10"),
        "net": ("resnet34", "resnet32"),
        "split": ("first", "cao"),
        "protocol": ("clean", "paper"),
        "methods": ("two", "all"),
        "data": ("cifar100", "cifar10"),
    },
    "features": {
        "path": ("", "some/folder"),
        "ir": ("whole", "100"),
        "methods": ("two", "all"),
        "delta": ("", "0.5"),
        "limits": ("", "50-10"),
    },
    "folder": {
        "path": ("", "some/folder"),
        "classes": ("", "7"),
        "table": ("", "some/table.csv"),
        "net": ("resnet50", "resnet10", "resnext50_32x4d"),
        "epochs": ("90", "5"),
        "features": ("cached", "online"),
        "methods": ("two", "all"),
    },
    "imagenet_lt": {
        "net": ("resnext50_32x4d", "resnet50", "resnet10", "resnet101", "resnet152"),
        "epochs": ("90", "200"),
        "colours": ("plain", "jitter"),
        "features": ("cached", "online"),
        "methods": ("two", "all"),
    },
    "inat2018": {
        "net": ("resnet50", "resnet101", "resnet152", "resnet10"),
        "epochs": ("90", "200"),
        "protocol": ("clean", "paper"),
        "features": ("cached", "online"),
        "methods": ("two", "all"),
    },
}


def arguments(name: str) -> list[str]:
    """Return "", then every value alone and combined with every other one."""
    single = [(k, v) for k, known in VARIED[name].items() for v in known[1:]]
    pairs = [(a, b) for a, b in itertools.combinations(single, 2) if a[0] != b[0]]
    chosen = [*((one,) for one in single), *pairs]
    return ["", *(",".join(f"{k}={v}" for k, v in parts) for parts in chosen)]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key, with tuples as lists as in JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.loads(json.dumps(value))
    return found


def load(name: str, argument: str) -> dict[str, Any]:
    get_config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]
    return flat(get_config(argument) if argument else get_config())


def difference(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return values of ``other`` that differ from ``base``; None for a missing key."""
    keys = [*other, *(key for key in base if key not in other)]
    return {k: other.get(k) for k in keys if k not in base or other.get(k) != base[k]}


def resolved(name: str) -> dict[str, Any]:
    base, *others = arguments(name)
    default = load(name, base)
    return {
        "default": default,
        "differs": {a: difference(default, load(name, a)) for a in others},
    }


def main() -> None:
    found = {name: resolved(name) for name in sorted(VARIED)}
    lines = []
    for name, config in found.items():
        lines.append(f' {json.dumps(name)}: {{\n  "default": {{')
        lines.append(_lines(config["default"]) + '\n  },\n  "differs": {')
        lines.append(_lines(config["differs"]) + "\n  }\n },")
    text = "{\n" + "\n".join(lines).removesuffix(",") + "\n}\n"
    (HERE / "configs.json").write_text(text, encoding="utf-8")


def _lines(values: dict[str, Any]) -> str:
    """Format one line per entry, sorted, for readable diffs."""
    return ",\n".join(
        f"   {json.dumps(key)}: {json.dumps(values[key], sort_keys=True)}"
        for key in sorted(values)
    )


if __name__ == "__main__":
    main()
