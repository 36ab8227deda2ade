"""Jobs on this machine: how one that failed is told."""

import json
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from processes import ended
from submitit.core.utils import cloudpickle_dump

from hpc_hipgen.cluster import local, local_job
from hpc_hipgen.cluster.local_job import LocalJob
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.config import ConfigError
from hpc_hipgen.parallel import CPUS_VARIABLE
from hpc_hipgen.pipeline import Stage

FAILED = "Traceback (most recent call last):\n  ...\nValueError: rank 2 says why"


class Job:
    """A job of several ranks, as far as its pickles tell; rank 0 was killed, or waits."""

    job_id = "0"

    def __init__(self, folder, outcomes):
        self.num_tasks, self.ended = len(outcomes), False
        self.ranks = [
            SimpleNamespace(result_pickle=folder / f"{k}.pkl", stdout=folder / "log")
            for k in range(self.num_tasks)
        ]
        for paths, outcome in zip(self.ranks, outcomes, strict=True):
            if outcome:
                cloudpickle_dump(outcome, paths.result_pickle)

    def task(self, number):
        return SimpleNamespace(paths=self.ranks[number])

    def done(self):
        return self.ended


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([None, None, ("error", FAILED)], "ValueError: rank 2 says why"),
        ([("success", None), None, ("success", None)], "it was ended from outside"),
        ([("success", None)] * 3, None),
    ],
)
def test_the_reason_is_that_of_the_rank_which_has_one(tmp_path, outcomes, said):
    found = LocalJob(Job(tmp_path, outcomes)).problem(tmp_path)
    assert found is said or found.startswith(said)


def test_where_a_full_disk_took_no_reason_it_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(local_job, "is_full", lambda folder: folder == tmp_path)
    found = LocalJob(Job(tmp_path, [None] * 3)).problem(tmp_path)
    assert found.startswith(f"{tmp_path}: the disk is full")


def start(tmp_path, monkeypatch, problem, stage):
    """Runs a stage whose job ends at once with a problem."""
    job = SimpleNamespace(
        ended=lambda: True, problem=lambda _: problem, saves=False, kill=list, log=tmp_path / "log"
    )
    monkeypatch.setattr(local, "LocalJob", lambda *_, **__: job)
    executor = SimpleNamespace(submit=lambda call: None)
    monkeypatch.setattr(local, "local_executor", lambda *_: executor)
    run = SimpleNamespace(folder=tmp_path, path=tmp_path.joinpath, done=lambda _: None, config=None)
    local.run_stages(run, [stage], Site(), parallel=2)


def test_another_launch_at_work_is_no_failure_of_the_stage(tmp_path, monkeypatch):
    told = "prepare is at work already (pid 7 on here): wait for it, or stop it first"
    problem = f"hpc_hipgen.cluster.stage_files.AtWorkError: {told}"
    with pytest.raises(ConfigError) as error:
        start(tmp_path, monkeypatch, problem, Stage("prepare", "", "cpu"))
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("kind", "reads_films", "user", "said"),
    [
        ("ValueError", True, True, "film 3 is no radiograph"),
        ("ValueError", False, False, "ValueError: film 3 is no radiograph"),
        ("ConfigError", False, True, "film 3 is no radiograph"),
        ("RuntimeError", True, False, "RuntimeError: film 3 is no radiograph"),
    ],
)
def test_input_is_at_fault_where_films_are_read_or_settings_are(
    tmp_path, monkeypatch, kind, reads_films, user, said
):
    failed = {"error": "film 3 is no radiograph", "kinds": [kind, "Exception"], "time": time.time()}
    path = tmp_path / "logs" / "prepare" / "failed.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(failed))
    with pytest.raises(local.StageFailed, match=f"^prepare failed: {said}$") as error:
        start(tmp_path, monkeypatch, "x", Stage("prepare", "", "cpu", reads_films=reads_films))
    assert error.value.user is user


def test_of_several_ranks_that_failed_the_first_one_is_told(tmp_path, monkeypatch):
    logs = tmp_path / "logs" / "prepare"
    logs.mkdir(parents=True)
    told = {
        "failed": "a peer is gone",
        "failed-rank1": "out of memory",
        "failed-rank2": "also gone",
    }
    for seconds, name in ((9, "failed"), (1, "failed-rank1"), (5, "failed-rank2")):
        failed = {"error": told[name], "kinds": ["OSError"], "time": time.time() + seconds}
        (logs / f"{name}.json").write_text(json.dumps(failed))
    with pytest.raises(local.StageFailed, match=r"^prepare failed: OSError: out of memory$"):
        start(tmp_path, monkeypatch, "x", Stage("prepare", "", "cpu"))


def test_what_failed_in_an_earlier_launch_is_not_told_again(tmp_path, monkeypatch):
    failed = {"error": "old", "kinds": ["ConfigError"], "time": time.time() - 60}
    path = tmp_path / "logs" / "prepare" / "failed.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(failed))
    with pytest.raises(local.StageFailed, match=r"^prepare failed: killed$") as error:
        start(tmp_path, monkeypatch, "killed", Stage("prepare", "", "cpu"))
    assert not error.value.user


def test_a_job_that_ended_well_but_left_its_stage_undone_has_failed(tmp_path, monkeypatch):
    with pytest.raises(local.StageFailed, match="left something undone"):
        start(tmp_path, monkeypatch, None, Stage("prepare", "", "cpu"))


@pytest.mark.parametrize(
    ("given", "site", "threads"),
    [
        (None, {}, "2"),
        ("1", {}, None),  # fewer are the user's to choose
        ("8", {}, "2"),
        ("0", {}, "2"),
        ("8", {"OMP_NUM_THREADS": "3"}, None),
    ],
)
def test_a_job_beside_others_has_threads_for_its_cores(monkeypatch, given, site, threads):
    monkeypatch.setattr(local, "usable_cpus", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    launch = local._Launch(None, 1, Site(env=site), parallel=2)
    beside = launch._variables(2)
    assert beside.get("OMP_NUM_THREADS") == threads and beside[CPUS_VARIABLE] == "2"
    assert not {"OMP_NUM_THREADS", CPUS_VARIABLE} & launch._variables(4).keys()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (12.4, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (7510, "2 h 5 min"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, said):
    assert local.duration(seconds) == said


def test_of_several_ranks_the_first_ones_words_are_shown(tmp_path, capsys):
    job = Job(tmp_path, [None, None])
    job.ranks[1].stdout = tmp_path / "other"
    for number in (0, 1):
        job.ranks[number].stdout.write_text(f"rank {number}\n")
    LocalJob(job).ended()
    assert capsys.readouterr().out == "  rank 0\n"


def test_ranks_that_wait_for_one_that_failed_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(local_job, "_OTHERS_SECONDS", 0.3)
    job = Job(tmp_path, [None, None, ("error", FAILED)])
    one = LocalJob(job)
    monkeypatch.setattr(one, "kill", lambda: setattr(job, "ended", True))
    assert not one.ended()
    local_job.wait_until(one.ended, 5)
    assert job.ended


def test_ranks_that_wait_for_one_that_was_killed_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(local_job, "_OTHERS_SECONDS", 0.3)
    alive = {11, 12, 13}
    monkeypatch.setattr(local_job, "children", lambda first: sorted(alive))
    monkeypatch.setattr(local_job, "is_alive", alive.__contains__)
    job = Job(tmp_path, [("success", None), None, None])
    one = LocalJob(job)
    monkeypatch.setattr(one, "kill", lambda: setattr(job, "ended", True))
    assert not one.ended()
    alive.remove(11)  # the one that has said that all is well
    time.sleep(0.4)
    assert not one.ended() and not one.ended()
    alive.remove(12)
    local_job.wait_until(one.ended, 5)
    assert job.ended and one.problem(tmp_path).startswith("it was ended from outside")


def test_what_a_job_has_started_ends_with_it(tmp_path):
    command = ["sh", "-c", "sleep 20 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        child = int(first.stdout.readline())
        job = Job(tmp_path, [None])
        job.paths, job.job_id = job.task(0).paths, str(first.pid)
        job.done = lambda: first.poll() is not None
        LocalJob(job).kill()
        assert ended(child, seconds=2) and first.returncode == -signal.SIGKILL


def test_a_job_that_has_ended_is_sent_nothing(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(local_job, "_send", lambda *given: sent.append(given))
    job = Job(tmp_path, [("success", None)])
    job.paths, job.ended = job.task(0).paths, True
    for shell in (False, True):
        local_job.stop([LocalJob(job, saves=True, shell=shell)])
    assert sent == []
    job.ended = False
    LocalJob(job, saves=True).ask()
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("gpus", "given", "jobs"), [(0, None, 2), (2, None, 1), (2, 3, 3), (0, 9, 4)]
)
def test_jobs_at_once_are_two_or_what_the_site_says_but_one_where_there_is_a_gpu(
    monkeypatch, gpus, given, jobs
):
    monkeypatch.setattr(local, "count_gpus", lambda: gpus)
    monkeypatch.setattr(local, "usable_cpus", lambda: 4)
    assert local.jobs_at_once(Site(local_parallel=given)) == jobs


def test_a_line_is_shown_when_it_is_whole(tmp_path, capsys):
    job = Job(tmp_path, [None])
    job.paths = job.task(0).paths
    log, one = tmp_path / "log", LocalJob(job, mark="[3] ")
    log.write_text("submitit INFO (2026) - Starting\n[Gloo] Rank 0 is connected\nfirst\nsec")
    one.ended()
    with log.open("a") as file:
        file.write("ond\nthe end")
    one.ended()
    assert capsys.readouterr().out == "  [3] first\n  [3] second\n"
    job.ended = True
    one.ended()
    assert capsys.readouterr().out == "  [3] the end\n"
