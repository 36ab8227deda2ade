"""The consistency function, its loss and its guidance (LLCM eqs. 4-7; LCM, arXiv 2310.04378)."""

import functools
import math

import torch
from torch import Tensor

from hpc_hipgen.diffusion.schedule import broadcast, compute_dtype, to_x0

GUIDANCE_WIDTH = 256
"""time_cond_proj_dim of students: width of the guidance embedding (LCM, arXiv 2310.04378)."""

TIMESTEP_SCALING, SIGMA_DATA = 10.0, 0.5
"""Of diffusers' LCMScheduler."""


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of timesteps t, float64, same shape; (1, 0) at t = 0.

    The same as diffusers' LCMScheduler uses, so that an exported student samples there.
    """
    scaled = torch.as_tensor(t).to(torch.float64) * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total**0.5


def consistency_function(
    output: Tensor, z: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction: str
) -> Tensor:
    """f(z, t) = c_skip(t) z + c_out(t) x0hat, from the network's output at (z, t).

    z (b, ...), t () or (b,) int64; x0hat = (z - sigma_t eps) / alpha_t, or the same from v.
    The result is in float32 (float64 for float64 latents); at t = 0 it is z.
    """
    c_skip, c_out = boundary_scalings(t)
    x0 = to_x0(output.to(compute_dtype(z)), z, t, alphas_cumprod, prediction)
    return broadcast(c_skip, z) * z + broadcast(c_out, z) * x0


def spatial_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all but the first axis, (b, ...) -> (b,), with an optional weight map.

    weight broadcasts to values, e.g. (b, 1, h, w), is not negative, and is normalised to mean 1
    within each sample, so that ones give the plain mean and a sample's loss does not depend on
    which others share its batch.
    """
    if weight is None:
        return values.flatten(1).mean(1)
    weight = weight.to(values).expand_as(values).flatten(1)
    return (weight * values.flatten(1)).mean(1) / weight.mean(1)


def pseudo_huber(
    prediction: Tensor,
    target: Tensor,
    c: float,
    weight: Tensor | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c over all elements d of prediction - target, in float32.

    Quadratic below c, linear above. weight is a map as in `spatial_mean`. Returns a scalar, or
    (b,) means with per_sample. Raises ValueError unless c > 0.
    """
    if not c > 0:
        raise ValueError(f"pseudo_huber: c must be positive, not {c}")
    dtype = compute_dtype(prediction)
    difference = prediction.to(dtype) - target.to(dtype)
    # d^2 / (sqrt(d^2 + c^2) + c) is the same number without the cancellation at small d.
    square = difference**2
    losses = spatial_mean(square / ((square + c**2).sqrt() + c), weight)
    return losses if per_sample else losses.mean()


def guided_epsilon(conditional: Tensor, null: Tensor, w: Tensor | float) -> Tensor:
    """(1 + w) eps(z, c) - w eps(z, null), like the inputs; w scalar or (b,).

    w = 0 is no guidance; diffusers' guidance_scale is 1 + w.
    """
    w = broadcast(torch.as_tensor(w), conditional)
    return ((1.0 + w) * conditional - w * null).to(conditional.dtype)


@functools.cache
def _frequencies(count: int, device: torch.device) -> Tensor:
    """From 1 to 1/10000. Kept: whenever something is sent to a GPU, the host waits for it."""
    step = torch.tensor(math.log(10000.0)) / (count - 1)
    return torch.exp(torch.arange(count, dtype=torch.float32) * -step).to(device)


def guidance_embedding(w: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of guidance weights w (b,) -> (b, dim), sines then cosines.

    The network's `timestep_cond`; the same numbers as
    StableDiffusionPipeline.get_guidance_scale_embedding gives at sampling, which is called there
    with w = guidance_scale - 1. dim is the UNet's time_cond_proj_dim, at least 4.
    """
    if dim < 4:
        raise ValueError(f"guidance_embedding: dim must be at least 4, not {dim}")
    phase = (w * 1000.0).float()[:, None] * _frequencies(dim // 2, w.device)
    embedding = torch.cat([phase.sin(), phase.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
