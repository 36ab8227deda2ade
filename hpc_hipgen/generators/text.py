"""The text side: CLIP tokenizer and encoder, and captions that carry a number.

`caption` conditioning leaves the digits of an angle to the tokenizer, as the paper did. With
`measurement` conditioning the phrase "left 102.5 degrees" of a prompt is one token, and its
embedding is a smooth function of the angle: Fourier features (Tancik et al. 2020, arXiv
2006.10739) through a small network. What is learnt at one angle thus holds at its neighbours. At
export the function is evaluated for every token and written into a plain embedding table, so a
stock CLIPTokenizer and CLIPTextModel do the same from a plain prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hpc_hipgen.config import Text
from hpc_hipgen.files import LOCAL
from hpc_hipgen.radiograph.captions import ANGLE_MAX, ANGLE_MIN, ANGLE_STEP, PROMPT_CLASSES, caption
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES, Angles
from hpc_hipgen.training.engine import device

FREQUENCIES = (0.5, 1.0, 2.0, 4.0)
"""Of the Fourier features, in periods over the range of angles: the fastest has 17.5 degrees."""

WEIGHTS = LOCAL | {"dtype": torch.float32}
"""How transformers loads what is trained on or with: in fp32 however it is stored (left to itself,
it takes the type of the file)."""


def measurement_phrases() -> list[tuple[str, float, int]]:
    """All phrases that become tokens: (text, angle in degrees, side index).

    "left 102.5 degrees" in half-degree steps as captions have them, and "left 102 degrees" for
    people who leave out the decimal.
    """
    angles = np.arange(ANGLE_MIN, ANGLE_MAX + ANGLE_STEP / 2, ANGLE_STEP)
    phrases = []
    for side, name in enumerate(PATIENT_SIDES):
        phrases += [(f"{name} {a:.1f} degrees", float(a), side) for a in angles]
        phrases += [(f"{name} {a:.0f} degrees", float(a), side) for a in angles if a == int(a)]
    return phrases


def build_tokenizer(config: Text) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte pairs are learnt from the captions themselves.

    Digits stay single tokens, as CLIP's pre-tokenizer has it. It depends on the caption grammar
    and on nothing else: every rank, and a process that resumes, must give words the same ids.
    """
    backend = CLIPTokenizer().backend_tokenizer
    corpus = [
        caption(Angles.of_patient(left=left, right=180 - left), prompt_class)
        for prompt_class in PROMPT_CLASSES
        for left in np.arange(60.0, 120.0, 7.5)
    ]
    words = Counter(
        word
        for line in corpus
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(
            backend.normalizer.normalize_str(line)
        )
    )
    merges = byte_pairs(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=config.max_length)


def byte_pairs(words: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges that make every word one token, the most frequent pair first.

    Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of words with their counts, ties
    in alphabetical order. (The trainer of `tokenizers` breaks ties by hash, differently in every
    process.)
    """
    pieces = {word: [*word[:-1], f"{word[-1]}</w>"] for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in pieces.values():
            for i in reversed(range(len(parts) - 1)):
                if tuple(parts[i : i + 2]) == best:
                    parts[i : i + 2] = ["".join(best)]


def add_measurement_tokens(tokenizer: CLIPTokenizer) -> int:
    """Adds a token per phrase of `measurement_phrases`, in that order; returns the first's id."""
    first = len(tokenizer)
    tokens = [AddedToken(t, single_word=True, normalized=True) for t, *_ in measurement_phrases()]
    added = tokenizer.add_tokens(tokens)
    assert added == len(tokens), "a phrase was in the vocabulary already"
    return first


class MeasurementEmbedding(nn.Module):
    """A token embedding whose rows for measurements are computed from their value."""

    def __init__(self, words: nn.Embedding, first: int) -> None:
        """`words` holds the ordinary rows, `first` is the id of the first measurement token."""
        super().__init__()
        assert words.num_embeddings == first
        self.words = words
        values = torch.tensor([value for _, value, _ in measurement_phrases()])
        sides = torch.tensor([side for *_, side in measurement_phrases()])
        self.register_buffer("features", self._features(values, sides), persistent=False)
        hidden = 128
        self.network = nn.Sequential(
            nn.Linear(self.features.shape[1], hidden),
            nn.SiLU(),
            nn.Linear(hidden, words.embedding_dim),
        )
        # At the start each row is a constant marker, which attention can find (see
        # `attend_to_measurements`), plus a part of the same size that depends on the angle.
        scale = 4 * float(words.weight.detach().std())
        with torch.no_grad():
            last = self.network[2]
            last.weight.normal_()
            last.weight *= (
                scale / (self.network[1](self.network[0](self.features)) @ last.weight.T).std()
            )
            last.bias.normal_(std=scale)

    @staticmethod
    def _features(values: Tensor, sides: Tensor) -> Tensor:
        """Features (m, 2 (1 + 2 f)): those of the own side, zeros for the other."""
        x = (values - (ANGLE_MIN + ANGLE_MAX) / 2) / (ANGLE_MAX - ANGLE_MIN)
        phase = 2 * math.pi * x[:, None] * torch.tensor(FREQUENCIES)
        wave = torch.cat([2 * x[:, None], phase.sin(), phase.cos()], 1)
        own = F.one_hot(sides, len(PATIENT_SIDES)).float()
        return (own[:, :, None] * wave[:, None, :]).flatten(1)

    def table(self) -> Tensor:
        """The plain embedding table, (words + measurements, width)."""
        return torch.cat([self.words.weight, self.network(self.features).to(self.words.weight)])

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ids (b, n) to (b, n, width)."""
        return F.embedding(ids, self.table())


def text_config(config: Text, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The shape of a small CLIP text encoder for the tokenizer's vocabulary."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        projection_dim=config.hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(config: Text, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text encoder with random weights for the tokenizer's vocabulary."""
    return CLIPTextModel(text_config(config, tokenizer))


def install_measurements(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, name: str = "text encoder"
) -> None:
    """Gives tokenizer and encoder the measurement tokens.

    Raises:
        ValueError: the encoder, called `name`, has other rows of its table than tokens.
    """
    words = encoder.get_input_embeddings()
    first = add_measurement_tokens(tokenizer)
    if words.num_embeddings != first:  # a checkpoint whose table was padded or cut
        raise ValueError(
            f"{name} has {words.num_embeddings} embeddings, its tokenizer {first} tokens, so that "
            "no token can be added; conditioning=caption adds none"
        )
    encoder.set_input_embeddings(MeasurementEmbedding(words, first))


def unbake_measurements(encoder: CLIPTextModel) -> None:
    """Gives an exported encoder the embedding that is trained again; its values do not matter."""
    baked = encoder.get_input_embeddings()
    first = baked.num_embeddings - len(measurement_phrases())
    words = nn.Embedding.from_pretrained(baked.weight.detach()[:first].clone())
    encoder.set_input_embeddings(MeasurementEmbedding(words, first).to(words.weight))


@torch.no_grad()
def attend_to_measurements(encoder: CLIPTextModel, logit: float = 6.0) -> None:
    """Starts a new encoder with half of the first layer's heads looking at measurement tokens.

    A measurement is one or two tokens of some fifty. With random weights every later token, and
    in the end the UNet, would see a few per cent of it; with this start the tokens after a
    measurement carry it, whether the encoder is trained or not. `logit` is the head start
    before the softmax.
    """
    embedding = encoder.get_input_embeddings()
    assert isinstance(embedding, MeasurementEmbedding), "no measurement tokens installed"
    attention = encoder.encoder.layers[0].self_attn
    heads = encoder.config.num_attention_heads
    queries = marker_queries(embedding, attention.k_proj.weight, heads, logit)
    attention.q_proj.bias[: len(queries)] = queries


def marker_queries(
    embedding: MeasurementEmbedding, keys: Tensor, heads: int, logit: float
) -> Tensor:
    """Query biases with which half of a first layer's heads look at measurement tokens.

    Args:
        embedding: of the tokens, whose markers are looked for.
        keys: (d, d) weight of the layer's keys, outputs first.
        heads: number of heads of the layer.
        logit: head start of measurement tokens before the softmax.

    Returns:
        (max(1, heads // 2) * d / heads,), the bias of the first heads.
    """
    marker = embedding.network[2].bias / embedding.network[2].bias.norm()
    width = embedding.words.embedding_dim
    size = width // heads
    # After the layer norm about 1/sqrt(2) of a measurement token's norm lies along its marker.
    along = math.sqrt(width / 2)
    found = (keys @ marker).view(heads, size)[: max(1, heads // 2)]
    gains = logit * math.sqrt(size) / along / found.square().sum(1, keepdim=True)
    return (gains * found).flatten()


@torch.no_grad()
def bake_measurements(encoder: CLIPTextModel) -> None:
    """Writes the measurement embeddings into a plain table, in place."""
    embedding = encoder.get_input_embeddings()
    if isinstance(embedding, MeasurementEmbedding):
        table = embedding.table().clone()
        plain = nn.Embedding(*table.shape, dtype=table.dtype, device=table.device)
        plain.weight.copy_(table)
        encoder.set_input_embeddings(plain)
        encoder.config.vocab_size = len(table)


def tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> BatchEncoding:
    """`input_ids` and `attention_mask` (b, model_max_length), as a stock pipeline makes them."""
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Ids (b, model_max_length) int64, padded and cut as a stock pipeline does."""
    return tokens(tokenizer, prompts).input_ids


def caption_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """`token_ids` of captions to train on, none of which may be cut.

    Raises:
        ValueError: names the first caption that is longer than the text encoder's context.
    """
    limit = tokenizer.model_max_length
    for caption_text in dict.fromkeys(captions):
        length = len(tokenizer(caption_text, verbose=False).input_ids)
        if length > limit:
            raise ValueError(
                f"a caption has {length} tokens, the text encoder takes {limit}: '{caption_text}'"
            )
    return token_ids(tokenizer, captions)


@torch.no_grad()
def encode_captions(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]
) -> tuple[Tensor, np.ndarray]:
    """States of every distinct caption, computed once, on this rank's device.

    Returns:
        states (u, n, d) of the u distinct captions, on the CPU, and each caption's row in them.
    """
    distinct, rows = np.unique(np.array(captions), return_inverse=True)
    parts = np.array_split(distinct, max(1, len(distinct) // 64))
    ids = [caption_ids(tokenizer, [str(c) for c in part]) for part in parts]
    before = encoder.device
    encoder.eval().to(device())
    states = torch.cat([encoder(i.to(device()))[0].float().cpu() for i in ids])
    encoder.to(before)  # its memory is the training's
    return states, rows


def load_text(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Tokenizer and text encoder of a diffusers folder."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", **WEIGHTS)
    return tokenizer, encoder
