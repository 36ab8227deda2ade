"""`sbatch sbatch/llcm.sh` from a clone: a small job submits the stages, and a report comes out."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lab_folder import write_lab
from slurm_cluster import wait_until
from slurm_runs import on, site_with

from hpc_hipgen.cluster.stage_files import submitted
from hpc_hipgen.pipeline import report_items, stages
from hpc_hipgen.run import Run
from jobs import launch, status

ROOT = Path(__file__).parents[2]
SCRIPTS = [s for s in sorted((ROOT / "sbatch").glob("*.sh")) if "#SBATCH" in s.read_text()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a clone holds of the program, elsewhere, and what is looked at of the base weights."""
    folder = tmp_path_factory.mktemp("main") / "clone"
    for name in ("sbatch", "configs", "jobs", "hpc_hipgen"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.lock", folder)
    weights = folder / "weights" / "stable-diffusion-v1-5"
    (weights / "vae").mkdir(parents=True)
    for path in (weights / "model_index.json", weights / "vae" / "config.json"):
        path.write_text("{}")
    return folder


@pytest.fixture(scope="module")
def job(cluster, shorter_settings, clone):
    """The controller's job when it has ended, and the run, which then has just begun.

    Ruler and autoencoder are those of `tiny_run`, given as pretrained: two jobs less.
    """
    folder = clone.parent
    files = {
        "tiny.yaml": shorter_settings,
        "site.yaml": site_with(results=folder / "results").model_dump(
            mode="json", exclude_unset=True
        ),
    }
    for name, tree in files.items():
        (folder / name).write_text(yaml.safe_dump(tree))
    variables = {
        "HIPGEN_PYTHON": sys.executable,
        "HIPGEN_SITE": str(folder / "site.yaml"),
        "CONFIG": str(folder / "tiny.yaml"),
    }
    with on(cluster):
        number = cluster.call(
            "sbatch", "--parsable", "sbatch/llcm.sh", cwd=clone, **variables
        ).strip()
        (state,) = cluster.wait(number)
    said = (clone / f"slurm-llcm-{number}.out").read_text()
    assert state == "COMPLETED", said
    run = Run(folder / "results" / "tiny")
    return SimpleNamespace(run=run, said=said, graph=stages(run.config))


def ids(job):
    """The job id of every stage."""
    return {stage.name: submitted(job.run, stage.name)["job"] for stage in job.graph}


@pytest.mark.slow
def test_the_controller_submits_a_chain_and_says_its_job_ids(job, slurm):
    lines = job.said.splitlines()
    for stage in job.graph:
        (line,) = [line for line in lines if line.split()[0] == stage.name]
        assert f"job {ids(job)[stage.name]}" in line
        for before in stage.after:
            assert re.search(rf"after .*\b{ids(job)[before]}\b", line), line
    report = slurm.job(ids(job)["report"])
    assert report["JobState"] == "PENDING" and report["Reason"] == "Dependency"
    assert f"afterok:{ids(job)['evaluate']}_*" in report["Dependency"]


@pytest.mark.slow
def test_status_shows_job_ids_and_states_to_another_shell(job, slurm, capsys):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.status", str(job.run.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    waiting = [line.split() for line in done.stdout.splitlines() if " pending " in line]
    assert ["report", "pending", "job", ids(job)["report"]] in [words[:4] for words in waiting]
    print(f"status took {time.monotonic() - began:.1f} s")

    def running():
        assert status.main([str(job.run.folder)]) == 0
        return " running " in capsys.readouterr().out

    wait_until(running, "a stage that runs", 120)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_slurm_accepts_every_script(script, slurm):
    assert "to start at" in slurm.call("sbatch", "--test-only", str(script))


TAKEN = set()
"""What Slurm was asked for and would give: many scripts differ in their names alone."""


def what_is_asked_for(script):
    heads = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    names = ("--job-name", "--output", "--error", "--dependency")
    return frozenset(line for line in heads if not any(name in line for name in names))


@pytest.mark.slow
@pytest.mark.parametrize("site", ["test", "a100"])
@pytest.mark.parametrize("experiment", sorted(p.stem for p in (ROOT / "configs").glob("*.yaml")))
def test_slurm_accepts_what_the_dry_run_prints(
    site, experiment, slurm, clone, tmp_path, monkeypatch, capsys
):
    given = [f"configs/{experiment}.yaml", "--run", str(tmp_path / "run")]
    if experiment == "lab_ruler":
        (tmp_path / "film_ruler.json").touch()  # nothing of Slurm reads it
        given.append(f"film_ruler.pretrained={tmp_path}")
        given.append(f"lab_ruler.films={write_lab(tmp_path / 'films', dogs=5, films=1)}")
    monkeypatch.chdir(clone)
    # Inception is a download of its own; nothing that Slurm sees hangs on it
    status = launch.main([*given, "--dry-run", "--site", site, "evaluation.inception=null"])
    said = capsys.readouterr()
    assert status == 0, said.err
    _, *scripts = re.split(r"^##### \S+\n", said.out, flags=re.MULTILINE)
    assert len(scripts) >= (2 if experiment == "film_ruler" else 4)
    assert f"Slurm would take all {len(scripts)} scripts" in said.out
    for number, text in enumerate(scripts):
        if (asked := what_is_asked_for(text)) in TAKEN:
            continue
        TAKEN.add(asked)
        script = tmp_path / f"{number}.sh"
        # a dependency that is still a name in <> is nothing that Slurm knows
        script.write_text(re.sub(r"^#SBATCH --dependency=.*<.*\n", "", text, flags=re.MULTILINE))
        assert "to start at" in slurm.call("sbatch", "--test-only", str(script))


@pytest.mark.slow
def test_the_chain_ends_with_the_bytes_of_a_run_without_slurm(job, slurm, tiny_run):
    run = job.run
    assert set(slurm.wait(*ids(job).values(), seconds=900)) == {"COMPLETED"}
    assert all(stage.done(run) for stage in job.graph)
    assert run.path("report", "report.html").stat().st_size > 10_000
    metrics = json.loads(run.path("report", "metrics.json").read_text())
    assert list(metrics["faithfulness"]) == run.rows()
    same = [f"samples/{row}/shard-{shard:05d}.tar" for row, shard in report_items(run)]
    same += [
        str(file.relative_to(run.folder))
        for model in run.config.trained()
        for file in sorted(run.path(model, "export").rglob("*.safetensors"))
    ]
    assert len(same) > 12 and any(name.startswith("llcm/export/unet") for name in same)
    for name in same:
        assert run.path(name).read_bytes() == tiny_run.path(name).read_bytes(), name
