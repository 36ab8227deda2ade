"""unCLIP, the method of DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125).

A prior draws the CLIP embedding of an image from a caption (prior.py), and the decoder here draws
the image from that embedding. The decoder is a latent diffusion model in the space of the run's
autoencoder, as in Stable unCLIP of diffusers, whose stock pipeline loads the export. Unlike there
and in the paper it reads no caption: what was asked for reaches the image through the embedding
alone, so a score of this row is one of that way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PriorTransformer,
    StableUnCLIPPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from hpc_hipgen.config import Experiment, UnCLIP
from hpc_hipgen.generators import clip, sampling, text
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.autoencoder import stride
from hpc_hipgen.generators.prior import load_prior, prior_scheduler
from hpc_hipgen.generators.stable_diffusion import DenoiserLoss, DenoisingTask, ddim_scheduler
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.run import Run
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import parameter_count


@dataclass
class UnCLIPParts:
    """The parts of the pipeline, in memory."""

    autoencoder: AutoencoderKL
    unet: UNet2DConditionModel
    prior: PriorTransformer
    normalizer: StableUnCLIPImageNormalizer
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    prediction: str

    def save(self, folder: Path) -> None:
        """Writes a folder that a stock StableUnCLIPPipeline loads.

        The pipeline wants a text encoder for the decoder too; it gets the prior's, and the decoder
        does not look at what it says.
        """
        for part in (self.autoencoder, self.unet, self.prior):
            part.register_to_config(_name_or_path="")  # else a path of this machine
        pipeline = StableUnCLIPPipeline(
            prior_tokenizer=self.tokenizer,
            prior_text_encoder=self.text_encoder,
            prior=self.prior,
            prior_scheduler=prior_scheduler(),
            image_normalizer=self.normalizer,
            image_noising_scheduler=noising_scheduler(),
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder.text_model,
            unet=self.unet,
            scheduler=ddim_scheduler(self.prediction),
            vae=self.autoencoder,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)


@cache
def noising_scheduler() -> DDPMScheduler:
    """What noises the embeddings that the decoder sees: the prior's schedule.

    Made once: its thousand betas are a loop of python.
    """
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def build_normalizer(prior: PriorTransformer) -> StableUnCLIPImageNormalizer:
    """The mean and spread of embeddings that the prior keeps, as the pipeline wants them."""
    normalizer = StableUnCLIPImageNormalizer(prior.clip_mean.shape[1])
    normalizer.mean.data.copy_(prior.clip_mean)
    normalizer.std.data.copy_(prior.clip_std)
    return normalizer.requires_grad_(False)


def noised_embeddings(
    embeddings: Tensor, noise: Tensor, levels: Tensor, normalizer: StableUnCLIPImageNormalizer
) -> Tensor:
    """What the decoder is told (b, 2 d): embeddings (b, d) with noise, and how much of it.

    `StableUnCLIPPipeline.noise_image_embeddings` with a level of its own for each image, `levels`
    (b,) int64 timesteps of the cosine schedule. Noise keeps the decoder from reading more into an
    embedding than a prior can put there.
    """
    scaled = noising_scheduler().add_noise(normalizer.scale(embeddings), noise, levels)
    said = get_timestep_embedding(levels, embeddings.shape[1], flip_sin_to_cos=True,
                                  downscale_freq_shift=0)  # fmt: skip
    return torch.cat([normalizer.unscale(scaled), said], 1)


def build_unet(
    section: UnCLIP, autoencoder: AutoencoderKL, latent: int, width: int
) -> UNet2DConditionModel:
    """A small decoder with random weights for `latent`^2 latents and embeddings of `width`.

    The embedding is added to that of the timestep, which scales and shifts every block. Attention
    is among the places of the image only.
    """
    shape = section.unet
    return UNet2DConditionModel(
        sample_size=latent,
        in_channels=autoencoder.config.latent_channels,
        out_channels=autoencoder.config.latent_channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention),
        mid_block_type="UNetMidBlock2D",
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in shape.attention[::-1]),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        # in these blocks the name means what it says
        attention_head_dim=tuple(min(shape.head_dim, c) for c in shape.block_out_channels),
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * width,
        resnet_time_scale_shift="scale_shift",
    )


class UnCLIPLoss(DenoiserLoss):
    """The denoising loss of a UNet that is told an image embedding instead of a caption."""

    def denoise(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """What the UNet predicts for noisy latents and what it is told, states (b, 2 d)."""
        return self.networks["unet"](noisy, timesteps, None, class_labels=states).sample


class UnCLIPTask(DenoisingTask):
    """The decoder for the training loop; its export holds the whole pipeline."""

    section: UnCLIP
    parts: UnCLIPParts

    def __init__(
        self, config: Experiment, films: Films, autoencoder: AutoencoderKL, clip_folder: Path,
        prior_folder: Path, cache: Path,
    ) -> None:  # fmt: skip
        """`films`: the training split; `cache`: folder of the latents and embeddings.

        `clip_folder` and `prior_folder` hold what the decoder is trained on, and exported with.
        """
        section = config.section("unclip", UnCLIP)
        encoder = clip.load_parts(clip_folder)
        self.embeddings = clip.cached_embeddings(encoder.model, films, cache)
        prior = load_prior(prior_folder, encoder.width)
        torch.manual_seed(config.seed)
        latent = config.data.resolution // stride(autoencoder)
        unet = build_unet(section, autoencoder, latent, encoder.width)
        if section.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        use_best_attention(unet)
        parts = UnCLIPParts(
            autoencoder,
            unet,
            prior,
            build_normalizer(prior),
            encoder.tokenizer,
            CLIPTextModelWithProjection.from_pretrained(clip_folder, **text.WEIGHTS),
            section.prediction,
        )
        super().__init__(section, config, films, parts, cache)

    def loss(self) -> UnCLIPLoss:
        """The decoder with its loss."""
        return UnCLIPLoss(self.parts, False, self.section.min_snr_gamma)

    def prepare_conditions(self) -> None:
        """Nothing said is all zeros, the level of noise too: so the stock pipeline has it."""
        self.null = torch.zeros(2 * self.embeddings.shape[1])

    def conditions(self, indices: np.ndarray, random: ImageRandom) -> Tensor:
        """The views' own embeddings with noise, (b, 2 d)."""
        embeddings = self.embeddings[indices]
        noise = random.normal("embedding", embeddings.shape[1])
        levels = random.integers("level", self.section.noise_levels)
        return noised_embeddings(embeddings, noise, levels, self.parts.normalizer)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the pipeline with the averaged decoder."""
        self.parts.autoencoder.float().cpu()
        self.parts.unet = self.averages["export"].module["unet"].float().cpu()
        self.parts.save(folder)
        return {"parameters": parameter_count(self.parts.unet)}


class UnCLIPDrawer(sampling.PipelineDrawer):
    """Draws with prior and decoder."""

    def draw(self, prompts: list[str], seeds: list[int], **settings: Any) -> np.ndarray:
        """Grey images (b, n, n) uint8; settings as of `UnCLIPSampling` and `sampling.draw`."""
        settings["prior_num_inference_steps"] = settings.pop("prior_steps")
        settings["prior_guidance_scale"] = settings.pop("prior_guidance")
        return super().draw(prompts, seeds, **settings)


def drawer(run: Run, model: str) -> UnCLIPDrawer:
    """Of the export, the stock pipeline."""
    return UnCLIPDrawer(sampling.pipeline_drawer(run, model).pipeline)
