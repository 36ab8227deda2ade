"""What Slurm knows of jobs: the queue as it is now, and the accounts of those that have left it.

Whoever only looks asks both at once and gives them little time, so that a slow controller or
database costs its answer and not patience. Accounting is often missing or late; the queue wins.
Whoever submits waits for the queue.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpc_hipgen.config import ConfigError

PATIENCE = 1.2  # seconds for squeue and sacct together
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED")
WORKING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
GOOD = "COMPLETED"
FINE = {GOOD, *WORKING, *WAITING}


@dataclass
class Job:
    """A job, or all tasks of an array: their states, and what else is known of the last one."""

    states: dict[str, str] = field(default_factory=dict)  # by array index; "" for a plain job
    elapsed: str = ""
    reason: str = ""  # why it waits

    @property
    def state(self) -> str:
        """RUNNING or PENDING while any task is; else the commonest bad end; else COMPLETED."""
        found = Counter(self.states.values())
        for word, states in (("RUNNING", WORKING), ("PENDING", WAITING)):
            if any(state in found for state in states):
                return word
        bad = {state: n for state, n in found.items() if state != GOOD}
        return max(bad, key=lambda state: bad[state]) if bad else GOOD

    def counts(self) -> str:
        """How many tasks are in which state; empty for a plain job."""
        if len(self.states) < 2:
            return ""
        found = Counter(map(_group, self.states.values()))
        known = ("done", "running", "pending")
        order = [*(g for g in known if g in found), *sorted(g for g in found if g not in known)]
        return ", ".join(f"{found[group]} {group}" for group in order)


def _group(state: str) -> str:
    if state == GOOD:
        return "done"
    if state in WORKING:
        return "running"
    return "pending" if state in WAITING else state.lower()


def look_up(ids: Iterable[str], patience: float = PATIENCE) -> tuple[dict[str, Job], bool]:
    """What is known of jobs, and whether the queue answered (then a job not in it has left).

    `patience`: seconds for both answers together.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}, False
    format_ = "JobID,State,Elapsed"
    queue, accounts = _ask(
        patience,
        squeue(wanted, "-r", "-o", "%F|%K|%T|%M|%r"),
        ["sacct", *cluster_options(), "-X", "-n", "-P", "-j", ",".join(wanted), "-o", format_],
    )
    jobs: dict[str, Job] = {}
    for line in (accounts or "").splitlines():
        _read_account(jobs, line)
    if queue is not None:
        _drop_lively(jobs)
        for line in queue.splitlines():
            _read_queue(jobs, line)
    return {job: jobs[job] for job in wanted if job in jobs}, queue is not None


def queued_jobs(ids: Iterable[str]) -> dict[str, str]:
    """Job id to state (PENDING, RUNNING ...) of those of these jobs that are in the queue.

    Raises:
        ConfigError: when the queue is not known: a busy controller must not look like an empty one.
    """
    wanted = sorted(filter(None, ids))
    if not wanted:
        return {}
    command = squeue(wanted, "-o", "%F %T")
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"squeue does not answer, so nothing was submitted: {error}") from None
    if listed.returncode:
        said = " ".join(listed.stderr.split()) or f"exit status {listed.returncode}"
        raise ConfigError(f"squeue does not answer, so nothing was submitted: {said}")
    rows = [row for line in listed.stdout.splitlines() if (row := line.split())[:1] != ["CLUSTER:"]]
    # an array has a line for its waiting tasks and one for each that runs: the liveliest wins
    return dict(sorted((row for row in rows if len(row) == 2), key=lambda row: _life(row[1])))


def _life(state: str) -> int:
    return {"COMPLETING": 0, "RUNNING": 2}.get(state, 1)


def cluster_options() -> list[str]:
    """What has another command ask the cluster that sbatch submits to."""
    clusters = os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS")
    return [f"--clusters={clusters}"] if clusters else []


def squeue(ids: Sequence[str], *options: str) -> list[str]:
    """A command that lists those of these jobs that are in the queue.

    Whoever submitted them, and in partitions that are not shown, too. Nothing that the user has set
    for squeue filters them, and it asks the cluster that sbatch submits to.
    """
    unset = [f"--unset={name}" for name in os.environ if name.startswith("SQUEUE_")]
    # a lone job that Slurm has forgotten is an error to it, one of several is not
    jobs = ",".join(ids if len(ids) > 1 else [*ids, *ids])
    return ["env", *unset, "squeue", "-h", "-a", *cluster_options(), "-j", jobs, *options]


def _ask(patience: float, *commands: list[str]) -> list[str | None]:
    """What each command printed; None for one that is missing, fails or takes too long."""
    until = time.monotonic() + patience
    started: list[subprocess.Popen[str] | None] = []
    for command in commands:
        try:
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        except OSError:
            started.append(None)
    answers: list[str | None] = []
    for process in started:
        if process is None:
            answers.append(None)
            continue
        try:
            # without any time even an answer that is there is none
            said, _ = process.communicate(timeout=max(0.1, until - time.monotonic()))
            answers.append(said if process.returncode == 0 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            answers.append(None)
    return answers


def _read_account(jobs: dict[str, Job], line: str) -> None:
    """A line of sacct: 17|COMPLETED|..., 18_3|CANCELLED by 1000|..., 18_[4-7%2]|PENDING|..."""
    name, state, elapsed = (*line.split("|"), "", "")[:3]
    number, _, index = name.partition("_")
    if not state:
        return
    job = jobs.setdefault(number, Job())
    for task in _indices(index):
        job.states[task] = state.split()[0].rstrip("+")
    job.elapsed = elapsed


def _drop_lively(jobs: dict[str, Job]) -> None:
    """Leaves only ends: accounts have a job at work for ever whose end they were not told."""
    for number, job in list(jobs.items()):
        job.states = {k: s for k, s in job.states.items() if s not in (*WORKING, *WAITING)}
        if not job.states:
            del jobs[number]


def _read_queue(jobs: dict[str, Job], line: str) -> None:
    """A line of squeue, one for each array task."""
    number, index, state, elapsed, reason = (*line.split("|"), "", "", "", "")[:5]
    if not state:
        return
    job = jobs.setdefault(number, Job())
    job.states["" if index in ("N/A", "") else index] = state
    job.elapsed, job.reason = elapsed, "" if reason == "None" else reason


def _indices(text: str) -> list[str]:
    """Array indices of "", "3" or "[0-2,7%4]"."""
    found = []
    for part in text.strip("[]").partition("%")[0].split(","):
        ends = re.fullmatch(r"(\d+)-(\d+)", part)
        found += [str(n) for n in range(int(ends[1]), int(ends[2]) + 1)] if ends else [part]
    return found
