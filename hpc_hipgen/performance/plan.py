"""What a training run will need: FLOPs an image, memory of a GPU, hours.

Memory is that of fp32 weights, gradients and moments, shared out by ZeRO, with bf16 autocast
unless the precision is fp32, as `training.engine` sets DeepSpeed up; networks that are only
evaluated stand on every GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_hipgen.config import (
    Autoencoder,
    Diffusion,
    Experiment,
    Training,
    autoencoder_config,
)
from hpc_hipgen.diffusion.consistency import GUIDANCE_WIDTH
from hpc_hipgen.diffusion.solvers import JUMP_EVALUATIONS
from hpc_hipgen.performance import PLANNED
from hpc_hipgen.performance.simulation import Cost, simulate
from hpc_hipgen.training.engine import BUCKET

GIB = 2**30
BUCKET_WITHOUT_ZERO = 500_000_000
"""Gradients that DeepSpeed adds up at once where it shares nothing out, in elements."""

STABLE_DIFFUSION_1_5 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""What its UNet has that diffusers' UNet2DConditionModel has not by default."""

TEXT_1_5 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
"""What its text encoder has that transformers' CLIPTextConfig has not by default."""

LEVELS_1_5 = (128, 256, 512, 512)
"""Channels of the levels of its autoencoder."""


@dataclass(frozen=True)
class Shape:
    """The UNet of a run, as a recipe, and what it is given.

    Attributes:
        build: makes the UNet; `student` says whether it takes a guidance weight.
        latent: (channels, height, width) of a latent.
        text: (tokens, width) of a caption's states.
        encoder: makes the text encoder, where that is trained too.
    """

    build: Callable[[bool], Any]
    latent: tuple[int, int, int]
    text: tuple[int, int]
    encoder: Callable[[], Any] | None = None


class WithText(nn.Module):
    """A UNet behind the text encoder that is trained with it."""

    def __init__(self, unet: nn.Module, encoder: nn.Module) -> None:
        """Both are trained."""
        super().__init__()
        self.unet, self.encoder = unet, encoder

    def forward(self, z: Tensor, t: Tensor, ids: Tensor, **more: Any) -> Any:
        """What the UNet predicts for captions as token ids (b, n)."""
        return self.unet(z, t, self.encoder(ids)[0], **more)


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU, by what they are for."""

    weights: int
    gradients: int
    moments: int
    copies: int
    frozen: int
    activations: int
    accumulates: bool

    @property
    def total(self) -> int:
        """At the worst moment.

        The backward pass frees activations while it makes gradients; where gradients of an earlier
        micro-batch are waiting, both are there.
        """
        standing = self.weights + self.moments + self.copies + self.frozen
        if self.accumulates:
            return standing + self.gradients + self.activations
        return standing + max(self.gradients, self.activations)


@dataclass(frozen=True)
class Plan:
    """FLOPs and memory of one model of an experiment.

    Attributes:
        model: section of the experiment.
        parameters: of the network that is trained, or of UNet and text encoder.
        matrices: of these, in layers that autocast casts.
        flops: of one training image by part of the step.
        costs: of the trained network by images held at once.
        frozen_peak: bytes of the networks that are only evaluated, by images held at once.
    """

    model: str
    training: Training
    parameters: int
    matrices: int
    flops: dict[str, float]
    costs: dict[int, Cost]
    frozen_peak: dict[int, int]

    @property
    def flops_per_image(self) -> float:
        """All parts together."""
        return sum(self.flops.values())

    @property
    def stages(self) -> tuple[int, ...]:
        """ZeRO stages that the optimizer works at."""
        return (0,) if self.training.optimizer == "muon" else (0, 1, 2, 3)

    def need(self, stage: int, ranks: int, images: int, accumulates: bool = False) -> Need:
        """Memory of one GPU.

        Args:
            stage: of ZeRO; one rank alone uses none.
            ranks: GPUs that share out.
            images: held at once on a GPU.
            accumulates: whether a step has several such micro-batches.
        """
        stage = stage if ranks > 1 else 0
        of_one = {n: self.parameters * 4 // (ranks if stage >= n else 1) for n in (1, 2, 3)}
        bucket = 4 * min(BUCKET if stage else BUCKET_WITHOUT_ZERO, self.parameters)
        # with ZeRO: masters of the weights, and two buckets of gradients, where one is on its way
        copies = 2 * bucket + of_one[1] if stage else bucket if ranks > 1 else 0
        student = self.model == "llcm"
        halved = self.matrices if _bf16(self.training) else 0  # as `generators.frozen` stores them
        teacher = 4 * self.parameters - 2 * halved
        return Need(
            weights=of_one[3],
            gradients=of_one[2],
            moments=self._moments * of_one[1],
            copies=copies,
            frozen=4 * self.parameters * self._averages + (teacher if student else 0),
            activations=max(self._activations(images), self._frozen(images)),
            accumulates=accumulates,
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: weights, moments and averages, which rank 0 alone writes."""
        return 4 * self.parameters * (1 + self._moments + self._averages)

    @property
    def _moments(self) -> int:
        return 1 if self.training.optimizer == "muon" else 2

    @property
    def _averages(self) -> int:
        """Target and export, or one."""
        return 2 if self.model == "llcm" and self.training.ema_images else 1

    def _activations(self, images: int) -> int:
        """Of the trained network; two sizes were simulated, and they grow in proportion."""
        return _line({n: cost.peak for n, cost in self.costs.items()}, images)

    def _frozen(self, images: int) -> int:
        return _line(self.frozen_peak, images) if self.frozen_peak else 0

    def hours(self, gpus: int, tflops: float, utilisation: float) -> float:
        """Of the whole run, at a share of the GPUs' peak."""
        speed = gpus * tflops * 1e12 * utilisation
        return self.training.images * self.flops_per_image / speed / 3600


def _bf16(training: Training) -> bool:
    """Whether it computes in bf16; `auto`: the GPUs that are planned for do."""
    return training.precision != "fp32"


def _line(values: dict[int, int], at: int) -> int:
    (x0, y0), (x1, y1) = sorted(values.items())
    return int(y0 + (y1 - y0) * (at - x0) / (x1 - x0))


def make_plan(config: Experiment, model: str) -> Plan:
    """Simulates the networks of a model that an experiment trains.

    Raises:
        ValueError: when the experiment does not train the model, or not one that can be planned.
    """
    section = getattr(config, model, None)
    if model not in PLANNED or section is None:
        raise ValueError(f"{model}: not a model of this experiment that can be planned")
    shape = unet_shape(config, model)
    student = model == "llcm"
    bf16 = _bf16(section.training)

    def build(trained: bool) -> Any:
        unet = shape.build(student and trained)
        if trained and section.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return WithText(unet, shape.encoder()) if shape.encoder else unet

    def inputs(images: int, guided: bool) -> Callable[[], tuple[tuple, dict]]:
        def make() -> tuple[tuple, dict]:
            arguments = {"return_dict": False}
            if guided:
                arguments["timestep_cond"] = torch.randn(images, GUIDANCE_WIDTH)
            z, t = torch.randn(images, *shape.latent), torch.ones(images, dtype=torch.int64)
            tokens, width = shape.text
            ids, states = torch.ones(images, tokens, dtype=torch.int64), (images, tokens, width)
            return (z, t, ids if shape.encoder else torch.randn(states)), arguments

        return make

    def run(trained: bool, images: int, backward: bool) -> Cost:
        return simulate(
            lambda: build(trained),
            inputs(images, student and trained),
            backward=backward,
            bf16=bf16,
        )

    costs = {images: run(True, images, True) for images in (1, 2)}
    # the teacher's calls hold every image twice where there is guidance
    rows = 2 if student and section.guidance_range[1] > 0 else 1
    forward = {n: run(False, rows * n, False) for n in (1, 2)} if student else {}
    flops = {"network, forward and backward": float(costs[1].flops)}
    if student:
        calls = JUMP_EVALUATIONS[section.solver]
        teacher = "teacher" if rows == 1 else "teacher, with and without the caption"
        flops[teacher] = float(calls * forward[1].flops)
        flops["target network"] = forward[1].flops / rows
    parameters, matrices = _count(build)
    return Plan(
        model=model,
        training=section.training,
        parameters=parameters,
        matrices=matrices,
        flops=flops,
        costs=costs,
        frozen_peak={images: cost.peak for images, cost in forward.items()},
    )


def _count(build: Callable[[bool], Any]) -> tuple[int, int]:
    """Parameters of the trained network, and those of them that autocast casts."""
    from hpc_hipgen.generators.frozen import CAST_BY_AUTOCAST
    from hpc_hipgen.training.norms import follow_autocast

    with torch.device("meta"):
        network = follow_autocast(build(True))
    cast = (m for m in network.modules() if isinstance(m, CAST_BY_AUTOCAST))
    matrices = sum(p.numel() for m in cast for p in m.parameters())
    return sum(p.numel() for p in network.parameters()), matrices


def unet_shape(config: Experiment, model: str) -> Shape:
    """The UNet of a model: that of the folder that it starts from, else the one that is built.

    Weights of `pretrained` that are not there yet are taken for those of Stable Diffusion 1.5.

    Raises:
        ValueError: the folder of a `base` holds no UNet.
    """
    text_too = model == "stable_diffusion" and config.section(model, Diffusion).train_text
    if (start := _start(config, model)) is None:
        return _own_shape(config, text_too)
    key, folder = start
    path = folder / "unet" / "config.json"
    if key.endswith(".base") and not path.is_file():
        raise ValueError(
            f"{key}: {folder} holds no unet/config.json, from which it could be planned"
        )
    return _folder_shape(config, folder, key.endswith(".base"), text_too)


def _start(config: Experiment, model: str) -> tuple[str, Path] | None:
    """The folder whose UNet a model, or its teacher, starts from, and the key that names it."""
    keys = ["stable_diffusion.pretrained"]
    if model != "stable_diffusion":
        keys = [f"{model}.base", "feedback.base", *keys]
    for key in keys:
        section, _, name = key.partition(".")
        if folder := getattr(getattr(config, section), name, None):
            return key, folder
    return None


def _folder_shape(config: Experiment, folder: Path, whole: bool, text_too: bool) -> Shape:
    """The UNet of a diffusers folder; `whole`: with that folder's autoencoder, not the run's."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = _read(folder / "unet" / "config.json", STABLE_DIFFUSION_1_5)
    text = CLIPTextConfig.from_dict(_read(folder / "text_encoder" / "config.json", TEXT_1_5))

    def build(student: bool) -> Any:
        more = {"time_cond_proj_dim": GUIDANCE_WIDTH} if student else {}
        return UNet2DConditionModel.from_config(settings | more)

    _, *size = _latent(
        config, folder if whole else config.section("autoencoder", Autoencoder).pretrained
    )
    return Shape(
        build,
        (settings.get("in_channels", 4), *size),
        (text.max_position_embeddings, settings.get("cross_attention_dim", text.hidden_size)),
        partial(CLIPTextModel, text) if text_too else None,
    )


def _own_shape(config: Experiment, text_too: bool) -> Shape:
    """The UNet and text encoder that are built here."""
    from diffusers import UNet2DConditionModel

    from hpc_hipgen.generators.stable_diffusion import build_unet
    from hpc_hipgen.generators.text import build_text_encoder, build_tokenizer

    section = config.section("stable_diffusion", Diffusion)
    own = config.section("autoencoder", Autoencoder)
    channels, size, _ = latent = _latent(config, own.pretrained)

    def build(student: bool) -> Any:
        unet = build_unet(section, channels, size)
        if not student:
            return unet
        return UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=GUIDANCE_WIDTH)

    states = (section.text.max_length, section.text.hidden_size)
    encoder = partial(build_text_encoder, section.text, build_tokenizer(section.text))
    return Shape(build, latent, states, encoder if text_too else None)


def _latent(config: Experiment, folder: Path | None) -> tuple[int, int, int]:
    """(channels, height, width) of a latent of a folder's autoencoder, or of the run's own."""
    if folder:
        auto = _read(autoencoder_config(folder), {"block_out_channels": LEVELS_1_5})
    else:
        auto = config.section("autoencoder", Autoencoder).model_dump()
    levels = auto.get("block_out_channels", (64,))  # diffusers' own
    size = config.data.resolution // 2 ** (len(levels) - 1)
    return auto.get("latent_channels", 4), size, size


def _read(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The settings of a network, or those to take where they are not there yet."""
    return json.loads(path.read_text()) if path.is_file() else otherwise
