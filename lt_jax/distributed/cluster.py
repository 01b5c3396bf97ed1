"""Multi-process setup (wraps jax.distributed) and the compilation cache.

Importing this module does not import JAX, nor what only some commands need.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any

from lt_jax._version import __version__
from lt_jax.distributed.scheduler import FLAGS, HINT, managed, scheduled
from lt_jax.errors import InputError, Stream

# JAX's own default. Hosts may start minutes apart, if each pulls an image first.
JOIN_SECONDS = 300.0

# A host counts as dead after this silence; a closed connection is noticed at once.
# JAX's default is 100 s. Swapping or a live migration delays heartbeats by seconds.
HEARTBEAT_SECONDS = 60

# At a normal end, the others wait this long for process 0 to write the report.
SHUTDOWN_SECONDS = 300

# After an error, a process waits this long for the others to end too, then exits with
# its own code. The runtime would wait SHUTDOWN_SECONDS, then abort with SIGABRT.
LEAVE_SECONDS = 10
COMMON_EXIT_CODES = (0, 75, 130)  # all processes end together


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = JOIN_SECONDS,
) -> bool:
    """Join the other processes of the job. Call it before any JAX computation.

    Without arguments, a process runs alone unless a scheduler started several. SLURM
    and Open MPI provide missing numbers. ``num_processes=1`` alone skips the detection.
    Process 0 listens on the interface ``coordinator``, ``HOST:PORT``, only. After
    ``seconds`` without the others, the process exits with code 2.

    Returns:
      Whether there are others. If so, only process 0 prints to stdout from now on.

    Raises:
      InputError: inconsistent flags, no connection, or processes with other code.
    """
    if not 0 < seconds <= 86400:
        raise InputError(f"--join-timeout must be in (0, 86400] s, got {seconds:g}")
    flags = zip(FLAGS, (coordinator, num_processes, process_id), strict=True)
    given = {name: value for name, value in flags if value is not None}
    arguments = _arguments(given)
    if arguments is None:
        return False
    # With fewer threads than devices, a collective of CPU devices dead-locks. JAX reads
    # this variable when it starts.
    if (os.cpu_count() or 1) < 16:
        os.environ.setdefault("NPROC", "16")
    import jax

    where = coordinator or "found by JAX"
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or coordinator or ""
    if coordinator and arguments["process_id"] == 0:
        _check_address(bind)
    try:
        with _time_limit(where, arguments.get("process_id"), seconds):
            jax.distributed.initialize(
                **arguments,
                coordinator_bind_address=bind or None,
                # JAX would abort with a stack trace; the time limit comes first.
                initialization_timeout=round(seconds) + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except (ValueError, LookupError, RuntimeError, OSError) as error:
        pod = "JOB_COMPLETION_INDEX" in os.environ
        if "should be defined" in str(error) and not arguments and not pod:
            return False  # a single TPU host, where JAX has nothing to join
        raise InputError(f"cannot join the others ({error}): {HINT}") from error
    use_devices(cache=False)
    _protect_stdout(jax.process_index() == 0)
    from lt_jax.distributed import processes

    processes.together(_code, lambda code: code)
    here = jax.local_devices()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on "
        f"{os.uname().nodename}: {len(here)} x {here[0].device_kind} of "
        f"{jax.device_count()}, coordinator {where}",
        file=sys.stderr,
        flush=True,
    )
    return True


def _code() -> dict[str, str]:
    """Return versions and settings that must not differ between processes."""
    import hashlib
    from pathlib import Path

    import jax
    import jaxlib.version

    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    text = b"".join(bytes(f.relative_to(package)) + f.read_bytes() for f in files)
    settings = ("jax_threefry_partitionable", "jax_default_matmul_precision")
    return {
        "lt_jax": f"{__version__} with source {hashlib.sha256(text).hexdigest()[:12]}",
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        **{name: str(getattr(jax.config, name)) for name in settings},
    }


def _arguments(given: dict[str, Any]) -> dict[str, Any] | None:
    """Combine flags and scheduler for JAX, which finds what is missing; None: alone."""
    if given == {"num_processes": 1}:
        return None
    found = scheduled()
    if not given:
        return found if found or managed() else None
    method = None if found else "deactivate"
    found = found or {"local_device_ids": []}
    arguments = {**found, **given, "cluster_detection_method": method}
    missing = [flag for name, flag in FLAGS.items() if name not in arguments]
    if missing:
        flags = " and ".join(FLAGS[name] for name in given)
        raise InputError(f"{flags} without {' and '.join(missing)}: {HINT}")
    coordinator, num, number = (arguments[name] for name in FLAGS)
    address = re.fullmatch(r"(?:\[[^]]+\]|[^:]+):(\d+)", coordinator)
    if not address or int(address[1]) > 65535:
        raise InputError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, got {coordinator}"
        )
    if not 0 <= number < num < 2**31:
        raise InputError(
            f"--process-id must be from 0 to --num-processes - 1, got {number} with "
            f"--num-processes {num}"
        )
    return arguments


def _check_address(address: str) -> None:
    """Check that process 0 can listen on an address; otherwise JAX would crash."""
    import socket

    host, _, port = address.rpartition(":")
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port))[0]
        socket.create_server(place[:2], family=family).close()
    except (OSError, ValueError, OverflowError) as error:  # or not an address at all
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"process 0 on {os.uname().nodename} cannot listen on {address}: {reason}. "
            "Choose a free port and the address of this host, or behind a gateway set "
            "JAX_COORDINATOR_BIND_ADDRESS"
        ) from error


@contextlib.contextmanager
def _time_limit(where: str, process_id: int | None, seconds: float) -> Iterator[None]:
    """Exit with a message after ``seconds``; let Ctrl-C end the wait."""
    who = "this process" if process_id is None else f"process {process_id}"

    def give_up() -> None:
        print(
            f"lt-jax: {who} on {os.uname().nodename} did not reach all others within "
            f"{seconds:.0f} s (coordinator {where}). Check that all processes run, "
            "with one --coordinator and --num-processes, and each with its own "
            "--process-id. Process 0 must run on the coordinator's host, reachable.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _protect_stdout(first: bool) -> None:
    """Give Python's prints their own stdout, and none to processes other than 0.

    Gloo, which connects CPUs, writes to the descriptor that ``evaluate --json`` uses.
    """
    sys.stdout.flush()
    own = os.dup(1) if first else os.open(os.devnull, os.O_WRONLY)
    os.dup2(2 if first else own, 1)
    stream = os.fdopen(own, "w", encoding="utf-8", buffering=1)
    sys.stdout = Stream(stream)


def is_distributed() -> bool:
    """Check whether this process is one of several, without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave(code: int, alone: bool = False) -> int:
    """Return ``code`` if all processes end with it; otherwise exit now.

    A process that fails alone cannot wait for the others, which wait for it. It exits,
    its connections close, and the runtime ends the others. ``alone``: the others may go
    on, even if ``code`` is a common one.
    """
    if not is_distributed() or (code in COMMON_EXIT_CODES and not alone):
        return code
    import jax

    def shut_down() -> None:
        with contextlib.suppress(Exception):  # the others may be gone
            jax.distributed.shutdown()

    sys.stdout.flush()
    sys.stderr.flush()
    thread = threading.Thread(target=shut_down, daemon=True)
    thread.start()
    thread.join(LEAVE_SECONDS)
    os._exit(code)


def import_jax() -> None:
    """Import JAX and check what it read from its environment variables."""
    try:
        import jax
    except ValueError as error:
        raise InputError(f"JAX does not start: {error}: correct or unset it") from error
    for name, reason in (
        ("jax_enable_x64", "lt_jax computes in float32 and bfloat16"),
        ("jax_disable_jit", "lt_jax runs compiled programs only"),
    ):
        if getattr(jax.config, name):
            raise InputError(f"{name.upper()} is set, but {reason}: unset it")


def use_devices(cache: bool = True) -> None:
    """Start JAX's devices, which must exist; ``cache`` keeps programs on disk."""
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS")
        reason = str(error).partition("\n")[0] or "there is no such device"
        raise InputError(
            f"JAX finds no device with JAX_PLATFORMS={wanted or ''}: {reason}. Unset "
            "JAX_PLATFORMS, or set it to cpu"
        ) from error
    if cache:
        enable_compilation_cache()


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next start skips the compiler.

    The folder is JAX_COMPILATION_CACHE_DIR, or ``~/.cache/lt_jax/compiled``
    (XDG_CACHE_HOME). JAX executes the files in it. So it must be the user's own, and
    not in the workdir, which is shared.
    """
    from pathlib import Path

    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # JAX reads it; an empty value disables the cache
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(cache).expanduser() / "lt_jax" / "compiled"
    reason = f"other users can write to {folder}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.getuid() and not found.st_mode & stat.S_IWOTH:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            # JAX's default of 1 s would skip most programs.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            return
    except OSError as error:
        reason = f"{error.strerror} ({folder})"
    print(f"lt-jax: compilation cache disabled: {reason}", file=sys.stderr)
