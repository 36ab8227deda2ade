"""The prior of DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125): from a caption to an embedding.

A transformer (diffusers PriorTransformer) denoises the CLIP embedding of an image, given the
caption's embedding and the states of its tokens. As in the paper it predicts the clean embedding
itself, on a cosine schedule. It is needed because a caption's own embedding is no substitute: many
images fit a caption, and none of them lies where the caption does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, PriorTransformer
from torch import Tensor, nn

from hpc_hipgen.config import Experiment, Prior, training_of
from hpc_hipgen.diffusion.schedule import add_noise
from hpc_hipgen.files import LOCAL, reading_export
from hpc_hipgen.generators import clip
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.task import FilmTask, parameter_count


def prior_scheduler() -> DDIMScheduler:
    """The sampler of embeddings, with the noise schedule that the prior is trained on."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",  # the first step starts from pure noise, as training has it
    )


def build_prior(section: Prior, parts: clip.CLIPParts, embeddings: Tensor) -> PriorTransformer:
    """A prior with random weights for the captions of a CLIP.

    `embeddings` (n, d) are those of the training views: the prior works on standardised ones, and
    keeps their mean and spread.
    """
    prior = PriorTransformer(
        num_attention_heads=section.heads,
        attention_head_dim=section.width // section.heads,
        num_layers=section.layers,
        embedding_dim=parts.width,
        num_embeddings=parts.tokenizer.model_max_length,
        additional_embeddings=4,  # pooled caption, timestep, noisy embedding, the one to fill
    )
    for places in (prior.positional_embedding, prior.prd_embedding):  # diffusers starts at zero
        nn.init.normal_(places, std=0.02)
    prior.clip_mean.data.copy_(embeddings.mean(0))
    prior.clip_std.data.copy_(embeddings.std(0).clamp(min=1e-6))
    for fixed in (prior.clip_mean, prior.clip_std):
        fixed.requires_grad_(False)
    return prior


def load_prior(folder: Path, width: int) -> PriorTransformer:
    """Reads an exported prior.

    Raises:
        ValueError: it is for embeddings of another width.
    """
    with reading_export(folder):
        prior = PriorTransformer.from_pretrained(folder, **LOCAL)
    if (found := prior.config.embedding_dim) != width:
        raise ValueError(f"{folder}: for embeddings of width {found}, but the CLIP's have {width}")
    return prior


class PriorLoss(nn.Module):
    """The prior with the squared error of the embedding that it predicts."""

    def __init__(self, prior: PriorTransformer) -> None:
        super().__init__()
        self.prior = prior
        alphas_cumprod = prior_scheduler().alphas_cumprod.double()
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def forward(
        self, embeddings: Tensor, noise: Tensor, timesteps: Tensor,
        pooled: Tensor, states: Tensor, mask: Tensor,
    ) -> tuple[Tensor, dict]:  # fmt: skip
        """Per-image losses of standardised embeddings (b, d) at timesteps (b,).

        The caption's tensors are those of `clip.Captions`, a row each.
        """
        noisy = add_noise(embeddings, noise, timesteps, self.alphas_cumprod)
        found = self.prior(
            noisy,
            timesteps,
            proj_embedding=pooled,
            encoder_hidden_states=states,
            attention_mask=mask,
        ).predicted_image_embedding
        losses = (found.float() - embeddings).square().mean(1)
        return losses, {"mse": losses.mean()}


class PriorTask(FilmTask):
    """The prior for the training loop."""

    def __init__(
        self, config: Experiment, films: Films, parts: clip.CLIPParts, cache: Path
    ) -> None:
        """`films`: the training split; `parts`: the CLIP; `cache`: folder of the embeddings."""
        super().__init__(films)
        self.section = section = config.section("prior", Prior)
        parts = parts.to(device())
        self.embeddings = clip.cached_embeddings(parts.model, films, cache)
        distinct, rows = np.unique(np.array(films.captions), return_inverse=True)
        # the empty caption, which guidance subtracts, comes last
        self.captions = clip.encode_captions(parts, [*map(str, distinct), ""])
        self.rows, self.null = torch.from_numpy(rows), len(distinct)
        torch.manual_seed(config.seed)
        prior = build_prior(section, parts, self.embeddings)
        self.mean, self.spread = prior.clip_mean.clone(), prior.clip_std.clone()
        self.module = PriorLoss(prior)
        self.averages = {"export": WeightAverage.for_export(prior, training_of(section))}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Embeddings, noise, timesteps and captions (some dropped, for guidance)."""
        embeddings = (self.embeddings[indices] - self.mean) / self.spread
        dropped = random.uniform("dropout") < self.section.caption_dropout
        return {
            "embeddings": embeddings,
            "noise": random.normal("noise", embeddings.shape[1]),
            "timesteps": random.integers("timestep", len(self.module.alphas_cumprod)),
            **self.captions.take(torch.where(dropped, self.null, self.rows[indices])),
        }

    def export(self, folder: Path) -> dict[str, float]:
        """Writes a folder that a stock PriorTransformer loads."""
        prior = self.averages["export"].module.float().cpu()
        prior.save_pretrained(folder, safe_serialization=True)
        return {"parameters": parameter_count(prior)}
