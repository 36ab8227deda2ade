"""DALL-E (Ramesh et al. 2021, arXiv 2102.12092): one transformer over caption and image tokens.

A sequence is a caption, padded to `text_length` tokens, then the tokens that the discrete VAE gives
the image, row by row. A causal language model (GPT-2 of transformers) learns to go on with it; to
draw, it is given the caption and goes on with an image, which the VAE decodes.

The vocabulary is that of the tokenizer: words, one token per entry of the codebook, and with
`measurement` conditioning one per phrase like "left 102.5 degrees" (see text.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hpc_hipgen.config import DallE, Experiment, Text
from hpc_hipgen.diffusion.consistency import spatial_mean
from hpc_hipgen.files import LOCAL, reading_export
from hpc_hipgen.generators import text
from hpc_hipgen.generators.discrete_vae import DiscreteAutoencoder, cached_codes, decode_images
from hpc_hipgen.generators.focus import hip_focus
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.run import Run
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.task import FilmTask, parameter_count

CODE_TOKEN = "<|image{}|>"
"""Token of an entry of the codebook in the tokenizer."""


@dataclass
class DallEParts:
    """What draws images from captions."""

    transformer: GPT2LMHeadModel
    tokenizer: CLIPTokenizer
    vae: DiscreteAutoencoder

    @property
    def first_code(self) -> int:
        """Id of the token of the codebook's first entry; the others follow it."""
        return self.tokenizer.convert_tokens_to_ids(CODE_TOKEN.format(0))

    @property
    def grid(self) -> int:
        """Height and width of an image in tokens."""
        return math.isqrt(self.transformer.config.n_positions - self.tokenizer.model_max_length)

    def save(self, folder: Path) -> None:
        """Writes transformer/, tokenizer/ and vae/, each as its library reads it."""
        self.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.vae.save_pretrained(folder / "vae", safe_serialization=True)


def load_parts(folder: Path, precision: str = "fp32") -> DallEParts:
    """Loads an export on this machine's device; safetensors only, no network.

    Raises:
        ValueError: when the folder holds no DALL-E.
    """
    if not (folder / "transformer" / "config.json").is_file():
        raise ValueError(f"{folder}: holds no DALL-E (transformer/config.json)")
    local = LOCAL | {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    with reading_export(folder):
        return DallEParts(
            GPT2LMHeadModel.from_pretrained(folder / "transformer", **local).eval().to(device()),
            CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            DiscreteAutoencoder.from_pretrained(folder / "vae", **local).eval().to(device()),
        )


def build_parts(section: DallE, vae: DiscreteAutoencoder, grid: int) -> DallEParts:
    """A transformer with random weights for captions and images of `grid`^2 tokens."""
    tokenizer = text.build_tokenizer(Text())
    tokenizer.model_max_length = section.text_length
    names = [CODE_TOKEN.format(number) for number in range(vae.config.codes)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    measured = section.conditioning == "measurement"
    ordinary = len(tokenizer)
    settings = GPT2Config(
        vocab_size=ordinary + (len(text.measurement_phrases()) if measured else 0),
        n_positions=section.text_length + grid**2,
        n_embd=section.width,
        n_layer=section.layers,
        n_head=section.heads,
        # Dropout would draw from a generator that is no function of the clock.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,  # padding is seen like any token, as in DALL-E: nothing to mask
        tie_word_embeddings=False,
    )
    transformer = GPT2LMHeadModel(settings)
    _start_positions(transformer, section.text_length, grid)
    if measured:
        words = nn.Embedding(ordinary, section.width)
        nn.init.normal_(words.weight, std=settings.initializer_range)
        transformer.set_input_embeddings(words)
        text.install_measurements(transformer, tokenizer)
        attend_to_measurements(transformer)
    if section.gradient_checkpointing:
        transformer.gradient_checkpointing_enable()
    return DallEParts(transformer, tokenizer, vae)


@torch.no_grad()
def _start_positions(transformer: GPT2LMHeadModel, text_length: int, grid: int) -> None:
    """Starts the position of an image token as that of its row plus that of its column.

    So attention finds neighbours in the image, which are far apart in the sequence, from the first
    step. (DALL-E has row and column embeddings; a table that starts so is stock GPT-2.)
    """
    positions = transformer.transformer.wpe.weight
    rows, columns = (
        positions[text_length:].std() / math.sqrt(2) * torch.randn(2, grid, positions.shape[1])
    )
    positions[text_length:] = (rows[:, None] + columns[None, :]).flatten(0, 1)


@torch.no_grad()
def attend_to_measurements(transformer: GPT2LMHeadModel, logit: float = 8.0) -> None:
    """Starts half of the first layer's heads looking at measurement tokens.

    See `text.attend_to_measurements`: here it is the image tokens that see the angles at once. The
    head start is larger because a sequence is several times as long.
    """
    attention = transformer.transformer.h[0].attn
    width = transformer.config.n_embd
    keys = attention.c_attn.weight[:, width : 2 * width].T  # queries, keys, values side by side
    embedding = transformer.get_input_embeddings()
    queries = text.marker_queries(embedding, keys, transformer.config.n_head, logit)
    attention.c_attn.bias[: len(queries)] = queries


class TokenLoss(nn.Module):
    """The transformer with the loss of its next tokens."""

    def __init__(self, parts: DallEParts, text_weight: float) -> None:
        """`text_weight`: share of the text in the loss, 1/8 in DALL-E."""
        super().__init__()
        self.transformer = parts.transformer
        self.text_weight = text_weight
        self.text_length = parts.tokenizer.model_max_length
        self.end = parts.tokenizer.eos_token_id  # pads too, as CLIP's tokenizer does
        self.codes = slice(parts.first_code, parts.first_code + parts.vae.config.codes)

    def forward(self, ids: Tensor, codes: Tensor, weight: Tensor) -> tuple[Tensor, dict]:
        """Per-image losses in nats a token.

        Args:
            ids: captions, (b, t) int64.
            codes: entries of the codebook, (b, n) int64, row by row.
            weight: (b, n) of the image tokens; normalised to mean 1 here.
        """
        length = self.text_length
        tokens = torch.cat([ids, codes + self.codes.start], 1)
        logits = self.transformer(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        words = F.cross_entropy(logits[:, : length - 1].mT, ids[:, 1:], reduction="none")
        # An image token is drawn among image tokens, so only they share its probability.
        places = F.cross_entropy(logits[:, length - 1 :, self.codes].mT, codes, reduction="none")
        # The first end is to be learnt, the padding after it is not.
        caption = ((ids[:, :-1] != self.end).cumprod(1)).to(words)
        text_loss = (words * caption).sum(1) / caption.sum(1)
        image_loss = spatial_mean(places, weight)
        losses = self.text_weight * text_loss + (1 - self.text_weight) * image_loss
        return losses, {"text": text_loss.mean(), "image": places.mean(), "hips": image_loss.mean()}


class DallETask(FilmTask):
    """The transformer for the training loop."""

    def __init__(
        self, config: Experiment, films: Films, vae: DiscreteAutoencoder, cache: Path
    ) -> None:
        """`films`: pairs with landmarks; `cache`: folder of the codes."""
        super().__init__(films)
        self.section = section = config.section("dall_e", DallE)
        self.resolution = config.data.resolution
        self.codes = cached_codes(vae, films, cache)
        torch.manual_seed(config.seed)
        self.parts = build_parts(section, vae, self.codes.shape[-1])
        self.texts = text.caption_ids(self.parts.tokenizer, films.captions)
        self.null = text.token_ids(self.parts.tokenizer, [""])[0]
        self.module = TokenLoss(self.parts, section.text_weight)
        average = WeightAverage.for_export(self.parts.transformer, section.training)
        self.averages = {"export": average}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Captions (some dropped, for guidance), image tokens and their focus."""
        dropped = random.uniform("dropout") < self.section.caption_dropout
        landmarks = torch.from_numpy(self.films.landmarks[indices])
        grid = self.codes.shape[-1]
        weight = hip_focus(landmarks, grid, self.resolution, self.section.hip_weight)
        return {
            "ids": torch.where(dropped[:, None], self.null, self.texts[indices]),
            "codes": self.codes[indices].flatten(1).long(),
            "weight": weight.flatten(1),
        }

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged transformer, the tokenizer and the VAE."""
        transformer = self.averages["export"].module.float().cpu()
        text.bake_measurements(transformer)
        DallEParts(transformer, self.parts.tokenizer, self.parts.vae.float().cpu()).save(folder)
        return {"parameters": parameter_count(transformer)}


def warpers(temperature: float, top_k: int | None, top_p: float) -> LogitsProcessorList:
    """transformers' processors of the logits, in the order of its `generate`."""
    found = LogitsProcessorList()
    if temperature != 1:
        found.append(TemperatureLogitsWarper(temperature))
    if top_k:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        found.append(TopPLogitsWarper(top_p))
    return found


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws an index from softmax(logits) (b, k) for each uniform number (b,) in [0, 1).

    By the inverse of the cumulative distribution, in float64: an index without probability is
    never drawn.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return found[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def draw_codes(
    parts: DallEParts,
    prompts: list[str],
    seeds: list[int],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float,
    guidance: float,
) -> Tensor:
    """Image tokens (b, grid, grid) int64 for the prompts, one generator per image.

    Each step feeds the last token only; the keys and values of earlier ones are kept. With a
    guidance scale above 1 logits are moved away from those without a caption (arXiv 2203.13131).
    """
    model, count = parts.transformer, parts.grid**2
    # On the CPU and all at once, so that a seed means the same image on every device.
    uniform = torch.stack(
        [
            torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
    ).to(model.device)
    guided = guidance > 1
    tokens = text.token_ids(parts.tokenizer, [*prompts, *([""] * len(prompts) if guided else [])])
    tokens, warp = tokens.to(model.device), warpers(temperature, top_k, top_p)
    codes = slice(parts.first_code, parts.first_code + parts.vae.config.codes)
    cache, drawn = None, []
    for place in range(count):
        output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1, codes].float()
        if guided:
            known, null = logits.chunk(2)
            logits = null + guidance * (known - null)
        drawn.append(pick(warp(None, logits), uniform[:, place]))
        tokens = (drawn[-1] + codes.start).repeat(2 if guided else 1)[:, None]
    return torch.stack(drawn, 1).unflatten(1, (parts.grid, parts.grid))


@dataclass
class DallEDrawer:
    """Draws with a transformer; the size of its images is that of the discrete VAE's."""

    parts: DallEParts

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self.parts.transformer

    def draw(
        self, prompts: list[str], seeds: list[int], *, resolution: int, **settings: float | None
    ) -> np.ndarray:
        """Grey images (b, n, n) uint8; settings as of `draw_codes`."""
        return decode_images(self.parts.vae, draw_codes(self.parts, prompts, seeds, **settings))


def drawer(run: Run, model: str) -> DallEDrawer:
    """Of the export."""
    return DallEDrawer(load_parts(run.path(model, "export"), run.config.sampling.precision))
