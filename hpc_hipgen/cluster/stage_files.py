"""What a stage leaves in RUN/logs/<stage>: submissions, who works on it, why jobs ended.

Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_hipgen.files import (
    DamagedError,
    disk_full,
    full_disk_advice,
    lock,
    read_json,
    write_atomic,
)
from hpc_hipgen.run import Run

_LOCK_SECONDS = 10.0  # more than a job of a killed launcher needs to notice and end

_OWN_LOCK_SECONDS = 2400.0
"""How long a lock of an earlier start of the same job is waited for.

On NFS the lock of a node that died is held until its lease runs out, and Slurm starts the job
elsewhere before that. Of a node that is only cut off the processes live on: the first rank may wait
for the others for `training.engine.TIMEOUT`, half an hour.
"""


def stage_logs(run: Run, stage: str) -> Path:
    """Folder of a stage's logs, locks and failures."""
    folder = run.path("logs", stage)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def submitted(run: Run, stage: str) -> dict[str, Any] | None:
    """The last submission of a stage: job id, log folder, time."""
    path = run.path("logs", stage, "submitted.json")
    try:
        record = read_json(path)
    except (OSError, DamagedError):  # none, or of no use
        return None
    # a folder that was copied has the records of jobs that work in the other one
    ours = Path(record.get("log", "")).parent == path.parent.resolve()
    return record if ours else None


_NO_FAILURE: dict[str, Any] = {"time": 0.0, "kinds": ["Exception"], "error": "not known"}


def failures(run: Run, stage: str, since: float = 0.0) -> list[dict[str, Any]]:
    """What ended jobs of this stage later than `since` (seconds of the epoch), the first one first.

    Of several ranks the first one has the cause: the others may only have missed it.
    """
    found = []
    for path in sorted(run.path("logs", stage).glob("failed*.json")):
        # its task has just begun again, or somebody has cut it
        with contextlib.suppress(FileNotFoundError, DamagedError):
            found.append(_NO_FAILURE | read_json(path))
    return sorted((f for f in found if f["time"] >= since), key=lambda f: f["time"])


def running(run: Run, stage: str) -> list[dict[str, Any]]:
    """Who works on this stage at this moment: pid, host and start of each process."""
    found = []
    for path in sorted(run.path("logs", stage).glob("running*")):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                found.append(_signed(file.read()))
            except OSError:  # a file system without locks cannot tell
                continue
    return found


def _signed(text: str) -> dict[str, Any]:
    """What a process has written of itself into the file that it holds; nothing yet: empty."""
    try:
        return json.loads(text)
    except ValueError:  # empty, or being written
        return {}


def who(working: Iterable[Mapping[str, Any]]) -> str:
    """Processes of `running` for people; those that have not signed yet are left out."""
    return ", ".join(f"pid {w['pid']} on {w['host']}" for w in working if "pid" in w)


class AtWorkError(RuntimeError):
    """Another process works on the same part of a stage."""


@contextmanager
def holding(run: Run, stage: str, part: str = "") -> Iterator[None]:
    """Holds a stage, or a part of an array, against other processes, of any node.

    Entering raises AtWorkError, after a short wait for a process that is about to end.
    """
    path, job = stage_logs(run, stage) / f"running{part}", os.environ.get("SLURM_JOB_ID")
    with path.open("a+") as file:
        began, said = time.monotonic(), False
        while lock(file) is False:  # None, on a file system without locks: nothing to hold
            file.seek(0)
            holder = _signed(file.read())
            own = job and holder.get("job") == job
            if own and not said:
                said = True
                text = json.dumps(holder)
                print(f"waits for an earlier start of this job to end: {text}", flush=True)
            if time.monotonic() - began > (_OWN_LOCK_SECONDS if own else _LOCK_SECONDS):
                of_job = f"job {holder['job']}" if "job" in holder else ""
                names = ", ".join(filter(None, (who([holder]), of_job))) or path
                raise AtWorkError(
                    f"{stage} is at work already ({names}): wait for it, or stop it first; where "
                    f"its node is dead, remove {path}"
                )
            time.sleep(0.2)
        file.seek(0)
        file.truncate()
        own_name = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        if job:
            own_name["job"] = job
        file.write(json.dumps(own_name))
        file.flush()
        yield


def note_failure(path: Path, error: Exception, run: Run) -> None:
    """What ended a job, for `failures`; a full disk must not hide it."""
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(_failure(error, run), indent=1))


def _failure(error: Exception, run: Run) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"error": told(error, run), "kinds": kinds, "time": time.time(), "pid": os.getpid()}


def told(error: Exception, run: Run) -> str:
    """What an error says; of a full disk also where, which "No space left on device" does not."""
    bare = isinstance(error, OSError) and disk_full(error)
    return full_disk_advice(run.folder) if bare else str(error)
