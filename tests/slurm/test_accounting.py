"""What a real sacct tells of jobs, and what jobs.status makes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_accounting
from debian import Unavailable
from slurm_accounting import AccountedCluster
from slurm_cluster import running_cluster, wait_until
from slurm_runs import new_run, on

from hpc_hipgen.cluster.accounting import look_up
from hpc_hipgen.cluster.stage_files import stage_logs
from hpc_hipgen.pipeline import stages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def accounts():
    """The cluster with accounts, this process its client."""
    try:
        slurm_accounting.install()
        with running_cluster(AccountedCluster) as cluster, on(cluster):
            yield cluster
    except Unavailable as error:
        pytest.skip(f"no Slurm with accounts here: {error}")


def submit(cluster, script, *options):
    words = ("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")
    return cluster.call(*words).strip()


@pytest.fixture(scope="module")
def ended(accounts):
    """Job ids by how they ended; all have left the queue, and are in the accounts."""
    jobs = {
        "good": submit(accounts, "true"),
        "bad": submit(accounts, "exit 3"),
        "cancelled": submit(accounts, "sleep 600"),
        "array": submit(accounts, "exit $((SLURM_ARRAY_TASK_ID == 1))", "--array=0-2"),
    }
    wait_until(lambda: accounts.queue().get(jobs["cancelled"]) == "RUNNING", "the start")
    accounts.call("scancel", jobs["cancelled"])
    accounts.wait(*jobs.values())

    def known():  # the database hears of an end, and of the tasks of an array, seconds later
        found, _ = look_up(jobs.values())
        states = {state for job in found.values() for state in job.states.values()}
        tasks = sum(len(job.states) for job in found.values())
        return tasks == len(jobs) + 2 and not states & {"RUNNING", "PENDING"}

    wait_until(known, "the accounts", 60)
    return jobs


def test_accounts_tell_how_jobs_ended_that_left_the_queue(accounts, ended):
    assert not accounts.queue()
    found, answered = look_up(ended.values())
    assert answered
    states = {name: found[job].state for name, job in ended.items()}
    expected = {"good": "COMPLETED", "bad": "FAILED", "cancelled": "CANCELLED", "array": "FAILED"}
    assert states == expected
    assert found[ended["array"]].counts() == "2 done, 1 failed"
    assert all(job.elapsed for job in found.values())


@pytest.mark.parametrize("accounted", [True, False])
def test_status_of_a_stage_whose_job_was_cancelled(accounts, ended, tmp_path, accounted):
    """From another shell; without sacct it can say only that the job has left."""
    run = new_run(tmp_path / "results" / "tiny")
    stage = stages(run.config)[0]
    logs = stage_logs(run, stage.name)
    submission = {"job": ended["cancelled"], "log": str(logs / "001")}
    (logs / "submitted.json").write_text(json.dumps(submission))
    environment = os.environ | accounts.environment
    if not accounted:
        environment["PATH"] = f"{without_sacct(tmp_path)}:{environment['PATH']}"
    told = subprocess.run(
        [sys.executable, "-m", "jobs.status", str(run.folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [line for line in told.splitlines() if ended["cancelled"] in line]
    word = "cancelled" if accounted else "left"
    assert line.split()[:4] == [stage.name, word, "job", ended["cancelled"]]
    assert ("after 00:00:" in line) == accounted


def without_sacct(folder):
    """A folder for the path, with a sacct as of a cluster that keeps no accounts."""
    script = folder / "bin" / "sacct"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    script.chmod(0o755)
    return script.parent
