"""Feedback: a Stable Diffusion goes on learning from its own drawings, which a ruler reads.

Denoising films teaches a model what films look like, and what their captions say as long as noise
hides the picture. Drawing is another thing: the model continues pictures of its own, whose angles
are a little off, and nothing in its training said so. Here it draws as it will be asked to, stops
at some of the later steps, says there how the finished film will look, and a ruler reads the
angles of that film; the gradient goes through this one prediction alone (reward feedback learning,
Xu et al. 2023, arXiv 2304.05977; through the whole of a drawing's last steps: DRaFT, Clark et al.
2024, arXiv 2309.17400). What it would have said before keeps the picture what it was.

The ruler that is asked, the run's `reward_model`, is not the one that measures the report.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from hpc_hipgen.config import Experiment, Feedback
from hpc_hipgen.diffusion.schedule import scaled_linear_alphas_cumprod, to_x0
from hpc_hipgen.generators import text
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.autoencoder import stride
from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.generators.probe import angle_losses
from hpc_hipgen.generators.stable_diffusion import StableDiffusionParts, ddim_scheduler, load_parts
from hpc_hipgen.radiograph.captions import parse_caption
from hpc_hipgen.radiograph.geometry import swap_sides
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import (
    RulerNetwork,
    load_ruler,
    norberg_angles,
    read_points,
    standardise,
)
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import uses_bf16
from hpc_hipgen.training.task import FilmTask, parameter_count

SNR_LIMIT = 5.0
"""The change to what is predicted is weighed by the signal-to-noise ratio, up to this (Min-SNR)."""


class Reward:
    """What a ruler reads off latents, as a function that can be differentiated."""

    def __init__(self, autoencoder: AutoencoderKL, network: RulerNetwork, bf16: bool) -> None:
        """Neither network is trained; with `bf16` the decoder runs under autocast."""
        self.autoencoder = freeze(autoencoder, bf16)
        self.network = freeze(network, bf16=False)

    def views(self, latents: Tensor) -> Tensor:
        """Decoded views (b, 1, n, n) float32 in 0..255, of scaled latents (b, c, h, w)."""
        scaled = latents / self.autoencoder.config.scaling_factor
        pixels = self.autoencoder.decode(scaled).sample.float()
        return ((pixels.mean(1, keepdim=True) + 1) * 127.5).clamp(0, 255)

    def angles(self, latents: Tensor) -> Tensor:
        """Norberg angles (b, 2) in degrees, patient's left and right."""
        views = self.views(latents)
        # In bf16 a point would be read to a pixel and not to a fraction of one.
        with torch.autocast(latents.device.type, enabled=False):
            points, _, _ = read_points(*self.network(standardise(views)))
            return swap_sides(norberg_angles(points))


class FeedbackLoss(nn.Module):
    """The UNet with the loss of what it draws."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        reference: nn.Module,
        reward: Reward,
        section: Feedback,
        prediction: str,
    ) -> None:
        """`unet` is trained; `reference` is what it was before."""
        super().__init__()
        self.unet = unet
        self.section = section
        self.prediction = prediction
        self.scheduler = ddim_scheduler(prediction)
        self.scheduler.set_timesteps(section.steps)
        timesteps = self.scheduler.timesteps.clone()
        self.register_buffer("timesteps", timesteps, persistent=False)
        self.register_buffer("alphas_cumprod", scaled_linear_alphas_cumprod(), persistent=False)
        # outside the module's parameters: the engine must not partition them
        self.frozen: dict[str, nn.Module] = {"reference": reference}
        self.reward = reward

    def predict(self, unet: nn.Module, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """The clean latents that a UNet makes out in z (b, c, h, w) at t (b,), float32."""
        output = unet(z, t, states).sample.float()
        return to_x0(output, z, t, self.alphas_cumprod, self.prediction)

    @torch.no_grad()
    def draw(self, noise: Tensor, renewed: Tensor, states: Tensor) -> Tensor:
        """What the model sees at each step of its drawings, (b, steps, c, h, w).

        From `noise` (b, c, h, w); step i adds `renewed[:, i]`, of (b, steps, c, h, w).
        """
        z, seen = noise, []
        for i, t in enumerate(self.scheduler.timesteps.tolist()):
            seen.append(z)
            output = self.unet(z, torch.full(z.shape[:1], t, device=z.device), states).sample
            z = self.scheduler.step(
                output.float(), t, z, eta=self.section.eta, variance_noise=renewed[:, i]
            ).prev_sample
        # Autocast keeps weights that it has cast, these without a gradient, for all of a step.
        torch.clear_autocast_cache()
        return torch.stack(seen, 1)

    def forward(
        self, noise: Tensor, renewed: Tensor, stops: Tensor, states: Tensor, asked: Tensor
    ) -> tuple[Tensor, dict]:
        """Per-drawing losses.

        Args:
            noise, renewed: see `draw`.
            stops: (b, k) int64, steps at which each drawing is judged.
            states: (b, n, d) of the captions.
            asked: (b, 2) degrees, patient's left and right.

        Returns:
            (b,) float32, and the mean error in degrees and the mean squared change of what is
            predicted.
        """
        k = stops.shape[1]
        seen = self.draw(noise, renewed, states)
        rows = torch.arange(len(stops), device=stops.device)[:, None]
        z, t = seen[rows, stops].flatten(0, 1), self.steps_at(stops).flatten()
        states, asked = states.repeat_interleave(k, 0), asked.repeat_interleave(k, 0)
        found = self.predict(self.unet, z, t, states)
        with torch.no_grad():
            before = self.predict(self.frozen["reference"], z, t, states)
        off = self.reward.angles(found) - asked
        wrong = angle_losses(off)
        change = (found - before).square().flatten(1).mean(1)
        abar = self.alphas_cumprod[t]
        weight = (abar / (1 - abar)).clamp(max=SNR_LIMIT).to(change)
        losses = self.section.weight * wrong.mean(1) + self.section.anchor * weight * change
        scalars = {"degrees": off.detach().abs().mean(), "change": change.detach().mean()}
        return losses.view(-1, k).mean(1), scalars

    def steps_at(self, stops: Tensor) -> Tensor:
        """The timesteps of steps, of the same shape."""
        return self.timesteps[stops]


class FeedbackTask(FilmTask):
    """Feedback for the training loop; one image of the clock is one drawing."""

    def __init__(self, config: Experiment, films: Films, base: Path, reward_model: Path) -> None:
        """`films`: the training split, of which only captions are used; `base`: a diffusers
        folder of Stable Diffusion; `reward_model`: folder of a ruler."""
        self.section = section = config.section("feedback", Feedback)
        super().__init__(films)
        self.parts: StableDiffusionParts = load_parts(base)
        self.parts.draw_at(config.data.resolution)
        self.latent_size = config.data.resolution // stride(self.parts.autoencoder)
        encoder = self.parts.text_encoder
        self.states, self.rows = text.encode_captions(self.parts.tokenizer, encoder, films.captions)
        self.asked = torch.tensor([_said(caption) for caption in films.captions])
        self.late = torch.tensor(section.late_steps)
        unet, bf16 = self.parts.unet, uses_bf16(section.training)
        if section.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        use_best_attention(unet)
        reference = freeze(copy.deepcopy(unet), bf16)
        autoencoder = copy.deepcopy(self.parts.autoencoder)  # that of the export stays as it is
        reward = Reward(autoencoder, load_ruler(reward_model).network, bf16)
        self.module = FeedbackLoss(unet, reference, reward, section, self.parts.prediction)
        self.averages = {"export": WeightAverage.for_export(unet, section.training)}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Captions of the views `indices` (b,), and all random numbers of their drawings."""
        latent = (self.parts.unet.config.in_channels, self.latent_size, self.latent_size)
        order = random.uniform("stops", len(self.late)).argsort(1)
        return {
            "noise": random.normal("noise", *latent),
            "renewed": random.normal("renewed", self.section.steps, *latent),
            "stops": self.late[order[:, : self.section.stops]],
            "states": self.states[self.rows[indices]],
            "asked": self.asked[indices],
        }

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a diffusers folder with the averaged weights."""
        self.parts.unet = self.averages["export"].module.float().cpu()
        self.parts.save(folder, ddim_scheduler(self.parts.prediction))
        return {"parameters": parameter_count(self.parts.unet)}


def _said(caption: str) -> tuple[float, float]:
    """Angles that a caption asks for, patient's left and right."""
    angles = parse_caption(caption)
    assert angles is not None, f"no angles: {caption}"
    return angles.patient_left, angles.patient_right
