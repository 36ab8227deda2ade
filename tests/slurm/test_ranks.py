"""Several ranks under srun, on one node and on two, see the losses of one."""

import json

import pytest
from slurm_runs import site_with
from slurm_stages import losses_of_ranks

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.pipeline import Stage

ZERO_STAGES = "0123"
RESOURCES = {
    "one": {"gpus": 1},
    "two": {"gpus": 2},
    "two-nodes": {"gpus": 1, "nodes": 2},
}


def losses(run, name, stage):
    lines = run.path(name, stage, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_ranks_see_the_losses_of_one_at_every_zero_stage(run, slurm):
    function = f"slurm_stages:{losses_of_ranks.__name__}"
    graph = [Stage(name, function, "train", arguments=(name, ZERO_STAGES)) for name in RESOURCES]
    ids = submit_stages(run, graph, site_with(stages=RESOURCES))
    assert slurm.wait(*ids.values()) == ["COMPLETED"] * len(ids)
    assert slurm.job(ids["two-nodes"])["NodeList"] == "a100-[1-2]"
    for stage in ZERO_STAGES:
        expected = losses(run, "one", stage)
        assert len(expected) == 50
        for name in ("two", "two-nodes"):
            found = losses(run, name, stage)
            assert found == pytest.approx(expected, rel=1e-5, abs=0), (name, stage)
