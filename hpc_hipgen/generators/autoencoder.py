"""The KL autoencoder that all latent diffusion models here share (diffusers AutoencoderKL)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hpc_hipgen.config import Autoencoder, DiscreteVAE, Experiment, training_of
from hpc_hipgen.diffusion.consistency import spatial_mean
from hpc_hipgen.generators.focus import hip_focus, hip_windows
from hpc_hipgen.generators.view_cache import ViewEncoder, cached
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import FilmTask


def build_autoencoder(config: Autoencoder, resolution: int) -> AutoencoderKL:
    """A small autoencoder of Stable Diffusion's class, with random weights."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def stride(autoencoder: AutoencoderKL) -> int:
    """Pixels per latent."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def to_pixels(images: np.ndarray) -> Tensor:
    """Grey views (b, n, n) uint8 to (b, 3, n, n) float32 in -1..1."""
    pixels = torch.from_numpy(images).float().div(127.5).sub(1)[:, None]
    # Three contiguous channels: one channel would count as channels-last, which is slow on CPUs.
    return pixels.expand(-1, 3, -1, -1).contiguous()


def to_images(pixels: Tensor) -> np.ndarray:
    """The inverse of `to_pixels`: mean of the channels, clipped, (b, n, n) uint8."""
    grey = pixels.float().mean(1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


class AutoencoderLoss(nn.Module):
    """The autoencoder with its loss."""

    def __init__(
        self, autoencoder: AutoencoderKL, kl_weight: float, scale_equivariance: float
    ) -> None:
        """Weights of the error, 1, and of what is added to it.

        Args:
            autoencoder: the network.
            kl_weight: of the divergence, summed over a latent's elements.
            scale_equivariance: of the error that latents of half the size make of views of half
                the size (Skorokhodov et al. 2025, arXiv 2502.14831). What is fine in latents but
                not in pixels is hard to denoise.
        """
        super().__init__()
        self.autoencoder = autoencoder
        self.kl_weight, self.scale_equivariance = kl_weight, scale_equivariance

    def forward(self, pixels: Tensor, noise: Tensor, weight: Tensor) -> tuple[Tensor, dict]:
        """Per-image losses of pixels (b, 3, n, n) with weight (b, 1, n, n) and latent noise."""
        posterior = self.autoencoder.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        error = self._error(latents, pixels)
        divergence = posterior.kl()
        losses = spatial_mean(error, weight) + self.kl_weight * divergence
        scalars = {"mse": error.mean(), "kl": divergence.mean()}
        if self.scale_equivariance:
            half = self._error(*(F.avg_pool2d(maps, 2) for maps in (latents, pixels)))
            losses = losses + self.scale_equivariance * spatial_mean(half, F.avg_pool2d(weight, 2))
            scalars["half_size_mse"] = half.mean()
        return losses, scalars

    def _error(self, latents: Tensor, pixels: Tensor) -> Tensor:
        """Squared: an edge in the wrong place weighs more than the grain of the film does."""
        return (self.autoencoder.decode(latents).sample.float() - pixels).square()


class AutoencoderTask(FilmTask):
    """The autoencoder for the training loop."""

    reads_views = True

    def __init__(self, config: Experiment, films: Films) -> None:
        """`films`: the training split."""
        super().__init__(films)
        self.section = config.section("autoencoder", Autoencoder)
        resolution = config.data.resolution
        torch.manual_seed(config.seed)
        self.autoencoder = build_autoencoder(self.section, resolution)
        self.module = AutoencoderLoss(
            self.autoencoder, self.section.kl_weight, self.section.scale_equivariance
        )
        average = WeightAverage.for_export(self.autoencoder, training_of(self.section))
        self.averages = {"export": average}
        size = (self.section.window or resolution) // stride(self.autoencoder)
        self.latent_shape = (self.section.latent_channels, size, size)

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Pixels, latent noise and focus of the views, or of a window of each."""
        pixels, weight = training_windows(self.films, self.section, indices, random)
        noise = random.normal("posterior", *self.latent_shape)
        return {"pixels": pixels, "noise": noise, "weight": weight}

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a diffusers folder whose latents have mean 0 and variance 1 in each channel."""
        autoencoder = self.averages["export"].module.float().cpu()
        sample = encode(autoencoder, self.films.images[:: max(1, self.size // 256)])
        mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3))
        standardise_latents(autoencoder, mean, std)
        autoencoder.save_pretrained(folder)
        return {"latent_std_before": float(std.mean())}


def training_windows(
    films: Films, section: Autoencoder | DiscreteVAE, indices: np.ndarray, random: ImageRandom
) -> tuple[Tensor, Tensor]:
    """What an autoencoder sees in training: views, or windows of n pixels of them.

    Returns:
        pixels (b, 3, n, n) and the loss weight of each, (b, 1, n, n).
    """
    resolution = films.images.shape[-1]
    landmarks = torch.from_numpy(films.landmarks[indices])
    pixels = to_pixels(films.images[indices])
    weight = hip_focus(landmarks, resolution, resolution, section.hip_weight)
    if section.window and section.window < resolution:
        draws = random.uniform("window", 4)
        corners = hip_windows(landmarks, section.window, resolution, draws)
        pixels, weight = (_cut(maps, corners, section.window) for maps in (pixels, weight))
    return pixels, weight


def _cut(maps: Tensor, corners: Tensor, size: int) -> Tensor:
    """Windows (b, c, size, size) of maps (b, c, n, n) at corners (b, 2), x and y."""
    places = zip(maps, corners.tolist(), strict=True)
    return torch.stack([m[:, y : y + size, x : x + size] for m, (x, y) in places])


@torch.no_grad()
def standardise_latents(autoencoder: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Folds (z - mean) / std into the 1x1 convolutions at both ends of the latent space.

    Diffusion assumes latents of unit variance; a stock pipeline knows one scaling factor for all
    channels. The images that the autoencoder makes stay the same.
    """
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= std[None, :, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[channels:] -= 2 * std.log()


def views_at_once(resolution: int) -> int:
    """Views of so many pixels that an autoencoder takes at once: no more memory than 32 of 256.

    Of Stable Diffusion 1.5's that is some 6 GiB, beside the weights (`performance.simulation`).
    """
    return max(1, min(32, 32 * 256**2 // resolution**2))


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: np.ndarray, batch: int | None = None) -> Tensor:
    """Scaled latents (n, c, h, w) float32 on the CPU of views (n, r, r) uint8; no noise.

    `batch`: views at once, by default those of `views_at_once`.
    """
    device = autoencoder.device
    batch = batch or views_at_once(images.shape[1])
    parts = []
    for start in range(0, len(images), batch):
        pixels = to_pixels(images[start : start + batch]).to(device, autoencoder.dtype)
        parts.append(autoencoder.encode(pixels).latent_dist.mode().float().cpu())
    return torch.cat(parts) * autoencoder.config.scaling_factor


def cached_latents(autoencoder: AutoencoderKL, films: Films, cache: Path) -> Tensor:
    """Scaled latents (n, c, h, w) float32 of all views, memory-mapped; see `view_cache.cached`."""
    batch, factor = views_at_once(films.images.shape[1]), str(autoencoder.config.scaling_factor)
    return cached(ViewEncoder(autoencoder, encode, batch, factor, "the autoencoder"), films, cache)


@torch.no_grad()
def round_trip(autoencoder: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 after encoding and decoding."""
    batch = views_at_once(images.shape[1])
    parts = []
    for start in range(0, len(images), batch):
        latents = encode(autoencoder, images[start : start + batch], batch)
        latents = latents.to(autoencoder.device, autoencoder.dtype)
        latents = latents / autoencoder.config.scaling_factor
        parts.append(to_images(autoencoder.decode(latents).sample))
    return np.concatenate(parts)
