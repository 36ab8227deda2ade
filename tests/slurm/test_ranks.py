"""Several ranks under srun, on one node and on two, see the losses of one."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from slurm_runs import site_with
from slurm_stages import losses_of_ranks, train_each
from toy_task import losses, toy_train

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.run import Run

ZERO_STAGES = "0123"
TWO_NODES = {"gpus": 1, "nodes": 2}


@pytest.mark.slow
def test_ranks_on_two_nodes_see_the_losses_of_one_at_every_zero_stage(run, slurm, tmp_path):
    """Two ranks of one node: the trainings below, and those of test_interruptions.py."""
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


@pytest.mark.slow
def test_generators_train_on_two_ranks_as_on_one(tiny_run, run, slurm, tmp_path):
    """With ZeRO-1, latents from the run's cache and an export by rank 0."""
    runs = {}
    for model in ("stable_diffusion", "llcm"):  # each alone, the other as trained on one rank
        mine = runs[model] = Run(shutil.copytree(tiny_run.folder, tmp_path / model))
        shutil.rmtree(mine.path(model))
        mine.path("stages", f"train-{model}.json").unlink()
    # both in one job: its ranks import all that they need once
    given = tuple(f"{model}={mine.folder}" for model, mine in runs.items())
    stage = Stage("both", f"slurm_stages:{train_each.__name__}", "train", arguments=given)
    number = submit_stages(run, [stage], site_with(stages={"both": {"gpus": 2}}))["both"]
    assert slurm.wait(number) == ["COMPLETED"]
    assert slurm.job(number)["NumTasks"] == "2"
    for model, mine in runs.items():
        found, expected = (
            json.loads(folder.path(model, "metrics.jsonl").read_text().splitlines()[-1])
            for folder in (mine, tiny_run)
        )
        assert found["images"] == expected["images"]
        # after the first step: AdamW moves by lr whatever the size, and so the sign, of a gradient
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3), model
        weights, ones = (
            load_file(folder.path(model, "export", "unet", "diffusion_pytorch_model.safetensors"))
            for folder in (mine, tiny_run)
        )
        apart = torch.stack([(weights[name] - ones[name]).norm() for name in ones]).norm()
        assert apart < 1e-3 * torch.stack([values.norm() for values in ones.values()]).norm()
        StableDiffusionPipeline.from_pretrained(mine.path(model, "export"))
