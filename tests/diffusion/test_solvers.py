import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import karras, six_gaussians

from hpc_hipgen.diffusion.schedule import (
    add_noise,
    distillation_timesteps,
    jump_target,
    noise_to_signal,
    scaled_linear_alphas_cumprod,
    uniform_timesteps,
)
from hpc_hipgen.diffusion.solvers import JUMP_EVALUATIONS, SOLVERS, ddim, one_jump, paper

ALPHAS = scaled_linear_alphas_cumprod()
RATIOS = noise_to_signal(ALPHAS)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    levels=st.lists(st.integers(0, 999), min_size=6, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_the_published_leapfrog_is_ddim_to_the_bit(dtype, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    z, epsilon = torch.randn(2, 3, 4, 8, 8, generator=generator).to(dtype)
    abar, abar_next = ALPHAS[torch.tensor(levels)].reshape(2, 3)
    assert torch.equal(paper(z, epsilon, abar, abar_next)[0], ddim(z, epsilon, abar, abar_next)[0])
    one = (z, epsilon, abar[0], abar_next[0])
    assert torch.equal(paper(*one)[0], ddim(*one)[0])


def test_ddim_is_that_of_diffusers():
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    reference.set_timesteps(25)
    generator = torch.Generator().manual_seed(0)
    z = ours = torch.randn(2, 4, 8, 8, generator=generator)
    timesteps = uniform_timesteps(25)
    for t, t_next in zip(timesteps, [*timesteps[1:], torch.tensor(0)], strict=True):
        epsilon = 0.9 * z + 0.1 * torch.randn(z.shape, generator=generator)
        ours = ddim(ours, epsilon, ALPHAS[t], ALPHAS[t_next])[0]
        z = reference.step(epsilon, int(t), z).prev_sample
        torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


def errors(solver, counts, grid, tau=0.25):
    """Mean final error over 96 starts, by number of steps; grid(steps) -> abars (steps + 1,)."""
    mixture = six_gaussians(tau)
    z0 = torch.randn(96, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact = mixture.solution(z0 / ALPHAS[-1].sqrt(), RATIOS[-1], RATIOS[0], 400)
    found = []
    for steps in counts:
        abars = grid(steps)
        z, history = z0, None
        for abar, abar_next in pairwise(abars):
            z, history = SOLVERS[solver](z, mixture.epsilon_at(z, abar), abar, abar_next, history)
        found.append(float((z / ALPHAS[0].sqrt() - exact).norm(dim=1).mean()))
    return found


def karras_levels(steps):
    return 1 / (1 + karras(RATIOS[-1:], RATIOS[:1], steps)[:, 0] ** 2)


def uniform_levels(steps):
    return ALPHAS[torch.linspace(999, 0, steps + 1, dtype=torch.float64).round().long()]


@pytest.mark.parametrize(("solver", "order"), [("paper", 1), ("ddim", 1), ("leapfrog", 2)])
def test_order_of_convergence(solver, order):
    counts = [32, 64, 128, 256]
    logs = torch.tensor([[math.log(n) for n in counts], errors(solver, counts, karras_levels)])
    logs[1] = logs[1].log()
    x, y = logs - logs.mean(1, keepdim=True)
    assert -float(x @ y / (x @ x)) == pytest.approx(order, abs=0.15)


def test_on_uniform_timesteps_the_leapfrog_gains_as_documented():
    counts = [4, 16, 32, 128]
    euler = errors("ddim", counts, uniform_levels)
    second = errors("leapfrog", counts, uniform_levels)
    assert errors("paper", counts, uniform_levels) == euler
    assert all(b < a for a, b in zip(euler, second, strict=True))
    assert second[2] < euler[2] / 2
    assert second[3] < euler[3] / 8


def test_even_timesteps_feed_the_parasitic_mode_of_the_leapfrog_and_karras_levels_damp_it():
    # narrow Gaussians, across which the flow contracts as across the images of a trained model
    counts = [8, 16, 32]
    pairs = [
        [errors(solver, counts, grid, tau=0.05) for solver in ("leapfrog", "ddim")]
        for grid in (uniform_levels, karras_levels)
    ]
    even, karras = ([a / b for a, b in zip(*pair, strict=True)] for pair in pairs)
    assert even[0] > 1 and even[1] > 1
    assert karras[0] < 0.6 and karras[1] < 0.5 and karras[2] < 0.2


@pytest.mark.parametrize("solver", SOLVERS)
def test_per_sample_levels_equal_a_loop_over_samples(solver):
    generator = torch.Generator().manual_seed(2)
    z, *epsilons = torch.randn(4, 5, 2, 4, 4, generator=generator)
    path = torch.tensor(
        [[999, 500, 100, 0], [800, 779, 10, 9], [60, 40, 20, 0]] + [[9, 7, 2, 1]] * 2
    )

    def follow(z, epsilons, path):
        history = None
        for i, epsilon in enumerate(epsilons):
            z, history = SOLVERS[solver](z, epsilon, ALPHAS[path[i]], ALPHAS[path[i + 1]], history)
        return z

    batched = follow(z, epsilons, path.T)
    for i in range(5):
        single = follow(z[i : i + 1], [e[i : i + 1] for e in epsilons], path[i])
        assert torch.equal(batched[i : i + 1], single)


@pytest.mark.parametrize("solver", SOLVERS)
def test_straight_lines_are_followed_exactly(solver):
    # Constant epsilon: xbar is linear in s, and every consistent solver is exact.
    generator = torch.Generator().manual_seed(4)
    x0, epsilon = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    z, history = add_noise(x0, epsilon, torch.tensor(999), ALPHAS), None
    for t, t_next in [(999, 700), (700, 650), (650, 30), (30, 0)]:
        z, history = SOLVERS[solver](z, epsilon, ALPHAS[t], ALPHAS[t_next], history)
    torch.testing.assert_close(z, add_noise(x0, epsilon, torch.tensor(0), ALPHAS))
    z, _ = SOLVERS[solver](z, epsilon, ALPHAS[0], torch.tensor(1.0), history)
    torch.testing.assert_close(z, x0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_latents_are_stepped_in_float32(solver):
    z, epsilon = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(6)).bfloat16()
    half, history = SOLVERS[solver](z, epsilon, ALPHAS[999], ALPHAS[900], None)
    full, _ = SOLVERS[solver](z.float(), epsilon.float(), ALPHAS[999], ALPHAS[900], None)
    assert torch.equal(half, full.bfloat16())
    assert history is None or history.x_bar.dtype == torch.float32


def jump_errors(skip):
    """Mean error of one jump over the whole distillation grid, by solver."""
    mixture, generator = six_gaussians(), torch.Generator().manual_seed(7)
    grid = distillation_timesteps(skip)
    t_from = grid.repeat_interleave(1000 // len(grid))
    t_to = jump_target(t_from, skip)
    x0 = mixture.sample(len(t_from), generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    z = add_noise(x0, noise, t_from, ALPHAS)
    alpha, alpha_to = ALPHAS[t_from].sqrt()[:, None], ALPHAS[t_to].sqrt()[:, None]
    exact = alpha_to * mixture.solution(z / alpha, RATIOS[t_from], RATIOS[t_to], 60)
    found, calls = {}, {}
    for solver in SOLVERS:

        def model(z, t, name=solver):
            calls[name] = calls.get(name, 0) + 1
            assert t.dtype == torch.int64
            return mixture.epsilon_at(z, ALPHAS[t])

        jumped = one_jump(solver, model, z, t_from, t_to, ALPHAS)
        found[solver] = float((jumped - exact).norm(dim=1).mean())
    return found, calls


def test_one_jump_by_the_leapfrog_is_the_more_accurate():
    for skip, gain in ((20, 20), (50, 10), (100, 5)):
        found, calls = jump_errors(skip)
        assert calls == JUMP_EVALUATIONS
        assert found["paper"] == found["ddim"]
        assert found["leapfrog"] < found["ddim"] / gain, (skip, found)


def test_jumps_per_sample_equal_a_loop_and_single_timesteps():
    mixture = six_gaussians()
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    t_from = torch.tensor([999, 59, 2, 1])
    t_to = torch.tensor([979, 39, 0, 0])  # between 1 and 0 there is no inner timestep

    def model(z, t):
        return mixture.epsilon_at(z, ALPHAS[t])

    for solver in SOLVERS:
        jumped = one_jump(solver, model, z, t_from, t_to, ALPHAS)
        assert bool(jumped.isfinite().all())
        for i in range(4):
            one = one_jump(solver, model, z[i : i + 1], t_from[i], t_to[i], ALPHAS)
            torch.testing.assert_close(jumped[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="euler"):
        one_jump("euler", None, torch.zeros(1), torch.tensor(9), torch.tensor(0), ALPHAS)
