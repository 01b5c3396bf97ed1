"""Any bytes and any JSON in a file: exit code 0 or 2 and one line.

Each example is a command in a fork of the server, with a limit of time and of 2 GiB.
The examples are the same in every run. The tests are in ``test_hostile.py``, which has
the server and its workdir.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import damages
import harness
import hypothesis
import input_cases
import numpy as np
import workdir_cases
from hypothesis import strategies as st
from workdir_cases import FILES, IMAGE

QUICK, FULL = 4, 80  # examples per reader


class Reader(NamedTuple):
    """A command and the file of its box that is fuzzed."""

    argv: tuple[str, ...]
    file: str  # below the box, or a name in FILES
    codes: tuple[int, ...] = (0, 2)


PREDICT = ("predict", "--workdir", "{work}", str(IMAGE))
CONVERT = ("convert", "{work}", "{out}/w.safetensors")
REPORT = ("report", "{work}", "--out", "{out}/report")
ARTEFACT = ("predict", "--artefact", "{work}/a.stablehlo", str(IMAGE))
JSON_READERS = {
    "config": Reader(PREDICT, "config"),
    "stage 1's outcome": Reader(CONVERT, "stage 1's outcome"),
    "method's outcome": Reader(REPORT, "method's outcome"),
    "rows": Reader(REPORT, "rows"),
    "result": Reader(REPORT, "result"),
    "note of an artefact": Reader(ARTEFACT, "note of an artefact"),
}
BYTE_READERS = {
    "artefact": Reader(ARTEFACT, "artefact"),
    "image": Reader(("predict", "--workdir", "{work}", "{cwd}/x.png"), "cwd/x.png"),
    "npz": Reader(input_cases.INFO, "cwd/train.npz"),
    "npy": Reader(input_cases.INFO, "cwd/train.npy"),
    "parquet": Reader(input_cases.INFO, "cwd/train.parquet"),
    "table": Reader(input_cases.TABLE, "cwd/t.csv"),
    "safetensors": Reader(
        ("convert", "{cwd}/w.safetensors", *input_cases.ARGUMENTS), "cwd/w.safetensors"
    ),
    "archive": Reader(input_cases.PREPARE_CIFAR, "cwd/cifar-10-binary.tar.gz"),
}

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(list(damages.VALUES.values()))
)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=8,
)


@st.composite
def changed_json(draw: st.DrawFn, valid: Any) -> Any:
    """A JSON value with one to three places replaced, or removed."""
    content = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = damages.places(content)
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        inner = content
        for key in path:
            inner = inner[key]
        if draw(st.booleans()):
            inner[last] = draw(ANY_JSON)
        else:
            del inner[last]
    return content


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """A file that is cut, or in which some bytes differ, or bytes that are no file."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        part = draw(st.binary(max_size=8))
        kind = draw(st.sampled_from(("replace", "insert", "cut", "end")))
        if kind == "replace":
            content[at : at + len(part)] = part
        elif kind == "insert":
            content[at:at] = part
        elif kind == "cut":
            del content[at : at + draw(st.integers(0, 64))]
        else:
            del content[max(at, 1) :]
    return bytes(content)


def _examples(number: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(hypothesis.Phase.generate,),  # shrinking would take minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def _file(reader: Reader, box: harness.Box) -> Path:
    if reader.file in FILES:
        return workdir_cases.find(box.work, reader.file)
    return box.root / reader.file


def check(
    reader: Reader, content: bytes, server: harness.Server, box: harness.Box
) -> None:
    """Run a reader on a content; restore the box."""
    file = _file(reader, box)
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(content)
    guard = harness.Guard(box, writes=False)
    ended = box.run(server, reader.argv)
    wrong = harness.faults(ended, reader.codes) + guard.faults(ended)
    harness.empty(box.out)
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    assert wrong == [], (content[:2000], ended.err)


def fuzz_json(name: str, number: int, server: harness.Server, box: harness.Box) -> None:
    reader = JSON_READERS[name]
    valid = json.loads(_file(reader, box).read_text(encoding="utf-8"))
    valid.pop(damages.DIGEST, None)  # or every change would be found by it

    @_examples(number)
    @hypothesis.given(ANY_JSON | changed_json(valid) | changed_json(valid))
    def examples(content: Any) -> None:
        text = json.dumps(content).encode()
        check(reader, text, server, box)

    examples()


def fuzz_bytes(
    name: str, number: int, server: harness.Server, box: harness.Box
) -> None:
    reader = BYTE_READERS[name]
    valid = _valid(name, box)

    @_examples(number)
    @hypothesis.given(changed_bytes(valid))
    def examples(content: bytes) -> None:
        check(reader, content, server, box)

    examples()


def _valid(name: str, box: harness.Box) -> bytes:
    """A file that the reader accepts."""
    if name == "artefact":
        return (box.work / FILES["artefact"]).read_bytes()
    if name == "parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {"features": input_cases.FEATURES.tolist()}
        sink = pyarrow.BufferOutputStream()
        columns["labels"] = input_cases.LABELS.tolist()
        parquet.write_table(pyarrow.table(columns), sink)
        return sink.getvalue().to_pybytes()
    if name == "table":
        rows = [f"{c}/bild {i}.jpg,{c}\n" for c in ("rot", "blau") for i in (0, 2)]
        return ("path,label\n" + "".join(rows)).encode()
    if name == "safetensors":
        tensor = np.zeros((16, 3, 3, 3), np.float32)
        header = {"dtype": "F32", "shape": [16, 3, 3, 3], "data_offsets": [0, 1728]}
        return input_cases.safetensors({"conv1.weight": header}, tensor.tobytes())
    return {
        "image": IMAGE.read_bytes(),
        "npz": input_cases.GOOD,
        "npy": input_cases.saved(input_cases.FEATURES),
        "archive": input_cases.good_cifar(),
    }[name]
