"""CLIP (Radford et al. 2021, arXiv 2103.00020): one space for captions and images.

unCLIP draws an image from its embedding here, and the embedding from a caption. A published CLIP
can be used as it is; the small one that is trained here learns from the training split which of a
few captions belongs to which of as many views.

Contrast alone tells an angle from one ten degrees away, and leaves the embedding of an image
careless of the last few degrees, on which the decoder then has no hold. So a linear layer must
also read both angles off the image embedding. That addition is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hpc_hipgen.config import CLIP, Experiment, training_of
from hpc_hipgen.files import reading_export
from hpc_hipgen.generators import text
from hpc_hipgen.generators.probe import asked_angles
from hpc_hipgen.generators.view_cache import ViewEncoder, cached
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import micro_batch
from hpc_hipgen.training.task import FilmTask, parameter_count

EMBEDDED_AT_ONCE = 64
"""Views that become embeddings at once."""


@dataclass
class CLIPParts:
    """A CLIP with the tokenizer of its captions."""

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @property
    def width(self) -> int:
        """Elements of an embedding."""
        return self.model.config.projection_dim

    def to(self, device: torch.device) -> CLIPParts:
        """Moves the model."""
        self.model.to(device)
        return self


def load_parts(folder: Path) -> CLIPParts:
    """Reads a transformers folder of a CLIPModel (safetensors only, no network).

    Raises:
        ValueError: the text states have another width than the embeddings; the prior of diffusers
            takes both through one layer's shape.
    """
    with reading_export(folder):
        model = CLIPModel.from_pretrained(folder, **text.WEIGHTS).requires_grad_(False).eval()
        parts = CLIPParts(model, CLIPTokenizer.from_pretrained(folder, local_files_only=True))
    if (states := model.config.text_config.hidden_size) != parts.width:
        raise ValueError(
            f"{folder}: text states of width {states} and embeddings of {parts.width}; a prior "
            "needs a CLIP where both are equal, such as ViT-L/14"
        )
    return parts


def build_parts(section: CLIP, resolution: int) -> CLIPParts:
    """A small CLIP with random weights for views of `resolution` pixels."""
    tokenizer = text.build_tokenizer(section.text)
    shape = section.vision
    vision = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=resolution,
        patch_size=shape.patch,
        projection_dim=section.text.hidden_size,
    )
    model = CLIPModel(
        CLIPConfig(
            text_config=text.text_config(section.text, tokenizer).to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=section.text.hidden_size,
        )
    )
    # DeepSpeed 0.19 sends parameters to other ranks as rows of bytes, which a scalar does not have
    model.logit_scale = nn.Parameter(model.logit_scale.detach().view(1))
    if section.conditioning == "measurement":
        text.install_measurements(model.text_model, tokenizer)
        text.attend_to_measurements(model.text_model)
    return CLIPParts(model, tokenizer)


def clip_pixels(images: np.ndarray, size: int) -> Tensor:
    """Grey views (b, n, n) uint8 as CLIP's image processor has them, (b, 3, size, size) float32.

    Resized to `size`, then standardised with the mean and spread of CLIP's own training images.
    """
    pixels = torch.from_numpy(images).float().div(255)[:, None]
    if images.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((pixels - mean) / std).contiguous()


@torch.no_grad()
def image_embeddings(model: CLIPModel, images: np.ndarray, batch: int = EMBEDDED_AT_ONCE) -> Tensor:
    """Embeddings (n, d) float32 on the CPU of views (n, r, r) uint8, not of length 1."""
    size, found = model.config.vision_config.image_size, []
    for start in range(0, len(images), batch):
        pixels = clip_pixels(images[start : start + batch], size).to(model.device)
        found.append(model.get_image_features(pixels).pooler_output.float().cpu())
    return torch.cat(found)


def cached_embeddings(model: CLIPModel, films: Films, cache: Path) -> Tensor:
    """Image embeddings (n, d) float32 of all views, memory-mapped; see `view_cache.cached`."""
    vision = model.config.vision_config
    settings = (vision.hidden_act, vision.layer_norm_eps, vision.num_attention_heads)
    encoder = ViewEncoder(model, image_embeddings, EMBEDDED_AT_ONCE, f"{settings}", "the CLIP")
    return cached(encoder, films, cache)


@dataclass
class Captions:
    """What a prior is told of u captions.

    pooled: (u, d), in the space of image embeddings; states: (u, n, d) of the tokens; mask: (u, n)
    bool, False where a caption has ended.
    """

    pooled: Tensor
    states: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Those of the captions `rows` (b,), by name."""
        return {name: value[rows] for name, value in vars(self).items()}


@torch.no_grad()
def encode_captions(parts: CLIPParts, captions: list[str], batch: int = 64) -> Captions:
    """Each caption as the stock pipeline hands it to the prior.

    Raises:
        ValueError: a caption is longer than the text encoder's context.
    """
    text.caption_ids(parts.tokenizer, captions)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(captions), batch):
        tokens = text.tokens(parts.tokenizer, captions[start : start + batch])
        output = parts.model.get_text_features(tokens.input_ids.to(parts.model.device))
        pooled, states = output.pooler_output, output.last_hidden_state
        found.append((pooled.float().cpu(), states.float().cpu(), tokens.attention_mask.bool()))
    return Captions(*(torch.cat(part) for part in zip(*found, strict=True)))


def group_loss(logits: Tensor, captions: Tensor, group: int) -> Tensor:
    """CLIP's symmetric cross-entropy within groups of consecutive pairs, (b,).

    Args:
        logits: (b, b) similarities, captions along the rows.
        captions: (b,) int64 numbers of the captions; views of one caption share the target.
        group: pairs that are contrasted with each other; divides b.
    """
    count = len(logits) // group
    logits = logits.view(count, group, count, group).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    numbers = captions.view(count, group)
    same = (numbers[:, :, None] == numbers[:, None, :]).to(logits)
    target = same / same.sum(-1, keepdim=True)  # symmetric: same captions have the same rows
    losses = [
        -(target * F.log_softmax(way, dim=-1)).sum(-1) for way in (logits, logits.transpose(1, 2))
    ]
    return (sum(losses) / 2).flatten()


class ContrastiveLoss(nn.Module):
    """A CLIP with the contrastive loss, and the angles read off its image embeddings."""

    def __init__(self, clip: CLIPModel, section: CLIP, spread: float) -> None:
        """`spread`: standard deviation of the training angles in degrees, for the log."""
        super().__init__()
        angles = nn.Linear(clip.config.projection_dim, 2)
        self.networks = nn.ModuleDict({"clip": clip, "angles": angles})
        self.section = section
        self.spread = spread

    def forward(
        self, ids: Tensor, captions: Tensor, pixels: Tensor, angles: Tensor
    ) -> tuple[Tensor, dict]:
        """Per-pair losses of token ids (b, n) and pixels (b, 3, r, r).

        `captions` (b,): see `group_loss`; `angles` (b, 2) of the patient's left and right hip, in
        standard deviations from the training mean.
        """
        output = self.networks["clip"](input_ids=ids, pixel_values=pixels)
        contrast = group_loss(output.logits_per_text.float(), captions, self.section.contrast)
        read = read_angles(self.networks, output.image_embeds).float()
        angle = (read - angles).square().mean(1)
        losses = contrast + self.section.angle_weight * angle
        error = self.spread * angle.mean().sqrt()
        return losses, {"contrast": contrast.mean(), "angle_rms_degrees": error}


def read_angles(networks: nn.ModuleDict, embeddings: Tensor) -> Tensor:
    """Both angles (b, 2), standardised, as the linear layer reads them off embeddings (b, d)."""
    unit = F.normalize(embeddings, dim=-1) * embeddings.shape[-1] ** 0.5  # elements of about 1
    return networks["angles"](unit)


class CLIPTask(FilmTask):
    """A small CLIP for the training loop."""

    reads_views = True

    def __init__(self, config: Experiment, films: Films, validation: Films) -> None:
        """`films`: the training split; `validation` is only looked at for the record.

        Raises:
            ValueError: a rank holds pairs that do not divide into groups.
        """
        super().__init__(films)
        self.validation = validation
        self.section = section = config.section("clip", CLIP)
        if micro_batch(training_of(section)) % section.contrast:
            raise ValueError(
                f"clip.contrast: groups of {section.contrast} do not divide the "
                f"{micro_batch(training_of(section))} pairs that a rank holds at once"
            )
        torch.manual_seed(config.seed)
        self.parts = build_parts(section, config.data.resolution)
        degrees = asked_angles(films)
        self.mean, self.spread = degrees.mean(), degrees.std()
        self.angles = (degrees - self.mean) / self.spread
        self.module = ContrastiveLoss(self.parts.model, section, float(self.spread))
        self.ids = text.caption_ids(self.parts.tokenizer, films.captions)
        self.captions = np.unique(np.array(films.captions), return_inverse=True)[1]
        average = WeightAverage.for_export(self.module.networks, training_of(section))
        self.averages = {"export": average}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Captions, pixels and angles of the views."""
        images = self.films.images[indices]
        return {
            "ids": self.ids[indices],
            "captions": torch.from_numpy(self.captions[indices]),
            "pixels": clip_pixels(images, images.shape[-1]),
            "angles": self.angles[indices],
        }

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a folder that a stock CLIPModel and its halves load.

        Its embeddings are scaled to a standard deviation of 1 over the training views, which their
        angles, and so all similarities, do not notice.
        """
        networks = self.averages["export"].module.float().cpu()
        model = networks["clip"]
        text.bake_measurements(model.text_model)
        model.config.text_config.vocab_size = model.text_model.config.vocab_size
        sample = image_embeddings(model, self.films.images[:: max(1, self.size // 512)])
        with torch.no_grad():
            model.visual_projection.weight /= sample.std(0).square().mean().sqrt()
            found = read_angles(networks, image_embeddings(model, self.validation.images))
        error = (found * self.spread + self.mean - asked_angles(self.validation)).abs().mean()
        model.logit_scale = nn.Parameter(model.logit_scale.squeeze())
        model.save_pretrained(folder, safe_serialization=True)
        self.parts.tokenizer.save_pretrained(folder)
        return {
            "parameters": parameter_count(model),
            "validation_angle_mae": float(error),
        }
