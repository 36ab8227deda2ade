"""Secrets of the environment and of the site reach the jobs, and no file of the run folder."""

import secrets
import sys

import pytest

from hpc_hipgen.cluster.site import Site
from hpc_hipgen.pipeline import Stage
from jobs import launch

# made now: this file itself may stand in the changes that a run records
TOKEN, KEY = secrets.token_hex(12), secrets.token_hex(16)
ENV = {"HF_TOKEN": TOKEN, "NCCL_DEBUG": "VERSION"}


@pytest.fixture
def told(run, monkeypatch):
    """Makes a launch with secrets around; afterwards, files of the run that hold one."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["launch", f"--key={KEY}"])

    def launch_it(graph, slurm):
        site = Site(executor="slurm" if slurm else "local", env=ENV)
        assert launch.execute(run, graph, site, slurm) == 0
        files = [p for p in run.folder.rglob("*") if p.is_file()]
        assert run.path("provenance", "launches.jsonl") in files
        hidden = (TOKEN.encode(), KEY.encode())
        return [p for p in files if any(word in p.read_bytes() for word in hidden)]

    return launch_it


def test_on_this_machine(run, told, fake_stages):
    graph = [Stage("lengths", "fake_stages:lengths_of_secrets", "cpu")]
    assert told(graph, slurm=False) == []
    # they were there all the same
    assert run.done("lengths")["lengths"] == {"HF_TOKEN": len(TOKEN), "WANDB_API_KEY": len(KEY)}


def test_under_slurm(run, told, fake_stages, fake_slurm):
    sbatch = fake_slurm / "bin" / "sbatch"
    sbatch.write_text('#!/bin/bash\nenv > "$FAKE_SLURM/env"\n' + sbatch.read_text())
    assert told(fake_stages.GRAPH, slurm=True) == []
    seen = (fake_slurm / "env").read_text().splitlines()
    assert f"HF_TOKEN={TOKEN}" in seen and f"WANDB_API_KEY={KEY}" in seen
    script = (fake_slurm / "101.sh").read_text()
    assert "export NCCL_DEBUG=VERSION\n" in script and "HF_TOKEN" not in script
    # the scripts of all jobs stay in the run folder
    kept = [p.read_text() for p in run.path("logs").rglob("*_submission.sh")]
    assert len(kept) == len(fake_stages.GRAPH) and script in kept
