"""Which scheduler started this process among others, by its environment.

JAX finds addresses and numbers by itself. Here is decided whether it is asked at all,
and which devices of a host belong to which of its processes: pure functions of the
environment.
"""

from __future__ import annotations

import glob
import importlib.util
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

from lt_jax.errors import InputError


class Job(NamedTuple):
    """A job of several processes that something else than flags started."""

    name: str
    num_processes: int | None  # None: JAX asks the scheduler
    process_id: int | None
    devices: list[int] | None  # of this host; []: all; None: as JAX chooses
    method: str | None = None  # of jax.distributed, where it must be named


def detect(env: Mapping[str, str]) -> Job | None:
    """The job of several processes that an environment speaks of, or None.

    Raises:
      InputError: there is such a job, but JAX could not find its way in it.
    """
    found = launched(env)
    if found is not None:
        if found.method == "mpi4py" and importlib.util.find_spec("mpi4py") is None:
            raise InputError(
                "Open MPI 5 does not tell where its processes are: give --coordinator "
                "HOST:PORT (number and count are taken from it), or install mpi4py"
            )
        return found
    if _has_tpu(env):
        return Job("Cloud TPU", None, None, None)
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is None:
            raise InputError(
                "this is a pod of an indexed Kubernetes Job, and JAX finds the others "
                "only with the package `kubernetes`: pip install 'jax[k8s]', or give "
                "--coordinator, --num_processes and --process_id as launch/jobset.yaml "
                "does, or --num_processes 1 if each pod works alone"
            )
        return Job("Kubernetes", None, None, None)
    return None


def launched(env: Mapping[str, str]) -> Job | None:
    """The SLURM step or Open MPI run of several processes that this one is in."""
    if "SLURM_JOB_ID" in env and "SLURM_PROCID" in env:
        # The shell of `salloc` has the task count of the job, but is a step of one.
        tasks = int(env.get("SLURM_NTASKS", 1))
        if min(tasks, int(env.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
            here = _tasks_here(env)
            devices = own_devices(here, int(env["SLURM_LOCALID"]), env)
            return Job("SLURM", tasks, int(env["SLURM_PROCID"]), devices)
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        here, mine = (
            int(env[f"OMPI_COMM_WORLD_LOCAL_{what}"]) for what in ("SIZE", "RANK")
        )
        # Open MPI 5 no longer tells its address; JAX then asks mpi4py.
        asks = None if "OMPI_MCA_orte_hnp_uri" in env else "mpi4py"
        return Job(
            "Open MPI",
            int(env["OMPI_COMM_WORLD_SIZE"]),
            int(env["OMPI_COMM_WORLD_RANK"]),
            own_devices(here, mine, env),
            asks,
        )
    return None


def own_devices(here: int, mine: int, env: Mapping[str, str]) -> list[int] | None:
    """The GPUs of process ``mine`` of the ``here`` ones on this host.

    JAX gives the i-th process the i-th GPU (jax-ml/jax#16788): right for one process
    per GPU that sees them all. One process per node would be left with a single one,
    and one whose GPU the scheduler picked (--gpus-per-task) would look for another.

    Returns:
      Numbers among the visible ones; []: all of them; None: left to JAX.

    Raises:
      InputError: the GPUs cannot be shared evenly.
    """
    if here == 1:
        return []
    if "CUDA_VISIBLE_DEVICES" not in env:
        return None
    num = len([name for name in env["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()])
    if num <= 1:
        return []
    if num % here:
        raise InputError(
            f"{here} processes on {socket.gethostname()} cannot share its {num} GPUs "
            "evenly: start one per GPU or one per node"
        )
    each = num // here
    return list(range(mine * each, (mine + 1) * each))


def _tasks_here(env: Mapping[str, str]) -> int:
    """Tasks of this SLURM step on this node: of ``4(x2),3`` the entry of the node."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_NTASKS"]).split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups("1")  # type: ignore[union-attr]
        counts += [int(count)] * int(times)
    return counts[int(env.get("SLURM_NODEID", 0))]


def _has_tpu(env: Mapping[str, str]) -> bool:
    wanted = env.get("JAX_PLATFORMS") or "tpu"
    return (
        "tpu" in wanted
        and importlib.util.find_spec("libtpu") is not None
        and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    )
