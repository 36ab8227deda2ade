"""The cells of `performance.solver_table`: a teacher's ODE by each solver, a student by its steps.

All solvers begin at the noisiest timestep and end at the cleanest, so that they solve one equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from safetensors.torch import save
from torch import Tensor

from hpc_hipgen.diffusion.consistency import guided_epsilon
from hpc_hipgen.diffusion.sampling import follow, seeded_noise
from hpc_hipgen.diffusion.schedule import (
    karras_timesteps,
    level_at,
    to_epsilon,
    trailing_timesteps,
)
from hpc_hipgen.diffusion.scheduler import LeapfrogScheduler
from hpc_hipgen.diffusion.solvers import SOLVERS
from hpc_hipgen.generators.autoencoder import to_images
from hpc_hipgen.generators.sampling import draw_as, sampling_cost
from hpc_hipgen.performance.solver_table import STUDENT, Cell
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.geometry import swap_sides

Network = Callable[[Tensor, Tensor], Tensor]
"""network(z, t () whole or fractional) -> its output, of the configured prediction type."""

DIFFUSERS = {"dpm++2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
"""DPM-Solver++(2M) and UniPC of second order, as diffusers sets them by default."""

LONG = 100
"""From so many steps on a cell shows a bar of its own."""


@torch.no_grad()
def solve(
    network: Network, noise: Tensor, cell: Cell, config: dict[str, Any], label: str = ""
) -> Tensor:
    """Latents at t = 0, like `noise`, after `cell.steps` calls of the network.

    `config` is that of a diffusers scheduler. A `label` shows a bar with that name.
    """
    if cell.solver in DIFFUSERS:
        return _by_diffusers(network, noise, cell, config)
    levels = LeapfrogScheduler.from_config(config)
    alphas_cumprod = levels.alphas_cumprod
    if cell.spacing == "karras":
        timesteps, abars = karras_timesteps(cell.steps, alphas_cumprod)
    else:
        timesteps = trailing_timesteps(cell.steps, len(alphas_cumprod))
        abars = torch.cat([alphas_cumprod[timesteps], alphas_cumprod[:1]])

    def epsilon(z: Tensor, t: Tensor) -> Tensor:
        output = network(z, t.to(z.device))
        table, first = level_at(t, alphas_cumprod)[None], torch.tensor(0)
        return to_epsilon(output, z, first, table, levels.config.prediction_type)

    assert cell.solver in SOLVERS
    times = progress(timesteps, cell.steps, label) if label else timesteps
    return follow(epsilon, noise, times, abars, cell.solver)


def _by_diffusers(network: Network, noise: Tensor, cell: Cell, config: dict[str, Any]) -> Tensor:
    """The same by a scheduler of diffusers, which rounds the timesteps of Karras levels."""
    karras = cell.spacing == "karras"
    scheduler = DIFFUSERS[cell.solver].from_config(
        config,
        timestep_spacing="trailing",
        use_karras_sigmas=karras,
        final_sigmas_type="sigma_min",
    )
    # diffusers' Karras grid has its last evaluation where it ends, for a step of no length
    scheduler.set_timesteps(cell.steps + karras, device=noise.device)
    z = noise
    for t in scheduler.timesteps[: cell.steps]:
        z = scheduler.step(network(z, t), t, z).prev_sample
    return z


def guided_network(
    pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float
) -> Network:
    """The UNet on these prompts; guidance above 1 takes a batch of twice the images."""
    device = pipeline.unet.device
    with torch.no_grad():
        text, null = pipeline.encode_prompt(prompts, device, 1, guidance > 1)

    def network(z: Tensor, t: Tensor) -> Tensor:
        if guidance <= 1:
            return pipeline.unet(z, t, text).sample
        output = pipeline.unet(torch.cat([z, z]), t, torch.cat([null, text])).sample
        without, with_caption = output.chunk(2)
        return guided_epsilon(with_caption, without, guidance - 1.0)

    return network


def measure(
    cell: Cell,
    specs: Sequence[dict[str, Any]],
    pipeline: StableDiffusionPipeline,
    ruler: Any,
    batch: int,
) -> bytes:
    """The file of a cell: latents (n, c, h, w) float32, angles and asked (n, 2) float64 degrees.

    `specs` as of `samples.image_specs`. Evaluations are counted at the network.
    """
    latents = []
    with sampling_cost(pipeline.unet) as cost:
        for start in range(0, len(specs), batch):
            chosen = specs[start : start + batch]
            latents.append(_latents(cell, chosen, pipeline).float().cpu())
    passes = cost["evaluations"] // len(specs)
    doubled = cell.model != STUDENT and cell.guidance > 1
    calls = passes // 2 if doubled else passes
    assert calls == cell.steps, f"{cell.name}: {calls} evaluations"
    tensors = {
        "latents": torch.cat(latents),
        "angles": torch.from_numpy(_angles(pipeline.vae, latents, ruler)),
        "asked": torch.tensor(
            [[spec["asked_left"], spec["asked_right"]] for spec in specs], dtype=torch.float64
        ),
    }
    return save(tensors, metadata={"evaluations": str(calls), "passes": str(passes)})


def _latents(
    cell: Cell, specs: Sequence[dict[str, Any]], pipeline: StableDiffusionPipeline
) -> Tensor:
    prompts, seeds = ([spec[key] for spec in specs] for key in ("prompt", "seed"))
    config = pipeline.unet.config
    size = config.sample_size
    if cell.model != STUDENT:
        noise = seeded_noise(seeds, (config.in_channels, size, size)).to(pipeline.unet.device)
        network = guided_network(pipeline, prompts, cell.guidance)
        label = cell.name if cell.steps >= LONG else ""
        return solve(network, noise, cell, dict(pipeline.scheduler.config), label)
    pixels = size * pipeline.vae_scale_factor
    latents: Tensor = draw_as(
        "latent", pipeline, prompts, seeds,
        steps=cell.steps, guidance=cell.guidance, resolution=pixels,
    )  # fmt: skip
    return latents


@torch.no_grad()
def _angles(vae: Any, latents: Sequence[Tensor], ruler: Any) -> np.ndarray:
    """Angles of the patient's left and right (n, 2) in the decoded latents; NaN where refused."""
    scale = vae.config.scaling_factor
    images = [to_images(vae.decode(z.to(vae.device) / scale).sample) for z in latents]
    measured = ruler.measure(np.concatenate(images))
    found = [[m.image_left, m.image_right] for m in measured]
    return swap_sides(np.array(found, dtype=np.float64))
