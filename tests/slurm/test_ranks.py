"""Several ranks under srun, on one node and on two, see the losses of one."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from slurm_runs import site_with
from slurm_stages import losses_of_ranks
from toy_task import losses, toy_train

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.pipeline import Stage, stages
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
def test_generators_train_on_two_ranks_as_on_one(tiny_run, slurm, tmp_path):
    """The real stages, with ZeRO-1, latents from the run's cache and an export by rank 0."""
    ids, runs = {}, {}
    for model in ("stable_diffusion", "llcm"):  # each alone, the other as trained on one rank
        run = runs[model] = Run(shutil.copytree(tiny_run.folder, tmp_path / model))
        shutil.rmtree(run.path(model))
        run.path("stages", f"train-{model}.json").unlink()
        graph = [stage for stage in stages(run.config) if stage.name == f"train-{model}"]
        ids |= submit_stages(run, graph, site_with(stages={f"train-{model}": {"gpus": 2}}))
    assert slurm.wait(*ids.values()) == ["COMPLETED"] * 2
    assert [slurm.job(number)["NumTasks"] for number in ids.values()] == ["2", "2"]
    for model, run in runs.items():
        found, expected = (
            json.loads(folder.path(model, "metrics.jsonl").read_text().splitlines()[-1])
            for folder in (run, tiny_run)
        )
        assert found["images"] == expected["images"]
        # after the first step: AdamW moves by lr whatever the size, and so the sign, of a gradient
        assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3), model
        weights, ones = (
            load_file(folder.path(model, "export", "unet", "diffusion_pytorch_model.safetensors"))
            for folder in (run, tiny_run)
        )
        apart = torch.stack([(weights[name] - ones[name]).norm() for name in ones]).norm()
        assert apart < 1e-3 * torch.stack([values.norm() for values in ones.values()]).norm()
        StableDiffusionPipeline.from_pretrained(run.path(model, "export"))
