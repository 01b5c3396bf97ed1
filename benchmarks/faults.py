"""Crash test: kill runs, damage their files, compare the results.

    python benchmarks/faults.py [--points N] [--kills N] [--damages N] [--json]

Runs stage 1, features, cached stage 2, a sweep and an evaluation on the digits, in one
process and in two, and the preparation of a dataset. What an interrupted command leaves
is given to the same command again. Parameters, features, metrics and tables must equal
those of undisturbed runs, bit by bit.

1. At system calls: a command sends itself SIGKILL before or after its k-th rename,
   mkdir, unlink, rmdir or fsync in the workdir. Each kind of call on each kind of file
   (checkpoint, features, outcome, result, report, ...) is chosen equally often.
2. At random times, which fall into training steps, saves, extraction and evaluation.
3. Damages: files of checkpoints and of the feature cache are truncated or get a flipped
   bit. The command must detect the damage or not depend on it.

JSON keys: `points` of 1, with `kills`, `mismatches`, `kinds`, `where`, `calls`,
`wrong`; `kills`, `resumes`, `mismatches`, `steps_redone`, `where` of 2; `damages`,
`harmless`, `mended`, `refused`, `undetected` of 3.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kill_points

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
# Shorter, as the kills at system calls need no long runs.
POINT_FLAGS = FLAGS | {
    "optim.epochs": 2,
    "eval.every": 1,
    "method.names": ("los", "ncm"),
    "method.repeats": 1,
    "method.los.grid.lr": (5e-4, 5e-2),
    "method.los.grid.delta": (0.5,),
}
PREPARE = "data prepare"
# Times differ between runs, and with them the digests of the files that hold them.
TIMES = ("seconds", "images_per_second", "digest")
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
            if "protocol:" in line:
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
        for run, step in re.findall(r"(\S+) \| epoch \S+ \| step ([\d,]+)/", text)
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
        elif file.suffix == ".npy" or file.name in ("table.md", "per_class.csv"):
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


class Kind(NamedTuple):
    """Calls that are alike: the same call of a command on the same kind of file."""

    processes: int
    command: str
    call: str  # such as rename
    file: str  # see file_kind


def file_kind(path: str) -> str:
    """Name the kind of a file by its path in a workdir or a data folder."""
    name = re.sub(r"\.[0-9a-f]{8}\.tmp$", "", path).rpartition("/")[2]
    if name in ("outcome.json", "rows.json", "result.json", "config.json"):
        return name
    folder = path.partition("/")[0]
    named = ("checkpoints", "features", "sweep", "report")
    return folder if folder in named else "workdir"


def start(
    words: Sequence[str],
    processes: int,
    log: Path,
    kill: tuple[Path, int, bool] | None = None,
) -> list[int]:
    """Fork a command, which starts faster than a new Python; return its processes.

    Args:
      log: what process 0 prints; its calls go to the same name with ".calls".
      kill: the folder, the number of the call and whether to kill after it, for
        process 0; see ``kill_points.install``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parts = []
    for i in range(processes):
        job: list[str] = []
        if processes > 1:
            job = ["--coordinator", f"127.0.0.1:{port}", "--process_id", f"{i}"]
            job += ["--num_processes", f"{processes}"]
        if child := os.fork():
            parts.append(child)
            continue
        code = 1
        try:
            os.setsid()
            file = os.open(log if i == 0 else os.devnull, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            flag = "--xla_force_host_platform_device_count"
            os.environ["XLA_FLAGS"] = f"{flag}={2 // processes}"
            if i == 0 and kill is not None:
                root, at, after = kill
                kill_points.install(root, log.with_suffix(".calls"), at, after)
            from lt_jax import __main__ as main

            sys.argv = ["lt-jax", *words, *job]
            code = main.main()
            sys.stdout.flush()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return parts


def wait(parts: Sequence[int]) -> list[int]:
    """Return the exit codes, negative for signals.

    If SIGKILL ends process 0, as when its machine fails, the others get it too.
    """
    codes: dict[int, int] = {}
    began = time.monotonic()
    while len(codes) < len(parts):
        for part in set(parts) - codes.keys():
            ended, status = os.waitpid(part, os.WNOHANG)
            if ended:
                codes[part] = os.waitstatus_to_exitcode(status)
        lost = codes.get(parts[0]) == -signal.SIGKILL
        if lost or time.monotonic() - began > LIMIT:
            for part in set(parts) - codes.keys():
                os.kill(part, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[part] for part in parts]


class Points:
    """Kills at system calls: commands, their states before and their results."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.before: dict[tuple[int, str], Path] = {}
        self.expected: dict[tuple[int, str], dict[str, str]] = {}
        self.calls: dict[Kind, list[int]] = defaultdict(list)
        self.words = [f"--config.{key}={value}" for key, value in POINT_FLAGS.items()]
        self._log = folder / "log"

    def record(self, processes: int, command: str, workdir: Path) -> None:
        """Run a command undisturbed and note its calls and its result."""
        place = processes, command
        self.before[place] = self.folder / f"before {command} {processes}"
        if workdir.exists():
            shutil.copytree(workdir, self.before[place])
        codes = self.run(processes, command, workdir, -1, False)
        if any(codes):
            sys.exit(f"{command} does not even run undisturbed:\n{self.text()}")
        self.expected[place] = self.essence(command, workdir)
        for number, (call, file) in enumerate(self.made()):
            self.calls[Kind(*place, call, file_kind(file))].append(number)

    def run(
        self, processes: int, command: str, workdir: Path, at: int, after: bool
    ) -> list[int]:
        """Run a command that is killed at a call; return the exit codes."""
        if command == PREPARE:
            words = ["data", "prepare", "cifar10", "--from", f"{self.folder}"]
            words += ["--dir", f"{workdir}", "--partial"]
        else:
            words = [command, "--config", f"{CONFIG}", "--workdir", f"{workdir}"]
            words += self.words
        self._log.unlink(missing_ok=True)
        return wait(start(words, processes, self._log, (workdir, at, after)))

    def text(self) -> str:
        """What the last command printed."""
        return self._log.read_text(encoding="utf-8")

    def made(self) -> list[tuple[str, str]]:
        """The calls of the last command, with their paths."""
        lines = self._log.with_suffix(".calls").read_text(encoding="utf-8").splitlines()
        return [(call, file) for call, _, file in (x.partition(" ") for x in lines)]

    def essence(self, command: str, workdir: Path) -> dict[str, str]:
        """Return the digests of a result, computed in a fork that may start JAX."""
        file = self.folder / "essence.json"
        if os.fork() == 0:
            try:
                compute = prepared_files if command == PREPARE else essence
                file.write_text(json.dumps(compute(workdir)), encoding="utf-8")
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.wait()
        found = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return found

    def kill(self, kind: Kind, after: bool, trial: int) -> dict[str, Any] | None:
        """Kill a command at one call, run it to its end, and compare.

        Returns:
          ``call`` and ``different``; None if the command ended without the call.
        """
        place = kind.processes, kind.command
        workdir = self.folder / f"trial {trial}"
        if self.before[place].exists():
            shutil.copytree(self.before[place], workdir)
        at = random.choice(self.calls[kind])
        codes = self.run(*place, workdir, at, after)
        if codes[0] != -signal.SIGKILL:
            shutil.rmtree(workdir)
            return None
        call = " ".join(self.made()[at])
        codes = self.run(*place, workdir, -1, False)
        found = {} if any(codes) else self.essence(kind.command, workdir)
        wanted = self.expected[place]
        different = [n for n in sorted(found | wanted) if found.get(n) != wanted.get(n)]
        if any(codes):
            different = [f"ended with {codes}: {self.text()[-1000:]}"]
        shutil.rmtree(workdir)
        return {"call": call, "different": different}


def prepared_files(folder: Path) -> dict[str, str]:
    """Return the digests of all files of a data folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def tiny_cifar(folder: Path) -> None:
    """Write an archive like that of CIFAR-10, with a few images of noise."""
    rng = random.Random(0)
    files = {"batches.meta.txt": "".join(f"class{i}\n" for i in range(10)).encode()}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = [bytes([i]) + rng.randbytes(3072) for i in range(10)]
        files[f"{name}.bin"] = b"".join(rows)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def prepare_environment(cache: Path) -> None:
    """Set what JAX and its libraries read when they are imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "agg",
        "NPROC": "16",
        # A process with one thread may fork.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }


def import_package() -> None:
    """Import everything once, without starting JAX's devices; children are forks."""
    sys.path.insert(0, str(ROOT))
    import lt_jax

    for module in pkgutil.walk_packages(lt_jax.__path__, "lt_jax."):
        if not module.name.endswith("__main__") and ".configs" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("matplotlib.pyplot")
    gc.collect()
    gc.freeze()


def points(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Kill commands ``number`` times at system calls, in one process and in two."""
    random.seed(seed)
    folder.mkdir()
    import_package()
    tiny_cifar(folder)
    campaign = Points(folder)
    for processes in (1, 2):
        workdir = folder / f"whole {processes}"
        for command in COMMANDS[:-1]:  # an evaluation makes no such calls
            campaign.record(processes, command, workdir)
    campaign.record(1, PREPARE, folder / "data")
    calls = Counter[str]()
    for kind, numbers in campaign.calls.items():
        calls[f"{kind.command}, {kind.processes}"] += len(numbers)
    where: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    # All kinds of calls, before and after, in random order, again and again; those of
    # two processes, which are slow, half as often.
    places = list(itertools.product(campaign.calls, (False, True)))
    queue: list[tuple[Kind, bool]] = []
    trial = kills = 0
    while kills < number:
        if not queue:
            queue = [p for p in places if p[0].processes == 1] + places
            random.shuffle(queue)
        kind, after = queue.pop()
        trial += 1
        found = campaign.kill(kind, after, trial)
        if found is None:
            continue
        kills += 1
        where[f"{kind.command}, {kind.processes}"] += 1
        side = "after" if after else "before"
        for name in found["different"]:
            print(f"{kind.command}, {side} {found['call']}: {name}", file=sys.stderr)
        if found["different"]:
            wrong.append({**kind._asdict(), "side": side, **found})
        print(
            f"{kills}: {kind.command}, {kind.processes}, {side} {found['call']}: "
            f"{len(found['different'])} differences",
            file=sys.stderr,
            flush=True,
        )
    return {
        "kills": kills,
        "mismatches": len(wrong),
        "kinds": len(places),  # of calls, before and after counted apart
        "where": dict(sorted(where.items())),
        "calls": dict(sorted(calls.items())),
        "wrong": wrong,
    }


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
    resumed = re.findall(r"(\S+): resuming from step ([\d,]+)", text)
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
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--damages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 of each, 2 damages")
    options = parser.parse_args()
    if options.quick:
        options.points, options.kills, options.damages = 4, 4, 2
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.points:  # first: this process must not have started JAX
            prepare_environment(folder / "compiled")
            result["points"] = points(folder / "points", options.points, options.seed)
        if options.kills or options.damages:
            result |= campaign(folder, options.kills, options.seed)
            result |= damages(folder, options.damages, options.seed)
    for name, value in result.items():
        print(f"{name:14s} {value}")
    if options.json:
        print(json.dumps(result))
    wrong = result.get("points", {}).get("mismatches", 0)
    sys.exit(bool(wrong or result.get("mismatches") or result.get("undetected")))


if __name__ == "__main__":
    main()
