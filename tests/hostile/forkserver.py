"""Run ``lt-jax`` commands in forked children of a process that has imported everything.

    python tests/hostile/forkserver.py

A command then costs a fork instead of seconds of imports. The server starts no JAX
backend and has one thread, so that forking is safe. It reads one request per line,
JSON, from stdin and writes one answer per line to stdout:

    {"argv": [...], "cwd": PATH, "seconds": 20, "megabytes": 2048, "out": PATH}
    {"code": 2, "signal": 0, "timed_out": false, "seconds": 0.1}

The child's stdin is closed. Its stdout and stderr go to the files ``out`` and ``err``
in the folder ``out``. It may use ``megabytes`` more address space than the server.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from typing import Any

OPTIONAL = ("matplotlib.pyplot", "pyarrow.parquet", "pyarrow.csv", "sklearn.datasets")
PAGE = resource.getpagesize()


def import_everything() -> None:
    import lt_jax

    for module in pkgutil.walk_packages(lt_jax.__path__, "lt_jax."):
        if not module.name.endswith("__main__") and ".configs" not in module.name:
            importlib.import_module(module.name)
    for name in OPTIONAL:
        importlib.import_module(name)


def address_space() -> int:
    """Bytes of address space that this process uses."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * PAGE


def become(request: dict[str, Any]) -> int:
    """Run the command in this process, a fresh child; return its exit code."""
    os.setsid()
    for number, name in enumerate(("", "out", "err")):
        where = os.path.join(request["out"], name) if name else os.devnull
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if name else os.O_RDONLY
        file = os.open(where, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.close(0)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    limit = address_space() + request["megabytes"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from lt_jax import __main__ as main

    code: Any = 1
    try:
        sys.argv = ["lt-jax", *request["argv"]]
        code = main.main()
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code or 0


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait, and kill the child's process group after the time limit."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = become(request)
        finally:
            os._exit(code)
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], request["seconds"])
    os.close(handle)
    try:
        os.killpg(child, signal.SIGKILL)  # also what it may have started
    except ProcessLookupError:
        pass
    _, status = os.waitpid(child, 0)
    return {
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "timed_out": not ended,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an import prints is not an answer
    import_everything()
    gc.collect()
    gc.freeze()  # children do not copy its pages
    ready = {
        "threads": len(os.listdir("/proc/self/task")),
        "megabytes": address_space() // 2**20,
    }
    for answer in [ready]:
        print(json.dumps(answer), file=answers, flush=True)
    for line in requests:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
