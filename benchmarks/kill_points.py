"""Ends this process with SIGKILL before or after a chosen system call; for faults.py.

The calls are those that decide whether a file is complete: rename, mkdir, unlink, rmdir
and fsync, made by Python code in any thread, on a path in one folder.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Functions of `os` -> the call they make. pathlib, shutil and Orbax use these.
CALLS = {
    "rename": "rename",
    "replace": "rename",
    "mkdir": "mkdir",
    "unlink": "unlink",
    "remove": "unlink",
    "rmdir": "rmdir",
    "fsync": "fsync",
}


def install(root: Path, log: Path, at: int = -1, after: bool = False) -> None:
    """Record every call in a log, a line each, and kill at one of them.

    Args:
      root: calls on paths outside this folder are not counted.
      log: ``CALL PATH`` per line, with the path below ``root``.
      at: number of the call, from 0; -1 never kills.
      after: kill when the call has returned instead of before it.
    """
    own = os.path.realpath(root)
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    lock, made = threading.Lock(), 0

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **how: Any) -> Any:
            nonlocal made
            path = _path(name, args, how)
            if path != own and not path.startswith(own + os.sep):
                return call(*args, **how)
            with lock:
                number, made = made, made + 1
                text = f"{CALLS[name]} {os.path.relpath(path, own)}\n"
                os.write(lines, text.encode(errors="replace"))
            if number == at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **how)
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def _path(name: str, args: tuple[Any, ...], how: dict[str, Any]) -> str:
    """The path that a call is about; of a rename the new one."""
    if name == "fsync":
        file = args[0] if isinstance(args[0], int) else args[0].fileno()
        return os.readlink(f"/proc/self/fd/{file}")
    renames = CALLS[name] == "rename"
    path = os.fsdecode(args[1] if renames else args[0])
    folder = how.get("dst_dir_fd" if renames else "dir_fd")
    if folder is not None:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    # The folder is resolved, the last part is not: it may be a link.
    head, tail = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(head), tail)
