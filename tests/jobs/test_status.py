import json
import time

import pytest

from hpc_hipgen.cluster.accounting import Job, look_up
from hpc_hipgen.cluster.stage_files import stage_logs
from hpc_hipgen.comparisons.sampling_grid import Cell, Sweep
from hpc_hipgen.config import Experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.run import Run
from jobs import status


@pytest.fixture
def run(tmp_path):
    training = {"images": 6000, "batch": 16, "lr": 1e-3}
    config = Experiment.model_validate({"name": "tiny", "ruler": {"training": training}})
    return Run.create(tmp_path / "tiny", config)


def state(run, name, jobs=None, answered=False):
    stage = next(s for s in stages(run.config) if s.name == name)
    return status.state_of(run, stage, jobs or {}, answered)


def test_a_new_run_is_missing_everything(run, capsys):
    assert status.main([str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(stages(run.config))
    assert all("missing" in line for line in lines[1:])


def test_training_shows_its_last_complete_line(run):
    path = run.path("ruler", "metrics.jsonl")
    path.parent.mkdir()
    whole = {"images": 1200, "loss": 0.25, "images_per_second": 40.0}
    path.write_text(json.dumps({"images": 600}) + "\n" + json.dumps(whole) + '\n{"images": 18')
    _, note = state(run, "train-ruler")
    assert note == "1,200 of 6,000 images, 40.0 images/s, 2 min left, loss 0.25"


def test_arrays_count_their_shards(run):
    path = run.path("samples", "ruler")
    path.mkdir(parents=True)
    (path / "shard-00000.tar").touch()
    assert state(run, "sample") == ("done", "1 of 1 shards")
    assert state(run, "evaluate") == ("missing", "0 of 2 shards")


def submit(run, stage, job, log=None):
    logs = stage_logs(run, stage)
    (logs / "submitted.json").write_text(json.dumps({"job": job, "log": str(logs / "001")}))
    (logs / "001").mkdir(exist_ok=True)
    if log:
        (logs / "001" / f"{job}_0_log.out").write_text(log)
    return logs


def test_queued_failed_and_done(run):
    logs = submit(run, "prepare", "17")
    pending = Job({"": "PENDING"}, reason="Dependency")
    assert state(run, "prepare", {"17": pending}) == ("pending", "job 17  (Dependency)")
    assert state(run, "prepare") == ("submitted", "job 17")  # nobody to ask
    assert state(run, "prepare", answered=True) == ("left", "job 17")
    failure = {"error": "disk full\nmore", "kinds": ["OSError"], "time": 1.0}
    (logs / "failed.json").write_text(json.dumps(failure))
    assert state(run, "prepare") == ("failed", "OSError: disk full")
    ended = Job({"": "FAILED"}, elapsed="00:01:07")
    note = "job 17 after 00:01:07  OSError: disk full"
    assert state(run, "prepare", {"17": ended}) == ("failed", note)
    run.mark_done("prepare")
    assert state(run, "prepare", {"17": pending})[0] == "done"


@pytest.mark.parametrize("word", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED"])
def test_a_bad_end_is_named_with_the_last_telling_line(run, word):
    line = "slurmstepd: error: *** JOB 17 ON n1 CANCELLED DUE TO TIME LIMIT ***"
    submit(run, "train-ruler", "17", f"ruler: 640 images\n{line}\nbye\n")
    ended = Job({"": word}, elapsed="01:00:12")
    note = f"job 17 after 01:00:12  {line}"
    assert state(run, "train-ruler", {"17": ended}) == (word.lower(), note)


def test_array_tasks_are_counted(run):
    logs = submit(run, "sample", "17")
    states = {"0": "COMPLETED", "1": "COMPLETED", "2": "RUNNING", "3": "OUT_OF_MEMORY"}
    note = "job 17  2 done, 1 running, 1 out_of_memory  0 of 1 shards"
    assert state(run, "sample", {"17": Job(states)}) == ("running", note)
    states["2"] = "FAILED"
    failure = {"error": "no space", "kinds": ["OSError"], "time": 1.0}
    (logs / "failed-2.json").write_text(json.dumps(failure))
    word, note = state(run, "sample", {"17": Job(states)})
    assert word == "failed"
    assert note == "job 17  2 done, 1 failed, 1 out_of_memory  0 of 1 shards  OSError: no space"


def slurm(folder, monkeypatch, **commands):
    """A squeue and a sacct that run these lines of shell."""
    for name, text in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_queue_and_the_accounts_are_put_together(tmp_path, monkeypatch):
    accounts = [
        "17|TIMEOUT|01:00:12|0:0",
        "18_0|COMPLETED|00:00:09|0:0",
        "18_1|RUNNING|00:00:09|0:0",
        "18_[2-4,7%2]|PENDING|00:00:00|0:0",
        "19|CANCELLED by 1000|00:00:03|0:15",
        "99|FAILED|00:00:01|1:0",
    ]
    queue = ["18|2|RUNNING|0:01|None", "18|3|PENDING|0:00|JobArrayTaskLimit"]
    queue += ["20|N/A|PENDING|0:00|Dependency"]
    (tmp_path / "accounts").write_text("\n".join(accounts))
    (tmp_path / "queue").write_text("\n".join(queue))
    monkeypatch.setenv("SBATCH_CLUSTERS", "b")
    where = '[[ "$*" == *"--clusters=b"* ]]'
    asked = f'{where} && [[ "$*" == *"-j 17,18,19,20,21 -o"* ]] && cat {tmp_path}/accounts'
    slurm(tmp_path, monkeypatch, squeue=f"cat {tmp_path}/queue", sacct=asked)
    jobs, answered = look_up(["17", "18", "19", "20", "21"])
    assert answered and {job: known.state for job, known in jobs.items()} == {
        "17": "TIMEOUT",
        "18": "RUNNING",
        "19": "CANCELLED",
        "20": "PENDING",
    }
    assert jobs["18"].counts() == "1 done, 1 running, 1 pending", "of those at work the queue tells"
    assert jobs["20"].reason == "Dependency" and jobs["17"].elapsed == "01:00:12"


def test_without_accounts_the_queue_is_enough_and_nobody_waits(tmp_path, monkeypatch):
    slow = "sleep 30"
    slurm(tmp_path, monkeypatch, squeue="echo '17|N/A|RUNNING|0:10|None'", sacct=slow)
    jobs, answered = look_up(["17", "18"])
    assert answered and list(jobs) == ["17"]
    accounts = "echo '17|OUT_OF_MEMORY|00:02:00|0:0'"  # there before the queue is waited for
    slurm(tmp_path, monkeypatch, squeue=slow, sacct=accounts)
    assert look_up(["17"])[0]["17"].state == "OUT_OF_MEMORY"
    off = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
    slurm(tmp_path, monkeypatch, squeue=slow, sacct=off)
    began = time.monotonic()
    assert look_up(["17"]) == ({}, False)
    assert time.monotonic() - began < 20  # not the 30 s of a controller that hangs
    assert look_up([]) == ({}, False)


def test_a_queue_that_refuses_has_not_answered(tmp_path, monkeypatch):
    slurm(tmp_path, monkeypatch, squeue="exit 1", sacct="exit 1")
    assert look_up(["17"]) == ({}, False)
    slurm(tmp_path, monkeypatch, squeue="true", sacct="exit 1")
    assert look_up(["17"]) == ({}, True), "it is in no queue"
    at_work = "echo '17|RUNNING|9-00:00:00|0:0'"  # accounts that missed the end of the node
    slurm(tmp_path, monkeypatch, squeue="true", sacct=at_work)
    assert look_up(["17"]) == ({}, True)
    slurm(tmp_path, monkeypatch, squeue="exit 1", sacct=at_work)
    assert look_up(["17"])[0]["17"].state == "RUNNING"


def test_the_command_asks_slurm_for_what_was_submitted(run, tmp_path, monkeypatch, capsys):
    submit(run, "prepare", "17")
    submit(run, "train-ruler", "18")
    slurm(
        tmp_path,
        monkeypatch,
        squeue="echo '18|N/A|PENDING|0:00|Priority'",
        sacct=("echo '17|NODE_FAIL|00:02:00|0:0'"),
    )
    assert status.main([str(run.folder)]) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "prepare node_fail job 17 after 00:02:00" in said
    assert "train-ruler pending job 18 (Priority)" in said


def test_sweeps_are_shown(run, capsys):
    cells = (Cell("llcm", "export", "lcm", 2, 3.0),)
    Sweep(split="validation", cells=cells).save(run, "few")
    assert status.main([str(run.folder)]) == 0
    assert any("sweep-few " in x and "0 of 1" in x for x in capsys.readouterr().out.splitlines())


def test_runs_are_found_where_the_site_keeps_them(run, tmp_path, capsys, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {run.folder.parent}")
    for arguments in ([], ["tiny"]):
        assert status.main([*arguments, "--site", str(site)]) == 0
        assert capsys.readouterr().out.startswith(f"{run.folder}  (experiment tiny)")
    monkeypatch.setenv("HIPGEN_SITE", str(site))
    assert status.main([]) == 0


def test_no_run_is_one_clear_line(tmp_path, capsys):
    site = tmp_path / "site.yaml"
    site.write_text(f"results: {tmp_path}")
    assert status.main(["--site", str(site)]) == 2
    assert "make demo" in capsys.readouterr().err
    assert status.main(["nothing", "--site", str(site)]) == 2
