"""Sampling loops with one seed per image: the ODE by any solver, and multistep consistency.

An image's random numbers come from its own CPU generator, in float32 and in the order in which
diffusers' pipelines draw them from `generator=[torch.Generator().manual_seed(s), ...]`: first
the initial noise, then that of each step. So an image depends on its seed only, not on the batch
or the device, and a stock pipeline draws the same one.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hpc_hipgen.diffusion.schedule import add_noise
from hpc_hipgen.diffusion.solvers import SOLVERS, Model


def seed_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """The next standard normal numbers of each generator, (b, *shape) float32 on the CPU."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Initial noise, (len(seeds), *shape) float32 on the CPU; row i depends on seeds[i] only."""
    return draw_noise(seed_generators(seeds), shape)


@torch.no_grad()
def sample_ode(
    model: Model,
    noise: Tensor,
    timesteps: Tensor,
    solver: str,
    alphas_cumprod: Tensor,
    final_abar: Tensor | float | None = None,
) -> Tensor:
    """Integrate the probability-flow ODE from noise (b, ...) to clean latents, like noise.

    One evaluation of model(z, t) -> epsilon, t of shape (), at each of the falling int64
    timesteps; the last step ends at final_abar, by default that of t = 0 as in Stable Diffusion
    (set_alpha_to_one = False); 1.0 ends at s = 0. Raises ValueError for an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {tuple(SOLVERS)}, not {solver!r}")
    final = alphas_cumprod[:1] if final_abar is None else alphas_cumprod.new_tensor([final_abar])
    return follow(model, noise, timesteps, torch.cat([alphas_cumprod[timesteps], final]), solver)


@torch.no_grad()
def follow(
    model: Model, noise: Tensor, timesteps: Iterable[Tensor], levels: Tensor, solver: str
) -> Tensor:
    """The same through given levels abar (n + 1,), the last being where the last step ends.

    The n timesteps, whole or fractional, are only handed to the model.
    """
    z, history = noise, None
    for t, abar, abar_next in zip(timesteps, levels[:-1], levels[1:], strict=True):
        z, history = SOLVERS[solver](z, model(z, t), abar, abar_next, history)
    return z


@torch.no_grad()
def sample_lcm(
    f: Callable[[Tensor, Tensor], Tensor],
    seeds: Sequence[int],
    shape: Sequence[int],
    timesteps: Tensor,
    alphas_cumprod: Tensor,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), (len(seeds), *shape).

    f(z, t) -> clean latents, t of shape (); timesteps fall, as from `lcm_timesteps`. Before each
    step but the first the result is noised again to that step's level. Runs on the device of
    alphas_cumprod, in float32.
    """
    generators = seed_generators(seeds)
    device = alphas_cumprod.device
    x0 = f(draw_noise(generators, shape).to(device), timesteps[0])
    for t in timesteps[1:]:
        noise = draw_noise(generators, shape).to(device)
        x0 = f(add_noise(x0, noise, t, alphas_cumprod), t)
    return x0
