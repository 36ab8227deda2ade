"""What a job executes: one stage of one run, guarded, its failures written down.

A `StageCall` is what submitit pickles. It names everything and imports late, so that submitting
takes no time and the job sees the code and the files as they are when it starts.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from hpc_hipgen.arguments import print_anything
from hpc_hipgen.cluster import rendezvous
from hpc_hipgen.cluster.executors import restore_gpus
from hpc_hipgen.cluster.processes import end_with_launcher
from hpc_hipgen.cluster.stage_files import AtWorkError, holding, note_failure, stage_logs, told
from hpc_hipgen.files import clean_abandoned, disk_full
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
        end_with_launcher()
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
                note_failure(failed, error, run)
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
                note_failure(logs / f"{_OF_RANK}{rank}.json", error, run)
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
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # which is the last task's number, too
        number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
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
    if _no_scontrol(error):
        return _on_slurm()
    if not isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        return False
    return _on_slurm() and "scontrol" in str(error.cmd)


def _no_scontrol(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and error.filename == "scontrol"


def _queue_again(why: Exception) -> Exception:
    """Hands the saved job back to Slurm under its own id, and ends.

    The signal that training swallowed until its state was saved is raised once more, now that
    submitit's handler is back in place: that one counts time-outs and calls `scontrol requeue`.
    A controller that does not take it is asked again for a while.

    Returns:
        Why the job ends, where it could not be put back: submitit's UncompletedJobError when it has
        timed out too often, else `why` itself, and that Slurm refused is printed; where there is no
        scontrol to ask it by, that.
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
            if not _no_scontrol(error):
                return error
            advice = "start again to go on; a container (HIPGEN_PYTHON) needs Slurm's commands"
            return RuntimeError(f"no scontrol here to put the job back into the queue; {advice}")


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


@contextmanager
def _one_line(run: Run) -> Iterator[None]:
    """Has a job end with one line, no traceback, where that says all: at work, or a full disk."""
    try:
        yield
    except (AtWorkError, OSError) as error:
        says_all = isinstance(error, AtWorkError) or disk_full(error)
        if says_all and os.environ.get("SUBMITIT_EXECUTOR"):
            text = told(error, run)
            sys.excepthook = lambda *_: print(text, file=sys.stderr, flush=True)
        raise


def _leave_at_once() -> None:
    """As of `training.engine`, which a stage that uses no process group has not imported."""
    if engine := sys.modules.get("hpc_hipgen.training.engine"):
        engine.leave_at_once()
