"""What SLURM, Open MPI, Kubernetes and Cloud TPU state about the processes of a job."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from typing import Any

from lt_jax.errors import InputError

FLAGS = {
    "coordinator_address": "--coordinator",
    "num_processes": "--num-processes",
    "process_id": "--process-id",
}
HINT = f"pass {', '.join(FLAGS.values())}, or only --num-processes 1 to run alone"


def scheduled() -> dict[str, Any]:
    """Return arguments of jax.distributed.initialize from SLURM or Open MPI, or {}."""
    env, mpi = os.environ, "OMPI_COMM_WORLD_"
    # The shell of `salloc` has the job's task count, but is a step of one task.
    steps = _number("SLURM_STEP_NUM_TASKS", 1) if "SLURM_JOB_ID" in env else 1
    all_steps = _number("SLURM_NTASKS", None if steps > 1 else 1)
    if (tasks := min(all_steps, steps)) > 1:
        here = -(-tasks // max(_number("SLURM_STEP_NUM_NODES"), 1))
        number, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
        method = "slurm"
    elif (tasks := _number(f"{mpi}SIZE", None if f"{mpi}RANK" in env else 1)) > 1:
        keys = "RANK", "LOCAL_SIZE", "LOCAL_RANK"
        number, here, local = (_number(mpi + key) for key in keys)
        # Open MPI 5 has no address in the environment, so JAX needs mpi4py for it.
        method = "ompi" if "OMPI_MCA_orte_hnp_uri" in env else "mpi4py"
    else:
        return {}
    if not (0 <= number < tasks and 0 <= local < here):
        raise InputError(
            f"the scheduler's variables contradict each other: process {number} of "
            f"{tasks}, {local} of {here} on this host: {HINT}"
        )
    return {
        "num_processes": tasks,
        "process_id": number,
        "local_device_ids": local_devices(here, local, env.get("CUDA_VISIBLE_DEVICES")),
        "cluster_detection_method": method,
    }


def _number(name: str, default: int | None = None) -> int:
    """Read a variable of a scheduler, which must be a number."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        found = f"is {text!r}" if name in os.environ else "is missing"
        raise InputError(
            f"{name} {found}, but other variables of the scheduler are set: {HINT}"
        )
    return int(text)


def managed() -> bool:
    """Check for an indexed Kubernetes Job or a Cloud TPU, which JAX joins by itself."""
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return True
    if "tpu" not in (os.environ.get("JAX_PLATFORMS") or "tpu"):
        return False
    devices = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def local_devices(here: int, local: int, visible: str | None) -> list[int] | None:
    """Choose the GPUs of process ``local`` of the ``here`` processes on this host.

    JAX gives the i-th process the i-th GPU (jax-ml/jax#16788). That is wrong for one
    process per node, and where the scheduler picked the GPU (--gpus-per-task).
    Returns numbers among ``visible``, CUDA_VISIBLE_DEVICES; []: all of them; None:
    JAX's choice.
    """
    if here > 1 and visible is None:
        return None
    num = len([name for name in (visible or "").split(",") if name.strip()])
    if here == 1 or num <= 1:
        return []
    if num % here:
        raise InputError(
            f"{here} processes on {os.uname().nodename} cannot share {num} GPUs "
            "evenly: start one process per GPU or one per node"
        )
    each = num // here
    return list(range(local * each, (local + 1) * each))
