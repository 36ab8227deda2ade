"""The whole graph submitted to Slurm at once, its jobs chained by dependencies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError

from hpc_hipgen.cluster.accounting import FINE, cluster_options, look_up, queued_jobs
from hpc_hipgen.cluster.calls import StageCall
from hpc_hipgen.cluster.executors import (
    refusal,
    sbatch_script,
    slurm_executor,
    slurm_parameters,
    submission_environment,
    submission_folder,
    users_own,
)
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.cluster.stage_files import failures, stage_logs, submitted
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import lock, write_atomic
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import terminable

_PATIENCE = 30.0  # seconds for what decides whether to submit; who looks at a status waits less
_COMMANDS = ("sbatch", "srun", "squeue", "scancel")


def check_commands() -> None:
    """Sees that Slurm's commands are here, before anything is written.

    Raises:
        ConfigError: naming those that are not.
    """
    if missing := [name for name in _COMMANDS if shutil.which(name) is None]:
        raise ConfigError(
            f"no {', '.join(missing)} here: start this where Slurm's commands are (in a container, "
            "too, if python runs in one), or work on this machine: HIPGEN_SITE=local"
        )


def submit_stages(run: Run, graph: list[Stage], site: Site) -> dict[str, str]:
    """Submits what is neither done nor in the queue; returns the job id of each stage that waits.

    A stage whose job in the queue has failed in part, or cannot succeed, is left out, and so is
    what comes after it: that would wait for nothing. A later launch submits both.

    Raises:
        ConfigError: when Slurm refuses a job; those submitted before it are cancelled. When the
            queue is not known, or another launch of this run is at it: then nothing is submitted.
        OSError: when a disk is full, say.
        KeyboardInterrupt: on Ctrl-C, SIGTERM or SIGHUP.
        Whatever it is, jobs that were submitted before are cancelled.
    """
    with terminable(), alone(run):
        return _submit_missing(run, graph, site)


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Keeps a second launch of the run out: each would not see what the other submits.

    Raises:
        ConfigError: when there is one.
    """
    path = run.path("logs", "launch.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if lock(file) is False:
            file.seek(0)
            raise ConfigError(f"{run.folder}: is being submitted already, by {file.read()}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _submit_missing(run: Run, graph: list[Stage], site: Site) -> dict[str, str]:
    ids: dict[str, str] = {}
    mine: dict[str, list[StageCall]] = {}
    held: set[str] = set()
    jobs = {stage.name: (submitted(run, stage.name) or {}).get("job", "") for stage in graph}
    queued = queued_jobs(jobs.values())
    for stage in graph:
        if stage.done(run):
            print(f"{stage.name:32} done before")
            continue
        job = jobs[stage.name]
        if job in queued:
            trouble = _trouble(run, stage, job, queued[job], {*held, *mine})
            if trouble:
                held.add(stage.name)
                trouble += ": start again when it has left the queue"
            else:
                ids[stage.name] = job
            print(f"{stage.name:32} job {job}{trouble or ', in the queue already'}")
        elif waits := [name for name in stage.after if name in held]:
            held.add(stage.name)
            print(f"{stage.name:32} not submitted: waits for {', '.join(waits)}")
        else:
            ids[stage.name] = _submit_after(run, stage, site, ids, mine)
    return ids


def _trouble(run: Run, stage: Stage, job: str, state: str, anew: set[str]) -> str:
    """Why this job, which is in the queue, will not do all of its stage; empty if it may.

    `anew`: stages of which the job that it was submitted to follow has not done all.
    """
    if again := [name for name in stage.after if name in anew]:
        return f" waits for a job of {', '.join(again)} that did not do all"
    if state == "COMPLETING":
        return " is ending, and something is undone"
    known = look_up([job], _PATIENCE)[0].get(job) if stage.items else None
    ended_badly = known and set(known.states.values()) - FINE
    return " has failed tasks" if stage.items and (ended_badly or failures(run, stage.name)) else ""


def _submit_after(
    run: Run, stage: Stage, site: Site, ids: dict[str, str], mine: dict[str, list[StageCall]]
) -> str:
    """Submits a stage to wait for those of `ids`; returns its job id.

    `mine`: the calls of what this launch has submitted; this stage's are added. All are cancelled
    when Slurm refuses it.
    """
    beside = mine.get(stage.follows or "", [])
    beside = beside if len(beside) > 1 else []  # one job is no array to follow task by task
    calls = calls_of(run, stage, site, beside)
    waits = {name: ids[name] for name in stage.after if name in ids}
    followed = waits.pop(stage.follows) if stage.follows and beside else None
    try:
        job = _submit(run, stage, site, calls, list(waits.values()), followed)
    except BaseException as error:  # Ctrl-C, too, leaves no half of a chain
        _cancel([ids[name] for name in mine])
        if isinstance(error, FailedJobError | FailedSubmissionError):  # sbatch has said no
            raise ConfigError(f"Slurm refuses {stage.name}: {_reason(error)}") from error
        raise
    mine[stage.name] = calls
    array = f" [{len(calls)} tasks]" if len(calls) > 1 else ""
    after = f"  after {', '.join(waits.values())}" if waits else ""
    each = f"  each task after the same one of {followed}" if followed else ""
    print(f"{stage.name:32} job {job}{array}{after}{each}", flush=True)
    return job


def calls_of(
    run: Run, stage: Stage, site: Site, followed: Sequence[StageCall] = ()
) -> list[StageCall]:
    """The jobs of a stage: one, or for an array at most `site.array_tasks` shares of the rest.

    `followed`: the jobs of the array whose results this one reads. Then there are as many here,
    and the items of the k-th are among those made by the k-th there, or made before.
    """
    folder = str(run.folder.resolve())
    if stage.items is None:
        return [StageCall(stage, folder)]
    requeue = site.of(stage).extra.get("requeue", True)
    retries = site.retries if requeue else 0
    items = stage.missing(run)
    if items is None:  # known only when earlier stages have run: shares are taken then
        n = len(followed) if followed else site.array_tasks
        return [StageCall(stage, folder, None, (k, n), retries=retries) for k in range(n)]
    if followed:
        made = [set(call.items or ()) for call in followed]
        others = [item for item in items if not any(item in share for share in made)]
        shares = [
            [item for item in items if item in share] + others[k :: len(made)]
            for k, share in enumerate(made)
        ]
    else:
        n = min(site.array_tasks, len(items))
        if stage.blocks:
            ordered, count = sorted(items), len(items)
            shares = [ordered[k * count // n : (k + 1) * count // n] for k in range(n)]
        else:
            shares = [items[k::n] for k in range(n)]
    return [
        StageCall(stage, folder, share, (k, len(shares)), retries=retries)
        for k, share in enumerate(shares)
    ]


def describe(
    run_folder: Path, graph: list[Stage], site: Site, sizes: Mapping[str, int] | None = None
) -> str:
    """Every script that would be submitted, dependencies by stage name.

    `sizes`: tasks of the arrays of which that is known; others have as many as the site allows.
    """
    names = {stage.name for stage in graph}
    texts = []
    for stage in graph:
        need = site.of(stage)
        tasks = (sizes or {}).get(stage.name, site.array_tasks) if stage.items else 1
        follows = stage.follows if tasks > 1 else None
        follows = follows if follows in names else None  # it is done
        after = [f"<{name}>" for name in stage.after if name != follows and name in names]
        each = f"<{follows}>" if follows else None
        parameters = slurm_parameters(stage.name, need, site, after, each)
        script = sbatch_script(parameters, tasks, run_folder / "logs" / stage.name)
        texts.append(f"##### {stage.name}\n{script}")
    return "\n".join(texts)


def refusals(graph: list[Stage], site: Site) -> dict[str, str]:
    """The stages whose scripts Slurm would not take, and why; dependencies are left out."""
    found = {}
    for stage in graph:
        need = site.of(stage)
        script = sbatch_script(
            slurm_parameters(stage.name, need, site), site.array_tasks if stage.items else 1
        )
        why = refusal(script, users_own(need))
        if why:
            found[stage.name] = why
    return found


def _submit(
    run: Run,
    stage: Stage,
    site: Site,
    calls: list[StageCall],
    after: list[str],
    follows: str | None,
) -> str:
    """Submits the jobs of one stage; returns their job id."""
    logs = stage_logs(run, stage.name).resolve()
    folder = submission_folder(logs)
    for failed in logs.glob("failed*.json"):  # of the last submission, whose shares were others
        failed.unlink()
    need = site.of(stage)
    name = f"{run.folder.resolve().name}:{stage.name}"
    parameters = slurm_parameters(name, need, site, after, follows)
    with submission_environment(site, need):
        executor = slurm_executor(folder, site, parameters)
        job = executor.submit_array(calls)[0] if len(calls) > 1 else executor.submit(calls[0])
    number = job.job_id.split("_")[0]
    record = {"job": number, "log": str(folder), "time": time.time()}
    try:
        write_atomic(logs / "submitted.json", json.dumps(record, indent=1))
    except BaseException:  # a full disk, or Ctrl-C: nobody would know of the job
        _cancel([number])
        raise
    return number


def _cancel(ids: list[str]) -> None:
    if not ids:
        return
    try:
        subprocess.run(["scancel", *cluster_options(), *ids], check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        print(f"scancel does not answer; what was submitted stays: {' '.join(ids)}", flush=True)


def _reason(error: BaseException) -> str:
    """sbatch's own words, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
