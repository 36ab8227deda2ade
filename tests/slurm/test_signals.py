"""Signals that come at a bad time, or are not those that were asked for."""

import re
import signal
from pathlib import Path

from slurm_cluster import wait_until
from slurm_runs import site_with

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.cluster.stage_files import failures
from hpc_hipgen.pipeline import Stage


def overhears(number):
    """Whether a task of the job ignores USR2: no more its first milliseconds, nor python's."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            status = (process / "status").read_text()
        except OSError:  # it has ended, or is another user's
            continue
        if {f"SLURM_JOB_ID={number}".encode(), b"SLURM_STEP_ID=0"} <= set(variables):
            ignored = re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)[1]
            return bool(int(ignored, 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def test_a_signal_before_python_is_up_does_not_end_a_job(run, slurm):
    stage = Stage("early", "slurm_stages:at_once", "cpu")
    number = submit_stages(run, [stage], site_with())["early"]
    wait_until(lambda: overhears(number), "a task of the job")
    slurm.call("scancel", "--signal=USR2", number)
    assert slurm.wait(number) == ["COMPLETED"] and run.done("early")


def test_a_signal_after_the_work_is_done_does_not_fail_or_repeat_the_job(run, slurm):
    stage = Stage("late", "slurm_stages:slow_to_end", "cpu")
    number = submit_stages(run, [stage], site_with())["late"]
    wait_until(run.path("ending").exists, "the end of the work", 60)
    slurm.call("scancel", "--signal=USR2", number)
    assert slurm.wait(number) == ["COMPLETED"]
    assert slurm.job(number)["Restarts"] == "0"


def test_preemption_that_sends_only_sigterm_is_told_from_a_wish_to_stop(run, slurm):
    """Many sites do not pass on the signal that a job asked for."""
    resources = {"partition": "spot", "extra": {"nodelist": "spot-2"}}
    stage = Stage("taken", "slurm_stages:until_terminated", "train")
    number = submit_stages(run, [stage], site_with(stages={"taken": resources}))["taken"]
    wait_until(run.path("waiting").exists, "the job", 120)
    urgent = ("--partition=urgent", "--nodelist=spot-2", "--exclusive", "--wrap=sleep 1")
    with slurm.without("SlurmctldParameters=preempt_send_user_signal"):
        slurm.call("sbatch", "--output=/dev/null", *urgent)
        wait_until(lambda: slurm.job(number)["Restarts"] == "1", "the requeue", 60)
    assert slurm.wait(number) == ["COMPLETED"]
    assert slurm.job(number)["Restarts"] == "1"
    assert run.done("taken") and not failures(run, "taken")
