"""What a job executes: one stage of one run, guarded, its failures written down.

A `StageCall` is what submitit pickles. It names everything and imports late, so that submitting
takes no time and the job sees the code and the files as they are when it starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hpc_hipgen.arguments import print_anything
from hpc_hipgen.cluster import rendezvous
from hpc_hipgen.cluster.executors import restore_gpus
from hpc_hipgen.files import (
    DamagedError,
    clean_abandoned,
    disk_full,
    full_disk_advice,
    lock,
    read_json,
    write_atomic,
)
from hpc_hipgen.pipeline import Item, Stage
from hpc_hipgen.provenance import record_start
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import (
    GO_ON_LATER,
    STOP,
    Interrupted,
    OtherRankError,
    handled,
)

LAUNCHER_VARIABLE = "HIPGEN_LAUNCHER"
"""Process number and start time of the launcher; a local job does not outlive it."""

_LOCK_SECONDS = 10.0  # more than a job of a killed launcher needs to notice and end

_OWN_LOCK_SECONDS = 2400.0
"""How long a lock of an earlier start of the same job is waited for.

On NFS the lock of a node that died is held until its lease runs out, and Slurm starts the job
elsewhere before that. Of a node that is only cut off the processes live on: the first rank may wait
for the others for `training.engine.TIMEOUT`, half an hour.
"""

_REQUEUE_SECONDS = 600.0
"""Within which Slurm ends the ranks of a job that is queued again, or rank 0 gives up and ends: its
`scontrol` may take a minute a time."""

_OF_RANK = "failed-rank"  # begins the name of what a rank above 0 leaves

_REQUEUE_PATIENCE = 60.0  # for a controller that does not take the requeue


@dataclass
class StageCall:
    """One job: a whole stage, or some items of an array stage.

    `items` are given where they are known at submission; otherwise the job takes every n-th of
    them, from the k-th on, when it starts (`share` = (k, n)). On Slurm a task of an array that
    fails by no fault of the user's is put back `retries` times: a node may be to blame, and the
    other tasks wait for nothing.
    """

    stage: Stage
    run: str
    items: list[Item] | None = None
    share: tuple[int, int] = (0, 1)
    retries: int = 0
    retried: int = 0

    def __call__(self) -> None:
        """Runs the stage and marks it done.

        Raises:
            AtWorkError: when another process works on the same part of the stage.
        """
        print_anything()
        restore_gpus()
        _end_with_launcher()
        ranks = rendezvous.export()
        run = Run(self.run)
        if ranks.rank:
            self._call_beside(run, ranks.rank)
            _ignore_signals()
            return
        logs = stage_logs(run, self.stage.name)
        part = f"-{self.share[0]}" if self.stage.items else ""
        with _one_line(run), holding(run, self.stage.name, part):
            failed = logs / f"failed{part}.json"
            # a start before this one may have had more ranks
            of_ranks = () if self.stage.items else logs.glob(f"{_OF_RANK}*.json")
            for earlier in (failed, *of_ranks):
                earlier.unlink(missing_ok=True)
            clean_abandoned(logs, failed.name)
            try:
                if self.share[0] == 0:  # of an array, its first task speaks for all
                    record_start(run, self.stage.name)
                with _stopped_by_sigterm():
                    info = self._call(run)
            except Exception as error:
                if isinstance(error, Interrupted):
                    if _on_slurm() and (error.signal == GO_ON_LATER or _preempted()):
                        error = _queue_again(error)
                elif _refused_requeue(error):
                    error = _queue_again(error)
                elif self._again_after(error):
                    traceback.print_exc()
                    print(f"{self.stage.name}: put back, to be tried again", flush=True)
                    self.retried += 1
                    error = _queue_again(error)
                _note_failure(failed, error, run)
                _leave_at_once()
                raise error
            if self.stage.items is None and run.done(self.stage.name) is None:
                run.mark_done(self.stage.name, **(info if isinstance(info, dict) else {}))
        _ignore_signals()

    def _again_after(self, error: Exception) -> bool:
        if self.stage.items is None or not _on_slurm() or isinstance(error, ValueError):
            return False
        return self.retried < self.retries

    def checkpoint(self) -> Any:
        """What submitit queues again after the time limit or preemption: the same call.

        Stages go on from their last complete artefact by themselves.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _call_beside(self, run: Run, rank: int) -> None:
        """What ranks above 0 do: their part of the stage, and nothing about it."""
        try:
            self._call(run)
        except Exception as error:
            if not isinstance(error, Interrupted | OtherRankError):
                logs = stage_logs(run, self.stage.name)
                _note_failure(logs / f"{_OF_RANK}{rank}.json", error, run)
            elif _on_slurm():
                time.sleep(_REQUEUE_SECONDS)  # ending now would take rank 0 down before it requeues
            _leave_at_once()
            raise

    def _call(self, run: Run) -> Any:
        function = resolve_name(self.stage.function)
        if self.stage.items is None:
            return function(run, *self.stage.arguments)
        mine = self.items
        if mine is None:
            every = self.stage.items(run)
            assert every is not None, f"{self.stage.name}: its items are not known"
            mine = every[self.share[0] :: self.share[1]]
        # what an earlier start of this very job finished is left alone
        todo = sorted(item for item in mine if not self.stage.there(run, item))
        return function(run, *self.stage.arguments, todo) if todo else None


def _on_slurm() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _preempted() -> bool:
    """True when Slurm is taking this job's node for another: some sites send SIGTERM for that."""
    number = os.environ.get("SLURM_JOB_ID", "")
    try:
        show = ["scontrol", "show", "job", "-o", number]
        said = subprocess.run(show, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(number) and re.search(r" PreemptTime=\d", said) is not None


def _refused_requeue(error: Exception) -> bool:
    """True where submitit's handler wanted to put the job back, amid a stage that saves nothing.

    It asks the controller once; training, which has a handler of its own, comes to `_queue_again`.
    """
    if not isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        return False
    return _on_slurm() and "scontrol" in str(error.cmd)


def _queue_again(why: Exception) -> Exception:
    """Hands the saved job back to Slurm under its own id, and ends.

    The signal that training swallowed until its state was saved is raised once more, now that
    submitit's handler is back in place: that one counts time-outs and calls `scontrol requeue`.
    A controller that does not take it is asked again for a while.

    Returns:
        Why the job ends, where it could not be put back: submitit's UncompletedJobError when it has
        timed out too often, else `why` itself, and that Slurm refused is printed.
    """
    until = time.monotonic() + _REQUEUE_PATIENCE
    while True:
        try:
            signal.raise_signal(GO_ON_LATER)
        except subprocess.SubprocessError as error:
            if time.monotonic() > until:
                print(f"Slurm does not put the job back: {error}", flush=True)
                return why
            time.sleep(5)
        except Exception as error:
            return error


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """In a job of Slurm, SIGTERM ends the stage wherever it is; submitit would overhear it.

    Artefacts are atomic. Training has a handler of its own, which saves first.
    """
    if not _on_slurm():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped by SIGTERM; start again to go on", STOP)

    with handled(STOP, stop):
        yield


def _ignore_signals() -> None:
    """Lets a job of Slurm that has done its work end, whatever warning comes now.

    Python takes its handlers away while it ends, which takes seconds with torch loaded: a warning
    of the time limit would then kill the process, and fail the jobs that wait for this one.
    """
    if _on_slurm():
        for number in (STOP, GO_ON_LATER):
            signal.signal(number, signal.SIG_IGN)


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
def _one_line(run: Run) -> Iterator[None]:
    """Has a job end with one line, no traceback, where that says all: at work, or a full disk."""
    try:
        yield
    except (AtWorkError, OSError) as error:
        says_all = isinstance(error, AtWorkError) or disk_full(error)
        if says_all and os.environ.get("SUBMITIT_EXECUTOR"):
            text = _told(error, run)
            sys.excepthook = lambda *_: print(text, file=sys.stderr, flush=True)
        raise


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
                    f"{stage} is at work already ({names}): wait for it, or stop it first"
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


def _note_failure(path: Path, error: Exception, run: Run) -> None:
    """What ended a job, for `failures`; a full disk must not hide it."""
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(_failure(error, run), indent=1))


def _leave_at_once() -> None:
    """As of `training.engine`, which a stage that uses no process group has not imported."""
    if engine := sys.modules.get("hpc_hipgen.training.engine"):
        engine.leave_at_once()


def _failure(error: Exception, run: Run) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"error": _told(error, run), "kinds": kinds, "time": time.time(), "pid": os.getpid()}


def _told(error: Exception, run: Run) -> str:
    """What an error says; of a full disk also where, which "No space left on device" does not."""
    bare = isinstance(error, OSError) and disk_full(error)
    return full_disk_advice(run.folder) if bare else str(error)


def launcher_identity() -> str:
    """What LAUNCHER_VARIABLE holds: this process's number and start time."""
    return f"{os.getpid()} {_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, or None when there is no such process."""
    fields = _stat(pid)
    return None if not fields or fields[0] == "Z" else fields[19]


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


def _end_with_launcher(every: float = 1.0) -> None:
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
