"""The launchers forward arguments, signals and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
BIN = Path(sys.executable).parent  # shellcheck and check-jsonschema


def program(path: Path, text: str) -> Path:
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)
    return path


def run(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck(path):
    done = run(BIN / "shellcheck", "-x", path)
    assert done.returncode == 0, done.stdout
    assert os.access(path, os.X_OK) or path.name == "flags.sh"


@pytest.mark.parametrize("path", [*SHELL, LAUNCH / "jobset.yaml"], ids=lambda p: p.name)
def test_exact_commands_for_both_data_sets_and_all_stages(path):
    if path.name == "flags.sh":
        return
    text = path.read_text()
    assert "configs/cifar100_lt.py:ir=100" in text
    assert "configs/inat2018.py" in text
    for stage in ("train", "retrain", "sweep"):
        assert re.search(rf"\b{stage}\b", text)


def test_usage():
    for path in SHELL:
        if path.name != "flags.sh":
            done = run("bash", path)
            assert done.returncode == 2
            assert "usage: " in done.stderr


# One machine.


def test_machine_forwards_arguments_and_code():
    script = 'echo "$1|$2|$XLA_FLAGS|${NPROC:-}"; exit 75'
    words = ("bash", "-c", script, "name", "a b", "*")
    done = run("launch/machine.sh", *words, XLA_FLAGS="-x", NPROC="17")
    assert done.returncode == 75
    assert done.stdout == "a b|*|-x|17\n"
    done = run("launch/machine.sh", *words, XLA_FLAGS="-x", DETERMINISTIC="1")
    assert done.stdout.startswith("a b|*|-x --xla_gpu_deterministic_ops=true|")


def test_the_flags_are_known_to_xla():
    """XLA ends the process at an unknown flag."""
    code = "import jax; jax.devices()"
    command = ("launch/machine.sh", sys.executable, "-c", code)
    assert run(*command, DETERMINISTIC="1", XLA_FLAGS="").returncode == 0
    assert run(*command, XLA_FLAGS="--xla_gpu_deterministic_opps=1").returncode != 0


# Several processes on one machine.


def test_local_numbers_the_processes(tmp_path):
    stub = program(tmp_path / "stub", 'echo "$*" > "$1/${!#}"\n')
    assert run("launch/local.sh", 3, "--", stub, tmp_path, "x y").returncode == 0
    arguments = [(tmp_path / number).read_text().split() for number in "012"]
    for number, words in zip("012", arguments, strict=True):
        assert words[:3] == [str(tmp_path), "x", "y"]
        assert words[3] == "--coordinator"
        assert words[5:] == ["--num-processes", "3", "--process-id", number]
    assert len({words[4] for words in arguments}) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+", arguments[0][4])


def test_local_divides_the_gpus(tmp_path):
    stub = program(tmp_path / "stub", 'echo "$CUDA_VISIBLE_DEVICES" > "$1/${!#}"\n')
    command = ("launch/local.sh", 2, "--", stub, tmp_path)
    assert run(*command, CUDA_VISIBLE_DEVICES="4,5,6,7").returncode == 0
    assert [(tmp_path / number).read_text() for number in "01"] == ["4,5\n", "6,7\n"]
    done = run(*command, CUDA_VISIBLE_DEVICES="4,5,6")
    assert done.returncode == 2
    assert "2 processes cannot share 3 GPUs" in done.stderr


@pytest.mark.parametrize(("codes", "expected"), [("0 0", 0), ("75 75", 75), ("0 2", 2)])
def test_local_exits_with_the_code_of_its_processes(tmp_path, codes, expected):
    stub = program(tmp_path / "stub", f'codes=({codes})\nexit "${{codes[${{!#}}]}}"\n')
    assert run("launch/local.sh", 2, "--", stub).returncode == expected


def test_local_kills_what_does_not_end_after_one_failed(tmp_path):
    stub = program(
        tmp_path / "stub",
        '[[ ${!#} == 1 ]] && exit 2\necho $$ > "$1/pid"\nexec sleep 1000\n',
    )
    done = run("launch/local.sh", 2, "--", stub, tmp_path, GRACE="1")
    assert done.returncode == 2
    assert "killed" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=str
)
def test_local_forwards_signals_once(tmp_path, sent, code):
    stub = program(
        tmp_path / "stub",
        'note() { echo "$1" >> "$2/${!#}"; }\n'
        'trap "note TERM $*; stop=75" TERM\ntrap "note INT $*; stop=130" INT\n'
        'echo > "$1/here${!#}"\nwhile [[ -z ${stop:-} ]]; do sleep 0.05; done\n'
        "sleep 0.3\nexit $stop\n",
    )
    process = subprocess.Popen(
        [LAUNCH / "local.sh", "2", "--", stub, tmp_path], start_new_session=True
    )
    wait_for(tmp_path / "here0", tmp_path / "here1")
    if sent == signal.SIGINT:  # like the terminal, to the process group
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    assert process.wait(timeout=60) == code
    name = sent.name.removeprefix("SIG") + "\n"
    assert [(tmp_path / number).read_text() for number in "01"] == [name, name]


def wait_for(*paths: Path) -> None:
    limit = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < limit, f"no {paths}"
        time.sleep(0.05)


# SLURM, with stubs of srun, scontrol and scancel.


@pytest.fixture
def sbatch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with contextlib.ExitStack() as ends:
        yield lambda body, **env: ends.enter_context(start(tmp_path, body, env))


def start(tmp_path: Path, body: str, env: dict[str, str]) -> subprocess.Popen[str]:
    pid = tmp_path / "task.pid"
    log = f'echo "$*" > "{tmp_path}/srun.log"\n'
    program(tmp_path / "task", f'echo $$ > "{pid}"\n{body}')
    program(
        tmp_path / "srun", f'{log}trap "exit 137" TERM\n"{tmp_path}/task" &\nwait $!\n'
    )
    # The real srun kills its tasks at SIGTERM.
    program(tmp_path / "scancel", f'[[ $* == "--signal=TERM 42" ]] && pkill -F {pid}\n')
    program(tmp_path / "scontrol", f'echo "$*" >> "{tmp_path}/scontrol.log"\n')
    return subprocess.Popen(
        ["bash", LAUNCH / "slurm.sbatch", "lt-jax", "train", "--workdir", "a b"],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "42",
            **env,
        },
        text=True,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("code", [0, 1, 2, 69, 130, 134, 137])
def test_slurm_exits_with_the_code(tmp_path, sbatch, code):
    assert sbatch(f"exit {code}\n").wait(timeout=60) == code
    assert (tmp_path / "srun.log").read_text().endswith("lt-jax train --workdir a b\n")
    assert not (tmp_path / "scontrol.log").exists()


def test_slurm_requeues_after_saving(tmp_path, sbatch):
    assert sbatch("exit 75\n").wait(timeout=60) == 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


def test_slurm_requeues_are_limited(tmp_path, sbatch):
    process = sbatch("exit 75\n", SLURM_RESTART_COUNT="3", MAX_REQUEUES="3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "not requeued after 3 restarts" in err
    assert not (tmp_path / "scontrol.log").exists()


def test_slurm_forwards_the_warning_signal(tmp_path, sbatch):
    body = (
        "trap 'sleep 0.3; exit 75' TERM\n"
        f'echo > "{tmp_path}/here"\nwhile true; do sleep 0.05; done\n'
    )
    process = sbatch(body)
    wait_for(tmp_path / "here")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


# Kubernetes.


def test_the_image_has_the_version_of_the_package():
    version = runpy.run_path(str(ROOT / "lt_jax/_version.py"))["__version__"]
    for path in (ROOT / "Dockerfile", LAUNCH / "jobset.yaml"):
        tags = re.findall(r"lt-jax:(\d+\.\d+\.\d+)", path.read_text())
        assert len(tags) == 3
        assert set(tags) == {version.partition(".dev")[0]}, path.name


def test_the_dockerfile_copies_what_the_installation_reads():
    """The folders are copied before the rest of the repository."""
    text = (ROOT / "Dockerfile").read_text()
    copied = {
        word for line in re.findall("^COPY (.*) ", text, re.M) for word in line.split()
    }
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    assert copied >= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert copied >= {*wheel["force-include"], hatch["version"]["path"]}


def check(manifest: Path) -> subprocess.CompletedProcess[str]:
    schema = LAUNCH / "jobset.schema.json"
    return run(BIN / "check-jsonschema", "--schemafile", schema, manifest)


def commands_in_comments() -> dict[str, str]:
    """Return the sed commands in the comments of jobset.yaml, by their result."""
    text = (LAUNCH / "jobset.yaml").read_text()
    joined = re.sub(r" \\\n#\s+", " ", text)
    found = re.findall(r"^#\s+(sed .*jobset\.yaml) \| kubectl apply", joined, re.M)
    return dict(zip(("retrain", "sweep", "cifar"), found, strict=True))


def test_the_manifest_fits_its_schema():
    assert check(LAUNCH / "jobset.yaml").returncode == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("maxRestarts: 100", "maxRestart: 100"),
        ("completionMode: Indexed", "completionMode: NonIndexed"),
        ("action: FailJobSet", "action: FailJobset"),
        ("values: [1, 2, 70, 130]", "values: [0]"),
        ("restartPolicy: Never", "restartPolicy: OnFailure"),
        ("nvidia.com/gpu: 8", "nvidia.com/gpu: eight"),
    ],
)
def test_the_schema_finds_mistakes(tmp_path, old, new):
    text = (LAUNCH / "jobset.yaml").read_text()
    assert old in text
    (tmp_path / "jobset.yaml").write_text(text.replace(old, new))
    assert check(tmp_path / "jobset.yaml").returncode == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("retrain", {"stage": "retrain", "nodes": 8, "gpus": 8, "config": "inat2018"}),
        ("sweep", {"stage": "sweep", "nodes": 8, "gpus": 8, "config": "inat2018"}),
        ("cifar", {"stage": "train", "nodes": 1, "gpus": 1, "config": "cifar100_lt"}),
    ],
)
def test_commands_in_the_comments_change_the_manifest(tmp_path, name, expected):
    done = run(*shlex.split(commands_in_comments()[name]))
    (tmp_path / "made.yaml").write_text(done.stdout)
    assert check(tmp_path / "made.yaml").returncode == 0
    convert = "import sys, json, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    text = subprocess.run(
        [sys.executable, "-c", convert],
        input=done.stdout,
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    job = json.loads(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    words = container["command"]
    assert words[2] == expected["stage"]
    assert expected["config"] in words[3]
    assert f"--num-processes={expected['nodes']}" in words
    assert job["completions"] == job["parallelism"] == expected["nodes"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": expected["gpus"]}


# Cloud TPU, with a stub of gcloud that runs the command in a shell, as ssh does.


def test_tpu_quotes_arguments(tmp_path):
    program(
        tmp_path / "gcloud",
        f'printf "%s\\n" "$@" > "{tmp_path}/log"\n'
        f'cd "{tmp_path}"\nbash -c "${{!#/#--command=/}}"\n',
    )
    (tmp_path / "lt_jax/.venv/bin").mkdir(parents=True)
    (tmp_path / "lt_jax/.venv/bin/activate").write_text("")
    (tmp_path / "lt_jax/launch").mkdir()
    program(tmp_path / "lt_jax/launch/machine.sh", 'printf "<%s>" "$@"\nexit 75\n')
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ("lt-jax", "sweep", "--config.method.names=('los',)", "a b", "$HOME")
    done = run("launch/tpu.sh", "lt", "us-west4-a", *words, PATH=path)
    assert done.stdout == "".join(f"<{word}>" for word in words)
    assert done.returncode == 75
    log = (tmp_path / "log").read_text().splitlines()
    assert log[:5] == ["compute", "tpus", "tpu-vm", "ssh", "lt"]
    assert log[5:7] == ["--zone=us-west4-a", "--worker=all"]
