"""The sections of unCLIP: its CLIP, the prior and the decoder, and the checks of all three."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hpc_hipgen.config.base import TIMESTEPS, Section, check_brings_its_own, check_multiples
from hpc_hipgen.config.data import Training
from hpc_hipgen.config.generators import Denoising, Text, UNet


class Vision(Section):
    """Shape of the CLIP vision transformer that is built when none is given."""

    width: int = Field(128, gt=0)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    patch: int = Field(16, gt=0)  # pixels; an image is (resolution / patch)^2 tokens


class CLIP(Section):
    """The space of image embeddings of unCLIP; a small one is trained on captions and views."""

    pretrained: Path | None = None  # a transformers folder of a CLIPModel: nothing is trained
    conditioning: Literal["measurement", "caption"] = "measurement"
    text: Text = Text()  # its hidden_size is the width of embeddings too
    vision: Vision = Vision()
    # Pairs that are told apart from each other. A batch holds whole groups, so that the number of
    # GPUs, and what each of them holds at once, changes nothing.
    contrast: int = Field(16, ge=2)
    angle_weight: float = Field(1.0, ge=0)  # of reading both angles off the image embedding
    training: Training | None = None

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> CLIP:
        check_brings_its_own(self, self.pretrained, ("conditioning", "text", "vision"))
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> CLIP:
        if self.training:
            for key in ("batch", "micro_batch"):
                size = getattr(self.training, key)
                if size and size % self.contrast:
                    raise ValueError(
                        f"training.{key}: {size} is not a multiple of contrast {self.contrast}"
                    )
        return self


class Prior(Section):
    """The prior of unCLIP: draws an image embedding for a caption."""

    pretrained: Path | None = None  # <run>/prior/export of a run with the same CLIP
    width: int = Field(128, gt=0)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    training: Training | None = None

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> Prior:
        check_brings_its_own(self, self.pretrained, ("width", "layers", "heads"))
        return self


class UnCLIPSampling(Section):
    """How unCLIP draws an embedding; its decoder samples as `sampling` says."""

    prior_steps: int = Field(25, ge=1, le=TIMESTEPS)
    prior_guidance: float = Field(1.0, ge=1)  # guidance scale of the prior; 1: none
    noise_level: int = Field(0, ge=0)  # of the embedding that the decoder gets


class UnCLIP(Denoising):
    """The decoder of unCLIP (DALL-E 2): draws an image for its embedding in `clip`."""

    # caption_dropout: here the share of images without their embedding
    unet: UNet = UNet()
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    # Embeddings are noised in training, to a level drawn from 0 .. this - 1 of the timesteps.
    noise_levels: int = Field(200, ge=1, le=TIMESTEPS)
    sampling: UnCLIPSampling = UnCLIPSampling()

    @property
    def guidable(self) -> bool:
        """Whether the decoder knows images without their embedding, which guidance subtracts."""
        return self.caption_dropout > 0


def check_unclip(
    section: UnCLIP | None, clip: CLIP | None, prior: Prior | None, resolution: int
) -> None:
    """The networks can be built, and take the views; raises ValueError naming the key."""
    if clip and clip.pretrained is None:
        width, shape = clip.text.hidden_size, clip.vision
        check_multiples("clip.text.hidden_size", [width], clip.text.heads, "clip.text.heads")
        check_multiples("clip.vision.width", [shape.width], shape.heads, "clip.vision.heads")
        check_multiples("data.resolution", [resolution], shape.patch, "clip.vision.patch")
    if prior and prior.pretrained and clip and clip.pretrained is None:
        raise ValueError(
            "prior.pretrained: draws embeddings of the CLIP that it was trained with; give "
            "clip.pretrained, that one, too"
        )
    if prior and prior.pretrained is None:
        check_multiples("prior.width", [prior.width], prior.heads, "prior.heads")
    if section is None or prior is None:
        return
    check_multiples("unclip.unet.block_out_channels", section.unet.block_out_channels, 16)
    drawn = section.sampling
    if drawn.noise_level >= section.noise_levels:
        raise ValueError(
            f"unclip.sampling.noise_level: {drawn.noise_level} is not below unclip.noise_levels, "
            f"{section.noise_levels}"
        )
    if drawn.prior_guidance > 1 and prior.caption_dropout == 0:
        raise ValueError(
            "unclip.sampling.prior_guidance: needs prior.caption_dropout, from which the prior "
            "learns embeddings without a caption"
        )
