"""The stages of a graph on this machine: submitit local jobs, side by side where that is faster."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from hpc_hipgen.cluster.calls import StageCall
from hpc_hipgen.cluster.executors import (
    count_gpus,
    local_executor,
    local_processes,
    local_variables,
    submission_folder,
)
from hpc_hipgen.cluster.local_job import LocalJob, stop
from hpc_hipgen.cluster.processes import LAUNCHER_VARIABLE, launcher_identity
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.cluster.stage_files import AtWorkError, failures, stage_logs
from hpc_hipgen.cluster.turns import turns
from hpc_hipgen.config import ConfigError
from hpc_hipgen.parallel import CPUS_VARIABLE, usable_cpus
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import handled, terminable

_POLL_SECONDS = 0.2
_AT_ONCE = 2  # without a GPU; more would each keep their data in memory
_THREADS = "OMP_NUM_THREADS"


class StageFailed(RuntimeError):
    """A stage ended badly. `user` is True when the input was at fault rather than the program."""

    def __init__(self, stage: str, reason: str, log: Path, user: bool) -> None:
        super().__init__(f"{stage} failed: {reason}")
        self.log = log
        self.user = user


def jobs_at_once(site: Site) -> int:
    """How many jobs run side by side here: as the site says, else one where there is a GPU."""
    most = site.local_parallel or (1 if count_gpus() else _AT_ONCE)
    return min(most, usable_cpus())


def run_stages(run: Run, graph: list[Stage], site: Site, parallel: int) -> None:
    """Runs what is not done yet, each stage after those that it waits for; `parallel` jobs at most.

    Raises:
        StageFailed: at the first stage that fails; those that are done stay done.
        ConfigError: when another launch, or somebody by hand, is at work on a stage.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
        In each case what else is at work has been stopped; training has saved.
    """
    with terminable():
        launch = _Launch(run, len(graph), site, parallel)
        try:
            for turn in turns(graph):
                launch.take(turn)
        except BaseException as error:
            launch.stop(error if isinstance(error, StageFailed) else None)
            raise


@dataclass
class _Working:
    """A stage at work."""

    stage: Stage
    head: str
    job: LocalJob
    began: float  # seconds of the epoch


class _Launch:
    """The stages at work, and how many have begun."""

    def __init__(self, run: Run, count: int, site: Site, parallel: int) -> None:
        """`count`: of all stages; `parallel`: jobs at once."""
        self.run, self.site = run, site
        self.cores, self.parallel = usable_cpus(), parallel
        self.count, self.begun = count, 0
        self.working: list[_Working] = []

    def take(self, turn: list[Stage]) -> None:
        """Runs the stages of a turn until all are done: side by side, where they are many.

        Where they are not more than the jobs at once, the longest of them would be left alone with
        a part of the cores: one after another they end as soon (docs/log.md, 2026-11-29).
        """
        beside = self.parallel if len(turn) > self.parallel else 1
        left = turn[::-1]
        while left or self.working:
            while left and len(self.working) < beside:
                self._begin(left.pop(), self.cores // beside)
            time.sleep(_POLL_SECONDS if self.working else 0)
            self._look()

    def _begin(self, stage: Stage, cores: int) -> None:
        self.begun += 1
        head = f"[{self.begun}/{self.count}] {stage.name}"
        if stage.done(self.run):
            print(f"{head}: done before", flush=True)
            return
        began, folder = time.time(), submission_folder(stage_logs(self.run, stage.name))
        part = "" if cores == self.cores else f"{cores} of {self.cores} cores, "
        print(f"{head}  ({part}log: {folder})", flush=True)
        items = stage.missing(self.run) if stage.items else None
        ranks = local_processes(stage.kind)
        # A terminal sends Ctrl-C to all its processes: a job ignores it, the launcher stops the job
        with (
            local_variables(self.site, self._variables(max(1, cores // ranks))),
            handled(signal.SIGINT, signal.SIG_IGN),
        ):
            executor = local_executor(folder, self.site, ranks)
            submitted = executor.submit(StageCall(stage, str(self.run.folder), items))
        saves, shell = stage.model is not None, bool(self.site.setup)
        job = LocalJob(submitted, saves, shell, mark=f"[{self.begun}] " if part else "")
        self.working.append(_Working(stage, head, job, began))

    def _variables(self, cores: int) -> dict[str, str]:
        """Of a process: how many processes and threads of torch it takes, where it is not alone."""
        variables = {LAUNCHER_VARIABLE: launcher_identity()}
        if cores == self.cores:
            return variables
        variables[CPUS_VARIABLE] = str(cores)
        given = os.environ.get(_THREADS, "")
        fewer = given.isdigit() and 0 < int(given) < cores
        if not fewer and _THREADS not in self.site.env:
            variables[_THREADS] = str(cores)
        return variables

    def _look(self) -> None:
        """Shows what the jobs have said, and takes note of those that have ended."""
        for working in list(self.working):
            if not working.job.ended():
                continue
            problem = working.job.problem(self.run.folder)
            if problem is None and not working.stage.done(self.run):
                problem = "it ended well but left something undone"
            if problem:
                raise self._failed(working, problem)
            self.working.remove(working)
            took = duration(time.time() - working.began)
            print(f"{working.head}: done in {took}", flush=True)

    def _failed(self, working: _Working, reason: str) -> Exception:
        if at_work := reason.partition(f"{AtWorkError.__name__}: ")[2]:
            return ConfigError(at_work)
        stage, log = working.stage, working.job.log
        written = failures(self.run, stage.name, working.began - 1)
        if not written:
            return StageFailed(stage.name, reason, log, user=False)
        kinds, message = written[0]["kinds"], written[0]["error"]
        user = "ConfigError" in kinds or (stage.reads_films and "ValueError" in kinds)
        short = message if user or not message else f"{kinds[0]}: {message.strip().splitlines()[0]}"
        return StageFailed(stage.name, short or reason, log, user)

    def stop(self, failure: StageFailed | None) -> None:
        """Stops what is at work; training saves first. `failure`: why."""
        at_work = [working for working in self.working if not working.job.ended()]
        if failure and at_work:
            print(failure, flush=True)
        for name in (working.stage.name for working in at_work if working.stage.model):
            print(f"stopping {name}: it is saved first (Ctrl-C again: at once)", flush=True)
        stop([working.job for working in at_work])


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    return f"{minutes} min {second} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
