import os

import pytest

from hpc_hipgen.cluster.site import Site
from hpc_hipgen.cluster.slurm import calls_of, describe, submit_stages
from hpc_hipgen.config import ConfigError
from hpc_hipgen.pipeline import stages

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


def test_a_refused_job_cancels_those_before_it(run, fake_stages, fake_slurm):
    (fake_slurm / "refuse").write_text("job-name=tiny:second\n")
    with pytest.raises(ConfigError, match="refuses second: sbatch: error: invalid partition"):
        submit_stages(run, fake_stages.GRAPH, SITE)
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


def test_the_dry_run_shows_every_script(run):
    text = describe(run.folder, stages(run.config), SITE)
    assert text.count("#!/bin/bash") == len(stages(run.config))
    assert "afterok:<prepare>" in text
    assert not run.path("logs").exists()
