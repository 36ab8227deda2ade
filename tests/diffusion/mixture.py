"""A mixture of Gaussians whose diffusion score is exact, and a fine reference solution."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hpc_hipgen.diffusion.schedule import noise_to_signal


def karras(s_from: Tensor, s_to: Tensor, steps: int) -> Tensor:
    """Levels s, (steps + 1, b), evenly spaced in s^(1/7)."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None]
    a, b = s_from.reshape(1, -1) ** (1 / 7), s_to.reshape(1, -1) ** (1 / 7)
    return (a + ramp * (b - a)) ** 7


@dataclass(frozen=True)
class Mixture:
    """Equal Gaussians of SD tau at means (m, d), all in float64."""

    means: Tensor
    tau: float

    def epsilon(self, x_bar: Tensor, s: Tensor) -> Tensor:
        """d xbar / d s at xbar (b, d), s () or (b,)."""
        s = s.reshape(-1, 1)
        variance = s**2 + self.tau**2
        distance = ((x_bar[:, None] - self.means) ** 2).sum(-1)
        responsibility = torch.softmax(-distance / (2 * variance), dim=1)
        return (x_bar - responsibility @ self.means) * s / variance

    def epsilon_at(self, z: Tensor, abar: Tensor) -> Tensor:
        """The same from latents z = sqrt(abar) xbar, abar () or (b,)."""
        return self.epsilon(z / abar.sqrt().reshape(-1, 1), noise_to_signal(abar))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n clean points (n, d)."""
        which = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.tau * noise

    def solution(self, x_bar: Tensor, s_from: Tensor, s_to: Tensor, steps: int) -> Tensor:
        """Runge-Kutta 4 from s_from to s_to in `steps` Karras steps."""
        grid = karras(s_from, s_to, steps)
        for s, s_next in pairwise(grid):
            h = s_next - s
            middle, h_ = s + h / 2, h[:, None]
            k1 = self.epsilon(x_bar, s)
            k2 = self.epsilon(x_bar + h_ / 2 * k1, middle)
            k3 = self.epsilon(x_bar + h_ / 2 * k2, middle)
            k4 = self.epsilon(x_bar + h_ * k3, s_next)
            x_bar = x_bar + h_ / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x_bar


def six_gaussians(tau: float = 0.25) -> Mixture:
    """Six standard normal means in eight dimensions, always the same ones."""
    generator = torch.Generator().manual_seed(3)
    return Mixture(torch.randn(6, 8, generator=generator, dtype=torch.float64), tau)
