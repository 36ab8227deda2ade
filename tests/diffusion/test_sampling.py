import pytest
import torch
from diffusers import LCMScheduler
from oracles import lcm_timesteps, sample_lcm, sample_ode
from tiny import LATENT, SD, tiny_pipeline

from hpc_hipgen.diffusion.consistency import (
    consistency_function,
    guidance_embedding,
    guided_epsilon,
)
from hpc_hipgen.diffusion.sampling import seeded_noise
from hpc_hipgen.diffusion.schedule import (
    scaled_linear_alphas_cumprod,
    uniform_timesteps,
)
from hpc_hipgen.diffusion.scheduler import LeapfrogScheduler

ALPHAS = scaled_linear_alphas_cumprod()
SEEDS = [5, 99, 12]


def test_noise_depends_on_the_seed_alone():
    batch = seeded_noise(SEEDS, LATENT)
    assert batch.shape == (3, *LATENT)
    assert batch.dtype == torch.float32
    for row, seed in zip(batch, SEEDS, strict=True):
        assert torch.equal(row, seeded_noise([7, seed], LATENT)[1])
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_consistency_sampling_is_that_of_the_lcm_scheduler(steps):
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    z = torch.cat([torch.randn(1, *LATENT, generator=g) for g in generators])

    def network(z, t):
        return torch.sin(z + t / 300)

    for t in scheduler.timesteps:
        z = scheduler.step(network(z, t), t, z, generators).prev_sample

    def f(z, t):
        return consistency_function(network(z, t), z, t, ALPHAS, "epsilon")

    ours = sample_lcm(f, SEEDS, LATENT, lcm_timesteps(steps, 20), ALPHAS)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


def drawn_by(pipeline, steps, guidance_scale):
    return pipeline(
        ["left", "right", "both"],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images


def texts(pipeline):
    """(conditional, null) text embeddings of the three prompts."""
    with torch.no_grad():
        return pipeline.encode_prompt(["left", "right", "both"], "cpu", 1, True)


def test_a_stock_pipeline_draws_the_same_latents_with_the_student():
    pipeline = tiny_pipeline(time_cond_proj_dim=32)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    text, _ = texts(pipeline)
    condition = guidance_embedding(torch.full((3,), 3.0), 32)

    def f(z, t):
        output = pipeline.unet(z, t, text, timestep_cond=condition).sample
        return consistency_function(output, z, t, ALPHAS, "epsilon")

    ours = sample_lcm(f, SEEDS, LATENT, lcm_timesteps(4, 20), ALPHAS)
    torch.testing.assert_close(ours, drawn_by(pipeline, 4, 4.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "leapfrog"])
def test_a_stock_pipeline_draws_the_same_latents_with_the_teacher(solver):
    pipeline = tiny_pipeline()
    if solver == "leapfrog":
        pipeline.scheduler = LeapfrogScheduler.from_config(
            pipeline.scheduler.config, use_karras_sigmas=False
        )
    text, null = texts(pipeline)

    def model(z, t):
        conditional, unconditional = pipeline.unet(z, t, text), pipeline.unet(z, t, null)
        return guided_epsilon(conditional.sample, unconditional.sample, 2.0)

    # 20 steps divide 1000, so that DDIM's step behind t = 1 also ends at t = 0
    noise = seeded_noise(SEEDS, LATENT)
    ours = sample_ode(model, noise, uniform_timesteps(20), solver, ALPHAS)
    torch.testing.assert_close(ours, drawn_by(pipeline, 20, 3.0), rtol=1e-3, atol=1e-3)
