"""Sampling loops that stock schedulers and pipelines are compared with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hpc_hipgen.diffusion.sampling import follow, seed_generators
from hpc_hipgen.diffusion.schedule import add_noise, distillation_timesteps
from hpc_hipgen.diffusion.solvers import Model


def sample_ode(
    model: Model,
    noise: Tensor,
    timesteps: Tensor,
    solver: str,
    alphas_cumprod: Tensor,
    final_abar: float | None = None,
) -> Tensor:
    """The ODE from noise (b, ...) through falling int64 timesteps.

    The last step ends at final_abar, by default that of t = 0 as in Stable Diffusion
    (set_alpha_to_one = False); 1.0 ends at s = 0.
    """
    final = alphas_cumprod[:1] if final_abar is None else alphas_cumprod.new_tensor([final_abar])
    return follow(model, noise, timesteps, torch.cat([alphas_cumprod[timesteps], final]), solver)


def lcm_timesteps(steps: int, skip: int) -> Tensor:
    """The timesteps of `steps` of consistency sampling, (steps,) int64, falling from 999.

    Spread evenly over the distillation grid by index.
    """
    grid = distillation_timesteps(skip).flip(0)
    return grid[torch.arange(steps) * len(grid) // steps]


@torch.no_grad()
def sample_lcm(
    f: Callable[[Tensor, Tensor], Tensor],
    seeds: Sequence[int],
    shape: Sequence[int],
    timesteps: Tensor,
    alphas_cumprod: Tensor,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), (len(seeds), *shape).

    f(z, t) -> clean latents, t of shape (). Before each step but the first the result is noised
    again to that step's level.
    """
    generators = seed_generators(seeds)

    def noise() -> Tensor:
        return torch.cat([torch.randn((1, *shape), generator=g) for g in generators])

    x0 = f(noise(), timesteps[0])
    for t in timesteps[1:]:
        x0 = f(add_noise(x0, noise(), t, alphas_cumprod), t)
    return x0
