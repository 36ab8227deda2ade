"""What a training run will need: FLOPs an image, memory of a GPU, hours.

Memory is that of fp32 weights, gradients and moments, shared out by ZeRO, with bf16 autocast,
as `training.engine` sets DeepSpeed up; networks that are only evaluated stand on every GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_hipgen.config import Diffusion, Experiment, Training
from hpc_hipgen.performance.simulation import Cost, simulate

GIB = 2**30
BUCKET = 500_000_000
"""Elements of DeepSpeed's reduce_bucket_size."""

PLANNED = ("stable_diffusion", "llcm")
"""Sections that can be planned."""

STABLE_DIFFUSION_1_5 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""What its UNet has that diffusers' UNet2DConditionModel has not by default."""


@dataclass(frozen=True)
class Shape:
    """The UNet of a run, as a recipe, and what it is given.

    Attributes:
        build: makes the UNet; `student` says whether it takes a guidance weight.
        latent: (channels, height, width) of a latent.
        text: (tokens, width) of a caption's states.
    """

    build: Callable[[bool], Any]
    latent: tuple[int, int, int]
    text: tuple[int, int]


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
        parameters: of the network that is trained.
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
        bucket = 4 * min(BUCKET, self.parameters)
        # with ZeRO: masters of the weights, and two buckets of gradients, where one is on its way
        copies = 2 * bucket + of_one[1] if stage else bucket if ranks > 1 else 0
        student = self.model == "llcm"
        averages = 2 if student and self.training.ema_images else 1  # target and export, or one
        teacher = 2 * self.matrices + 4 * (self.parameters - self.matrices)
        return Need(
            weights=of_one[3],
            gradients=of_one[2],
            moments=(1 if self.training.optimizer == "muon" else 2) * of_one[1],
            copies=copies,
            frozen=4 * self.parameters * averages + (teacher if student else 0),
            activations=max(self._activations(images), self._frozen(images)),
            accumulates=accumulates,
        )

    def _activations(self, images: int) -> int:
        """Of the trained network; two sizes were simulated, and they grow in proportion."""
        return _line({n: cost.peak for n, cost in self.costs.items()}, images)

    def _frozen(self, images: int) -> int:
        return _line(self.frozen_peak, images) if self.frozen_peak else 0

    def hours(self, gpus: int, tflops: float, utilisation: float) -> float:
        """Of the whole run, at a share of the GPUs' peak."""
        speed = gpus * tflops * 1e12 * utilisation
        return self.training.images * self.flops_per_image / speed / 3600


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
    shape = unet_shape(config.stable_diffusion, config)
    student = model == "llcm"
    bf16 = section.training.precision != "fp32"  # auto: the GPUs planned for compute in it

    def build(trained: bool) -> Any:
        unet = shape.build(student and trained)
        if trained and section.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    def inputs(images: int, guided: bool) -> Callable[[], tuple[tuple, dict]]:
        def make() -> tuple[tuple, dict]:
            import torch

            arguments = {"return_dict": False}
            if guided:
                arguments["timestep_cond"] = torch.randn(images, 256)
            z, t = torch.randn(images, *shape.latent), torch.ones(images, dtype=torch.int64)
            return (z, t, torch.randn(images, *shape.text)), arguments

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
        calls = 2 if section.solver == "leapfrog" else 1
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
    import torch

    from hpc_hipgen.generators.frozen import CAST_BY_AUTOCAST
    from hpc_hipgen.training.norms import follow_autocast

    with torch.device("meta"):
        network = follow_autocast(build(True))
    cast = (m for m in network.modules() if isinstance(m, CAST_BY_AUTOCAST))
    matrices = sum(p.numel() for m in cast for p in m.parameters())
    return sum(p.numel() for p in network.parameters()), matrices


def unet_shape(section: Diffusion, config: Experiment) -> Shape:
    """The UNet of a run: the pretrained folder's, else the one that is built.

    Weights that are not there yet are taken for those of Stable Diffusion 1.5.
    """
    from diffusers import UNet2DConditionModel

    if not section.pretrained:
        return _own_shape(section, config)
    path = Path(section.pretrained) / "unet" / "config.json"
    settings = json.loads(path.read_text()) if path.is_file() else dict(STABLE_DIFFUSION_1_5)

    def build(student: bool) -> Any:
        more = {"time_cond_proj_dim": 256} if student else {}
        return UNet2DConditionModel.from_config(settings | more)

    size = config.data.resolution // 8
    latent = (settings.get("in_channels", 4), size, size)
    return Shape(build, latent, (77, settings["cross_attention_dim"]))


def _own_shape(section: Diffusion, config: Experiment) -> Shape:
    from diffusers import UNet2DConditionModel

    from hpc_hipgen.generators.autoencoder import build_autoencoder, stride
    from hpc_hipgen.generators.stable_diffusion import build_unet

    autoencoder = build_autoencoder(config.autoencoder, config.data.resolution)
    size = config.data.resolution // stride(autoencoder)

    def build(student: bool) -> Any:
        unet = build_unet(section, autoencoder, size)
        if not student:
            return unet
        return UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=256)

    channels = autoencoder.config.latent_channels
    return Shape(build, (channels, size, size), (section.text.max_length, section.text.hidden_size))
