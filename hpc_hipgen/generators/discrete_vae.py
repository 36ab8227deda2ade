"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092): images as tokens.

The encoder gives a distribution over the entries of a codebook at each place of a grid. In
training the decoder sees a Gumbel-softmax of it (arXiv 1611.01144, 1611.00712), a mixture of
entries that becomes a single one as the temperature falls; afterwards it sees the most probable
entry, and its number is the image's token there. So it does in the last part of the training
already, where gradients pass as if it were the mixture (straight through).

DALL-E draws entries by adding Gumbel noise all along. With that a small network spends its training
on being robust to draws that are never made afterwards: half of the noise-free one's codes were
used, and angles came back flattened (docs/log.md, 2026-11-26). `noise` has it; by default there is
none.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.config import DiscreteVAE, Experiment, training_of
from hpc_hipgen.diffusion.consistency import spatial_mean
from hpc_hipgen.generators.autoencoder import (
    to_images,
    to_pixels,
    training_windows,
    views_at_once,
)
from hpc_hipgen.generators.view_cache import ViewEncoder, cached
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.task import FilmTask, parameter_count

USAGE_VIEWS = 4096
"""Training views, evenly spread, whose codes an export tells of."""

USAGE_IMAGES = 500
"""Images over which the use of the codebook is counted in training."""


class DiscreteAutoencoder(ModelMixin, ConfigMixin):
    """Encoder, codebook and decoder; convolutions only, so it takes any multiple of its stride."""

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        codes: int,
        code_width: int,
    ) -> None:
        """`codes` entries of `code_width` channels; other arguments as of AutoencoderKL."""
        super().__init__()
        levels = len(block_out_channels)
        shape = {
            "block_out_channels": block_out_channels,
            "layers_per_block": layers_per_block,
            "norm_num_groups": 8,
            "mid_block_add_attention": False,
        }
        down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
        self.encoder = Encoder(3, codes, down, double_z=False, **shape)
        # As a layer on shares, not a table: a parameter that is read past its module is missing
        # where ZeRO 3 has it on other ranks.
        self.codebook = nn.Conv2d(codes, code_width, 1, bias=False)
        nn.init.normal_(self.codebook.weight)
        self.decoder = Decoder(code_width, 3, up, **shape)

    @property
    def stride(self) -> int:
        """Pixels per token."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (b, codes, h, w) float32 of pixels (b, 3, h * stride, w * stride) in -1..1."""
        return self.encoder(pixels).float()

    def decode(self, shares: Tensor) -> Tensor:
        """Pixels (b, 3, ...) of a mixture of entries, shares (b, codes, h, w) with sum 1."""
        return self.decoder(self.codebook(shares))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Pixels (b, 3, h * stride, w * stride) of codes (b, h, w), integers."""
        shares = F.one_hot(codes.long(), self.config.codes).movedim(-1, 1)
        return self.decode(shares.to(self.dtype).contiguous())


def temperature_at(images: Tensor, section: DiscreteVAE) -> Tensor:
    """Temperature of the Gumbel-softmax at clock times `images` (b,), float32, the same shape.

    A half cosine from the first to the second temperature, which then stays (appendix A.2 of
    DALL-E has it so, from 1 to 1/16).
    """
    start, end = section.temperature
    progress = (images / (section.anneal * training_of(section).images)).clamp(max=1)
    return end + (start - end) * 0.5 * (1 + torch.cos(math.pi * progress))


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers of uniform ones in [0, 1), the same shape."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny)))


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """A relaxed draw from softmax(logits): shares (b, k, h, w) that sum to 1 over k.

    Args:
        logits: (b, k, h, w).
        noise: Gumbel numbers of that shape.
        temperature: (b,); towards 0 the shares become one-hot, at the largest logits + noise,
            which is an exact draw (the Gumbel-max trick).
    """
    return F.softmax((logits + noise) / temperature[:, None, None, None], dim=1)


def straight_through(shares: Tensor, hard: Tensor) -> Tensor:
    """Shares (b, k, h, w), one-hot at the largest where `hard` (b,); the gradient is unchanged."""
    one_hot = torch.zeros_like(shares).scatter_(1, shares.argmax(1, keepdim=True), 1.0)
    return torch.where(hard[:, None, None, None], one_hot + shares - shares.detach(), shares)


def divergence_from_even(logits: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform), summed over the places: logits (b, k, h, w) to (b,)."""
    log_share = F.log_softmax(logits, dim=1)
    per_place = (log_share.exp() * log_share).sum(1) + math.log(logits.shape[1])
    return per_place.flatten(1).sum(1)


def perplexity(counts: Tensor) -> Tensor:
    """Number of codes that would be used if use were even: exp of the entropy of counts (k,)."""
    share = counts / counts.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


class DiscreteLoss(nn.Module):
    """The discrete autoencoder with its loss."""

    def __init__(self, autoencoder: DiscreteAutoencoder, kl_weight: float) -> None:
        """`kl_weight` multiplies the divergence, summed over the places of an image."""
        super().__init__()
        self.autoencoder = autoencoder
        self.kl_weight = kl_weight
        # For the log only; exports have no use for it.
        counts = torch.zeros(autoencoder.config.codes)
        self.register_buffer("counts", counts, persistent=False)

    def forward(
        self, pixels: Tensor, noise: Tensor, temperature: Tensor, hard: Tensor, weight: Tensor
    ) -> tuple[Tensor, dict]:
        """Per-image losses of pixels (b, 3, n, n) with weight (b, 1, n, n) and Gumbel noise.

        `hard` (b,): whether the decoder sees single entries.
        """
        logits = self.autoencoder.logits(pixels)
        shares = straight_through(gumbel_softmax(logits, noise, temperature), hard)
        # squared, as in the autoencoder of latent diffusion: an edge in the wrong place weighs most
        error = (self.autoencoder.decode(shares).float() - pixels).square()
        divergence = divergence_from_even(logits)
        losses = spatial_mean(error, weight) + self.kl_weight * divergence
        scalars = {"mse": error.mean(), "kl": divergence.mean(), "temperature": temperature.mean()}
        return losses, scalars | self._usage(logits)

    @torch.no_grad()
    def _usage(self, logits: Tensor) -> dict[str, Tensor]:
        """How many codes were used in about the last `USAGE_IMAGES` images, and how evenly."""
        codes = logits.argmax(1).flatten()
        self.counts *= math.exp(-len(logits) / USAGE_IMAGES)
        # bincount would make the host wait for a GPU, to see how many there are
        self.counts.scatter_add_(0, codes, torch.ones_like(codes, dtype=self.counts.dtype))
        used = (self.counts > math.exp(-1)).sum().float()
        return {"codes_used": used, "code_perplexity": perplexity(self.counts)}


class DiscreteVAETask(FilmTask):
    """The discrete autoencoder for the training loop."""

    reads_views = True

    def __init__(self, config: Experiment, films: Films) -> None:
        """`films`: the training split, as pairs of image and text; the texts are not used."""
        super().__init__(films)
        self.section = section = config.section("discrete_vae", DiscreteVAE)
        torch.manual_seed(config.seed)
        self.autoencoder = DiscreteAutoencoder(
            section.block_out_channels, section.layers_per_block, section.codes, section.code_width
        )
        self.module = DiscreteLoss(self.autoencoder, section.kl_weight)
        average = WeightAverage.for_export(self.autoencoder, training_of(section))
        self.averages = {"export": average}
        size = (section.window or config.data.resolution) // self.autoencoder.stride
        self.shape = (section.codes, size, size)

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Pixels and focus of the views or of a window of each, Gumbel noise and temperature."""
        pixels, weight = training_windows(self.films, self.section, indices, random)
        clock, section = torch.tensor(random.clock), self.section
        return {
            "pixels": pixels,
            "noise": self._noise(random),
            "temperature": temperature_at(clock, section),
            "hard": clock >= section.anneal * training_of(section).images,
            "weight": weight,
        }

    def _noise(self, random: ImageRandom) -> Tensor:
        """Noise for the logits, (b, codes, h, w), or zeros that fit them."""
        if not self.section.noise:
            return torch.zeros(len(random.clock), 1, 1, 1)
        return self.section.noise * gumbel_noise(random.uniform("gumbel", *self.shape))

    def export(self, folder: Path) -> dict[str, float]:
        """Writes config.json and safetensors; the figures say how the codebook is used."""
        autoencoder = self.averages["export"].module.float().cpu()
        autoencoder.save_pretrained(folder, safe_serialization=True)
        some = self.films.images[:: max(1, self.size // USAGE_VIEWS)]
        codes = encode_codes(autoencoder.to(device()), some)
        counts = torch.bincount(codes.flatten(), minlength=self.section.codes).float()
        return {
            "codes": float(self.section.codes),
            "codes_used": float((counts > 0).sum()),
            "code_perplexity": float(perplexity(counts)),
            "parameters": parameter_count(autoencoder),
        }


@torch.no_grad()
def encode_codes(autoencoder: DiscreteAutoencoder, images: np.ndarray, batch: int = 32) -> Tensor:
    """The tokens (n, h, w) int32 on the CPU of views (n, r, r) uint8.

    Raises:
        ValueError: views whose size is no multiple of the stride, or logits that are not finite.
    """
    stride, size = autoencoder.stride, images.shape[-1]
    if size % stride:
        raise ValueError(f"discrete_vae: views of {size} pixels, but its stride is {stride}")
    parts = []
    for start in range(0, len(images), batch):
        pixels = to_pixels(images[start : start + batch])
        pixels = pixels.to(autoencoder.device, autoencoder.dtype)
        logits = autoencoder.logits(pixels)
        if not torch.isfinite(logits).all():
            raise ValueError("the discrete VAE gives logits that are not finite")
        parts.append(logits.argmax(1).int().cpu())
    return torch.cat(parts)


def cached_codes(autoencoder: DiscreteAutoencoder, films: Films, cache: Path) -> Tensor:
    """The tokens (n, h, w) int32 of all views, memory-mapped; see `view_cache.cached`."""
    batch = views_at_once(films.images.shape[1])
    encoder = ViewEncoder(autoencoder, encode_codes, batch, "codes", "the discrete VAE")
    return cached(encoder, films, cache)


_DECODED_AT_ONCE = 32  # images


@torch.no_grad()
def decode_images(autoencoder: DiscreteAutoencoder, codes: Tensor) -> np.ndarray:
    """Views (n, r, r) uint8 of tokens (n, h, w)."""
    parts = codes.to(autoencoder.device).split(_DECODED_AT_ONCE)
    return np.concatenate([to_images(autoencoder.decode_codes(part)) for part in parts])


def round_trip(autoencoder: DiscreteAutoencoder, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 after encoding to tokens and decoding."""
    return decode_images(autoencoder, encode_codes(autoencoder, images))
