"""One submitit job of this machine, whose log is shown as it grows."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit

from hpc_hipgen.cluster.processes import children, is_alive
from hpc_hipgen.files import full_disk_advice, is_full

_OF_LIBRARIES = (b"submitit ", b"[Gloo] ")  # begin lines that are left in the log
_SAVE_SECONDS = 600.0  # for a training step and the checkpoint after it, on a slow disk
_ASK_SECONDS = 2.0  # until training is asked again to save
_OTHERS_SECONDS = 10.0  # for the other ranks to end by themselves after one has failed


class LocalJob:
    """A job that was started, and its log."""

    def __init__(self, job: Any, saves: bool = False, shell: bool = False, mark: str = "") -> None:
        """`saves`: the stage saves when it gets SIGTERM; submitit hands that on to its ranks, and
        with `shell` they are children of the job's first process. `mark` begins every line."""
        self._job = job
        self.saves = saves
        self._shell = shell
        self._mark = mark
        # of several ranks, the first one's
        self.log: Path = (job if job.num_tasks == 1 else job.task(0)).paths.stdout
        self._read, self._rest = 0, b""
        self._failed = math.inf
        self._ranks: set[int] = set()

    def ended(self) -> bool:
        """Whether it has ended. Shows what it has said meanwhile, without what libraries say.

        Ranks that wait for one that has failed, or was killed, are stopped after a while.
        """
        ended = self._job.done()
        if not ended and (any(self._failures()) or self._killed()):
            self._failed = min(self._failed, time.monotonic())
            if time.monotonic() > self._failed + _OTHERS_SECONDS:
                self.kill()
        if self.log.exists():
            self._show(ended)
        return ended

    def _killed(self) -> bool:
        """Whether a rank has ended without a word, for which the others would wait half an hour.

        Of a job with a shell its own commands come and go: nothing is told of that one.
        """
        if self._job.num_tasks == 1 or self._shell:
            return False
        if len(self._ranks) < self._job.num_tasks:  # which reads of every process of the machine
            self._ranks |= set(children(int(self._job.job_id)))
        # they leave what they have to say before they end
        gone = sum(not is_alive(rank) for rank in self._ranks)
        return gone > sum(task.paths.result_pickle.exists() for task in self._tasks())

    def _show(self, ended: bool) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        # keep a line that is still being written until its end comes
        *lines, self._rest = (self._rest + new).split(b"\n")
        if ended and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            if not line.startswith(_OF_LIBRARIES):
                print(f"  {self._mark}{line.decode(errors='replace')}")
        sys.stdout.flush()

    def problem(self, folder: Path) -> str | None:
        """None when it ended well, else one line: of a rank that failed, if one says why.

        `folder` is on the disk that may be full.
        """
        if reason := next(self._failures(), None):
            return last_line(reason)
        if not all(task.paths.result_pickle.exists() for task in self._tasks()):
            if is_full(folder):  # where neither the result nor the failure could be written
                return full_disk_advice(folder)
            return "it was ended from outside (killed, or out of memory)"
        return None

    def _tasks(self) -> list[Any]:
        return [self._job.task(k) for k in range(self._job.num_tasks)]

    def _failures(self) -> Iterator[str]:
        """Tracebacks of the ranks that failed, as far as they have ended."""
        for task in self._tasks():
            if task.paths.result_pickle.exists():
                outcome, result = submitit.core.utils.pickle_load(task.paths.result_pickle)
                if outcome != "success":
                    yield result

    def ask(self) -> None:
        """Has training save at its next step, and end by itself.

        Before its first step it does not hear of it: to be asked until it has ended.
        """
        if self._job.done():  # and its number may be another process's by now
            return
        first = int(self._job.job_id)
        _send(signal.SIGTERM, children(first) if self._shell else [first])

    def kill(self) -> None:
        """Ends it and all that it has started. Artefacts are atomic."""
        if self._job.done():
            return
        processes = [int(self._job.job_id)]
        for process in processes:  # which grows
            processes += children(process)
        _send(signal.SIGKILL, processes)
        wait_until(self._job.done, 10)


def stop(jobs: Sequence[LocalJob]) -> None:
    """Ends jobs and waits until nothing of them writes any more; those that save do that first."""
    saving = [job for job in jobs if job.saves]
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C is no reason to leave them
        for job in jobs:
            if not job.saves:
                job.kill()
        began, asked = time.monotonic(), -math.inf
        while not all(job.ended() for job in saving) and time.monotonic() < began + _SAVE_SECONDS:
            if time.monotonic() > asked + _ASK_SECONDS:
                asked = time.monotonic()
                for job in saving:
                    job.ask()
            time.sleep(0.1)
    for job in jobs:
        job.kill()


def _send(number: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Waits, but not for ever; a second Ctrl-C ends the waiting, not the launcher."""
    until = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        while not done() and time.monotonic() < until:
            time.sleep(0.1)


def last_line(text: str) -> str:
    """The last line of a traceback: the exception and its message."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
