"""The processes of a job find each other, before JAX's own runtime connects them.

``jax.distributed.initialize`` ends a process with SIGABRT and a C++ stack trace when
another one does not come, or comes twice, and does not say which. So where people write
the numbers themselves, processes first meet here, on the coordinator's address: each
says its number, and process 0 answers to all at once, or tells all what is wrong. No
more than that: connecting, heartbeats and collectives are JAX's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import time
from typing import Any, NamedTuple

from lt_jax.errors import InputError

# A greeting is a line of JSON. What is longer, or slower, is not one of ours.
GREETING_BYTES = 4096
GREETING_SECONDS = 5.0


class Place(NamedTuple):
    """Who this process is, and where all of them meet."""

    host: str
    port: int
    num_processes: int
    process_id: int


def place(coordinator: str, num_processes: int, process_id: int) -> Place:
    """Checks what a person wrote.

    Raises:
      InputError: not HOST:PORT, or numbers that cannot be.
    """
    host, colon, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # [::1]:1234
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(
            f"--coordinator {coordinator}: expected HOST:PORT, where process 0 runs "
            "and any free port, the same for all processes, for example 10.0.0.1:1234"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id {process_id} of --num_processes {num_processes}: expected "
            "numbers from 0 to the number of processes less one, each given once"
        )
    return Place(host, int(port), num_processes, process_id)


def address(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_address(where: Place) -> str:
    """The one interface on which process 0 listens: that of the given host.

    JAX_COORDINATOR_BIND_ADDRESS, which is JAX's own variable, takes its place.

    Raises:
      InputError: the host's name is not known here.
    """
    if asked := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return asked
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(
            f"--coordinator {where.host}: {error.strerror} on {socket.gethostname()}"
        ) from error
    return address(str(found[0][4][0]), where.port)


def meet(where: Place, versions: dict[str, str], seconds: float) -> None:
    """Returns once all processes are here; then the port is free again.

    Args:
      versions: what must be equal everywhere, by name.
      seconds: to wait at most.

    Raises:
      InputError: which process is missing, twice there, or other than process 0; it is
        raised in all processes that came.
    """
    until = time.monotonic() + seconds
    if where.num_processes == 1:
        return
    if where.process_id == 0:
        _receive(where, versions, until, seconds)
    else:
        _greet(where, versions, until, seconds)


def _receive(
    where: Place, versions: dict[str, str], until: float, seconds: float
) -> None:
    bind = bind_address(where)
    host, _, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server(
            (host, int(port)), family=family, backlog=where.num_processes
        )
    except OSError as error:
        why = {
            errno.EADDRINUSE: "somebody listens there already: another job, or a "
            "second process with --process_id 0",
            errno.EADDRNOTAVAIL: "it is no address of this machine, and process 0 must "
            f"run where --coordinator says; behind a gateway, JAX_COORDINATOR_BIND_"
            f"ADDRESS=0.0.0.0:{where.port} makes it listen everywhere",
        }.get(error.errno or 0, error.strerror)
        raise InputError(
            f"process 0 cannot listen on {bind} ({socket.gethostname()}): {why}"
        ) from error
    came: dict[int, tuple[socket.socket, str]] = {}
    with server, contextlib.ExitStack() as open_until_end:
        try:
            while _still_there(came) < where.num_processes - 1:
                server.settimeout(max(0.01, until - time.monotonic()))
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    _still_there(came)
                    raise InputError(
                        _missing(where, {0, *came}, bind, seconds)
                    ) from None
                open_until_end.enter_context(line)
                if (said := _read(line)) is not None:
                    _admit(where, versions, said, line, came)
        except InputError as error:
            _answer([line for line, _ in came.values()], str(error))
            raise
        _answer([line for line, _ in came.values()], "")


def _admit(
    where: Place,
    versions: dict[str, str],
    said: dict[str, Any],
    line: socket.socket,
    came: dict[int, tuple[socket.socket, str]],
) -> None:
    number, who = said["process_id"], f"{said['host']} (pid {said['pid']})"
    _still_there(came)
    problem = ""
    if said["num_processes"] != where.num_processes:
        problem = (
            f"process {number} on {who} was given --num_processes "
            f"{said['num_processes']}, process 0 {where.num_processes}"
        )
    elif number in came or number == 0:
        other = came[number][1] if number else socket.gethostname()
        problem = f"two processes have --process_id {number}: on {other} and on {who}"
    elif said["versions"] != versions:
        problem = (
            f"process {number} on {who} runs {said['versions']}, process 0 {versions}"
        )
    if problem:
        _answer([line], problem)
        raise InputError(problem)
    came[number] = (line, who)


def _still_there(came: dict[int, tuple[socket.socket, str]]) -> int:
    """How many; those that have hung up are forgotten, as they may be started again."""
    for number, (line, _) in [*came.items()]:
        if select.select([line], [], [], 0)[0]:  # nobody speaks after the greeting
            del came[number]
    return len(came)


def _missing(where: Place, came: set[int], bind: str, seconds: float) -> str:
    absent = sorted({*range(where.num_processes)} - came)
    shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
    text = (
        f"{len(came)} of {where.num_processes} processes came within {seconds:.0f} s; "
        f"missing: {shown}. All need the same --coordinator and --num_processes, and "
        f"the network must let them reach {bind}"
    )
    if bind.startswith(("127.", "[::1]")) and bind != address(where.host, where.port):
        text += (
            f". Here {where.host} is {bind}, which no other machine reaches: give "
            "--coordinator an IP address"
        )
    return text


def _greet(
    where: Place, versions: dict[str, str], until: float, seconds: float
) -> None:
    greeting = {
        "process_id": where.process_id,
        "num_processes": where.num_processes,
        "versions": versions,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    there, told = address(where.host, where.port), None
    with contextlib.ExitStack() as open_until_end:
        while True:
            left = until - time.monotonic()
            try:
                line = socket.create_connection((where.host, where.port), max(1, left))
                break
            except OSError as error:  # process 0, or its name, may come later
                if left <= 0:
                    raise InputError(
                        f"process {where.process_id} reached nobody at --coordinator "
                        f"{there} within {seconds:.0f} s ({error.strerror or error}): "
                        "process 0 must run there, with the same flags"
                    ) from error
                time.sleep(min(0.2, left))
        open_until_end.enter_context(line)
        with contextlib.suppress(OSError):
            line.sendall(json.dumps(greeting).encode() + b"\n")
            # Process 0 waits no longer than this process, but may have begun later.
            told = _read(line, seconds + GREETING_SECONDS)
    if told is None:
        raise InputError(
            f"{there} does not wait for process {where.process_id}: the job has begun "
            f"without it (is --process_id {where.process_id} there twice?), process 0 "
            "has died, or another program has that port"
        )
    if told["error"]:
        raise InputError(told["error"])


def _answer(lines: list[socket.socket], error: str) -> None:
    text = json.dumps({"error": error}).encode() + b"\n"
    for line in lines:
        with contextlib.suppress(OSError):
            line.sendall(text)
    # They hang up first, or the port would stay taken for a minute (TIME_WAIT).
    for line in lines:
        with contextlib.suppress(OSError):
            line.settimeout(2.0)
            line.recv(1)


def _read(
    line: socket.socket, seconds: float = GREETING_SECONDS
) -> dict[str, Any] | None:
    """The line that the other side says; None if it is none of ours."""
    until, text = time.monotonic() + seconds, b""
    try:
        while not text.endswith(b"\n") and len(text) < GREETING_BYTES:
            line.settimeout(max(0.01, until - time.monotonic()))
            if not (part := line.recv(GREETING_BYTES)):
                return None
            text += part
        said = json.loads(text)
        known = {"process_id", "num_processes", "versions", "host", "pid"}
        ours = isinstance(said, dict) and said.keys() in (known, {"error"})
        return said if ours else None
    except (OSError, ValueError):
        return None
