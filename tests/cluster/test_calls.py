import json
import multiprocessing
import signal
import subprocess
import time

import pytest

from hpc_hipgen.cluster import calls, rendezvous, stage_files
from hpc_hipgen.cluster.calls import StageCall
from hpc_hipgen.cluster.stage_files import failures, running, stage_logs
from hpc_hipgen.files import lock
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.training.interruption import Interrupted


def test_a_stage_is_called_and_marked(run, fake_stages):
    StageCall(fake_stages.GRAPH[0], str(run.folder))()
    assert run.done("first")["value"] == 7
    assert not running(run, "first")


def test_a_failure_is_written_down_and_the_stage_is_not_done(run, fake_stages):
    with pytest.raises(RuntimeError):
        StageCall(fake_stages.BROKEN[1], str(run.folder))()
    (failure,) = failures(run, "broken")
    assert failure["error"] == "the loss is not finite"
    assert failure["kinds"][0] == "RuntimeError"
    assert run.done("broken") is None
    assert failures(run, "broken", since=time.time() + 60) == []


def test_only_rank_0_marks(run, fake_stages, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    StageCall(fake_stages.GRAPH[0], str(run.folder))()
    assert run.done("first") is None


def test_why_another_rank_failed_is_kept_until_the_next_start_on_however_many_ranks(
    run, fake_stages, monkeypatch
):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError):
        StageCall(fake_stages.BROKEN[1], str(run.folder))()
    (failure,) = failures(run, "broken")
    assert failure["error"] == "the loss is not finite"
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError):
        StageCall(fake_stages.BROKEN[1], str(run.folder))()
    assert len(failures(run, "broken")) == 1, "its own alone"


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_shares_taken_at_the_start_do_every_item_once(run, fake_stages, tasks):
    run.mark_done("first")
    for k in range(tasks):
        StageCall(fake_stages.GRAPH[2], str(run.folder), None, (k, tasks))()
    done = run.path("array.log").read_text().splitlines()
    assert sorted(done) == sorted(str(item) for item in fake_stages.ITEMS)
    assert fake_stages.GRAPH[2].done(run)


def test_items_that_are_there_are_left_alone(run, fake_stages):
    run.mark_done("first")
    there = fake_stages.artefact(run, ("a", 1))
    there.parent.mkdir()
    there.touch()
    StageCall(fake_stages.GRAPH[2], str(run.folder), fake_stages.ITEMS)()
    assert run.path("array.log").read_text().splitlines() == ["('a', 0)", "('b', 0)"]


def test_two_processes_do_not_work_on_one_stage(run, fake_stages, monkeypatch):
    monkeypatch.setattr(stage_files, "_LOCK_SECONDS", 0.3)
    call = StageCall(fake_stages.SLOW[1], str(run.folder))
    other = multiprocessing.get_context("fork").Process(target=call)
    other.start()
    try:
        while not any("pid" in who for who in running(run, "slow")):  # locked, then signed
            time.sleep(0.01)
        assert running(run, "slow")[0]["pid"] == other.pid
        with pytest.raises(RuntimeError, match=rf"is at work already .pid {other.pid} "):
            call()
    finally:
        other.kill()
        other.join()
    assert not running(run, "slow")  # a killed process holds nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("cluster", ["slurm", "local", "slurm that preempts"])
def test_a_saved_job_queues_itself_again_only_where_slurm_asked_for_it(
    run, fake_stages, fake_slurm, monkeypatch, number, cluster
):
    """The real requeue is tested on a real Slurm; here, that submitit's handler gets the signal."""
    taken = "2026-01-01T00:00:00" if "preempts" in cluster else "None"
    scontrol = fake_slurm / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/bash\necho JobId=$5 PreemptTime={taken} Account=x\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "101")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", cluster.split()[0])
    monkeypatch.setattr(rendezvous, "export", rendezvous.Rendezvous)

    def requeue(number, frame):
        raise SystemExit(-1)  # as submitit's handler does after `scontrol requeue`

    before = signal.signal(signal.SIGUSR2, requeue)
    call = StageCall(
        Stage("stopped", "fake_stages:interrupted", "train", arguments=(int(number),)),
        str(run.folder),
    )
    again = "preempts" in cluster or (number, cluster) == (signal.SIGUSR2, "slurm")
    try:
        with pytest.raises(SystemExit if again else Interrupted):
            call()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert run.done("stopped") is None and not running(run, "stopped")
    assert [f["error"] for f in failures(run, "stopped")] == (
        [] if again else ["saved at 64 images"]
    )


def on_slurm(monkeypatch, number="101"):
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(rendezvous, "export", rendezvous.Rendezvous)


def test_sigterm_stops_a_stage_that_does_not_listen_for_it(
    run, fake_stages, fake_slurm, monkeypatch
):
    on_slurm(monkeypatch)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as submitit overhears it
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            StageCall(Stage("ended", "fake_stages:terminated", "cpu"), str(run.folder))()
    finally:
        signal.signal(signal.SIGTERM, before)
    (failure,) = failures(run, "ended")
    assert "start again to go on" in failure["error"] and run.done("ended") is None


@pytest.mark.parametrize("refusals", [2, 1000])
def test_a_requeue_that_the_controller_does_not_take_is_tried_again(
    run, fake_stages, fake_slurm, monkeypatch, capsys, refusals
):
    on_slurm(monkeypatch)
    monkeypatch.setattr(calls, "_REQUEUE_PATIENCE", 0.2)
    monkeypatch.setattr(calls.time, "sleep", lambda seconds, inner=time.sleep: inner(0.01))
    asked = []

    def requeue(number, frame):
        asked.append(number)
        if len(asked) <= refusals:
            raise subprocess.CalledProcessError(1, "scontrol requeue")
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    stage = Stage("late", "fake_stages:interrupted", "train", arguments=(int(signal.SIGUSR2),))
    try:
        with pytest.raises(SystemExit if refusals == 2 else Interrupted):
            StageCall(stage, str(run.folder))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(asked) == 3 if refusals == 2 else len(asked) > 3
    said = [failure["error"] for failure in failures(run, "late")]
    assert said == [] if refusals == 2 else said == ["saved at 64 images"]
    assert refusals == 2 or "Slurm does not put the job back" in capsys.readouterr().out


@pytest.mark.parametrize("function", ["interrupted", "first"])
def test_a_container_without_slurms_commands_is_told_of(run, fake_stages, monkeypatch, function):
    on_slurm(monkeypatch)

    def requeue(number, frame):
        raise FileNotFoundError(2, "No such file or directory", "scontrol")

    monkeypatch.setattr(fake_stages, "first", lambda run: signal.raise_signal(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, requeue)
    arguments = (int(signal.SIGUSR2),) if function == "interrupted" else ()
    try:
        with pytest.raises(RuntimeError, match=r"no scontrol here .*HIPGEN_PYTHON"):
            StageCall(
                Stage("late", f"fake_stages:{function}", "train", arguments=arguments),
                str(run.folder),
            )()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "no scontrol here" in failures(run, "late")[0]["error"]


def test_of_an_array_a_task_asks_for_itself(fake_slurm, monkeypatch):
    """The last one has the number of the whole array."""
    scontrol = fake_slurm / "bin" / "scontrol"
    scontrol.write_text(
        "#!/bin/bash\n[[ $4 == 101_1 ]] || echo JobId=101 PreemptTime=2026-01-01T00:00:00\n"
        "echo JobId=101 ArrayTaskId=1 PreemptTime=None\n"
    )
    scontrol.chmod(0o755)
    for name, value in (("JOB_ID", "101"), ("ARRAY_JOB_ID", "101"), ("ARRAY_TASK_ID", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert not calls._preempted()
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert calls._preempted()


@pytest.mark.parametrize("function", ["interrupted amid", "other"])
def test_a_requeue_amid_a_stage_that_saves_nothing_is_tried_again(
    run, fake_stages, fake_slurm, monkeypatch, function
):
    """submitit's handler asks the controller once, wherever the stage is."""
    on_slurm(monkeypatch)
    asked = []

    def requeue(number, frame):
        asked.append(number)
        if len(asked) == 1:
            raise subprocess.TimeoutExpired(["scontrol", "requeue", "101"], 60)
        raise SystemExit(-1)

    def work(run):
        if function == "other":
            raise subprocess.CalledProcessError(1, ["git"])
        signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(fake_stages, "first", work)
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(subprocess.CalledProcessError if function == "other" else SystemExit):
            StageCall(fake_stages.GRAPH[0], str(run.folder))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert len(asked) == (0 if function == "other" else 2)
    assert len(failures(run, "first")) == (function == "other")


def test_the_lock_of_an_earlier_start_of_the_same_job_is_waited_for(
    run, fake_stages, fake_slurm, monkeypatch
):
    """On NFS the lock of a node that died outlives it for a while."""
    monkeypatch.setattr(stage_files, "_LOCK_SECONDS", 0.2)
    monkeypatch.setattr(stage_files, "_OWN_LOCK_SECONDS", 1.5)
    call = StageCall(fake_stages.GRAPH[0], str(run.folder))
    for holder, waited in (("101", True), ("102", False)):
        with (stage_logs(run, "first") / "running").open("w") as dead:
            assert lock(dead)
            dead.write(json.dumps({"job": holder}))
            dead.flush()
            on_slurm(monkeypatch)
            began = time.monotonic()
            with pytest.raises(RuntimeError, match=r"is at work already .*remove .*/first/running"):
                call()
            assert (time.monotonic() - began > 1) == waited


def test_the_requeued_call_is_the_same_call(run, fake_stages):
    call = StageCall(fake_stages.GRAPH[0], str(run.folder))
    again = call.checkpoint()
    assert again.function is call


@pytest.mark.parametrize(
    "error, retried, again",
    [(OSError("a node"), 0, True), (OSError("a node"), 1, False), (ValueError("a film"), 0, False)],
)
def test_a_task_of_an_array_is_put_back_as_often_as_the_site_says(
    run, fake_stages, fake_slurm, monkeypatch, error, retried, again
):
    def fail(run, todo):
        raise error

    on_slurm(monkeypatch)
    monkeypatch.setattr(fake_stages, "array", fail)
    run.mark_done("first")
    call = StageCall(fake_stages.GRAPH[2], str(run.folder), fake_stages.ITEMS, retries=1)
    call.retried = retried

    def requeue(number, frame):
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit if again else type(error)):
            call()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert call.retried == retried + again
