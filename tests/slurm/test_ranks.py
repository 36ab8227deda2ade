"""Several ranks under srun, on one node and on two, see the losses of one."""

import pytest
from slurm_runs import site_with
from slurm_stages import losses_of_ranks
from toy_task import losses, toy_train

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.pipeline import Stage

ZERO_STAGES = "0123"
TWO_NODES = {"gpus": 1, "nodes": 2}


@pytest.mark.slow
def test_ranks_on_two_nodes_see_the_losses_of_one_at_every_zero_stage(run, slurm, tmp_path):
    """Two ranks of one node: the trainings of test_interruptions.py."""
    function = f"slurm_stages:{losses_of_ranks.__name__}"
    stage = Stage("ranks", function, "train", arguments=("ranks", ZERO_STAGES))
    ids = submit_stages(run, [stage], site_with(stages={"ranks": TWO_NODES}))
    toy_train(tmp_path / "toy", images=400, log_images=8)  # one rank has no stages
    expected = losses(tmp_path / "toy")
    assert slurm.wait(*ids.values()) == ["COMPLETED"]
    assert slurm.job(ids["ranks"])["NodeList"] == "a100-[1-2]"
    assert len(expected) == 50
    for zero_stage in ZERO_STAGES:
        found = losses(run.path("ranks", zero_stage))
        assert found == pytest.approx(expected, rel=1e-5, abs=0), zero_stage
