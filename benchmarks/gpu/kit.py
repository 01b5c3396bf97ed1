"""What a GPU is needed for, in three commands of at most ten minutes each.

    python benchmarks/gpu/kit.py check --out DIR
    python benchmarks/gpu/kit.py train --out DIR --data FOLDER
    python benchmarks/gpu/kit.py speed --out DIR

- `check`: the tests of losses, heads, metrics, networks and training steps on the GPU,
  and parity with PyTorch if it is installed.
- `train`: CIFAR100-LT at IR 100, the wide ResNet-34 for 200 + 20 epochs in bfloat16,
  with the clean protocol and with the authors'. FOLDER holds TFDS's cifar100.
- `speed`: the training step next to `torch.compile`, if PyTorch with CUDA is installed;
  images/s of ResNet-50 from made photographs; features of ResNet-50 and of ViT-S, also
  next to PyTorch; stage 2 at iNaturalist 2018's size.

A command runs its parts in order and writes DIR/COMMAND.json after each. It stops after
`--minutes`. The same command, run again, does the parts that are missing, and resumes a
training at its last checkpoint. `--toy` runs tiny versions on any device. Copy the
files from DIR to benchmarks/gpu/results: docs/benchmarks/gpu.md shows them.
benchmarks/gpu/wheels.sh collects packages for a machine without a network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    *("test_laws.py", "test_losses.py", "test_heads.py", "test_metrics.py"),
    *("models", "training/test_steps.py", "training/test_micro.py"),
    "retraining/test_engine.py",
)
RESULTS = ("result.json", "log.txt")


class Part(NamedTuple):
    """A subprocess and how to read what it found."""

    name: str
    command: list[str]
    read: Callable[[str], Any]  # standard output -> what goes into the JSON file
    env: Mapping[str, str] = MappingProxyType({})
    fails: tuple[int, ...] = ()  # exit codes of a part that ran and found failures


def lt_jax(*words: object) -> list[str]:
    return [sys.executable, "-m", "lt_jax", *map(str, words)]


def check(out: Path, options: argparse.Namespace) -> list[Part]:
    """Tests on the device; `gpu` in the expression leaves the choice to JAX."""
    names = ("test_laws.py",) if options.toy else TESTS
    marks = {name: "gpu or not (slow or parity or prepare)" for name in names}
    if importlib.util.find_spec("torch") and not options.toy:
        marks["test_parity.py"] = "gpu or parity"
    parts = []
    for name, marked in marks.items():
        report = out / f"{name.replace('/', '_')}.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"tests/{name}", "-m", marked]
        command += ["-p", "no:cacheprovider", f"--junit-xml={report}"]
        # Float32 means float32: the default of GPUs rounds the factors to TF32.
        env = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        parts.append(Part(name, command, lambda _, r=report: counts(r), env, (1,)))
    return parts


def counts(report: Path) -> dict[str, Any]:
    """Count the tests of a report of pytest; name those that failed."""
    suite = ET.parse(report).getroot()[0]
    found: dict[str, Any] = {k: int(suite.get(k) or 0) for k in ("tests", "skipped")}
    cases = [c for c in suite if any(inner.tag in ("failure", "error") for inner in c)]
    found["failed"] = [f"{c.get('classname')}.{c.get('name')}" for c in cases]
    return found


def train(out: Path, options: argparse.Namespace) -> list[Part]:
    """The recipe of LOS under both protocols."""
    parts = []
    for protocol in ("clean", "paper"):
        workdir = out / protocol
        config = f"configs/cifar100_lt.py:ir=100,protocol={protocol}"
        words = ["run", "--config", config, "--workdir", workdir]
        words += [f"--config.data.dir={options.data}", "--config.model.dtype=bfloat16"]
        if options.toy:
            words[2] = "configs/digits_lt.py"
            words += ["--config.optim.epochs=1", "--config.data.dir="]
        parts.append(
            Part(protocol, lt_jax(*words), lambda _, w=workdir: finished(w, out))
        )
    return parts


def finished(workdir: Path, out: Path) -> dict[str, Any]:
    """Read the result of a run; keep it and the log next to the JSON file."""
    for name in RESULTS:
        shutil.copy(workdir / name, out / f"{workdir.name}_{name}")
    stage1 = read(workdir / "checkpoints/stage1/0/outcome.json")
    rates = {key: stage1[key] for key in ("seconds", "images_per_second")}
    return {"stage1": rates, "result": read(workdir / "result.json")}


def speed(out: Path, options: argparse.Namespace) -> list[Part]:
    """Rates of loading, training steps, evaluation and stage 2."""
    photos = out / "photos"
    make_photos(photos, per_class=4 if options.toy else 64)
    bench, quick = ROOT / "benchmarks", ["--quick"] * options.toy
    parts = []
    for net in ("resnet10",) if options.toy else ("resnet50",):
        found = out / f"{net}.json"
        words = ["benchmark", "--json", found, "--seconds", 0.1 if options.toy else 5]
        words += ["--config", f"configs/folder.py:path={photos},classes=8,net={net}"]
        words += [f"--config.optim.batch={8 if options.toy else 256}"]
        words += ["--config.model.dtype=bfloat16"]
        if options.toy:
            words += ["--config.data.size=32", "--config.model.width=8"]
        parts.append(Part(net, lt_jax(*words), lambda _, f=found: read(f)))
    nets = ["resnet32"] if options.toy else ["resnet50", "vit_small_patch16_224"]
    command = [sys.executable, str(bench / "extraction.py"), "--json", *quick]
    command += ["--platform", "cpu" if options.toy else "gpu", "--nets", *nets]
    parts.append(Part("extraction", command, last_line))
    command = [sys.executable, str(bench / "scale.py"), "--json", *quick]
    parts.append(Part("scale", command, last_line))
    if importlib.util.find_spec("torch") and not options.toy:
        command = [sys.executable, str(bench / "train_step.py"), "--json"]
        parts.append(Part("train_step", [*command, "--platform", "gpu"], last_line))
    return parts


def last_line(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def make_photos(folder: Path, per_class: int) -> None:
    """Write JPEGs of noise, 8 classes, for a test and a training set."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for k in range(8):
            files = folder / split / f"class{k}"
            files.mkdir(parents=True, exist_ok=True)
            for i in range(per_class - len(list(files.iterdir()))):
                coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
                Image.fromarray(coarse).resize((400, 300)).save(files / f"{i}.jpg")


def machine() -> dict[str, Any]:
    """Device and versions, asked in a process of its own to leave the device free."""
    code = (
        "import json, jax; from lt_jax.distributed import sharding; "
        "from lt_jax.experiment import results; "
        "print(json.dumps({'device': sharding.device_name(), "
        "'versions': results.versions()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        **last_line(done.stdout),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def run(part: Part, out: Path, seconds: float) -> tuple[int, str]:
    """Run a part for at most ``seconds``; SIGTERM lets a training save its state."""
    log = out / f"{part.name.replace('/', '_')}.log"
    with log.open("a+", encoding="utf-8") as written:
        begin = written.tell()
        process = subprocess.Popen(
            part.command,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **part.env},
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        written.seek(begin)
        return code, written.read()


def do_missing(command: str, parts: list[Part], out: Path, minutes: float) -> int:
    """Run the parts that are not done yet; return the number that is still missing."""
    end, file = time.monotonic() + 60 * minutes, out / f"{command}.json"
    found = read(file) if file.exists() else {}
    found.setdefault("parts", {})
    for part in parts:
        left = end - time.monotonic() - 35  # a part may take 30 s to stop
        if part.name in found["parts"] or left < 5:
            continue
        print(f"{command}: {part.name}", flush=True)
        begun = time.monotonic()
        code, text = run(part, out, left)
        if code not in (0, *part.fails):
            print(f"{part.name}: exit code {code}\n{text[-2000:]}", flush=True)
            continue
        found.update(machine())
        took = round(time.monotonic() - begun, 1)
        found["parts"][part.name] = {"seconds": took, "found": part.read(text)}
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draft.replace(file)
    missing = [part.name for part in parts if part.name not in found["parts"]]
    again = f"; run the same command again for {', '.join(missing)}" if missing else ""
    print(f"{command}: {len(parts) - len(missing)} of {len(parts)} parts done{again}")
    return len(missing)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, required=True, help="resumes what is there")
    parser.add_argument("--data", default="", help="TFDS folder with cifar100")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--toy", action="store_true", help="tiny, to rehearse")
    options = parser.parse_args(argv)
    if options.command == "train" and not (options.data or options.toy):
        parser.error("train needs --data FOLDER, which holds TFDS's cifar100")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    parts = COMMANDS[options.command](out, options)
    return 1 if do_missing(options.command, parts, out, options.minutes) else 0


COMMANDS = {"check": check, "train": train, "speed": speed}

if __name__ == "__main__":
    sys.exit(main())
