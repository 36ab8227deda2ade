import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from mixture import six_gaussians
from oracles import sample_ode
from tiny import SD, tiny_pipeline

from hpc_hipgen.diffusion.schedule import (
    alpha_sigma,
    level_at,
    noise_to_signal,
    scaled_linear_alphas_cumprod,
    uniform_timesteps,
)
from hpc_hipgen.diffusion.scheduler import LeapfrogScheduler

ALPHAS = scaled_linear_alphas_cumprod()
MIXTURE = six_gaussians()


def run(scheduler, steps, z, model):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(model(scheduler.scale_model_input(z, t), t), t, z).prev_sample
    return z


def exact(z, t):
    return MIXTURE.epsilon_at(z.double(), ALPHAS[t]).to(z.dtype)


def start(n=64, dtype=torch.float64):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("to_one", [False, True])
def test_the_scheduler_is_the_pure_function(dtype, to_one):
    scheduler = LeapfrogScheduler(set_alpha_to_one=to_one, use_karras_sigmas=False)
    expected = sample_ode(
        exact,
        start(dtype=dtype),
        uniform_timesteps(16),
        "leapfrog",
        ALPHAS,
        1.0 if to_one else None,
    )
    assert torch.equal(run(scheduler, 16, start(dtype=dtype), exact), expected)
    # a second run remembers nothing of the first
    assert torch.equal(run(scheduler, 16, start(dtype=dtype), exact), expected)


def test_v_prediction_gives_the_same_sample():
    def velocity(z, t):
        alpha, sigma = alpha_sigma(t, ALPHAS, z)
        epsilon = exact(z, t)
        return alpha * epsilon - sigma * (z - sigma * epsilon) / alpha

    even = {"use_karras_sigmas": False}
    epsilon = run(LeapfrogScheduler(**even), 20, start(), exact)
    v = run(LeapfrogScheduler(prediction_type="v_prediction", **even), 20, start(), velocity)
    torch.testing.assert_close(v, epsilon, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 20, 32])
def test_timesteps_are_those_of_ddim(spacing, steps):
    reference = DDIMScheduler(**SD, timestep_spacing=spacing)
    scheduler = LeapfrogScheduler.from_config(reference.config, use_karras_sigmas=False)
    reference.set_timesteps(steps)
    scheduler.set_timesteps(steps)
    if (spacing, steps) == ("linspace", 1):  # numpy's linspace of one point is its start, t = 0
        assert reference.timesteps.tolist() == [0]
        assert scheduler.timesteps.tolist() == [999]
    else:
        assert scheduler.timesteps.tolist() == reference.timesteps.tolist()


def test_karras_levels_are_those_of_the_euler_scheduler():
    reference = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        use_karras_sigmas=True,
    )
    reference.set_timesteps(12)
    scheduler = LeapfrogScheduler(set_alpha_to_one=True)
    scheduler.set_timesteps(12)
    s = noise_to_signal(scheduler._levels)
    torch.testing.assert_close(s.float(), reference.sigmas, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scheduler.timesteps, reference.timesteps, rtol=1e-3, atol=1e-2)
    # ending at t = 0, no evaluation is spent there
    scheduler = LeapfrogScheduler.from_config(DDIMScheduler(**SD).config)
    scheduler.set_timesteps(12)
    assert float(scheduler.timesteps[-1]) > 1
    assert float(scheduler._levels[-1]) == float(ALPHAS[0])


def final_error(scheduler, steps, z, model):
    alpha = scheduler.alphas_cumprod[0].double().sqrt()
    s = noise_to_signal(ALPHAS)
    truth = MIXTURE.solution(z / ALPHAS[-1].sqrt(), s[-1], s[0], 300)
    return float((run(scheduler, steps, z, model) / alpha - truth).norm(dim=1).mean())


def test_karras_levels_cut_the_error():
    def fractional(z, t):
        return MIXTURE.epsilon_at(z, level_at(t, ALPHAS))

    trailing = LeapfrogScheduler(timestep_spacing="trailing", use_karras_sigmas=False)
    karras = LeapfrogScheduler()
    ddim = DDIMScheduler(**SD, timestep_spacing="trailing")
    z = start()
    uniform_error = final_error(trailing, 20, z, exact)
    assert uniform_error < final_error(ddim, 20, z, exact) / 1.5
    assert final_error(karras, 20, z, fractional) < uniform_error / 2


def test_noising_is_that_of_ddim_and_continuous_between_timesteps():
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0, 481, 999])
    scheduler = LeapfrogScheduler()
    whole = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(
        whole, DDIMScheduler(**SD).add_noise(x0, noise, t), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(scheduler.add_noise(x0, noise, t + 1e-4), whole)


def test_configuration_round_trip(tmp_path):
    scheduler = LeapfrogScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", use_karras_sigmas=False
    )
    scheduler.save_pretrained(tmp_path)
    loaded = LeapfrogScheduler.from_pretrained(tmp_path)
    own = {name: value for name, value in scheduler.config.items() if name[0] != "_"}
    assert {name: loaded.config[name] for name in own} == own
    back = DDIMScheduler.from_config(LeapfrogScheduler.from_config(SD).config)
    assert {name: back.config[name] for name in SD} == SD


def test_unsupported_settings_are_refused():
    for settings in (
        {"clip_sample": True},
        {"thresholding": True},
        {"rescale_betas_zero_snr": True},
        {"prediction_type": "sample"},
        {"timestep_spacing": "odd"},
        {"beta_schedule": "squaredcos_cap_v2"},
    ):
        with pytest.raises(ValueError, match=next(iter(settings)).replace("_", ".")):
            LeapfrogScheduler(**settings)
    scheduler, z = LeapfrogScheduler(use_karras_sigmas=False), torch.zeros(1, 8)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(z, 1, z)
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(0)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="not one of"):
        scheduler.step(z, 17, z)
    run(scheduler, 10, z, lambda z, t: z)
    with pytest.raises(ValueError, match="all steps"):
        scheduler.step(z, 1, z)


@pytest.mark.parametrize("karras", [False, True])
def test_stock_pipelines_sample_with_it(karras, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.scheduler = LeapfrogScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=karras
    )

    def draw(pipeline, **kwargs):
        generator = torch.Generator().manual_seed(7)
        return pipeline(
            "hips", num_inference_steps=6, generator=generator, output_type="np", **kwargs
        ).images

    image = draw(pipeline)
    assert image.shape == (1, 16, 16, 3)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, LeapfrogScheduler)
    assert (draw(loaded) == image).all()
    # image to image starts in the middle of the grid
    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    assert draw(again, image=torch.rand(1, 3, 16, 16), strength=0.5).shape == image.shape
