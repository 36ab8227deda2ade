"""Stable Diffusion: text-to-image latent diffusion, trained from scratch or fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hpc_hipgen.config import DDIM, SCHEDULE, TIMESTEPS, Denoising, Diffusion, Experiment
from hpc_hipgen.diffusion.consistency import spatial_mean
from hpc_hipgen.diffusion.schedule import (
    add_noise,
    min_snr_weight,
    scaled_linear_alphas_cumprod,
    to_noise,
    to_x0,
    training_target,
)
from hpc_hipgen.files import LOCAL, reading_export
from hpc_hipgen.generators import text
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.autoencoder import cached_latents, stride
from hpc_hipgen.generators.focus import hip_focus
from hpc_hipgen.generators.other_captions import OtherCaptions
from hpc_hipgen.generators.probe import MeasuredTask, MeasurementLoss, move_to_angles
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import parameter_count


class DenoiserParts(Protocol):
    """What a denoiser is trained with, whatever it is told of an image."""

    autoencoder: AutoencoderKL
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    prediction: str


@dataclass
class StableDiffusionParts:
    """The parts of a Stable Diffusion pipeline, in memory."""

    autoencoder: AutoencoderKL
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    prediction: str

    def draw_at(self, resolution: int) -> None:
        """Has pipelines of these parts draw `resolution` pixels square where no size is given."""
        self.unet.register_to_config(
            sample_size=resolution // stride(self.autoencoder),
            # pipelines take a size below 64 for a mistake where the files are from before 0.9.0
            _diffusers_version=diffusers.__version__,
        )

    def save(self, folder: Path, scheduler: SchedulerMixin) -> None:
        """Writes a folder that a stock StableDiffusionPipeline loads."""
        for part in (self.autoencoder, self.unet):
            # diffusers notes where a part was loaded from: a path of this machine
            part.register_to_config(_name_or_path="")
        pipeline = StableDiffusionPipeline(
            vae=self.autoencoder,
            unet=self.unet,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)


def ddim_scheduler(prediction: str) -> DDIMScheduler:
    """Stable Diffusion's DDIM scheduler."""
    return DDIMScheduler(**SCHEDULE, **DDIM, prediction_type=prediction)


def load_parts(folder: Path) -> StableDiffusionParts:
    """Reads a diffusers folder of Stable Diffusion (safetensors only, no network)."""
    with reading_export(folder):
        tokenizer, encoder = text.load_text(folder)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        return StableDiffusionParts(
            AutoencoderKL.from_pretrained(folder / "vae", **LOCAL),
            UNet2DConditionModel.from_pretrained(folder / "unet", **LOCAL),
            tokenizer,
            encoder,
            scheduler.config.prediction_type,
        )


def build_unet(config: Diffusion, channels: int, latent: int) -> UNet2DConditionModel:
    """A small UNet of Stable Diffusion's class, with random weights, for `latent`^2 latents."""
    shape = config.unet
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(shape.attention)]
    return UNet2DConditionModel(
        sample_size=latent,
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(down),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple(up),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        cross_attention_dim=config.text.hidden_size,
        # In diffusers "attention_head_dim" of this class is the number of heads.
        attention_head_dim=tuple(max(1, c // shape.head_dim) for c in shape.block_out_channels),
        norm_num_groups=16,
        # The pooled caption joins the time embedding, which scales and shifts every block: a small
        # UNet learns from it long before cross-attention has found the words that matter.
        addition_embed_type="text",
        addition_embed_type_num_heads=config.text.heads,
        resnet_time_scale_shift="scale_shift",
    )


def build_parts(
    config: Diffusion, autoencoder: AutoencoderKL, resolution: int
) -> StableDiffusionParts:
    """The parts that a run starts from: a pretrained folder's, or new ones."""
    if config.pretrained:
        parts = load_parts(config.pretrained)
        parts.autoencoder = autoencoder  # the run's: latents are its, and decoded by it
        if autoencoder.config.latent_channels != parts.unet.config.in_channels:
            raise ValueError(
                f"autoencoder: {autoencoder.config.latent_channels} latent channels, but the UNet "
                f"of {config.pretrained} takes {parts.unet.config.in_channels}"
            )
        if parts.prediction != config.prediction:
            raise ValueError(
                f"prediction: {config.prediction}, but {config.pretrained} predicts "
                f"{parts.prediction}"
            )
        parts.draw_at(resolution)
    else:
        tokenizer = text.build_tokenizer(config.text)
        encoder = text.build_text_encoder(config.text, tokenizer)
        latent = resolution // stride(autoencoder)
        unet = build_unet(config, autoencoder.config.latent_channels, latent)
        parts = StableDiffusionParts(autoencoder, unet, tokenizer, encoder, config.prediction)
    if config.conditioning == "measurement":
        name = f"{config.pretrained}: text encoder" if config.pretrained else "text encoder"
        text.install_measurements(parts.text_encoder, parts.tokenizer, name)
        if not config.pretrained:
            text.attend_to_measurements(parts.text_encoder)
    if not config.train_text:
        parts.text_encoder.requires_grad_(False)
    if config.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    use_best_attention(parts.unet)
    return parts


def adapted_parts(
    base: Path, section: Denoising, resolution: int, train_text: bool = False
) -> StableDiffusionParts:
    """The parts of a Stable Diffusion folder, ready to be trained on views of `resolution`."""
    parts = load_parts(base)
    parts.draw_at(resolution)
    parts.text_encoder.requires_grad_(train_text)
    if section.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    use_best_attention(parts.unet)
    return parts


class DenoiserLoss(nn.Module):
    """The networks that are trained, with the denoising loss."""

    def __init__(self, parts: DenoiserParts, train_text: bool, min_snr_gamma: float | None) -> None:
        """`min_snr_gamma`: see `schedule.min_snr_weight`; None weighs all timesteps alike."""
        super().__init__()
        self.networks = nn.ModuleDict({"unet": parts.unet})
        if train_text:
            self.networks["text_encoder"] = parts.text_encoder
        self.prediction = parts.prediction
        self.min_snr_gamma = min_snr_gamma
        self.register_buffer("alphas_cumprod", scaled_linear_alphas_cumprod(), persistent=False)
        self.measured: MeasurementLoss | None = None

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor, weight: Tensor,
        asked: Tensor | None = None, moved: Tensor | None = None,
    ) -> tuple[Tensor, dict]:  # fmt: skip
        """Per-image losses of latents (b, c, h, w), timesteps (b,).

        `text`: token ids (b, n) where the text encoder is trained, else its states (b, n, d);
        `asked`: (b, 2) degrees, as of `MeasurementLoss`, where there is one; `moved`: (b,), True
        where the latents show others.
        """
        alphas_cumprod = self.alphas_cumprod
        noisy = add_noise(latents, noise, timesteps, alphas_cumprod)
        if moved is not None:
            # The same noisy latents, of which others are to be made out.
            assert self.measured is not None and asked is not None, "moved by no probe"
            latents = move_to_angles(
                self.measured.probe, latents, asked.masked_fill(~moved[:, None], torch.nan)
            )
            noise = to_noise(noisy, latents, timesteps, alphas_cumprod)
        if "text_encoder" in self.networks:
            text = self.networks["text_encoder"](text)[0]
        output = self.denoise(noisy, timesteps, text).float()
        target = training_target(latents, noise, timesteps, alphas_cumprod, self.prediction)
        losses = spatial_mean((output - target) ** 2, weight)
        scalars = {"mse": losses.mean()}
        if self.min_snr_gamma is not None:
            losses = losses * min_snr_weight(
                timesteps, alphas_cumprod, self.min_snr_gamma, self.prediction
            ).to(losses)
        if self.measured:
            x0 = to_x0(output, noisy, timesteps, alphas_cumprod, self.prediction)
            off, scalars["degrees"] = self.measured(x0, asked, alphas_cumprod[timesteps])
            losses = losses + off
        return losses, scalars

    def denoise(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """What the UNet predicts for noisy latents (b, c, h, w) and text states (b, n, d)."""
        return self.networks["unet"](noisy, timesteps, states).sample


def denoising_inputs(
    latents: Tensor, texts: Tensor, null: Tensor, weight: Tensor, section: Denoising,
    random: ImageRandom,
) -> dict[str, Tensor]:  # fmt: skip
    """The inputs of `DenoiserLoss` for latents (b, c, h, w) with their texts (b, n, ...).

    A share `caption_dropout` of the texts gives way to `null`, so that guidance has what to
    subtract.
    """
    dropped = random.uniform("dropout") < section.caption_dropout
    noise = random.normal("noise", *latents.shape[1:])
    if section.offset_noise:
        noise = noise + section.offset_noise * random.normal("offset", latents.shape[1], 1, 1)
    return {
        "latents": latents,
        "noise": noise,
        "timesteps": random.integers("timestep", TIMESTEPS),
        "text": torch.where(dropped.view(-1, *(1,) * (texts.ndim - 1)), null, texts),
        "weight": weight,
    }


class DenoisingTask(MeasuredTask):
    """Parts of a Stable Diffusion that are trained with the denoising loss."""

    section: Denoising

    def __init__(
        self, section: Denoising, config: Experiment, films: Films, parts: DenoiserParts,
        cache: Path, train_text: bool = False,
    ) -> None:  # fmt: skip
        """`films`: what is trained on; `parts`: ready for it; `cache`: folder of the latents."""
        super().__init__(films)
        self.section = section
        self.resolution = config.data.resolution
        self.parts: DenoiserParts = parts
        self.train_text = train_text
        self.latents = cached_latents(parts.autoencoder, films, cache)
        self.prepare_conditions()
        self.module = self.loss()
        self.averages = {"export": WeightAverage.for_export(self.trained(), section.training)}

    def prepare_conditions(self) -> None:
        """Finds out once what views are drawn from: here, their captions."""
        self.texts, self.rows = self.embed(self.films.captions)
        self.null = self.embed([""])[0][0]

    def conditions(self, indices: np.ndarray, random: ImageRandom) -> Tensor:
        """What the loss takes as `text` for the views `indices` (b,)."""
        return self.texts[self.rows[indices]]

    def trained(self) -> nn.Module:
        """What is averaged for the export."""
        return self.module.networks

    def loss(self) -> DenoiserLoss:
        """The networks with what they are trained with."""
        return DenoiserLoss(self.parts, self.train_text, self.section.min_snr_gamma)

    def embed(self, captions: list[str]) -> tuple[Tensor, np.ndarray]:
        """What the loss takes as `text`, and each caption's row in it."""
        tokenizer, encoder = self.parts.tokenizer, self.parts.text_encoder
        if self.train_text:
            return text.caption_ids(tokenizer, captions), np.arange(len(captions))
        return text.encode_captions(tokenizer, encoder, captions)

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Latents, noise, timesteps, captions (some dropped, for guidance) and focus."""
        latents = self.latents[indices]
        landmarks = torch.from_numpy(self.films.landmarks[indices])
        size, extra = latents.shape[-1], self.section.hip_weight
        weight = hip_focus(landmarks, size, self.resolution, extra)
        asked_for = self.captions_of(indices, random)
        texts = self.conditions(asked_for, random)
        inputs = denoising_inputs(latents, texts, self.null, weight, self.section, random)
        if self.module.measured:
            dropped = (random.uniform("dropout") < self.section.caption_dropout)[:, None]
            inputs["asked"] = self.asked[asked_for].masked_fill(dropped, torch.nan)
            if (moved := asked_for != indices).any():
                inputs["moved"] = torch.from_numpy(moved)
        return inputs

    def captions_of(self, indices: np.ndarray, random: ImageRandom) -> np.ndarray:
        """The views whose captions the images `indices` (b,) get: here, their own."""
        return indices

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a diffusers folder with the averaged weights."""
        networks = self.averages["export"].module.float().cpu()
        encoder = networks["text_encoder"] if self.train_text else self.parts.text_encoder
        text.bake_measurements(encoder)
        StableDiffusionParts(
            self.parts.autoencoder.float().cpu(),
            networks["unet"],
            self.parts.tokenizer,
            encoder.float().cpu(),
            self.parts.prediction,
        ).save(folder, ddim_scheduler(self.parts.prediction))
        return {"parameters": parameter_count(networks)}


class StableDiffusionTask(DenoisingTask):
    """Stable Diffusion for the training loop: from scratch, or on from a pretrained folder."""

    def __init__(
        self,
        section: Diffusion,
        config: Experiment,
        films: Films,
        autoencoder: AutoencoderKL,
        cache: Path,
    ) -> None:
        """`films`: the training split; `cache`: folder of the latents."""
        torch.manual_seed(config.seed)
        parts = build_parts(section, autoencoder, config.data.resolution)
        super().__init__(section, config, films, parts, cache, section.train_text)
        first = section.other_captions_from * section.training.images
        self.others = OtherCaptions(films, section.other_captions, first)

    def captions_of(self, indices: np.ndarray, random: ImageRandom) -> np.ndarray:
        """Their own, or those of other views of their films."""
        return self.others.choose(indices, random)
