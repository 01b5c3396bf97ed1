"""Multi-process setup (wraps jax.distributed) and the compilation cache.

Importing this module does not import JAX.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
import warnings
from pathlib import Path

from lt_jax._version import __version__
from lt_jax.distributed import meeting, schedulers
from lt_jax.distributed.schedulers import Job
from lt_jax.errors import InputError

# To wait for the other processes: hosts of one job may start minutes apart, when each
# pulls an image first. JAX's own default.
JOIN_SECONDS = 300

# After they have met, JAX's runtime connects them; nobody has to be waited for.
CONNECT_SECONDS = 60

# A process that is silent for so long is dead, and the runtime ends all others. A
# closed connection ends them at once; this is for a host that just stops answering.
# JAX's default is 100 s. The signs of life come from a thread of their own, which
# Python and compilation cannot hold up, only a machine that stands still: a swapping
# host or the live migration of a virtual machine, which take seconds. Shorter costs
# whole jobs for a hiccup, longer only idle machines.
HEARTBEAT_SECONDS = 60

# At a normal end all wait for each other so long: process 0 writes the report alone.
SHUTDOWN_SECONDS = 300

# After an error the others have so long to come to the same end, and then the exit code
# is the command's own; else this process leaves alone. Without, the runtime would wait
# SHUTDOWN_SECONDS and turn every exit code into SIGABRT.
LEAVE_SECONDS = 10

# Ends that all processes come to together, but for one that was stopped at once.
TOGETHER = (0, 75, 130)


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: float = JOIN_SECONDS,
) -> bool:
    """Makes this process a part of its job. To be called before JAX does anything.

    A process works alone unless the arguments say otherwise or it finds itself among
    several: in a SLURM step or under Open MPI with more than one task, in an indexed
    Kubernetes Job, or on a Cloud TPU. What the arguments leave open is taken from SLURM
    or Open MPI; ``num_processes=1`` alone turns the search off.

    Args:
      coordinator: ``HOST:PORT`` where process 0 listens, on that interface alone.
      seconds: to wait for the others at most.

    Returns:
      Whether there are others. Then each process has said on stderr who it is, and
      stdout belongs to process 0's own text.

    Raises:
      InputError: arguments that do not fit, or processes that did not come.
    """
    if (coordinator, num_processes, process_id) == (None, 1, None):
        return False
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    given = [flag for flag, value in flags.items() if value is not None]
    finds = schedulers.launched if given else schedulers.detect
    found = finds(os.environ)
    if not given and found is None:
        return False
    # A collective of several CPU devices or processes needs more threads than a small
    # machine has cores, and dead-locks without; JAX reads this when it starts.
    if (os.cpu_count() or 1) < 16:
        os.environ.setdefault("NPROC", "16")
    if not given:
        assert found is not None
        return _join_found(found, seconds)
    if found is not None:
        flags["--num_processes"] = num_processes = num_processes or found.num_processes
        if process_id is None:
            flags["--process_id"] = process_id = found.process_id
    missing = [flag for flag, value in flags.items() if value is None]
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            f"{' and '.join(given)} without {' and '.join(missing)}: expected all "
            "three, or --num_processes 1 for a process that works alone"
        )
    where = meeting.place(coordinator, num_processes, process_id)
    bind = meeting.bind_address(where) if process_id == 0 else None
    import jax

    versions = {"lt_jax": __version__, "jax": jax.__version__}
    meeting.meet(where, versions, seconds)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids=[] if found is None else found.devices,
        cluster_detection_method=None if found else "deactivate",
        initialization_timeout=CONNECT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        coordinator_bind_address=bind,
    )
    _introduce(f"coordinator {coordinator}")
    return True


def _join_found(found: Job, seconds: float) -> bool:
    import jax

    try:
        jax.distributed.initialize(
            local_device_ids=found.devices,
            cluster_detection_method=found.method,
            initialization_timeout=round(seconds),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if found.name == "Cloud TPU" and "should be defined" in str(error):
            return False  # a single host that no metadata server knows
        raise InputError(f"{found.name}: cannot join the others: {error}") from error
    except (RuntimeError, OSError) as error:
        raise InputError(f"{found.name}: cannot join the others: {error}") from error
    _introduce(f"coordinator found through {found.name}")
    return True


def _introduce(coordinator: str) -> None:
    """Says who this process is; from here on process 0 alone has a stdout."""
    import jax

    here = jax.local_devices()
    print(
        f"process {jax.process_index()} of {jax.process_count()} on "
        f"{socket.gethostname()}: {len(here)} x {here[0].device_kind} of "
        f"{jax.device_count()}, {coordinator}",
        file=sys.stderr,
        flush=True,
    )
    # Gloo, the collectives between CPUs, writes to the file descriptor of stdout, where
    # `evaluate --json` has its object: Python keeps a copy of it for itself.
    sys.stdout.flush()
    own = os.dup(1)
    if jax.process_index() == 0:
        os.dup2(2, 1)
    else:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    sys.stdout = os.fdopen(own, "w", encoding="utf-8", buffering=1)


def is_distributed() -> bool:
    """Whether this process is one of several; asks without starting JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_process_zero() -> bool:
    """Whether this process is the one that tells results: process 0."""
    import jax

    return jax.process_index() == 0


def leave(code: int, alone: bool = False) -> int:
    """Ends this process's part in a job; returns the exit code, or does not return.

    Args:
      alone: whether others may not come to this end, though the code looks like it.

    After an error that all processes have, such as a wrong config, they end together
    with their code. One that fails alone does not wait for others that wait for it: it
    ends at once, its connections close, and the runtime ends the others.
    """
    if not is_distributed() or (code in TOGETHER and not alone):
        return code
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    all_come = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    all_come.start()
    all_come.join(LEAVE_SECONDS)
    os._exit(code)


def enable_compilation_cache() -> None:
    """Compiled programs are kept on disk, so that the next start skips the compiler.

    They lie in ``~/.cache/lt_jax/compiled`` (XDG_CACHE_HOME), or where the variable
    JAX_COMPILATION_CACHE_DIR says; empty, it turns this off. Not in the workdir, which
    people pass on: JAX runs what it finds there, so the folder must be the user's own.
    """
    import jax

    # A program that calls oneDNN (`models.onednn`) has no form on disk: it is compiled
    # at each start, which is told with the time that it took.
    warnings.filterwarnings(
        "ignore", "Error writing persistent compilation cache entry.*bad_alloc"
    )
    asked = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if asked:
        return  # JAX has read it
    if asked == "":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(cache).expanduser() / "lt_jax" / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        why = f"{error.strerror} ({folder})"
    else:
        if found.st_uid == os.getuid() and not found.st_mode & stat.S_IWOTH:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            # By default only what takes a second to compile is kept; a start consists
            # of dozens of programs that take less.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
            return
        why = f"{folder} is not this user's alone"
    print(f"lt-jax: compiled programs are not kept: {why}", file=sys.stderr)
