"""Processes find each other, report failures, and end in a bounded time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
import tiny_digits

import lt_jax
from lt_jax.cli import main
from lt_jax.distributed import cluster, scheduler
from lt_jax.errors import InputError

# Environments. Those of SLURM are from SLURM 22.05.

BATCH = {
    "SLURM_JOB_ID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
}
STEP = BATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def initialize(monkeypatch) -> Callable[..., dict | None]:
    """Call ``join`` in an environment; return the arguments that JAX would get."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)

    def call(env: dict[str, str], **flags) -> dict | None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        calls: list[dict] = []
        monkeypatch.setattr("jax.distributed.initialize", lambda **k: calls.append(k))
        monkeypatch.setattr(cluster, "_protect_stdout", lambda first: None)
        assert cluster.join(**flags) is bool(calls)
        return calls[0] if calls else None

    return call


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,  # the script of sbatch
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # the shell of salloc
        STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        POD,  # a pod without a job
    ],
)
def test_one_process_runs_alone(initialize, env):
    assert initialize(env) is None
    assert not cluster.is_distributed()
    assert cluster.leave(2) == 2


def test_one_process_runs_alone_on_request(initialize):
    assert initialize(STEP, num_processes=1) is None


ONE_PER_NODE = {
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (STEP, (4, 3, None, "slurm")),
        (STEP | ONE_PER_NODE, (4, 3, [], "slurm")),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, (4, 3, [1], "slurm")),
        (MPI, (2, 1, None, "ompi")),
        ({k: v for k, v in MPI.items() if "hnp" not in k}, (2, 1, None, "mpi4py")),
        (POD | {"JOB_COMPLETION_INDEX": "0"}, (None, None, None, None)),
    ],
)
def test_schedulers_are_detected(initialize, env, expected):
    found = initialize(env)
    names = (
        "num_processes",
        "process_id",
        "local_device_ids",
        "cluster_detection_method",
    )
    assert found is not None
    assert tuple(found.get(name) for name in names) == expected
    assert found["coordinator_bind_address"] is None


def test_flags_take_precedence_over_the_scheduler(initialize):
    found = initialize(STEP, coordinator="a:1", process_id=2)
    assert (found["num_processes"], found["process_id"]) == (4, 2)
    # JAX still chooses the GPU of a SLURM task.
    assert found["cluster_detection_method"] is None


def test_flags_alone(initialize, monkeypatch):
    flags = {"coordinator": "[::1]:80", "num_processes": 2, "process_id": 1}
    found = initialize(POD | {"JOB_COMPLETION_INDEX": "0"}, **flags)
    assert found["cluster_detection_method"] == "deactivate"
    assert found["local_device_ids"] == []
    # The coordinator must not listen on other interfaces: it has no authentication.
    assert found["coordinator_bind_address"] == "[::1]:80"
    found = initialize({"JAX_COORDINATOR_BIND_ADDRESS": "0.0.0.0:81"}, **flags)
    assert found["coordinator_bind_address"] == "0.0.0.0:81"


def test_unknown_coordinator(monkeypatch):
    """Open MPI 5 without mpi4py, or Kubernetes without its package."""

    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    for name, value in MPI.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"should be defined.*pass --coordinator"):
        cluster.join()


@pytest.mark.parametrize(
    ("env", "name"),
    [(STEP, f"SLURM_{n}") for n in ("PROCID", "LOCALID", "STEP_NUM_NODES", "NTASKS")]
    + [(MPI, name) for name in MPI if name.startswith("OMPI_COMM_WORLD")],
)
@pytest.mark.parametrize("value", [None, "", "x", "-1", "9" * 20])
def test_half_set_variables_of_a_scheduler(initialize, monkeypatch, env, name, value):
    env = {k: v for k, v in env.items() if k != name}
    if value is not None:
        env[name] = value
    found = "is missing" if value is None else f"is {value!r}"
    with pytest.raises(InputError, match=f"{name} {found}.* run alone"):
        initialize(env)


@pytest.mark.parametrize(
    "env",
    [
        STEP | {"SLURM_PROCID": "4"},
        STEP | {"SLURM_LOCALID": "2"},
        MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "0"},
    ],
)
def test_variables_of_a_scheduler_that_contradict_each_other(initialize, env):
    with pytest.raises(InputError, match="contradict each other: process"):
        initialize(env)


def test_a_variable_that_only_jax_reads(monkeypatch):
    def fail(**_):
        raise KeyError("SLURM_STEP_NODELIST")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"SLURM_STEP_NODELIST.*pass --coordinator"):
        cluster.join()


def test_code_must_agree(initialize, monkeypatch):
    compared = []

    def together(work, same):
        compared.append(same(work()))

    monkeypatch.setattr("lt_jax.distributed.processes.together", together)
    initialize(MPI)
    (code,) = compared
    assert code["lt_jax"].startswith(f"{lt_jax.__version__} with source ")
    assert code["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("here", "local", "visible", "expected"),
    [
        (1, 0, None, []),
        (1, 0, "0,1,2,3", []),  # one per node: all of them
        (4, 2, "0,1,2,3", [2]),  # one per GPU
        (2, 1, "4,5,6,7", [2, 3]),  # numbers among the visible
        (4, 2, "6", []),  # the scheduler has picked
        (4, 2, None, None),
        (2, 0, "", []),
    ],
)
def test_devices_of_a_process(here, local, visible, expected):
    assert scheduler.local_devices(here, local, visible) == expected


def test_gpus_that_cannot_be_shared():
    with pytest.raises(InputError, match="cannot share 3 GPUs"):
        scheduler.local_devices(2, 0, "0,1,2")


# The command.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--coordinator=a:1", "--coordinator without --num-processes and --process"),
        ("--num-processes=2 --process-id=1", "without --coordinator: pass"),
        ("--coordinator=a --num-processes=2 --process-id=0", "HOST:PORT, such as"),
        ("--coordinator=:1 --num-processes=2 --process-id=0", "HOST:PORT, such as"),
        ("--coordinator=a:99999 --num-processes=2 --process-id=0", "HOST:PORT, such"),
        ("--coordinator=a: --num-processes=2 --process-id=0", "HOST:PORT, such as"),
        ("--coordinator=a:1 --num-processes=2 --process-id=2", "got 2 with"),
        ("--coordinator=a:1 --num-processes=2 --process-id=-1", "got -1 with"),
        ("--coordinator=a:1 --num-processes=0 --process-id=0", "--num-processes 0"),
        ("--coordinator=a:1 --num-processes=9999999999 --process-id=0", "9999999999"),
        ("--coordinator=a..b:1 --num-processes=2 --process-id=0", "cannot listen on a"),
        ("--join-timeout=nan", "--join-timeout must be in (0, 86400] s, got nan"),
        ("--join-timeout=1e300", "--join-timeout must be in"),
    ],
)
@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_invalid_flags(tmp_path, capsys, command, flags, message):
    config = str(tiny_digits.CONFIGS / "digits_lt.py")
    arguments = [command, "--config", config, "--workdir", str(tmp_path / "w")]
    assert main.main([*arguments, *flags.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lt-jax: ")
    assert message in err
    assert not (tmp_path / "w").exists()


# Processes of their own.

SCRIPT = """
import sys
import jax
import jax.numpy as jnp
from lt_jax.distributed import cluster
from lt_jax.errors import InputError
_, address, process, mode, seconds = sys.argv
try:
    assert cluster.join(address, 2, int(process), float(seconds))
except InputError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
assert cluster.is_distributed() and jax.process_count() == 2
total = jax.pmap(lambda x: jax.lax.psum(x, "d"), axis_name="d")
num = jax.local_device_count()
found = total(jnp.full(num, 1.0 + jax.process_index()))
print("sum", float(found[0]))  # in both processes
if jax.process_index() == 0:
    port = f":{int(address.split(':')[1]):04X}"
    for name in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{name}"):
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and local.endswith(port):
                print("listens", local)
if mode == "interrupted" and jax.process_index() == 1:
    from lt_jax.cli import config_flags, main
    def interrupted(*_):
        raise KeyboardInterrupt  # Ctrl-C in this process only
    config_flags.read = interrupted
    cluster.join = lambda *_: True
    raise SystemExit(main.main(["train", "--config", "x", "--workdir", "x"]))
if mode == "together" or jax.process_index() == 1:
    raise SystemExit(cluster.leave(2))
try:
    for _ in range(1000):
        total(jnp.ones(num)).block_until_ready()
except Exception as error:
    print(f"lost: {error}", file=sys.stderr)
    raise SystemExit(cluster.leave(69))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


Job = Callable[..., list[subprocess.Popen]]


@pytest.fixture
def start() -> Iterator[Job]:
    """Start processes of the script, which do not outlive the test."""
    running: list[subprocess.Popen] = []

    def run(mode="together", ids="01", devices=1, seconds=60, port=0):
        address = f"127.0.0.1:{port or free_port()}"
        flag = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": flag}
        env["PYTHONPATH"] = str(Path(cluster.__file__).parents[2])
        script = [sys.executable, "-c", textwrap.dedent(SCRIPT), address]
        for number in ids:
            running.append(
                subprocess.Popen(
                    [*script, number, mode, str(seconds)],
                    env=env,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return running

    yield run
    for process in running:
        process.kill()  # JAX's runtime swallows SIGTERM
        process.communicate()


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Wait; return the exit code, stdout and stderr of each."""
    texts = [process.communicate(timeout=150) for process in processes]
    return [(p.returncode, *t) for p, t in zip(processes, texts, strict=True)]


def test_two_processes_join_and_end_together(start):
    (code0, out0, err0), (code1, out1, err1) = finish(start("together", devices=2))
    assert (code0, code1) == (2, 2), err0 + err1
    first, *listening = out0.splitlines()
    assert first == "sum 6.0"
    # JAX's coordinator, too, listens on the given interface only: 127.0.0.1.
    (address,) = (line.split()[1].split(":")[0] for line in listening)
    assert address in ("0100007F", "0000000000000000FFFF00000100007F")
    assert out1 == ""  # process 0 alone prints, and Gloo does not
    for number, err in enumerate((err0, err1)):
        assert f"process {number} of 2 on {socket.gethostname()}: 2 x cpu of 4" in err
        assert "Traceback" not in err


def test_a_process_that_fails_alone_ends_the_others(start):
    (code0, _, err0), (code1, _, err1) = finish(start("alone"))
    assert code1 == 2, err1
    assert code0 in (69, 128 + signal.SIGABRT, -signal.SIGABRT), err0
    assert "lost" in err0 or "another task died" in err0


def test_an_interrupted_process_does_not_wait(start):
    """Its exit code is common to all processes, but the others do not end."""
    (code0, _, err0), (code1, _, err1) = finish(start("interrupted"))
    assert code1 == 130, err1
    assert "lt-jax: stopped without saving" in err1
    assert code0 in (69, 128 + signal.SIGABRT, -signal.SIGABRT), err0


@pytest.mark.parametrize("number", [0, 1])
def test_timeout_without_the_others(start, number):
    port = free_port()
    ((code, out, err),) = finish(start(ids=str(number), seconds=3, port=port))
    assert (code, out) == (2, "")
    assert f"process {number} on {socket.gethostname()} did not reach all others" in err
    assert f"within 3 s (coordinator 127.0.0.1:{port}). Check that" in err
    assert "stack trace" not in err


def test_address_in_use(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ((code, _, err),) = finish(start(ids="0", port=port))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_free_addresses(initialize, host):
    address = f"{host}:{free_port()}"
    assert initialize({}, coordinator=address, num_processes=2, process_id=0)
    assert initialize({}, coordinator=address, num_processes=2, process_id=0)


def test_coordinator_on_another_host(initialize):
    # An address for documentation (RFC 5737), so never one of this host.
    with pytest.raises(InputError, match=r"192\.0\.2\.1:80: Cannot assign requested"):
        initialize({}, coordinator="192.0.2.1:80", num_processes=2, process_id=0)


def test_ctrl_c_ends_the_wait_for_the_others(start):
    port = free_port()
    (process,) = start(ids="0", port=port)
    limit = time.monotonic() + 60
    while True:  # until it listens
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT


# Compiled programs.


@pytest.fixture
def jax_cache() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.usefixtures("jax_cache")
def test_compilation_cache_is_on_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cluster.enable_compilation_cache()
    folder = tmp_path / "lt_jax/compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    # JAX executes these files, so a folder that others can write to is not used.
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o777)
    cluster.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert "other users can write" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    cluster.enable_compilation_cache()
    assert "compilation cache disabled" in capsys.readouterr().err


@pytest.mark.usefixtures("jax_cache")
def test_compilation_cache_variable_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder in ("/elsewhere", ""):  # empty: no cache
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        jax.config.update("jax_compilation_cache_dir", folder)
        cluster.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == folder
    assert not (tmp_path / "lt_jax").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # three commands that compile everything
def test_cached_programs_compute_the_same_bits(tmp_path):
    """Results are bitwise equal without a cache, when filling it, and from it."""
    config = str(tiny_digits.CONFIGS / "digits_lt.py")
    small = ["--config.optim.repeats=1", "--config.optim.epochs=2"]
    found = []
    for name, cache in (("none", ""), ("cold", "cache"), ("warm", "cache")):
        workdir = tmp_path / name
        env = {**os.environ, "XLA_FLAGS": ""}
        env["PYTHONPATH"] = str(Path(cluster.__file__).parents[2])
        env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / cache) if cache else ""
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        command = [sys.executable, "-m", "lt_jax", "train", "--config", config, *small]
        done = subprocess.run(
            [*command, "--workdir", str(workdir)],
            env=env, check=True, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "Error writing" not in done.stderr, done.stderr
        result = json.loads((workdir / "result.json").read_text())
        found.append(result["methods"]["none"]["nll"]["values"])
        if cache:
            assert len(list((tmp_path / cache).iterdir())) > 10
    assert found[0] == found[1] == found[2]
