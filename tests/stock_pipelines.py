"""What a process is asked that has diffusers and no code of this project."""

STOCK = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusionPipeline

found = {}
for name, (folder, prompts, seeds, settings) in json.loads(sys.argv[1]).items():
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, generator=generators, height=32, width=32, output_type="np",
                      **settings).images
    found[name] = np.rint(images.mean(-1) * 255).astype(np.uint8)
    found[name + "_scheduler"] = np.array(type(pipeline.scheduler).__name__)
assert not [m for m in sys.modules if m.split(".")[0] in ("hpc_hipgen", "jobs")]
np.savez(sys.argv[2], **found)
"""


def asked_of_stock(samples):
    """Prompts, seeds and a stock pipeline's settings of samples that were drawn in one batch."""
    info = samples[0].info
    settings = {
        "num_inference_steps": info["steps"],
        "guidance_scale": info["guidance"],
        "eta": info["eta"],
    }
    return [s.prompt for s in samples], [s.info["seed"] for s in samples], settings
