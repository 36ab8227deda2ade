import copy
import os
import shutil
import signal
import subprocess
from unittest.mock import patch

import pytest

from hpc_hipgen.cluster import accounting, executors, launching, slurm
from hpc_hipgen.cluster.site import Resources, Site
from hpc_hipgen.cluster.slurm import calls_of, describe, submit_stages
from hpc_hipgen.cluster.stage_files import stage_logs
from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.files import lock, write_atomic
from hpc_hipgen.pipeline import Stage, score_items, stages
from hpc_hipgen.run import Run
from jobs import launch
from tests.conftest import TINY

SITE = Site(executor="slurm", array_tasks=2, array_parallel=2)


def test_the_graph_becomes_a_chain_of_jobs(run, fake_stages, fake_slurm, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # as from inside a job
    assert submit_stages(run, fake_stages.GRAPH, SITE) == {
        "first": "101",
        "second": "102",
        "array": "103",
    }
    assert (fake_slurm / "environment").read_text() == ""
    assert "--dependency" not in (fake_slurm / "101.sh").read_text()
    assert "--dependency=afterok:101" in (fake_slurm / "102.sh").read_text()
    array = (fake_slurm / "103.sh").read_text()
    assert "--array=0-1%2" in array and "--dependency=afterok:101" in array
    assert os.environ["SLURM_JOB_ID"] == "1"


def test_what_is_done_or_queued_is_not_submitted_again(run, fake_stages, fake_slurm, capsys):
    submit_stages(run, fake_stages.GRAPH, SITE)
    run.mark_done("first")
    (fake_slurm / "queue").write_text("102 RUNNING\n")  # 103 is gone: it failed
    capsys.readouterr()
    assert submit_stages(run, fake_stages.GRAPH, SITE) == {"second": "102", "array": "104"}
    assert "--dependency" not in (fake_slurm / "104.sh").read_text()
    said = capsys.readouterr().out.splitlines()
    assert "done before" in said[0] and "queue already" in said[1] and "[2 tasks]" in said[2]


def queue(fake_slurm, *lines):
    (fake_slurm / "queue").write_text("".join(f"{line}\n" for line in lines))


def test_nothing_waits_for_an_array_with_a_failed_task(run, fake_stages, fake_slurm, capsys):
    graph = [*fake_stages.FOLLOWED, Stage("table", "fake_stages:first", "cpu", ("follower",))]
    submit_stages(run, graph, SITE)
    run.mark_done("first")
    run.mark_done("second")
    write_atomic(stage_logs(run, "array") / "failed-1.json", "{}")
    queue(fake_slurm, "103 RUNNING", "104 PENDING")  # 105 went when 104 could not be done
    capsys.readouterr()
    assert submit_stages(run, graph, SITE) == {}
    said = capsys.readouterr().out.splitlines()[2:]
    words = ["103 has failed tasks: start", "104 waits for a job of array", "not submitted: waits"]
    assert all(word in line for word, line in zip(words, said, strict=True))
    queue(fake_slurm, "104 RUNNING")  # of which the task that was to follow the failed one is gone
    assert submit_stages(run, graph, SITE) == {"array": "106"}
    queue(fake_slurm, "106 RUNNING")
    assert submit_stages(run, graph, SITE) == {"array": "106", "follower": "107", "table": "108"}


def test_accounts_tell_of_tasks_that_could_not_say_so(run, fake_stages, fake_slurm, monkeypatch):
    submit_stages(run, fake_stages.GRAPH, SITE)
    monkeypatch.setattr(accounting, "PATIENCE", 0.0)  # a launch has more than who asks for a status
    killed = "echo '103_0|OUT_OF_MEMORY|1|0:9'\necho '103_1|RUNNING|1|0:0'\n"
    (fake_slurm / "bin" / "sacct").write_text(f"#!/bin/bash\nsleep 0.3\n{killed}")
    (fake_slurm / "bin" / "sacct").chmod(0o755)
    assert submit_stages(run, fake_stages.GRAPH, SITE) == {"first": "101", "second": "102"}


def test_a_job_that_ends_undone_is_not_waited_for(run, fake_stages, fake_slurm, capsys):
    submit_stages(run, fake_stages.GRAPH, SITE)
    queue(fake_slurm, "101 COMPLETING", "102 PENDING", "103 RUNNING", "103 COMPLETING")
    assert submit_stages(run, fake_stages.GRAPH, SITE) == {}
    assert "101 is ending, and something is undone" in capsys.readouterr().out
    run.mark_done("first")
    assert submit_stages(run, fake_stages.GRAPH, SITE) == {"second": "102", "array": "103"}
    assert launch.execute(run, fake_stages.GRAPH, SITE, slurm=True) == 0
    queue(fake_slurm, "102 COMPLETING", "103 RUNNING")
    assert launch.execute(run, fake_stages.GRAPH, SITE, slurm=True) == 1


def test_a_copied_run_has_no_jobs_in_the_queue(run, fake_stages, fake_slurm, tmp_path):
    submit_stages(run, fake_stages.GRAPH, SITE)
    other = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    assert set(submit_stages(other, fake_stages.GRAPH, SITE).values()) == {"104", "105", "106"}
    assert set(submit_stages(run, fake_stages.GRAPH, SITE).values()) == {"101", "102", "103"}
    names = [f"--job-name={name}:first" for name in ("tiny", "copy")]
    assert all(
        name in (fake_slurm / f"{job}.sh").read_text()
        for name, job in zip(names, (101, 104), strict=True)
    )


def test_the_queue_is_seen_whatever_the_user_has_set(run, fake_stages, fake_slurm, monkeypatch):
    submit_stages(run, fake_stages.GRAPH, SITE)
    asked = fake_slurm / "asked"
    (fake_slurm / "bin" / "squeue").write_text(
        f'#!/bin/bash\n(echo "$@"; env | grep ^SQUEUE_) >> {asked}\ncat "$FAKE_SLURM/queue"\n'
    )
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SBATCH_CLUSTERS", "gpu")
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # which a new job must not see
    assert len(submit_stages(run, fake_stages.GRAPH, SITE)) == 3
    first, *more = asked.read_text().splitlines()
    assert first == "-h -a --clusters=gpu -j 101,102,103 -o %F %T"
    assert all(line.startswith("-h -a --clusters=gpu -j ") for line in more)
    queue(fake_slurm)
    submit_stages(run, fake_stages.GRAPH, SITE)
    assert (fake_slurm / "environment").read_text() == "SBATCH_CLUSTERS=gpu\n"


def test_tasks_are_not_put_back_where_the_site_forbids_it(run, fake_stages):
    forbids = Site(resources={"gpu": {"extra": {"requeue": False}}}, retries=2)
    array = next(stage for stage in fake_stages.GRAPH if stage.items)
    for site, retries in ((Site(retries=2), 2), (forbids, 0)):
        assert {call.retries for call in calls_of(run, array, site)} == {retries}


def test_redo_leaves_what_is_in_the_queue_alone(run, fake_stages, fake_slurm):
    run.mark_done("first")
    submit_stages(run, fake_stages.GRAPH, SITE)
    with pytest.raises(ConfigError, match="second is in the queue; wait, or scancel 101 first"):
        launch.forget(run, fake_stages.GRAPH, {"first", "second"}, slurm=True)
    assert run.done("first")
    queue(fake_slurm)
    launch.forget(run, fake_stages.GRAPH, {"first", "second"}, slurm=True)
    assert run.done("first") is None


@pytest.mark.parametrize("squeue", ["echo down >&2; exit 1", "exec sleep 60"])
def test_a_queue_that_is_not_known_is_no_empty_queue(
    run, fake_stages, fake_slurm, monkeypatch, squeue
):
    submit_stages(run, fake_stages.GRAPH, SITE)
    (fake_slurm / "bin" / "squeue").write_text(f"#!/bin/bash\n{squeue}\n")
    inner = subprocess.run
    monkeypatch.setattr(
        executors.subprocess, "run", lambda *a, **k: inner(*a, **k | {"timeout": 0.5})
    )
    with pytest.raises(ConfigError, match=r"squeue does not answer, so nothing was .*(down|timed)"):
        submit_stages(run, fake_stages.GRAPH, SITE)
    assert (fake_slurm / "number").read_text() == "103\n", "nothing more was submitted"


def test_a_run_is_not_submitted_by_two_at_once(run, fake_stages, fake_slurm):
    run.path("logs").mkdir()
    with run.path("logs", "launch.lock").open("w") as other:
        assert lock(other)
        other.write("process 7 on login1")
        other.flush()
        with pytest.raises(ConfigError, match="being submitted already, by process 7 on login1"):
            submit_stages(run, fake_stages.GRAPH, SITE)
    assert not (fake_slurm / "number").exists()
    assert len(submit_stages(run, fake_stages.GRAPH, SITE)) == 3


def test_what_a_user_tells_sbatch_holds_where_the_site_says_nothing(
    run, fake_stages, fake_slurm, monkeypatch
):
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_RESERVATION", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "own")
    site = SITE.model_copy(update={"resources": {"cpu": Resources(partition="cpu")}})
    submit_stages(run, fake_stages.GRAPH[:1], site)
    told = sorted((fake_slurm / "environment").read_text().split())
    assert told == ["SBATCH_ACCOUNT=own", "SBATCH_RESERVATION=own"]


@pytest.mark.parametrize(("cluster", "told"), [(None, "101\n"), ("b", "--clusters=b 101\n")])
def test_a_refused_job_cancels_those_before_it(
    run, fake_stages, fake_slurm, monkeypatch, cluster, told
):
    if cluster:
        monkeypatch.setenv("SBATCH_CLUSTERS", cluster)
    (fake_slurm / "refuse").write_text("job-name=tiny:second\n")
    with pytest.raises(ConfigError, match="refuses second: sbatch: error: invalid partition"):
        submit_stages(run, fake_stages.GRAPH, SITE)
    assert (fake_slurm / "cancelled").read_text() == told


def test_a_job_that_cannot_be_written_down_is_cancelled(run, fake_stages, fake_slurm, monkeypatch):
    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(slurm, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        submit_stages(run, fake_stages.GRAPH, SITE)
    assert (fake_slurm / "cancelled").read_text() == "101\n"


def test_commands_that_are_missing_are_named_before_anything_is_written(
    run, fake_stages, fake_slurm, monkeypatch
):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "srun" else which(name))
    with pytest.raises(ConfigError, match=r"no srun here: .*HIPGEN_SITE=local"):
        launch.execute(run, fake_stages.GRAPH, SITE, slurm=True)
    assert not run.path("provenance").exists() and not (fake_slurm / "number").exists()


def test_a_disk_whose_locks_hold_on_one_node_only_is_said(
    run, fake_stages, fake_slurm, monkeypatch, capsys
):
    monkeypatch.setattr(launching, "local_locks", lambda folder: "beegfs")
    assert launch.execute(run, fake_stages.GRAPH, SITE, slurm=True) == 0
    assert "on this beegfs locks of files may hold on one node only" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), KeyError("cpus")])
def test_what_is_no_refusal_is_not_called_one_and_leaves_no_half_of_a_chain(
    run, fake_stages, fake_slurm, monkeypatch, error
):
    submit = slurm._submit

    def second_fails(run, stage, *rest):
        if stage.name == "second":
            raise error
        return submit(run, stage, *rest)

    monkeypatch.setattr(slurm, "_submit", second_fails)
    with pytest.raises(type(error)):
        submit_stages(run, fake_stages.GRAPH, SITE)
    assert (fake_slurm / "cancelled").read_text() == "101\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("nohup", [False, True])
def test_a_launch_that_is_ended_leaves_no_half_of_a_chain(
    run, fake_stages, fake_slurm, monkeypatch, number, nohup
):
    submit = slurm._submit

    def ended_at_second(run, stage, *rest):
        if stage.name == "second":
            signal.raise_signal(number)
        return submit(run, stage, *rest)

    monkeypatch.setattr(slurm, "_submit", ended_at_second)
    before = signal.signal(number, signal.SIG_IGN if nohup else lambda *_: None)
    try:
        if nohup and number == signal.SIGHUP:
            assert len(submit_stages(run, fake_stages.GRAPH, SITE)) == 3
            return
        with pytest.raises(KeyboardInterrupt):
            submit_stages(run, fake_stages.GRAPH, SITE)
    finally:
        signal.signal(number, before)
    assert (fake_slurm / "cancelled").read_text() == "101\n"


@pytest.mark.parametrize("tasks", [1, 2, 9])
def test_an_array_submits_only_what_is_missing(run, fake_stages, tasks):
    run.mark_done("first")
    there = fake_stages.artefact(run, ("a", 0))
    there.parent.mkdir()
    there.touch()
    shares = calls_of(run, fake_stages.GRAPH[2], Site(array_tasks=tasks))
    assert len(shares) == min(tasks, 2)
    assert sorted(i for call in shares for i in call.items) == [("a", 1), ("b", 0)]


@pytest.mark.parametrize("tasks, sizes", [(1, [7]), (3, [2, 2, 3]), (9, [1] * 7)])
def test_neighbours_of_a_sweep_go_to_one_task(run, tasks, sizes):
    """They share a checkpoint, which is loaded once."""
    cells = [(f"checkpoint-{k}", 0) for k in (3, 0, 6, 1, 5, 2, 4)]
    stage = Stage(
        "sweep-x", "", "gpu", items=lambda _: cells, artefact=lambda run, _: run.path("x"),
        blocks=True,
    )  # fmt: skip
    calls = calls_of(run, stage, Site(array_tasks=tasks))
    assert [len(call.items) for call in calls] == sizes
    assert [item for call in calls for item in call.items] == sorted(cells)


def test_thousands_of_shards_are_as_many_jobs_as_the_site_says(tmp_path):
    tree = copy.deepcopy(TINY)
    tree["data"]["test"], tree["sampling"]["shard_size"] = 1000, 1
    run = Run.create(tmp_path / "run", parse_experiment(tree, "many"))
    graph = {stage.name: stage for stage in stages(run.config)}
    site, shares = Site(executor="slurm", array_tasks=16), ()
    for name, count in (("sample", 5000), ("evaluate", 5002)):
        shares = calls_of(run, graph[name], site, shares)
        assert len(shares) == 16 and sum(len(call.items) for call in shares) == count


def test_tasks_of_an_array_wait_for_the_same_task_of_the_one_they_follow(
    run, fake_stages, fake_slurm, capsys
):
    graph = fake_stages.FOLLOWED
    submit_stages(run, graph, SITE)  # items not known: shares of them
    script = (fake_slurm / "104.sh").read_text()
    assert "--dependency=afterok:102,aftercorr:103" in script and "--array=0-1%2" in script
    assert "kill-on-invalid-dep=yes" in script
    assert "each task after the same one of 103" in capsys.readouterr().out
    (fake_slurm / "queue").unlink()
    alone = submit_stages(run, graph, Site(executor="slurm", array_tasks=1))
    assert "aftercorr" not in (fake_slurm / f"{alone['follower']}.sh").read_text()


@pytest.mark.parametrize("there", [[], [("a", 1)], [("a", 0), ("b", 0)]])
def test_a_followers_task_reads_only_what_its_task_or_an_earlier_run_made(run, fake_stages, there):
    run.mark_done("first")
    *_, array, follower = fake_stages.FOLLOWED
    for item in there:
        write_atomic(fake_stages.artefact(run, item), "x")
    write_atomic(follower.artefact(run, ("b", 0)), "x")
    made = calls_of(run, array, Site(array_tasks=2))
    calls = calls_of(run, follower, Site(array_tasks=9), made)
    assert len(calls) == len(made)
    for first, second in zip(made, calls, strict=True):
        assert set(second.items) <= {*first.items, *there, ("c", 0)}
    todo = sorted(item for call in calls for item in call.items)
    assert todo == [("a", 0), ("a", 1), ("c", 0)]


def test_shares_of_unknown_items_agree_between_samples_and_scores(run):
    items = [("ruler", 0), ("llcm_1", 0), ("llcm_1", 1)]
    with patch("hpc_hipgen.pipeline.report_items", return_value=items):
        scored = score_items(run)
    assert scored == [*items, ("reference", 0)]  # this run draws nothing that could be a copy


def test_the_dry_run_shows_every_script(run):
    text = describe(run.folder, stages(run.config), SITE)
    assert text.count("#!/bin/bash") == len(stages(run.config))
    assert "afterok:<prepare>" in text
    assert not run.path("logs").exists()


def test_a_refused_job_leaves_what_another_launch_had_submitted(run, fake_stages, fake_slurm):
    assert submit_stages(run, fake_stages.GRAPH[:1], SITE) == {"first": "101"}
    (fake_slurm / "refuse").write_text("job-name=tiny:second\n")
    with pytest.raises(ConfigError, match="refuses second"):
        submit_stages(run, fake_stages.GRAPH, SITE)
    assert not (fake_slurm / "cancelled").exists()
