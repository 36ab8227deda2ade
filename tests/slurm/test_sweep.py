"""`bash sbatch/evaluate.sh RUN steps=...`: the cells are an array, their table is merged."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_hipgen.cluster.stage_files import submitted
from hpc_hipgen.comparisons.sampling_grid import Sweep
from hpc_hipgen.run import Run

ROOT = Path(__file__).parents[2]
GRID = ["model=stable_diffusion", "steps=[1,2]", "guidance=[2,3]", "checkpoint=[8,export]"]


@pytest.mark.slow
def test_a_sweep_over_steps_guidance_and_checkpoints(tiny_run, slurm, tmp_path, monkeypatch):
    run = Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    monkeypatch.setenv("HIPGEN_PYTHON", sys.executable)
    monkeypatch.setenv("HIPGEN_SITE", "test")
    command = ["bash", "sbatch/evaluate.sh", str(run.folder), *GRID, "--name", "grid"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    array, merge = Sweep.graph("grid")
    jobs = [submitted(run, stage.name)["job"] for stage in (array, merge)]
    assert "[2 tasks]" in done.stdout and len(set(jobs)) == 2
    assert slurm.wait(*jobs) == ["COMPLETED"] * 2
    table = Sweep.path(run, "grid", "table.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 2 * 2
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "all 8 cells are there" in again.stdout
