"""Stages one after another on this machine: submitit local jobs whose log is shown as it grows."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import submitit

from hpc_hipgen.cluster.calls import (
    LAUNCHER_VARIABLE,
    AtWorkError,
    StageCall,
    children,
    failures,
    launcher_identity,
    stage_logs,
)
from hpc_hipgen.cluster.executors import (
    local_executor,
    local_processes,
    local_variables,
    submission_folder,
)
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import full_disk_advice, is_full
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import handled, terminable

_POLL_SECONDS = 0.2
_SAVE_SECONDS = 600.0  # for a training step and the checkpoint after it, on a slow disk
_OTHERS_SECONDS = 10.0  # for the other ranks to end by themselves after one has failed


class StageFailed(RuntimeError):
    """A stage ended badly. `user` is True when the input was at fault rather than the program."""

    def __init__(self, stage: str, reason: str, log: Path, user: bool) -> None:
        super().__init__(f"{stage} failed: {reason}")
        self.log = log
        self.user = user


def run_stages(run: Run, graph: list[Stage], site: Site) -> None:
    """Runs what is not done yet, in order.

    Raises:
        StageFailed: at the first stage that fails; the ones before it stay done.
        ConfigError: when another launch, or somebody by hand, is at work on a stage.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the running stage has been stopped.
    """
    with terminable():
        for number, stage in enumerate(graph, 1):
            head = f"[{number}/{len(graph)}] {stage.name}"
            if stage.done(run):
                print(f"{head}: done before", flush=True)
                continue
            start = time.monotonic()
            folder = submission_folder(stage_logs(run, stage.name))
            print(f"{head}  (log: {folder})", flush=True)
            _run_stage(run, stage, site, folder)
            print(f"{head}: done in {duration(time.monotonic() - start)}", flush=True)


def _run_stage(run: Run, stage: Stage, site: Site, folder: Path) -> None:
    began = time.time()
    items = stage.missing(run) if stage.items else None
    processes = local_processes(stage.kind)
    # A terminal sends Ctrl-C to all its processes: a job ignores it, and the launcher stops the job
    with (
        local_variables(site, {LAUNCHER_VARIABLE: launcher_identity()}),
        handled(signal.SIGINT, signal.SIG_IGN),
    ):
        executor = local_executor(folder, site, processes)
        job = executor.submit(StageCall(stage, str(run.folder), items))
    log = job.paths.stdout if processes == 1 else job.task(0).paths.stdout
    try:
        follow(job, log)
    except KeyboardInterrupt:
        if stage.model:
            print("stopping: the model is saved first (Ctrl-C again: at once)", flush=True)
        _stop(job, saves=stage.model is not None, shell=bool(site.setup))
        raise
    problem = _outcome(job, run)
    if problem and (at_work := problem.partition(f"{AtWorkError.__name__}: ")[2]):
        raise ConfigError(at_work)
    if problem is None and not stage.done(run):
        problem = "it ended well but left something undone"
    if problem is not None:
        raise _failed(run, stage, problem, log, began)


def follow(job: Any, log: Path) -> None:
    """Copies the log to the terminal while the job runs, without submitit's own lines."""
    position, rest = 0, b""
    failed = math.inf
    while True:
        ended = job.done()
        if not ended and any(_failures(job)):
            failed = min(failed, time.monotonic())
            if time.monotonic() > failed + _OTHERS_SECONDS:  # they wait for the one that failed
                _stop(job, saves=False, shell=False)
        if log.exists():
            with log.open("rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            # keep a line that is still being written until its end comes
            *lines, rest = (rest + new).split(b"\n")
            if ended and rest:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if not line.startswith(b"submitit "):
                    print("  " + line.decode(errors="replace"))
            sys.stdout.flush()
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _outcome(job: Any, run: Run) -> str | None:
    """None when the job ended well, else one line: of a rank that failed, if one says why."""
    if reason := next(_failures(job), None):
        return last_line(reason)
    if not all(task.paths.result_pickle.exists() for task in _tasks(job)):
        if is_full(run.folder):  # where neither the result nor the failure could be written
            return full_disk_advice(run.folder)
        return "it was ended from outside (killed, or out of memory)"
    return None


def _tasks(job: Any) -> list[Any]:
    return [job.task(k) for k in range(job.num_tasks)]


def _failures(job: Any) -> Iterator[str]:
    """Tracebacks of the ranks that failed, as far as they have ended."""
    for task in _tasks(job):
        if task.paths.result_pickle.exists():
            outcome, result = submitit.core.utils.pickle_load(task.paths.result_pickle)
            if outcome != "success":
                yield result


def last_line(text: str) -> str:
    """The last line of a traceback: the exception and its message."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def _failed(run: Run, stage: Stage, reason: str, log: Path, since: float) -> StageFailed:
    written = failures(run, stage.name, since - 1)
    if not written:
        return StageFailed(stage.name, reason, log, user=False)
    kinds, message = written[-1]["kinds"], written[-1]["error"]
    user = "ConfigError" in kinds or (stage.reads_films and "ValueError" in kinds)
    shown = message if user or not message else f"{kinds[0]}: {message.strip().splitlines()[0]}"
    return StageFailed(stage.name, shown or reason, log, user)


def _stop(job: Any, saves: bool, shell: bool) -> None:
    """Ends the job and waits until nothing of it writes any more.

    SIGTERM first for a stage that saves: training does at its next step, and ends by itself.
    submitit hands it on to the ranks; with `shell` that is a child of the job's first process.
    """
    first = int(job.job_id)
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C is no reason to leave it behind
        if saves:
            _send(signal.SIGTERM, children(first) if shell else [first])
            _wait(job, _SAVE_SECONDS)
    processes = [] if job.done() else [first]
    for process in processes:  # which grows
        processes += children(process)
    _send(signal.SIGKILL, processes)
    _wait(job, 10)


def _send(number: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _wait(job: Any, seconds: float) -> None:
    """Waits for the end of the job; a second Ctrl-C ends the waiting, not the launcher."""
    until = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        while not job.done() and time.monotonic() < until:
            time.sleep(0.1)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    return f"{minutes} min {second} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
