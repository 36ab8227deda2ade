"""Solver economics: what a network evaluation buys, on the trained models of a run.

For the validation captions, every image from the same seed with every solver and number of steps.
The final error of a teacher's solver is how far its latents lie from those of a reference of 500
steps; the angle error is the ruler's. A student draws other pictures by design, so it only has the
latter. All start at the noisiest timestep (`trailing`), so that all step counts solve one equation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from hpc_hipgen.diffusion.scheduler import LeapfrogScheduler
from hpc_hipgen.generators.autoencoder import to_images
from hpc_hipgen.generators.sampling import load_pipeline
from hpc_hipgen.run import Run

Line = dict[str, Any]

SOLVERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "leapfrog": (LeapfrogScheduler, {}),
    "DPM-Solver++(2M)": (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
    "UniPC": (UniPCMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
}
"""Scheduler classes of the teacher's solvers, all ending at the cleanest timestep."""

STEPS = (4, 8, 16, 32)
STUDENT_STEPS = (1, 2, 4, 8)
REFERENCE_STEPS = 500
BATCH = 16


def economics(run: Run, captions: int = 31) -> list[Line]:
    """A line for each solver and number of steps; evaluations count guided calls once.

    Raises:
        ValueError: when the run holds no trained teacher.
    """
    from hpc_hipgen.radiograph.layouts import read_manifest
    from hpc_hipgen.training.engine import device
    from jobs.evaluate import ruler_of

    films = read_manifest(run.path("data"), "validation", nominal_only=True)
    films = films.take(range(min(captions, len(films))))
    ruler = ruler_of(run, device().type)
    guidance = run.config.sampling.guidance
    teacher = load_pipeline(run.path("stable_diffusion", "export"))
    reference = _latents(teacher, films.captions, "leapfrog", REFERENCE_STEPS, guidance)
    lines = [_line("reference: leapfrog", REFERENCE_STEPS, teacher, reference, films, ruler)]
    for solver in SOLVERS:
        for steps in STEPS:
            latents = _latents(teacher, films.captions, solver, steps, guidance)
            line = _line(solver, steps, teacher, latents, films, ruler)
            error = (latents - reference).square().flatten(1).mean(1).sqrt()
            lines.append(line | {"final error": float(error.mean())})
    if run.config.llcm:
        student = load_pipeline(run.path("llcm", "export"))
        scale = run.config.sampling.student_guidance
        for steps in STUDENT_STEPS:
            latents = _latents(student, films.captions, None, steps, scale)
            lines.append(_line("LLCM", steps, student, latents, films, ruler))
    return lines


def _latents(
    pipeline: StableDiffusionPipeline, prompts: list[str], solver: str | None, steps: int,
    guidance: float,
) -> Tensor:  # fmt: skip
    """Latents (n, c, h, w) of the prompts, one seed each; solver None keeps the exported one."""
    if solver is not None:
        kind, more = SOLVERS[solver]
        config = dict(pipeline.scheduler.config) | more
        pipeline.scheduler = kind.from_config(config, timestep_spacing="trailing")
    parts = []
    for start in range(0, len(prompts), BATCH):
        chosen = prompts[start : start + BATCH]
        seeds = range(start, start + len(chosen))
        size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        parts.append(
            pipeline(
                chosen,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=size,
                width=size,
                output_type="latent",
            ).images.float()
        )
    return torch.cat(parts)


def _line(
    solver: str, steps: int, pipeline: StableDiffusionPipeline, latents: Tensor, films: Any,
    ruler: Any,
) -> Line:  # fmt: skip
    """Angle error of the decoded latents, mean of both sides in degrees."""
    vae = pipeline.vae
    with torch.no_grad():
        parts = latents.to(vae.dtype).split(BATCH)
        images = [to_images(vae.decode(z / vae.config.scaling_factor).sample) for z in parts]
    measured = ruler.measure(np.concatenate(images))
    # the patient's left is at the image's right
    found = np.array([[m.image_right, m.image_left] for m in measured])
    asked = np.stack([films.patient_left, films.patient_right], 1)
    return {
        "solver": solver,
        "evaluations": steps,
        "angle error": float(np.nanmean(np.abs(found - asked))),
        "refused": int(np.isnan(found).any(1).sum()),
    }
