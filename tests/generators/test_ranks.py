"""Generators on two ranks train as on one: ZeRO-1, the run's cache of latents, rank 0 exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from warm_python import warm_ranks

from hpc_hipgen.run import Run

ROOT = Path(__file__).parents[2]
MODELS = ("stable_diffusion", "llcm")
TRAIN = """
import sys
from hpc_hipgen.run import Run
from jobs.train import train

for pair in sys.argv[1:]:
    model, _, folder = pair.partition("=")
    train(Run(folder), model)
"""


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """Copies of a run, in each of which one model was trained again, by two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {}
    for model in MODELS:  # each alone, the other as trained on one rank
        mine = runs[model] = Run(shutil.copytree(tiny_run.folder, folder / model))
        shutil.rmtree(mine.path(model))
        mine.path("stages", f"train-{model}.json").unlink()
    pairs = [f"{model}={mine.folder}" for model, mine in runs.items()]
    warm_ranks(TRAIN, *pairs, folder=folder, path=[ROOT])
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_generators_train_on_two_ranks_as_on_one(model, tiny_run, runs):
    mine = runs[model]
    found, expected = (
        json.loads(run.path(model, "metrics.jsonl").read_text().splitlines()[-1])
        for run in (mine, tiny_run)
    )
    assert found["images"] == expected["images"]
    # after the first step: AdamW moves by lr whatever the size, and so the sign, of a gradient
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    weights, ones = (
        load_file(run.path(model, "export", "unet", "diffusion_pytorch_model.safetensors"))
        for run in (mine, tiny_run)
    )
    apart = torch.stack([(weights[name] - ones[name]).norm() for name in ones]).norm()
    assert apart < 1e-3 * torch.stack([values.norm() for values in ones.values()]).norm()
    StableDiffusionPipeline.from_pretrained(mine.path(model, "export"))
