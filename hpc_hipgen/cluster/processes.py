"""Processes of this machine: what one has started, and whether a job's launcher is still there."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

LAUNCHER_VARIABLE = "HIPGEN_LAUNCHER"
"""Process number and start time of the launcher; a local job does not outlive it."""


def launcher_identity() -> str:
    """What LAUNCHER_VARIABLE holds: this process's number and start time."""
    return f"{os.getpid()} {_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or None when there is no such process."""
    fields = _stat(pid)
    return None if not fields or fields[0] == "Z" else fields[19]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    return _started(pid) is not None


def children(pid: int) -> list[int]:
    """The processes that a process of this machine has started, and that are still there."""
    there = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in there if _stat(child)[1:2] == [str(pid)]]


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def end_with_launcher(every: float = 1.0) -> None:
    """Ends this process when its launcher is gone, so that no orphan writes beside a second start.

    Artefacts are atomic, so a hard end is as good as any.
    """
    identity = os.environ.get(LAUNCHER_VARIABLE)
    if not identity or not Path("/proc/self/stat").exists():
        return
    pid, started = identity.split()

    def watch() -> None:
        while _started(int(pid)) == started:
            time.sleep(every)
        print("the launcher is gone: ending", flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
