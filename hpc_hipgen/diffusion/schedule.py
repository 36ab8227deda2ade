"""The noise schedule of Stable Diffusion, its timestep sets, and what a network may predict."""

import torch
from torch import Tensor

from hpc_hipgen.config.base import BETA_END, BETA_START, TIMESTEPS, leading_timesteps

PREDICTION_TYPES = ("epsilon", "v_prediction")


def scaled_linear_alphas_cumprod(
    n: int = TIMESTEPS, beta_start: float = BETA_START, beta_end: float = BETA_END
) -> Tensor:
    """Cumulative products abar_t of 1 - beta_t, (n,) float64, decreasing, within (0, 1).

    The betas are the squares of an even grid between the square roots of their ends, as in
    latent diffusion (Rombach et al. 2022). Kept in float64: 1 - abar loses digits near t = 0.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def compute_dtype(z: Tensor) -> torch.dtype:
    """The dtype of arithmetic on latents z: float64 stays, all else is done in float32."""
    return torch.promote_types(z.dtype, torch.float32)


def broadcast(values: Tensor, z: Tensor) -> Tensor:
    """Shape per-sample values (b,), or one value (), so that they broadcast over z (b, ...).

    The result has z's number of axes, so that half precision operands are promoted to its
    dtype, `compute_dtype(z)`; it is on z's device.
    """
    values = torch.as_tensor(values).to(device=z.device, dtype=compute_dtype(z))
    assert values.ndim <= 1, f"one value or one per sample, not shape {tuple(values.shape)}"
    return values.reshape(-1, *(1,) * (z.ndim - 1))


def signal_and_noise(abar: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of levels abar, () or (b,), broadcast over z; roots taken in float64."""
    abar = torch.as_tensor(abar, dtype=torch.float64)
    return broadcast(abar.sqrt(), z), broadcast((1.0 - abar).sqrt(), z)


def alpha_sigma(t: Tensor | int, alphas_cumprod: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) of integer timesteps t, () or (b,), broadcast over the latents z."""
    return signal_and_noise(alphas_cumprod[t], z)


def noise_to_signal(alphas_cumprod: Tensor) -> Tensor:
    """s = sigma / alpha of levels abar, float64, any shape; 0 where abar is 1."""
    abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    return ((1.0 - abar) / abar).sqrt()


def nearest_timestep(s: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The integer timesteps whose noise-to-signal ratio is nearest to s (any shape)."""
    table = noise_to_signal(alphas_cumprod)
    above = torch.searchsorted(table, s.to(table)).clamp(1, len(table) - 1)
    below = above - 1
    return torch.where(s - table[below] <= table[above] - s, below, above)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """z_t = alpha_t x0 + sigma_t noise, in x0's dtype; t () or (b,)."""
    alpha, sigma = alpha_sigma(t, alphas_cumprod, x0)
    return (alpha * x0 + sigma * noise).to(x0.dtype)


def to_noise(z: Tensor, x0: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise that makes z_t of x0, in x0's dtype: `add_noise` undone; t () or (b,)."""
    alpha, sigma = alpha_sigma(t, alphas_cumprod, x0)
    return ((z - alpha * x0) / sigma).to(x0.dtype)


def training_target(
    x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction: str
) -> Tensor:
    """What the network has to predict: the noise, or v = alpha noise - sigma x0."""
    check_prediction(prediction)
    if prediction == "epsilon":
        return noise
    alpha, sigma = alpha_sigma(t, alphas_cumprod, x0)
    return (alpha * noise - sigma * x0).to(x0.dtype)


def to_epsilon(
    output: Tensor, z: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction: str
) -> Tensor:
    """The noise that a network's output (prediction type `prediction`) stands for at (z, t)."""
    check_prediction(prediction)
    if prediction == "epsilon":
        return output
    alpha, sigma = alpha_sigma(t, alphas_cumprod, z)
    return (alpha * output + sigma * z).to(output.dtype)


def to_x0(output: Tensor, z: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """The clean latents that a network's output stands for at (z, t), in `compute_dtype(z)`."""
    check_prediction(prediction)
    alpha, sigma = alpha_sigma(t, alphas_cumprod, z)
    if prediction == "epsilon":
        return (z - sigma * output) / alpha
    return alpha * z - sigma * output


def min_snr_weight(t: Tensor, alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weights of the squared error of prediction at t, same shape as t, float32.

    They make the loss min(SNR, gamma) times the squared error of x0, SNR = abar / (1 - abar)
    (Min-SNR, Hang et al. 2023): divided by SNR for epsilon, by SNR + 1 for v.
    """
    check_prediction(prediction)
    if not gamma > 0:
        raise ValueError(f"min_snr_weight: gamma must be positive, not {gamma}")
    abar = alphas_cumprod[t]
    snr = abar / (1.0 - abar)
    weight = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1.0)
    return weight.float()


def uniform_timesteps(steps: int, n: int = TIMESTEPS, offset: int = 1) -> Tensor:
    """The timesteps of Stable Diffusion's DDIM ("leading" spacing), (steps,) int64, falling.

    Multiples of n // steps plus the offset; the same as diffusers' DDIMScheduler visits with
    steps_offset = 1. Raises ValueError if they do not fit below n.
    """
    if not 1 <= steps <= n:
        raise ValueError(f"uniform_timesteps: steps must be within 1..{n}, not {steps}")
    timesteps = leading_timesteps(steps, n, offset)
    if timesteps[0] >= n:
        raise ValueError(f"uniform_timesteps: {steps} steps with offset {offset} pass {n - 1}")
    return torch.tensor(timesteps)


def trailing_timesteps(steps: int, n: int = TIMESTEPS) -> Tensor:
    """Timesteps evenly spaced from n - 1 down, (steps,) int64.

    As diffusers' "trailing" spacing, but that ties may be rounded the other way.
    """
    grid = torch.arange(steps, 0, -1, dtype=torch.float64) * (n / steps)
    return grid.round().long() - 1


def karras_timesteps(
    steps: int, alphas_cumprod: Tensor, rho: float = 7.0, to_one: bool = False
) -> tuple[Tensor, Tensor]:
    """Fractional timesteps (steps,) float32 and levels abar (steps + 1,) float64 of a Karras grid.

    Evenly spaced in s^(1/rho) from the noisiest level (Karras et al. 2022, arXiv 2206.00364,
    eq. 5). The last level, where the last step ends, is that of t = 0, which takes no evaluation;
    with `to_one` it is 1, and the evaluation before it is at t = 0.
    """
    table = noise_to_signal(alphas_cumprod)
    ends = table[[-1, 0]] ** (1.0 / rho)
    ramp = torch.linspace(0.0, 1.0, steps if to_one else steps + 1, dtype=torch.float64)[:steps]
    s = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    # log s is nearly linear in t between neighbouring timesteps, at all levels.
    timesteps = interpolate(s.log(), table.log(), torch.arange(len(table)).to(s))
    final = s.new_tensor([1.0 if to_one else float(alphas_cumprod[0])])
    return timesteps.float(), torch.cat([1.0 / (1.0 + s**2), final])


def level_at(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """abar at timesteps t of any shape, whole or fractional (log s is interpolated); float64."""
    table = noise_to_signal(alphas_cumprod).log()
    log_s = interpolate(t.to(table), torch.arange(len(table)).to(table), table)
    return 1.0 / (1.0 + (2.0 * log_s).exp())


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear interpolation of the points (xs rising, ys) at x, clamped to the ends."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    fraction = ((x - xs[left]) / (xs[right] - xs[left])).clamp(0.0, 1.0)
    return ys[left] + fraction * (ys[right] - ys[left])


def distillation_timesteps(skip: int) -> Tensor:
    """The grid on which a consistency model is distilled, (TIMESTEPS // skip,) int64, rising.

    skip-1, 2 skip-1, ...: the grid of diffusers' LCMScheduler with original_inference_steps =
    TIMESTEPS // skip, for a skip that divides TIMESTEPS (ValueError otherwise).
    """
    if not 1 <= skip <= TIMESTEPS or TIMESTEPS % skip:
        raise ValueError(f"distillation_timesteps: skip must divide {TIMESTEPS}, not {skip}")
    return torch.arange(1, TIMESTEPS // skip + 1) * skip - 1


def jump_target(t: Tensor, skip: int) -> Tensor:
    """t_n for t_{n+k} = t: skip timesteps cleaner, but never below 0 (the boundary of f)."""
    return (t - skip).clamp(min=0)


def check_prediction(prediction: str) -> None:
    """Raise ValueError unless the prediction type is one of PREDICTION_TYPES."""
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"prediction type must be one of {PREDICTION_TYPES}, not {prediction!r}")
