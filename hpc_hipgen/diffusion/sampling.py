"""Noise with one seed per image, and the probability-flow ODE by any solver.

An image's random numbers come from its own CPU generator, in float32 and in the order in which
diffusers' pipelines draw them from `generator=[torch.Generator().manual_seed(s), ...]`: first
the initial noise, then that of each step. So an image depends on its seed only, not on the batch
or the device, and a stock pipeline draws the same one.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hpc_hipgen.diffusion.solvers import SOLVERS, Model


def seed_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Initial noise, (len(seeds), *shape) float32 on the CPU; row i depends on seeds[i] only."""
    return torch.cat([torch.randn((1, *shape), generator=g) for g in seed_generators(seeds)])


@torch.no_grad()
def follow(
    model: Model, noise: Tensor, timesteps: Iterable[Tensor], levels: Tensor, solver: str
) -> Tensor:
    """Integrates the ODE from noise (b, ...) to clean latents, like noise.

    One evaluation of model(z, t) -> epsilon, t of shape (), at each of the n falling timesteps,
    whole or fractional, which are only handed to the model. Their levels abar are `levels`
    (n + 1,), the last being where the last step ends.
    """
    z, history = noise, None
    for t, abar, abar_next in zip(timesteps, levels[:-1], levels[1:], strict=True):
        z, history = SOLVERS[solver](z, model(z, t), abar, abar_next, history)
    return z
