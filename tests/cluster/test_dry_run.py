"""The dry run: every script is shown to Slurm, none is submitted, a refusal is exit status 2."""

import os

import pytest
import yaml

from hpc_hipgen.pipeline import stages
from jobs import launch


@pytest.fixture
def dry_run(run, tmp_path, fake_slurm):
    """The command on a new run of a site whose executor is Slurm; returns the exit status."""
    site, experiment = tmp_path / "site.yaml", tmp_path / "tiny.yaml"
    resources = {"gpu": {"partition": "a100", "gpus": 1, "account": "hips"}}
    site.write_text(yaml.safe_dump({"executor": "slurm", "resources": resources, "array_tasks": 3}))
    experiment.write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    folder = tmp_path / "new" / "run"

    def main():
        status = launch.main(
            [str(experiment), "--run", str(folder), "--site", str(site), "--dry-run"]
        )
        assert not folder.parent.exists() and not (fake_slurm / "number").exists()
        return status

    return main


def test_every_script_is_shown_to_slurm_and_none_submitted(
    run, dry_run, fake_slurm, tmp_path, capsys
):
    assert dry_run() == 0
    said = capsys.readouterr().out
    graph = stages(run.config)
    tested = (fake_slurm / "tested").read_text().splitlines()
    assert [line.partition("--job-name=")[2] for line in tested] == [s.name for s in graph]
    assert f"Slurm would take all {len(graph)} scripts" in said
    assert f", Slurm, site {tmp_path / 'site.yaml'}\n" in said
    for line in ("--partition=a100", "--account=hips", "--gpus-per-node=1", "--array=0-2%1"):
        assert f"#SBATCH {line}\n" in said


def test_refused_stages_are_named(dry_run, fake_slurm, capsys):
    (fake_slurm / "refuse").write_text("job-name=train-ruler\njob-name=evaluate\n")
    assert dry_run() == 2
    said = capsys.readouterr()
    assert said.err == (
        "error: Slurm refuses train-ruler: allocation failure: too many\n"
        "Slurm refuses evaluate: allocation failure: too many\n"
    )
    assert "would take" not in said.out


def test_scripts_that_are_tested_wait_for_nothing_and_hide_the_enclosing_job(
    dry_run, fake_slurm, monkeypatch
):
    sbatch = fake_slurm / "bin" / "sbatch"
    sbatch.write_text(
        "#!/bin/bash\nenv | grep -q ^SLURM_JOB_ID= && exit 3\n! grep -q -e --dependency= $2\n"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert dry_run() == 0
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_without_an_answering_slurm_the_scripts_are_shown_all_the_same(dry_run, fake_slurm, capsys):
    (fake_slurm / "bin" / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert dry_run() == 0
    said = capsys.readouterr().out
    assert "#SBATCH --partition=a100" in said and "was not asked" in said
    assert not (fake_slurm / "tested").exists()


def test_only_what_is_left_of_a_run_is_shown(run, tmp_path, fake_slurm, capsys):
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"executor": "slurm"}))
    run.mark_done("prepare")
    assert launch.main([str(run.folder), "--site", str(site), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "##### prepare" not in said and "<prepare>" not in said
    first = said.partition("##### train-ruler\n")[2].partition("#####")[0]
    assert "#SBATCH --job-name=train-ruler" in first and "--dependency" not in first
    assert f"Slurm would take all {len(stages(run.config)) - 1} scripts" in said
