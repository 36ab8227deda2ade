"""The distillation step as diffusers documents it, to compare ours with.

The order of work of diffusers' "Latent Consistency Distillation" training page and example
(train_lcm_distill_sd_wds.py), in words of our own: in every step images are encoded by the VAE and
captions by the text encoder; the teacher is asked with the caption, then without; the student is
trained with AdamW against a target network, which follows it parameter by parameter. Precision,
solver (DDIM), networks, batch, clipping and learning rate are those of the run that it is compared
with. Decoding of image files, which the example leaves to workers, is in neither.
"""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from hpc_hipgen.config import LLCM, TIMESTEPS
from hpc_hipgen.diffusion.consistency import (
    GUIDANCE_WIDTH,
    consistency_function,
    guidance_embedding,
    guided_epsilon,
    pseudo_huber,
)
from hpc_hipgen.diffusion.schedule import (
    add_noise,
    jump_target,
    scaled_linear_alphas_cumprod,
    to_epsilon,
    to_x0,
)
from hpc_hipgen.generators.llcm import build_student
from hpc_hipgen.generators.stable_diffusion import StableDiffusionParts
from hpc_hipgen.generators.text import token_ids
from hpc_hipgen.training.engine import device, uses_bf16

VAE_BATCH = 32
"""Images that the example gives the VAE at once."""


class DiffusersRecipe:
    """Student, teacher, target and optimizer of the documented step."""

    def __init__(self, parts: StableDiffusionParts, section: LLCM) -> None:
        """`parts`: the teacher's; `section`: the settings of the run that is compared."""
        self.section = section
        self.parts = parts
        for network in (parts.autoencoder, parts.text_encoder, parts.unet):
            network.requires_grad_(False).eval().to(device())
        self.student = build_student(parts.unet).to(device()).train()
        self.target: UNet2DConditionModel = copy.deepcopy(self.student).requires_grad_(False)
        if section.gradient_checkpointing:
            self.student.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=section.training.lr,
            betas=section.training.betas,
            weight_decay=section.training.weight_decay,
        )
        self.alphas_cumprod = scaled_linear_alphas_cumprod().to(device())
        self.uncond = self._embed([""])

    def step(self, pixels: Tensor, captions: list[str]) -> float:
        """One optimizer step on pixels (b, 3, n, n) in -1..1 with their captions; its loss."""
        section, b = self.section, len(pixels)
        latents = self._encode(pixels.to(device()))
        states = self._embed(captions)
        noise = torch.randn_like(latents)
        steps = TIMESTEPS // section.skip
        t = (torch.randint(0, steps, (b,), device=device()) + 1) * section.skip - 1
        t_next = jump_target(t, section.skip)
        noisy = add_noise(latents, noise, t, self.alphas_cumprod)
        low, high = section.guidance
        w = low + (high - low) * torch.rand(b, device=device())
        condition = guidance_embedding(w, GUIDANCE_WIDTH)
        with self._autocast():
            found = self._consistency(self.student, noisy, t, states, condition)
            with torch.no_grad():
                known = self._epsilon(noisy, t, states)
                null = self._epsilon(noisy, t, self.uncond.expand(b, -1, -1))
                epsilon = guided_epsilon(known, null, w)
                x0 = to_x0(epsilon, noisy, t, self.alphas_cumprod, "epsilon")
                arrived = add_noise(x0, epsilon, t_next, self.alphas_cumprod)
                target = self._consistency(self.target, arrived, t_next, states, condition)
        loss = pseudo_huber(found, target, section.huber_c)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), section.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        return loss.item()

    def _autocast(self) -> torch.autocast:
        enabled = uses_bf16(self.section.training)
        return torch.autocast(device().type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        vae = self.parts.autoencoder
        parts = [vae.encode(x).latent_dist.sample() for x in pixels.split(VAE_BATCH)]
        return torch.cat(parts) * vae.config.scaling_factor

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> Tensor:
        ids = token_ids(self.parts.tokenizer, captions)
        return self.parts.text_encoder(ids.to(device()))[0]

    def _epsilon(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        output = self.parts.unet(z, t, encoder_hidden_states=states).sample.float()
        return to_epsilon(output, z, t, self.alphas_cumprod, self.parts.prediction)

    def _consistency(
        self, unet: UNet2DConditionModel, z: Tensor, t: Tensor, states: Tensor, condition: Tensor
    ) -> Tensor:
        output = unet(z, t, timestep_cond=condition, encoder_hidden_states=states).sample.float()
        return consistency_function(output, z, t, self.alphas_cumprod, self.parts.prediction)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = self.section.ema_decay
        pairs = zip(self.target.parameters(), self.student.parameters(), strict=True)
        for target, source in pairs:
            target.detach().mul_(decay).add_(source, alpha=1 - decay)
