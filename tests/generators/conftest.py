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
def stock_process(tmp_path_factory):
    """Runs a script in a process that has no code of this project.

    `stock_process(script, asked)` hands it what is asked for, as JSON, and the path of an npz, and
    returns the arrays that it stored there and what it said.
    """

    def run(script, asked):
        path = tmp_path_factory.mktemp("stock") / "images.npz"
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(asked), str(path)],
            cwd="/",
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with np.load(path) as stored:
            return dict(stored), done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def stock(tiny_run, stock_process):
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
    drawn, said = stock_process(STOCK, asked)
    return SimpleNamespace(drawn=drawn, stored=stored, said=said)
