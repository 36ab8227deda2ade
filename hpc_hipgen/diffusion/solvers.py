"""Solvers of the probability-flow ODE, as pure functions of one signature.

With xbar = z / alpha and s = sigma / alpha the ODE is d xbar / d s = eps(xbar, s), integrated
from s of pure noise down to (almost) 0. A solver makes one step from level abar to abar_next,
given the noise that the network predicts at (z, abar). Levels are tensors of shape (), or (b,)
when each sample has its own. What a multistep method remembers travels in `History`. Half
precision latents are stepped in float32 and handed back in their own dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_hipgen.diffusion.schedule import (
    broadcast,
    compute_dtype,
    nearest_timestep,
    noise_to_signal,
    signal_and_noise,
)


@dataclass(frozen=True)
class History:
    """The point before the present one: xbar (b, ...) and s, () or (b,) float64."""

    x_bar: Tensor
    s: Tensor


Model = Callable[[Tensor, Tensor], Tensor]
"""model(z (b, ...), t () or (b,) int64) -> the predicted noise, like z."""

Solver = Callable[[Tensor, Tensor, Tensor, Tensor, History | None], tuple[Tensor, History | None]]
"""solver(z, epsilon, abar, abar_next, history) -> (z_next, history for the next step)."""


def ddim(
    z: Tensor, epsilon: Tensor, abar: Tensor, abar_next: Tensor, history: History | None = None
) -> tuple[Tensor, None]:
    """Deterministic DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0).

    It is Euler's method in (xbar, s): first order, no memory.
    """
    alpha, sigma = signal_and_noise(abar, z)
    alpha_next, sigma_next = signal_and_noise(abar_next, z)
    x0 = (z - sigma * epsilon) / alpha
    return (alpha_next * x0 + sigma_next * epsilon).to(z.dtype), None


def paper(
    z: Tensor, epsilon: Tensor, abar: Tensor, abar_next: Tensor, history: History | None = None
) -> tuple[Tensor, None]:
    """The published leapfrog of the Leapfrog Latent Consistency Model, eqs. 8-9, literally.

    Position x = alpha_next x0hat, velocity v = sigma_next epshat, half-step velocity 2 v, and
    one position update over h = 1/2. Doubling and halving are exact in binary, so the result is
    that of `ddim` to the bit: this is DDIM under another name, and first order.
    """
    h = 0.5
    alpha, sigma = signal_and_noise(abar, z)
    alpha_next, sigma_next = signal_and_noise(abar_next, z)
    x0_hat = (z - sigma * epsilon) / alpha
    position = alpha_next * x0_hat
    velocity = sigma_next * epsilon
    velocity_half = 2.0 * velocity
    return (position + h * velocity_half).to(z.dtype), None


def leapfrog(
    z: Tensor, epsilon: Tensor, abar: Tensor, abar_next: Tensor, history: History | None = None
) -> tuple[Tensor, History]:
    """The two-step leapfrog (explicit midpoint rule) for uneven steps, in (xbar, s).

    A parabola through the present point and the one before, with the present slope:
    c = (x_prev - x + eps h_prev) / h_prev^2, x_next = x + eps h + c h^2, where h_prev and h are
    the last step and this one in s (both negative). For even steps it is the classical
    x_next = x_prev + 2 h eps. Second order for one evaluation a step; the first step, which has
    no history, is Euler's.

    Take steps that shrink in s, as a Karras grid's do. A two-step method has a second, parasitic
    mode, of alternating sign here. With q what a step multiplies a direction of the true
    solution by, it multiplies the parasitic one by -(h / h_prev)^2 / q (the product of the roots),
    and q is about s_next / s across the images that the model knows. Over a Karras grid of
    rho = 7 that damps it by (s_next / s)^(5/7); over the last steps of even timesteps, which do
    not shrink, it grows, by more than tenfold in the step to t = 0 (docs/log.md, 2026-11-23).
    """
    alpha, _ = signal_and_noise(abar, z)
    alpha_next, _ = signal_and_noise(abar_next, z)
    s = noise_to_signal(abar).to(z.device)
    h = noise_to_signal(abar_next).to(z.device) - s
    x_bar = z / alpha
    x_next = x_bar + broadcast(h, z) * epsilon
    if history is not None:
        h_prev = s - history.s
        # c h^2 with the ratio of steps taken in float64, before it meets the latents.
        curvature = history.x_bar - x_bar + broadcast(h_prev, z) * epsilon
        x_next = x_next + broadcast((h / h_prev) ** 2, z) * curvature
    return (alpha_next * x_next).to(z.dtype), History(x_bar, s)


SOLVERS: dict[str, Solver] = {"paper": paper, "leapfrog": leapfrog, "ddim": ddim}

JUMP_EVALUATIONS: dict[str, int] = {"paper": 1, "leapfrog": 2, "ddim": 1}
"""Network evaluations that `one_jump` spends, by solver."""


def one_jump(
    solver: str, model: Model, z: Tensor, t_from: Tensor, t_to: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """One jump t_from -> t_to without history, as distillation makes it: z at t_to, like z.

    t_from and t_to are int64, () or (b,), t_to < t_from. `paper` and `ddim` make one step;
    `leapfrog` makes the second-order step of two evaluations of `midpoint_jump`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {tuple(SOLVERS)}, not {solver!r}")
    # not `assert`, for which the host would wait for the GPU in every step
    torch._assert_async((t_to < t_from).all(), "a jump goes to a cleaner level")
    if solver == "leapfrog":
        return midpoint_jump(model, z, t_from, t_to, alphas_cumprod)
    abar, abar_next = alphas_cumprod[t_from], alphas_cumprod[t_to]
    return SOLVERS[solver](z, model(z, t_from), abar, abar_next, None)[0]


def midpoint_jump(
    model: Model, z: Tensor, t_from: Tensor, t_to: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """A midpoint step of two evaluations, t_from -> t_to; see `one_jump`.

    Networks know integer timesteps only, so the inner point is the timestep nearest to the
    middle in s, and its own s is used: with theta = h_inner / h the step is
    x + h ((1 - w) eps_1 + w eps_2), w = 1 / (2 theta), the two-stage Runge-Kutta family, second
    order for every theta. At theta = 1/2 it equals the two leapfrog sub-steps (Euler, then
    leapfrog); where no timestep lies between, theta = 1 and it is Heun's.

    Mean error of a jump of 20 timesteps on mixtures of 6 Gaussians in 8 dimensions of SD 0.25
    (0.1), exact score: DDIM .00237 (.00217), this .00003 (.00011), plain midpoint
    x + h eps_2 .00008 (.00015), the two leapfrog sub-steps .00006 (.00009), this with the middle
    taken in t .00006 (.00025) or in log s .00005 (.00013).
    """
    s_from, s_to = noise_to_signal(alphas_cumprod[t_from]), noise_to_signal(alphas_cumprod[t_to])
    t_inner = nearest_timestep((s_from + s_to) / 2, alphas_cumprod)
    t_inner = torch.maximum(t_to, torch.minimum(t_inner, t_from - 1))
    h = s_to - s_from
    h_inner = noise_to_signal(alphas_cumprod[t_inner]) - s_from
    slope = model(z, t_from).to(compute_dtype(z))
    alpha, _ = signal_and_noise(alphas_cumprod[t_from], z)
    alpha_inner, _ = signal_and_noise(alphas_cumprod[t_inner], z)
    alpha_to, _ = signal_and_noise(alphas_cumprod[t_to], z)
    x_bar = z / alpha
    z_inner = (alpha_inner * (x_bar + broadcast(h_inner, z) * slope)).to(z.dtype)
    slope_inner = model(z_inner, t_inner).to(compute_dtype(z))
    weight = broadcast(h / (2.0 * h_inner), z)
    x_to = x_bar + broadcast(h, z) * (slope + weight * (slope_inner - slope))
    return (alpha_to * x_to).to(z.dtype)
