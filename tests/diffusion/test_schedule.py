import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import lcm_timesteps

from hpc_hipgen.config.base import leading_timesteps
from hpc_hipgen.diffusion import schedule

ALPHAS = schedule.scaled_linear_alphas_cumprod()
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_levels_are_those_of_stable_diffusion():
    reference = DDIMScheduler(**SD).alphas_cumprod
    assert ALPHAS.dtype == torch.float64
    torch.testing.assert_close(ALPHAS.float(), reference, rtol=1e-5, atol=0)
    s = schedule.noise_to_signal(ALPHAS)
    assert float(s[0]) == pytest.approx((0.00085 / (1 - 0.00085)) ** 0.5, rel=1e-12)
    assert float(s[-1]) == pytest.approx(14.615, abs=5e-4)  # the end of published sigma tables


@pytest.mark.parametrize("steps", [1, 7, 20, 25, 50, 100, 333])
def test_uniform_timesteps_are_those_of_ddim(steps):
    scheduler = DDIMScheduler(**SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    scheduler.set_timesteps(steps)
    found = schedule.uniform_timesteps(steps).tolist()
    assert found == scheduler.timesteps.tolist() == leading_timesteps(steps)


@pytest.mark.parametrize("steps", [0, 1000, 1001])
def test_uniform_timesteps_that_do_not_fit(steps):
    with pytest.raises(ValueError, match=str(steps)):
        schedule.uniform_timesteps(steps)


@pytest.mark.parametrize("skip", [10, 20, 40])
def test_lcm_timesteps_are_those_of_the_lcm_scheduler(skip):
    scheduler = LCMScheduler(**SD, original_inference_steps=1000 // skip)
    for steps in range(1, 26):
        scheduler.set_timesteps(steps)
        ours = lcm_timesteps(steps, skip)
        assert ours.tolist() == scheduler.timesteps.tolist(), steps
        assert set(ours.tolist()) <= set(schedule.distillation_timesteps(skip).tolist())


def test_levels_of_fractional_timesteps():
    timesteps, levels = schedule.karras_timesteps(9, ALPHAS)
    assert timesteps[0] == 999 and bool((timesteps % 1 != 0).any())
    torch.testing.assert_close(schedule.level_at(timesteps, ALPHAS), levels[:-1], rtol=1e-4, atol=0)
    assert float(levels[-1]) == float(ALPHAS[0])
    whole = torch.tensor([0, 481, 999])
    torch.testing.assert_close(schedule.level_at(whole, ALPHAS), ALPHAS[whole])


def test_distillation_grid():
    grid = schedule.distillation_timesteps(20)
    assert (len(grid), int(grid[0]), int(grid[-1])) == (50, 19, 999)
    assert schedule.jump_target(grid, 20).tolist() == [0, *grid[:-1].tolist()]
    for skip in (0, 30, 1001):
        with pytest.raises(ValueError, match=str(skip)):
            schedule.distillation_timesteps(skip)


def test_levels_add_up_and_broadcast():
    z = torch.zeros(3, 4, 2, 2)
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 500, 999]), ALPHAS, z)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, 1, 1, 1))
    assert schedule.alpha_sigma(7, ALPHAS, z.double())[0].item() == ALPHAS[7].sqrt().item()
    # half precision latents meet float32 levels, whether there is one level or one per sample
    for t in (torch.tensor(5), torch.tensor([5, 6, 7])):
        alpha, _ = schedule.alpha_sigma(t, ALPHAS, z.bfloat16())
        assert (alpha * z.bfloat16()).dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(t=st.integers(0, 999), seed=st.integers(0, 99))
def test_conversions_invert_the_targets(t, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    time = torch.tensor([t, 999 - t])
    z = schedule.add_noise(x0, noise, time, ALPHAS)
    for prediction in schedule.PREDICTION_TYPES:
        output = schedule.training_target(x0, noise, time, ALPHAS, prediction)
        converted = schedule.to_epsilon(output, z, time, ALPHAS, prediction)
        torch.testing.assert_close(converted, noise)
        torch.testing.assert_close(schedule.to_x0(output, z, time, ALPHAS, prediction), x0)


def test_noising_and_velocity_are_those_of_diffusers():
    reference = DDIMScheduler(**SD)
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 400, 999])
    noised = schedule.add_noise(x0, noise, t, ALPHAS)
    velocity = schedule.training_target(x0, noise, t, ALPHAS, "v_prediction")
    torch.testing.assert_close(noised, reference.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(velocity, reference.get_velocity(x0, noise, t), rtol=1e-5, atol=1e-5)


def test_min_snr_makes_both_predictions_the_same_loss():
    generator = torch.Generator().manual_seed(1)
    x0, noise, guess = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 50, 200, 600, 999])
    z = schedule.add_noise(x0, noise, t, ALPHAS)
    guess_noise = schedule.alpha_sigma(t, ALPHAS, z)
    guess_noise = (z - guess_noise[0] * guess) / guess_noise[1]
    snr = ALPHAS[t] / (1 - ALPHAS[t])
    expected = snr.clamp(max=5.0) * ((guess - x0) ** 2).flatten(1).mean(1)
    for prediction in schedule.PREDICTION_TYPES:
        target = schedule.training_target(x0, noise, t, ALPHAS, prediction)
        output = schedule.training_target(guess, guess_noise, t, ALPHAS, prediction)
        error = ((output - target) ** 2).flatten(1).mean(1)
        weight = schedule.min_snr_weight(t, ALPHAS, 5.0, prediction)
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight * error, expected, rtol=1e-5, atol=1e-9)


def test_nearest_timestep_is_the_nearest():
    s = torch.cat([torch.linspace(0, 16, 301), torch.tensor([0.03, 0.05])]).double()
    table = schedule.noise_to_signal(ALPHAS)
    brute = (table[None] - s[:, None]).abs().argmin(1)
    assert torch.equal(schedule.nearest_timestep(s, ALPHAS), brute)
    assert torch.equal(schedule.nearest_timestep(table, ALPHAS), torch.arange(1000))


def test_unknown_settings_are_refused():
    z = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="sample"):
        schedule.to_x0(z, z, torch.tensor(1), ALPHAS, "sample")
    with pytest.raises(ValueError, match="gamma"):
        schedule.min_snr_weight(torch.tensor([1]), ALPHAS, 0.0, "epsilon")
