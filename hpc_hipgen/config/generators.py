"""The sections of the generators, and what several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpc_hipgen.config.base import (
    TIMESTEPS,
    Channels,
    Section,
    check_brings_its_own,
    check_teacher_steps,
    leading_timesteps,
)
from hpc_hipgen.config.data import Training

CAPTION_TOKENS = {"measurement": 40, "caption": 52}
"""Most tokens of a caption, by conditioning, with the tokenizer that is built here."""


class Text(Section):
    """The CLIP text encoder that is built when none is given."""

    hidden_size: int = Field(128, gt=0, multiple_of=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    max_length: int = Field(64, ge=56, le=77)  # tokens; captions with digits have up to 52


class UNet(Section):
    """Shape of the diffusers UNet2DConditionModel when none is given."""

    block_out_channels: Channels = (64, 128, 128)
    attention: tuple[bool, ...] = (False, True, True)  # cross-attention at each level
    layers_per_block: int = Field(1, ge=1)
    head_dim: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _levels(self) -> UNet:
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError("attention: one entry per level of block_out_channels is needed")
        return self


class Denoising(Section):
    """What every model has that is trained with the denoising loss."""

    caption_dropout: float = Field(0.1, ge=0, lt=1)
    # Off: with v-prediction it takes the weight from the noise levels where the angle is decided.
    min_snr_gamma: float | None = Field(None, gt=0)
    # SD of noise that is one number for a whole channel: noise of every latent's own leaves an
    # image's mean grey readable, so that the model never learns to draw darker or brighter ones.
    offset_noise: float = Field(0.0, ge=0)
    hip_weight: float = Field(4.0, ge=0)  # extra loss weight of the latents around the hips
    # of the probe's error on the latents that are predicted; 0: no probe is asked
    measurement_weight: float = Field(0.0, ge=0)
    gradient_checkpointing: bool = False
    training: Training


class Diffusion(Denoising):
    """A text-to-image latent diffusion model: the teacher (`stable_diffusion`)."""

    pretrained: Path | None = None  # a diffusers folder, e.g. Stable Diffusion 1.5
    conditioning: Literal["measurement", "caption"] = "measurement"
    text: Text = Text()
    # False: the encoder keeps its first weights, and the states of captions are computed once.
    train_text: bool = False
    unet: UNet = UNet()
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    # Share of the images that get the caption of another view of their film, and latents moved to
    # its angles to predict; from this fraction of the training on. Needs data.warp and a probe.
    other_captions: float = Field(0.0, ge=0, le=1)
    other_captions_from: float = Field(0.0, ge=0, lt=1)

    @property
    def guidable(self) -> bool:
        """Whether the model knows images without a caption, which guidance subtracts."""
        return bool(self.pretrained or self.caption_dropout)

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> Diffusion:
        check_brings_its_own(self, self.pretrained, ("unet", "text"))
        return self


class Feedback(Section):
    """A Stable Diffusion that goes on learning from its own drawings, which `reward_model` reads.

    One image of its training is one drawing. No guidance: it is drawn without, too.
    """

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    steps: int = Field(25, ge=1, le=TIMESTEPS - 1)  # of a drawing
    eta: float = Field(1.0, ge=0, le=1)  # noise that each step renews, as of sampling.eta
    stops: int = Field(4, ge=1)  # steps of a drawing, chosen at random, at which it is judged
    below: int = Field(400, ge=1, le=TIMESTEPS)  # timestep from which on it is clear enough
    weight: float = Field(0.05, gt=0)  # of the angles' error
    anchor: float = Field(1.0, ge=0)  # of the change to what is predicted
    gradient_checkpointing: bool = False
    training: Training

    @property
    def late_steps(self) -> tuple[int, ...]:
        """Steps of a drawing, from 0 on, at which it may be judged ("leading" spacing)."""
        return tuple(i for i, t in enumerate(leading_timesteps(self.steps)) if t <= self.below)

    @model_validator(mode="after")
    def _judged(self) -> Feedback:
        check_teacher_steps("steps", self.steps)
        if self.stops > (late := len(self.late_steps)):
            raise ValueError(
                f"stops: {self.stops}, but only {late} of {self.steps} steps are at timestep "
                f"{self.below} or below"
            )
        return self


class Distillation(Section):
    """What every model has that is distilled from a teacher with the consistency loss."""

    solver: Literal["paper", "leapfrog", "ddim"] = "leapfrog"
    skip: int = Field(20, ge=2, le=250)  # k: the teacher jumps from t_(n+k) to t_n
    huber_c: float = Field(0.001, gt=0)
    ema_decay: float = Field(0.95, ge=0, lt=1)  # of the target network, per optimizer step
    hip_weight: float = Field(4.0, ge=0)
    measurement_weight: float = Field(0.0, ge=0)  # as of the teacher
    # share of the images that get the caption of another view of their film; needs data.warp
    other_captions: float = Field(0.0, ge=0, le=1)
    gradient_checkpointing: bool = False
    training: Training

    @property
    def guidance_range(self) -> tuple[float, float]:
        """w_min and w_max asked of the teacher; where both are 0 it sees captions alone."""
        raise NotImplementedError


class LLCM(Distillation):
    """The Leapfrog Latent Consistency Model, distilled from the teacher."""

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    guidance: tuple[float, float] = (2.0, 6.0)  # w is drawn from [w_min, w_max]

    def knows(self, scale: float) -> bool:
        """Whether it is trained for a guidance scale, 1 + w."""
        low, high = self.guidance
        return low - 1e-9 <= scale - 1 <= high + 1e-9  # 1.6 - 1 is more than 0.6

    @property
    def guidance_range(self) -> tuple[float, float]:
        """As configured."""
        return self.guidance


class Adapters(Section):
    """Low-rank adapters on the UNet of a Stable Diffusion that stays as it is."""

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    rank: int = Field(16, ge=1, le=256)
    # attention: the projections that LoRA is mostly put on; all: convolutions and the inputs of
    # time and pooled caption too, for a small UNet that reads the caption through them
    layers: Literal["attention", "all"] = "all"


class LoRA(Denoising, Adapters):
    """Adapters trained with the denoising loss (LoRA, arXiv 2106.09685)."""


class LCMLoRA(Distillation, Adapters):
    """Adapters distilled from their own base (LCM-LoRA, arXiv 2311.05556)."""

    guidance: float = Field(2.0, ge=0)  # the one w that is distilled; the student has no input

    @property
    def guidance_range(self) -> tuple[float, float]:
        """One w alone."""
        return self.guidance, self.guidance


class DreamBooth(Denoising):
    """Subjects with a rare token each, learnt from a few films (DreamBooth, arXiv 2208.12242)."""

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    # Prompt class, i.e. folder of layouts/classes, to the token that stands before its captions.
    subjects: dict[Annotated[int, Field(ge=1, le=4)], str] = Field(
        {1: "sks", 2: "ohwx", 3: "zwx", 4: "qxv"}
    )
    films: int = Field(4, ge=3, le=5)  # instance films a subject
    prior_images: int = Field(84, ge=1)  # drawn by the base itself before training
    prior_weight: float = Field(1.0, ge=0)
    train_text: bool = False

    @model_validator(mode="after")
    def _tokens(self) -> DreamBooth:
        tokens = list(self.subjects.values())
        if not tokens or len(set(tokens)) < len(tokens):
            raise ValueError("subjects: one token a class, all different, is needed")
        for token in tokens:
            if not (token.isascii() and token.isalnum() and token == token.lower()):
                raise ValueError(f"subjects: '{token}' is not one lower-case word")
        return self

    @property
    def instances(self) -> int:
        """Instance films of all subjects, where each class has enough."""
        return len(self.subjects) * self.films

    def lacking(self, films: Mapping[int, int]) -> str | None:
        """What is wrong with so many training films by prompt class; None where they suffice."""
        for prompt_class in sorted(self.subjects):
            if (found := films.get(prompt_class, 0)) < self.films:
                return (
                    f"dreambooth.subjects: class {prompt_class} has {found} training films, "
                    f"{self.films} are needed; leave the class out (such as "
                    "dreambooth.subjects={4: sks}) or add films"
                )
        return None

    def prompt(self, caption: str, prompt_class: int) -> str:
        """The caption of a film, after the token of its subject where it belongs to one."""
        token = self.subjects.get(prompt_class)
        return f"{token} {caption}" if token else caption


class TokenSampling(Section):
    """How DALL-E draws the next token."""

    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)  # among the k most probable codes
    top_p: float = Field(1.0, gt=0, le=1)  # among the fewest codes of this total probability
    guidance: float = Field(1.0, ge=1)  # guidance scale on the logits; 1: none, half the time


class DallE(Section):
    """The autoregressive transformer over the tokens of a caption and of its image."""

    conditioning: Literal["measurement", "caption"] = "measurement"
    text_length: int = Field(64, ge=2)  # tokens of a caption: no fewer than CAPTION_TOKENS
    width: int = Field(192, gt=0)
    layers: int = Field(6, ge=1)
    heads: int = Field(6, ge=1)
    text_weight: float = Field(0.125, ge=0, lt=1)  # share of the text in the loss
    hip_weight: float = Field(4.0, ge=0)  # extra loss weight of the image tokens around the hips
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    gradient_checkpointing: bool = False
    sampling: TokenSampling = TokenSampling()
    training: Training
