"""Crash test: kill runs at random times, damage their files, compare the results.

    python benchmarks/faults.py [--kills N] [--json] [--quick]

Runs stage 1, features, cached stage 2 and a sweep on the digits, in one process and in
two. Each command is killed with SIGKILL at a random time and rerun, several times. The
times fall into training steps, saves, extraction, evaluation and the writing of
results. Parameters, features and metrics must equal those of undisturbed runs, bit by
bit. Then files of checkpoints and of the feature cache are truncated or get a flipped
bit, and the command runs again. It must detect the damage or not depend on it.

JSON keys: `kills`, `resumes`, `mismatches`, `steps_redone`, `damages`, `harmless`,
`mended`, `refused`, `undetected`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "digits_lt.py"
FLAGS = {
    "model.width": 4,
    "optim.repeats": 1,
    "optim.epochs": 6,
    "eval.every": 2,
    "save.every": 1,
    "eval.curves": "test",
    "log.seconds": 0.0,  # a line per step, which shows how many are repeated
    "method.names": ("los", "ldam", "ncm"),
    "method.repeats": 2,
    "method.los.grid.lr": (5e-4, 5e-2),
    "method.los.grid.delta": (0.5, 0.9),
    "method.ldam.grid.lr": (5e-2,),
    "method.features": "cached",
}
COMMANDS = ("train", "retrain", "sweep", "evaluate")
# Times differ between runs.
TIMES = ("seconds", "images_per_second")
LIMIT = 600  # seconds after which a command counts as hung


class Run:
    """A running command, in one or two processes."""

    def __init__(self, command: str, workdir: Path, processes: int):
        self.silent = command == "evaluate"  # it prints nothing before its end
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.text = ""
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={2 // processes}"
        env["PYTHONPATH"] = str(ROOT)
        flags = [f"--config.{key}={value}" for key, value in FLAGS.items()]
        self.parts = []
        for i in range(processes):
            job = ["--coordinator", f"127.0.0.1:{port}"]
            job += ["--num_processes", f"{processes}", "--process_id", f"{i}"]
            self.parts.append(
                subprocess.Popen(
                    [sys.executable, "-m", "lt_jax", command, "--config", str(CONFIG)]
                    + ["--workdir", str(workdir), *flags]
                    + (job if processes > 1 else []),
                    stdout=subprocess.PIPE if i == 0 else subprocess.DEVNULL,
                    stderr=subprocess.STDOUT,
                    env=env,
                    text=True,
                    start_new_session=True,
                )
            )

    def kill(self) -> None:
        """Send SIGKILL to all processes, one after the other, as when machines fail."""
        for part in random.sample(self.parts, len(self.parts)):
            part.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        self.wait()

    def until_working(self) -> None:
        """Wait until it has printed its protocol, or for its end."""
        if self.silent:
            return
        out = self.parts[0].stdout
        assert out is not None
        for line in out:
            self.text += line
            if line.startswith("protocol:"):
                return

    def wait(self) -> list[int]:
        self.text += self.parts[0].communicate(timeout=LIMIT)[0] or ""
        return [part.wait(timeout=LIMIT) for part in self.parts]


def finish(command: str, workdir: Path, processes: int) -> Run:
    """Run a command to its end."""
    run = Run(command, workdir, processes)
    codes = run.wait()
    if any(codes):
        sys.exit(f"{command} in {workdir} ended with {codes}:\n{run.text}")
    return run


def printed_steps(text: str) -> list[tuple[str, int]]:
    return [
        (run, int(step.replace(",", "")))
        for run, step in re.findall(r"^(\S+) \| step ([\d,]+)/", text, re.MULTILINE)
    ]


def essence(workdir: Path) -> dict[str, str]:
    """Return digests of everything that must be equal, by name."""
    sys.path.insert(0, str(ROOT))
    from lt_jax.training import checkpoint

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in TIMES}
        return [without_times(v) for v in value] if isinstance(value, list) else value

    found = {}
    for file in sorted(workdir.rglob("*")):
        name = str(file.relative_to(workdir))
        if file.name in ("outcome.json", "rows.json", "result.json"):
            content = without_times(json.loads(file.read_text()))
            found[name] = digest(json.dumps(content).replace(str(workdir), "").encode())
        elif file.suffix == ".npy":
            found[name] = digest(file.read_bytes())
        elif file.name == "state" and file.is_dir():
            if not file.parent.name.isdigit():  # an unfinished save
                continue
            leaves = checkpoint.load_leaves(file.parent)
            content = b"".join(k.encode() + v.tobytes() for k, v in leaves.items())
            found[name] = digest(content)
    return found


def compare(workdir: Path, expected: dict[str, str]) -> list[str]:
    found = essence(workdir)
    return [n for n in sorted(found | expected) if found.get(n) != expected.get(n)]


def campaign(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill commands ``kills`` times, in one process and in two."""
    random.seed(seed)
    count: Counter[str] = Counter()
    references, lengths = {}, {}
    for processes in (1, 2):
        workdir = folder / f"reference{processes}"
        for command in COMMANDS:
            began = time.monotonic()
            run = Run(command, workdir, processes)
            run.until_working()
            began = time.monotonic()
            if any(run.wait()):
                sys.exit(f"{command} does not even run undisturbed:\n{run.text}")
            lengths[processes, command] = time.monotonic() - began
        references[processes] = essence(workdir)
    where: Counter[str] = Counter()
    trial = 0
    while count["kills"] < kills:
        processes = 1 + trial % 2
        workdir = folder / f"trial{trial}"
        trial += 1
        for command in COMMANDS:
            done: dict[str, int] = {}
            for _ in range(random.choice((1, 2, 3))):
                if count["kills"] == kills:
                    break
                run = Run(command, workdir, processes)
                run.until_working()
                time.sleep(random.uniform(0, lengths[processes, command]))
                if run.parts[0].poll() is not None:  # it was faster than before
                    run.wait()
                    break
                run.kill()
                count["kills"] += 1
                where[f"{command}, {processes}"] += 1
                redone(run.text, done, count)
            redone(finish(command, workdir, processes).text, done, count)
        different = compare(workdir, references[processes])
        count["mismatches"] += len(different)
        for name in different:
            print(f"trial {trial - 1}: {name} differs", file=sys.stderr)
        print(f"{count['kills']} kills, {dict(count)}", file=sys.stderr)
        shutil.rmtree(workdir)
    names = ("kills", "resumes", "mismatches", "steps_redone")
    return {**{n: count[n] for n in names}, "where": dict(sorted(where.items()))}


def redone(text: str, done: dict[str, int], count: Counter[str]) -> None:
    """Count a resume, and the steps that it repeats."""
    count["resumes"] += bool(done)
    resumed = re.findall(r"^(\S+): resuming from step ([\d,]+)", text, re.MULTILINE)
    for run, step in resumed:
        at = int(step.replace(",", ""))
        count["steps_redone"] += max(0, done.get(run, 0) - at)
    for run, step in printed_steps(text):
        done[run] = max(done.get(run, 0), step)
    done.setdefault("", 0)  # something ran before


def damage(file: Path) -> str:
    content = bytearray(file.read_bytes())
    if random.random() < 0.5 and content:
        keep = random.randrange(len(content))
        file.write_bytes(content[:keep])
        return f"cut to {keep} of {len(content)} bytes"
    at, bit = random.randrange(len(content)), random.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at} of {len(content)} flipped"


def damages(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Damage one file at a time; the command must end the same or refuse."""
    random.seed(seed)
    count: Counter[str] = Counter({"damages": number})
    intact, workdir = folder / "reference1", folder / "damaged"

    def unfinished(command: str) -> list[Path]:
        """Reset the workdir to an unfinished state; return the files to be read."""
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(intact, workdir)
        if command == "train":  # resumes from the newest checkpoint of a fit
            fit = workdir / "checkpoints" / "stage1" / "0"
            steps = sorted(int(p.name) for p in fit.iterdir() if p.name.isdigit())
            (fit / "outcome.json").unlink()
            return [p for p in (fit / f"{steps[-1]}").rglob("*") if p.stat().st_size]
        shutil.rmtree(workdir / "sweep")
        shutil.rmtree(workdir / "checkpoints" / "chosen")
        shutil.rmtree(workdir / "checkpoints" / "fixed")
        return list((workdir / "features").rglob("*"))

    expected = {}
    for command in ("sweep", "train"):
        unfinished(command)
        run = Run(command, workdir, 1)
        assert run.wait() == [0], run.text
        expected[command] = essence(workdir)
    for i in range(number):
        command = ("sweep", "train")[i % 2]
        files = unfinished(command)
        file = random.choice(sorted(p for p in files if p.is_file()))
        how = damage(file)
        run = Run(command, workdir, 1)
        codes = run.wait()
        if codes == [0]:
            reported = re.search(r"damaged|is not used|stale|recomputing", run.text)
            kind = "mended" if reported else "harmless"
            if compare(workdir, expected[command]):
                kind = "undetected"
        elif codes == [2] and "Traceback" not in run.text:
            kind = "refused"
        else:
            kind = "undetected"
            print(run.text, file=sys.stderr)
        count[kind] += 1
        place = file.relative_to(workdir)
        print(f"{command}: {place}: {how}: {kind}", file=sys.stderr)
    names = ("damages", "harmless", "mended", "refused", "undetected")
    return {name: count[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, last")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--damages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 kills, 2 damages")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.damages = 4, 2
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(Path(folder), options.kills, options.seed)
        result |= damages(Path(folder), options.damages, options.seed)
    for name, value in result.items():
        print(f"{name:14s} {value}")
    if options.json:
        print(json.dumps(result))
    sys.exit(bool(result["mismatches"] or result["undetected"]))


if __name__ == "__main__":
    main()
