"""Write ``digits.json``: the figures of ``make demo``, to the bit on one machine.

    python tests/golden/make_digits.py RESULT_JSON

``RESULT_JSON`` is the ``result.json`` of the digits demo.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMES = ("seconds", "images_per_second")


def figures(value: Any) -> Any:
    """Remove times and speeds."""
    if isinstance(value, dict):
        return {key: figures(v) for key, v in value.items() if key not in TIMES}
    return [figures(v) for v in value] if isinstance(value, list) else value


def machine(result: dict[str, Any]) -> dict[str, str]:
    """Return what rounding depends on: compiler and processor."""
    flags = [
        line.partition(":")[2]
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith(("flags", "model name"))
    ]
    digest = hashlib.sha256("".join(sorted(set(flags))).encode()).hexdigest()[:16]
    return {"jaxlib": result["versions"]["jaxlib"], "processor": digest}


def golden(result: dict[str, Any]) -> dict[str, Any]:
    kept = {
        k: v for k, v in result.items() if k not in ("versions", "device", "digest")
    }
    return {"machine": machine(result), "result": figures(kept)}


if __name__ == "__main__":
    found = golden(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    text = json.dumps(found, indent=1)
    (HERE / "digits.json").write_text(text + "\n", encoding="utf-8")
