"""The Leapfrog Latent Consistency Model: a few-step student of a Stable Diffusion teacher.

Eqs. 4-7 of the paper: the student's consistency function at t_(n+k) is drawn to that of its
moving average at t_n, where the teacher's guided solver jump has arrived.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from hpc_hipgen.config import LLCM, SCHEDULE, TIMESTEPS, Distillation, Experiment
from hpc_hipgen.diffusion.consistency import (
    GUIDANCE_WIDTH,
    consistency_function,
    guidance_embedding,
    guided_epsilon,
    pseudo_huber,
)
from hpc_hipgen.diffusion.schedule import (
    add_noise,
    distillation_timesteps,
    jump_target,
    scaled_linear_alphas_cumprod,
    to_epsilon,
)
from hpc_hipgen.diffusion.solvers import one_jump
from hpc_hipgen.generators import text
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.autoencoder import cached_latents
from hpc_hipgen.generators.focus import hip_focus
from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.generators.other_captions import OtherCaptions
from hpc_hipgen.generators.probe import MeasuredTask, MeasurementLoss
from hpc_hipgen.generators.stable_diffusion import StableDiffusionParts, load_parts
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import uses_bf16
from hpc_hipgen.training.task import parameter_count


def lcm_scheduler(prediction: str, skip: int) -> LCMScheduler:
    """diffusers' LCM scheduler on the timesteps that the student was trained on."""
    return LCMScheduler(
        **SCHEDULE,
        steps_offset=1,  # not used by this scheduler, but a stock pipeline warns of any other
        original_inference_steps=TIMESTEPS // skip,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )


def build_student(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the teacher that also takes a guidance weight.

    A stock UNet has no input for it (`time_cond_proj_dim`). The new projection starts at zero,
    so the student starts as its teacher.
    """
    student = UNet2DConditionModel.from_config(
        teacher.config,
        time_cond_proj_dim=GUIDANCE_WIDTH,
        sample_size=teacher.config.sample_size,  # else lost where the teacher's file names none
    )
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"] and not unexpected
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    use_best_attention(student)
    return student


class DistillationLoss(nn.Module):
    """The student with the consistency loss; teacher and target are not trained."""

    def __init__(
        self, student: UNet2DConditionModel, teacher: UNet2DConditionModel, section: Distillation,
        prediction: str,
    ) -> None:  # fmt: skip
        """`teacher` stays outside the module's parameters: the engine must not partition it."""
        super().__init__()
        self.student = student
        self.section = section
        self.prediction = prediction
        self.takes_guidance = student.config.time_cond_proj_dim is not None
        self.register_buffer("alphas_cumprod", scaled_linear_alphas_cumprod(), persistent=False)
        self.frozen: dict[str, nn.Module] = {"teacher": teacher}
        self.measured: MeasurementLoss | None = None

    def consistency(
        self, unet: nn.Module, z: Tensor, t: Tensor, w: Tensor, states: Tensor
    ) -> Tensor:
        """f(z, w, c, t) of a student UNet, float32; one that takes no w knows but one."""
        condition = guidance_embedding(w, GUIDANCE_WIDTH) if self.takes_guidance else None
        output = unet(z, t, states, timestep_cond=condition).sample.float()
        return consistency_function(output, z, t, self.alphas_cumprod, self.prediction)

    def teach(self, z: Tensor, t: Tensor, w: Tensor, states: Tensor, null: Tensor | None) -> Tensor:
        """The noise that the teacher sees in z, guided with w; without `null`, in half the time."""
        if null is not None:
            z, t, states = torch.cat([z, z]), torch.cat([t, t]), torch.cat([states, null])
        output = self.frozen["teacher"](z, t, states).sample.float()
        epsilon = to_epsilon(output, z, t, self.alphas_cumprod, self.prediction)
        if null is None:
            return epsilon
        conditional, unconditional = epsilon.chunk(2)
        return guided_epsilon(conditional, unconditional, w)

    def forward(
        self, latents: Tensor, noise: Tensor, t: Tensor, w: Tensor, states: Tensor, weight: Tensor,
        null: Tensor | None = None, asked: Tensor | None = None,
    ) -> tuple[Tensor, dict]:  # fmt: skip
        """Per-image losses of latents (b, c, h, w), timesteps t (b,), guidance weights w (b,).

        `null`: the text states of no caption, where there is guidance; `asked`: (b, 2) degrees, as
        of `MeasurementLoss`, where there is one.
        """
        alphas_cumprod = self.alphas_cumprod
        z = add_noise(latents, noise, t, alphas_cumprod)
        with torch.no_grad():  # first, while nothing is kept for the backward pass
            t_next = jump_target(t, self.section.skip)
            teacher = partial(self.teach, w=w, states=states, null=null)
            z_next = one_jump(self.section.solver, teacher, z, t, t_next, alphas_cumprod)
            target = self.consistency(self.frozen["target"], z_next, t_next, w, states)
        found = self.consistency(self.student, z, t, w, states)
        losses = pseudo_huber(found, target, self.section.huber_c, weight, per_sample=True)
        scalars = {"mse": (found - target).square().mean()}
        if self.measured:
            # A denoiser predicts a mean, blurred by noise; a student's answer is a sample at every
            # level, and has to show the angles at every level.
            off, scalars["degrees"] = self.measured(found, asked, torch.ones_like(t))
            losses = losses + off
        return losses, scalars


class DistillationTask(MeasuredTask):
    """Distillation of a Stable Diffusion for the training loop; a subclass makes the student."""

    section: Distillation

    def __init__(
        self, section: Distillation, config: Experiment, films: Films, teacher: Path, cache: Path
    ) -> None:
        """`films`: the training split; `teacher`: a diffusers folder of Stable Diffusion."""
        super().__init__(films)
        self.section = section
        self.resolution = config.data.resolution
        torch.manual_seed(config.seed)
        self.parts: StableDiffusionParts = load_parts(teacher)
        self.parts.draw_at(self.resolution)
        self.latents = cached_latents(self.parts.autoencoder, films, cache)
        tokenizer, encoder = self.parts.tokenizer, self.parts.text_encoder
        self.states, self.rows = text.encode_captions(tokenizer, encoder, films.captions)
        self.null = text.encode_captions(tokenizer, encoder, [""])[0]
        student = self.build_student(self.parts.unet)
        if section.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        use_best_attention(self.parts.unet)
        unet = freeze(self.parts.unet, uses_bf16(section.training))
        self.module = DistillationLoss(student, unet, section, self.parts.prediction)
        self.averages = {"target": WeightAverage(student, section.ema_decay)}
        self.module.frozen["target"] = self.averages["target"].module
        if section.training.ema_images:  # else the target itself is exported
            self.averages["export"] = self.export_average()
        self.timesteps = distillation_timesteps(section.skip)
        self.others = OtherCaptions(films, section.other_captions)

    def allow_for(self, error: Tensor) -> None:
        """From now on the probe has to read (2,) degrees more, of the patient's left and right."""
        self.asked = self.asked + error

    def build_student(self, teacher: UNet2DConditionModel) -> UNet2DConditionModel:
        """The network that is trained; it starts as its teacher."""
        raise NotImplementedError

    def export_average(self) -> WeightAverage:
        """What is exported, but for the target."""
        return WeightAverage.for_export(self.module.student, self.section.training)

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Latents, noise, timesteps, guidance weights, text states and focus."""
        latents = self.latents[indices]
        low, high = self.section.guidance_range
        landmarks = torch.from_numpy(self.films.landmarks[indices])
        asked_for = self.others.choose(indices, random)
        inputs = {
            "latents": latents,
            "noise": random.normal("noise", *latents.shape[1:]),
            "t": self.timesteps[random.integers("timestep", len(self.timesteps))],
            "w": low + (high - low) * random.uniform("guidance"),
            "states": self.states[self.rows[asked_for]],
            "weight": hip_focus(
                landmarks, latents.shape[-1], self.resolution, self.section.hip_weight
            ),
        }
        if high > 0:
            inputs["null"] = self.null.expand(len(indices), -1, -1)
        if self.module.measured:
            inputs["asked"] = self.asked[asked_for]
        return inputs


class LLCMTask(DistillationTask):
    """The LLCM for the training loop."""

    section: LLCM

    def __init__(
        self, config: Experiment, films: Films, teacher: Path, cache: Path, name: str
    ) -> None:
        """`films`: the training split; `teacher`: a diffusers folder; `name`: of the section."""
        super().__init__(getattr(config, name), config, films, teacher, cache)

    def build_student(self, teacher: UNet2DConditionModel) -> UNet2DConditionModel:
        """A copy of the teacher that takes w."""
        return build_student(teacher)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a diffusers folder: the averaged student with the LCM scheduler."""
        average = self.averages.get("export", self.averages["target"])
        self.parts.unet = average.module.float().cpu()
        self.parts.save(folder, lcm_scheduler(self.parts.prediction, self.section.skip))
        return {"parameters": parameter_count(self.parts.unet)}
