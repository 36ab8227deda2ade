import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

STOCK = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusionPipeline

found = {}
for name, (folder, prompts, seeds, steps, guidance) in json.loads(sys.argv[1]).items():
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance,
                      generator=generators, height=32, width=32, output_type="np").images
    found[name] = np.rint(images.mean(-1) * 255).astype(np.uint8)
    found[name + "_scheduler"] = np.array(type(pipeline.scheduler).__name__)
assert not [m for m in sys.modules if m.split(".")[0] in ("hpc_hipgen", "jobs")]
np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="session")
def stock(tiny_run, tmp_path_factory):
    """What a process that has no code of this project draws for the first prompts of each row."""
    from hpc_hipgen.evaluation.samples import read_samples

    asked, stored = {}, {}
    for row, model in (("stable_diffusion", "stable_diffusion"), ("llcm_2", "llcm")):
        samples = read_samples(tiny_run.path("samples", row, "shard-00000.tar"))[:3]
        stored[row] = samples
        info = samples[0].info
        asked[row] = (
            str(tiny_run.path(model, "export")),
            [s.prompt for s in samples],
            [s.info["seed"] for s in samples],
            info["steps"],
            info["guidance"],
        )
    path = tmp_path_factory.mktemp("stock") / "images.npz"
    done = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(asked), str(path)],
        cwd="/",
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as images:
        drawn = dict(images)
    return SimpleNamespace(drawn=drawn, stored=stored, said=done.stdout + done.stderr)


SHARED = ("name", "seed", "data", "ruler", "sampling", "evaluation")
"""Sections of the tiny experiment that the one of DALL-E takes over."""

TOKENS = {
    "discrete_vae": {
        "block_out_channels": [8, 8, 16],
        "codes": 16,
        "code_width": 4,
        "window": 16,
        "training": {"images": 8, "batch": 4, "lr": 1e-3, "ema_images": 8},
    },
    "dall_e": {
        "text_length": 40,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "sampling": {"top_k": 12, "top_p": 0.9, "guidance": 1.5},
        "training": {"images": 8, "batch": 4, "lr": 1e-3, "ema_images": 8},
    },
}


@pytest.fixture
def token_settings(tiny_settings):
    """An experiment of DALL-E alone with two optimizer steps a model, as a tree."""
    return {k: tiny_settings[k] for k in SHARED} | copy.deepcopy(TOKENS)


@pytest.fixture(scope="session")
def token_run(tiny_run, tmp_path_factory):
    """A run of that experiment up to its samples, made in this process; not to be changed."""
    from hpc_hipgen.config import parse_experiment
    from hpc_hipgen.pipeline import report_items
    from hpc_hipgen.run import Run
    from jobs import prepare, sample, train

    tree = tiny_run.config.model_dump(mode="json", exclude_unset=True)
    tree = {k: tree[k] for k in SHARED} | copy.deepcopy(TOKENS)
    run = Run.create(tmp_path_factory.mktemp("tokens") / "run", parse_experiment(tree, "tokens"))
    prepare.prepare(run)
    for model in run.config.trained():
        train.train(run, model)
    sample.sample_items(run, report_items(run))
    return run
