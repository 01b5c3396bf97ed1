"""Processes find each other, say who is missing, and end in a bounded time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
import tiny_digits

from lt_jax.cli import main
from lt_jax.distributed import cluster, meeting, schedulers
from lt_jax.errors import InputError

VERSIONS = {"lt_jax": "1", "jax": "2"}


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]


def gather(
    places: list[meeting.Place], seconds: float = 20, versions: list | None = None
) -> list[str]:
    """What each of the processes, here threads, is told; "" is all well."""

    def one(where: meeting.Place, runs: dict[str, str]) -> str:
        try:
            meeting.meet(where, runs, seconds)
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(one, places, versions or [VERSIONS] * len(places)))


def places(num: int, *numbers: int, port: int | None = None) -> list[meeting.Place]:
    port = port or free_port()
    return [meeting.Place("127.0.0.1", port, num, number) for number in numbers]


# Meeting.


def test_all_come_in_any_order_and_the_port_is_free_again():
    found = places(4, 3, 1, 0, 2)
    assert gather(found) == [""] * 4
    # As JAX's service does right after.
    socket.create_server(("127.0.0.1", found[0].port), reuse_port=False).close()


def test_the_missing_one_is_named_to_all():
    told = gather(places(4, 0, 1, 3), seconds=1)
    assert told[0].startswith("3 of 4 processes came within 1 s; missing: 2.")
    assert told == [told[0]] * 3


def test_nobody_listens():
    where = places(2, 1)[0]
    (told,) = gather([where], seconds=0.5)
    assert f"process 1 reached nobody at --coordinator 127.0.0.1:{where.port}" in told
    (told,) = gather([where._replace(host="no-such-host.invalid")], seconds=0.5)
    assert "no-such-host.invalid" in told


def test_the_same_number_twice():
    told = gather(places(4, 0, 1, 1))
    assert len(set(told)) == 1
    assert "two processes have --process_id 1" in told[0]


def test_process_0_twice():
    told = gather(places(2, 0, 0), seconds=1)
    assert any("a second process with --process_id 0" in text for text in told)
    assert any("missing: 1" in text for text in told)


def test_other_counts_and_other_versions():
    port = free_port()
    told = gather(places(2, 0, port=port) + places(3, 1, port=port))
    assert "was given --num_processes 3, process 0 2" in told[0]
    assert told[1] == told[0]
    told = gather(places(2, 0, 1), versions=[VERSIONS, VERSIONS | {"jax": "3"}])
    assert "'jax': '3'" in told[0]
    assert told[1] == told[0]


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"a": 1}\n'])
def test_a_stranger_on_the_port_changes_nothing(noise):
    first, second = places(2, 0, 1)
    with ThreadPoolExecutor(2) as threads:
        waits = threads.submit(gather, [first])
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", first.port))
                break
            except OSError:
                assert not waits.done(), waits.result()
        with stranger:
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            assert gather([second]) == [""]
        assert waits.result() == [""]


def hang_up(where: meeting.Place, waits: Future) -> None:
    """Greets process 0 as process 1 of 3, once it listens, and dies."""
    greeting = (
        b'{"process_id": 1, "num_processes": 3, "versions": '
        b'{"lt_jax": "1", "jax": "2"}, "host": "h", "pid": 1}\n'
    )
    while True:
        try:
            early = socket.create_connection((where.host, where.port))
            break
        except OSError:
            assert not waits.done(), waits.result()
    early.sendall(greeting)
    early.close()


@pytest.mark.parametrize("last", [1, 2])
def test_a_process_that_was_started_again_takes_its_place(last):
    where = places(3, 0, 3 - last, last)
    with ThreadPoolExecutor(2) as threads:
        waits = threads.submit(gather, where[:1])
        hang_up(where[0], waits)
        # With the other one there all have come, but for the one that has hung up.
        other = threads.submit(gather, where[1:2])
        time.sleep(0.3)
        assert gather(where[2:]) == [""]
        assert other.result() == waits.result() == [""]


def test_a_process_that_hung_up_is_missing():
    where = places(3, 0)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(gather, where, seconds=1)
        hang_up(where[0], waits)
        (told,) = waits.result()
    assert told.startswith("1 of 3 processes came within 1 s; missing: 1, 2.")


def test_who_comes_late_is_told():
    """JAX's service, like any other program, does not answer a greeting."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = meeting.Place("127.0.0.1", other.getsockname()[1], 2, 1)
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(gather, [where])
            line, _ = other.accept()
            line.close()
            assert "the job has begun without it" in waits.result()[0]


@pytest.mark.parametrize(
    ("coordinator", "num", "number", "message"),
    [
        ("here", 2, 0, "expected HOST:PORT"),
        ("here:", 2, 0, "expected HOST:PORT"),
        (":1234", 2, 0, "expected HOST:PORT"),
        ("here:99999", 2, 0, "expected HOST:PORT"),
        ("here:1", 2, 2, "--process_id 2 of --num_processes 2"),
        ("here:1", 2, -1, "--process_id -1"),
        ("here:1", 0, 0, "--num_processes 0"),
    ],
)
def test_places_that_cannot_be(coordinator, num, number, message):
    with pytest.raises(InputError, match=message):
        meeting.place(coordinator, num, number)


def test_places():
    assert meeting.place("a.b:1", 2, 1) == ("a.b", 1, 2, 1)
    assert meeting.place("[::1]:80", 1, 0) == ("::1", 80, 1, 0)


def test_it_listens_on_the_address_that_was_asked_for_and_no_other(monkeypatch):
    assert meeting.bind_address(meeting.Place("127.0.0.1", 80, 1, 0)) == "127.0.0.1:80"
    assert meeting.bind_address(meeting.Place("::1", 80, 1, 0)) == "[::1]:80"
    where = places(2, 0)[0]
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(gather, [where], 1)
        with pytest.raises(OSError, match="refused"):  # 127.0.0.2 is this machine too
            socket.create_connection(("127.0.0.2", where.port))
        waits.result()
    # An address of documentation (RFC 5737), so never one of this machine.
    (told,) = gather([where._replace(host="192.0.2.1")])
    assert "no address of this machine" in told
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:81")
    assert meeting.bind_address(where) == "0.0.0.0:81"


# What an environment says. The SLURM ones were seen under SLURM 22.05.

BATCH = {
    "SLURM_JOB_ID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "4",
}
STEP = BATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,  # the script of sbatch
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # the shell of salloc
        STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        POD,  # a pod of no job
    ],
)
def test_one_process_works_alone(env):
    assert schedulers.detect(env) is None


def test_several_processes_are_found(monkeypatch):
    assert schedulers.detect(STEP) == ("SLURM", 4, 3, None, None)
    one_each = STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}
    assert schedulers.detect(one_each) == ("SLURM", 4, 3, [], None)
    assert schedulers.detect(MPI) == ("Open MPI", 2, 1, None, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fifth = {k: v for k, v in MPI.items() if "hnp" not in k}
    assert schedulers.launched(fifth) == ("Open MPI", 2, 1, None, "mpi4py")
    with pytest.raises(InputError, match="give --coordinator"):
        schedulers.detect(fifth)
    with pytest.raises(InputError, match="jax\\[k8s\\]"):
        schedulers.detect(POD | {"JOB_COMPLETION_INDEX": "0"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = schedulers.detect(POD | {"JOB_COMPLETION_INDEX": "0"})
    assert found == ("Kubernetes", None, None, None, None)


@pytest.mark.parametrize(
    ("here", "mine", "visible", "expected"),
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
def test_devices_of_a_process(here, mine, visible, expected):
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert schedulers.own_devices(here, mine, env) == expected


def test_gpus_that_cannot_be_shared():
    with pytest.raises(InputError, match="cannot share its 3 GPUs"):
        schedulers.own_devices(2, 0, {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_tasks_of_a_node():
    env = BATCH | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),3"}
    found = [schedulers._tasks_here(env | {"SLURM_NODEID": str(i)}) for i in range(3)]
    assert found == [2, 2, 3]


# The command.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=a:1"], "--coordinator without --num_processes and --process"),
        (["--num_processes=2", "--process_id=1"], "without --coordinator"),
        (["--coordinator=a", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id 2",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "train", "retrain", "sweep", "evaluate"])
def test_flags_that_do_not_fit(tmp_path, capsys, command, flags, message):
    config = str(tiny_digits.CONFIGS / "digits_lt.py")
    arguments = [command, "--config", config, "--workdir", str(tmp_path / "w"), *flags]
    assert main.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("lt-jax: ")
    assert message in told
    assert not (tmp_path / "w").exists()


def test_alone_by_default_and_on_demand(monkeypatch):
    assert cluster.join() is False
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert cluster.join(num_processes=1) is False
    assert not cluster.is_distributed()
    assert cluster.leave(2) == 2


SCRIPT = """
import os, sys
import jax.numpy as jnp
import jax
from lt_jax import cluster
several = cluster.join(sys.argv[1], 2, int(sys.argv[2]), 60)
assert several and cluster.is_distributed() and jax.process_count() == 2
total = jax.pmap(lambda x: jax.lax.psum(x, "d"), axis_name="d")
num = jax.local_device_count()
found = total(jnp.full(num, 1.0 + jax.process_index()))
if cluster.is_process_zero():
    print("sum", float(found[0]))
ports = [line.split()[1] for line in open("/proc/net/tcp") if line.split()[3] == "0A"]
ports += [line.split()[1] for line in open("/proc/net/tcp6") if line.split()[3] == "0A"]
mine = f":{int(sys.argv[1].split(':')[1]):04X}"
if cluster.is_process_zero():
    print("listens", *[port for port in ports if port.endswith(mine)])
if sys.argv[3] == "stopped" and jax.process_index() == 1:
    from lt_jax import cli
    def interrupted(*_):
        raise KeyboardInterrupt  # a second Ctrl-C, of which the other knows nothing
    cli.configuring.read = interrupted
    cluster.join = lambda *_: True
    raise SystemExit(cli.main(["train", "--config", "x", "--workdir", "x"]))
if sys.argv[3] == "together" or jax.process_index() == 1:
    raise SystemExit(cluster.leave(2))
try:
    for _ in range(1000):
        total(jnp.ones(num)).block_until_ready()
except Exception as error:
    print(f"lost: {error}", file=sys.stderr)
    raise SystemExit(cluster.leave(69))
"""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[subprocess.Popen]]:
    """Room for two processes, which do not outlive the test."""
    running: list[subprocess.Popen] = []
    yield running
    for process in running:
        process.send_signal(signal.SIGKILL)  # SIGTERM is swallowed by JAX's runtime
        process.communicate()


def start(
    running: list[subprocess.Popen], end: str, devices: int
) -> list[tuple[int, str, str]]:
    """Runs the script in two processes; exit code, stdout and stderr of each."""
    there = f"127.0.0.1:{free_port()}"
    flag = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flag}
    env["PYTHONPATH"] = str(Path(cluster.__file__).parents[2])
    for number in "01":
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(SCRIPT), there, number, end],
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    said = [process.communicate(timeout=150) for process in running]
    return [
        (process.returncode, *texts)
        for process, texts in zip(running, said, strict=True)
    ]


def test_two_processes_join_and_end_together(two):
    (code0, out0, err0), (code1, out1, err1) = start(two, "together", 2)
    assert (code0, code1) == (2, 2), err0 + err1
    lines = out0.splitlines()
    assert lines[0] == "sum 6.0"
    # JAX's coordinator, too, is on the interface that was asked for: 127.0.0.1.
    (address,) = (word.split(":")[0] for word in lines[1].split()[1:])
    assert address in ("0100007F", "0000000000000000FFFF00000100007F")
    assert out1 == ""  # process 0 alone talks, and Gloo does not
    for number, err in enumerate((err0, err1)):
        assert f"process {number} of 2 on {socket.gethostname()}: 2 x cpu of 4" in err
        assert "Traceback" not in err


def test_one_that_fails_alone_ends_all(two):
    (code0, _, err0), (code1, _, err1) = start(two, "alone", 1)
    assert code1 == 2, err1
    assert code0 in (69, 128 + signal.SIGABRT, -signal.SIGABRT), err0
    assert "lost" in err0 or "another task died" in err0


def test_one_that_is_stopped_at_once_waits_for_nobody(two):
    """Its code is that of an end that all come to; they do not come to this one."""
    (code0, _, err0), (code1, _, err1) = start(two, "stopped", 1)
    assert code1 == 130, err1
    assert "lt-jax: stopped without saving" in err1
    assert code0 in (69, 128 + signal.SIGABRT, -signal.SIGABRT), err0


# Compiled programs.


@pytest.fixture
def jax_cache() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.usefixtures("jax_cache")
def test_compiled_programs_are_kept_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cluster.enable_compilation_cache()
    folder = tmp_path / "lt_jax/compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    # JAX executes what lies there, so a folder that others can write is not used.
    jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o777)
    cluster.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert "is not this user's alone" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    cluster.enable_compilation_cache()
    assert "compiled programs are not kept" in capsys.readouterr().err


@pytest.mark.usefixtures("jax_cache")
def test_the_users_own_choice_of_cache_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    cluster.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    cluster.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not (tmp_path / "lt_jax").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # three commands, each with all of its compilation
def test_kept_programs_compute_the_same_bits(tmp_path):
    """Without the cache, filling it, and from it: one result to the last digit."""
    config = str(tiny_digits.CONFIGS / "digits_lt.py")
    small = ["--config.optim.repeats=1", "--config.optim.epochs=2"]
    found = []
    for name, cache in (("none", ""), ("cold", "kept"), ("warm", "kept")):
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
