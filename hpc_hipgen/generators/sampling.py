"""Drawing images with stock diffusers pipelines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableUnCLIPPipeline,
)
from diffusers.utils.logging import disable_progress_bar
from torch import nn
from torch.utils._pytree import tree_map_only

from hpc_hipgen.config import DDIM
from hpc_hipgen.diffusion.sampling import seed_generators
from hpc_hipgen.diffusion.scheduler import LeapfrogScheduler
from hpc_hipgen.files import LOCAL, read_json, reading_export
from hpc_hipgen.generators import text
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.generators.lora import ADAPTER, adapter_parameters
from hpc_hipgen.training.checkpoint_files import AVERAGES
from hpc_hipgen.training.engine import device

if TYPE_CHECKING:
    from hpc_hipgen.run import Run

# The published solver is DDIM to the bit (tests/diffusion), so DDIM's scheduler serves both. The
# leapfrog's takes Karras levels unless the pipeline's own configuration says otherwise.
SCHEDULERS = {"ddim": DDIMScheduler, "paper": DDIMScheduler, "leapfrog": LeapfrogScheduler}
"""Scheduler class by the name of the solver; "lcm" keeps the one that was exported."""


def load_pipeline(
    folder: Path, precision: str = "fp32", adapters: Path | None = None
) -> StableDiffusionPipeline | StableUnCLIPPipeline:
    """Loads an export on this machine's device; safetensors only, no network.

    Args:
        folder: the pipeline.
        precision: fp32, or bf16 for the networks that take the time; latents and the noise in
            them are fp32 all the same, so that a seed means the same image in both.
        adapters: folder of adapters for it, with the scheduler that they need, if any.

    Raises:
        ValueError: when the folder holds no pipeline, or a damaged one.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: holds no diffusers pipeline (model_index.json)")
    disable_progress_bar()  # of five small files
    with reading_export(folder):
        # of the class that the folder names
        pipeline = DiffusionPipeline.from_pretrained(folder, **text.WEIGHTS, **_unchecked(folder))
    pipeline.set_progress_bar_config(disable=True)
    use_best_attention(pipeline.unet)
    if adapters:
        with reading_export(adapters):
            pipeline.load_lora_weights(adapters, adapter_name=ADAPTER, **LOCAL)
            if (adapters / "scheduler").is_dir():
                pipeline.scheduler = LCMScheduler.from_pretrained(
                    adapters / "scheduler", local_files_only=True
                )
    if precision == "bf16":
        _autocast(pipeline.unet, "forward")
        _autocast(pipeline.vae, "decode")
    return pipeline.to(device())


def _unchecked(folder: Path) -> dict[str, Any]:
    """What leaves out the checker of published pipelines, which blackens what it flags.

    It was made for photographs, and its weights are not fetched.

    Raises:
        DamagedError: when model_index.json holds something else.
    """
    index = read_json(folder / "model_index.json", "restore it, or export the model again")
    if index.get("_class_name") != StableDiffusionPipeline.__name__:
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _autocast(network: nn.Module, method: str) -> None:
    """Has a method of a network compute in bf16 and answer in fp32, in place.

    A pipeline that is bf16 throughout also draws its noise in bf16: other numbers than those of
    fp32 for the same seed, and a few hundred different ones in a whole image.
    """
    inner = getattr(freeze(network, bf16=True), method)

    @wraps(inner)
    def answer(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device().type, torch.bfloat16):
            return tree_map_only(torch.Tensor, torch.Tensor.float, inner(*args, **kwargs))

    setattr(network, method, answer)


@torch.no_grad()
def load_average(pipeline: StableDiffusionPipeline, checkpoint: Path) -> None:
    """Puts the weight average of a checkpoint into a pipeline of the same model's export.

    Of adapters too, which the pipeline has loaded.

    The average is the one that the export would have held had training ended there.
    """
    averages = torch.load(checkpoint / AVERAGES, weights_only=True, map_location="cpu")
    weights = averages.get("export", averages.get("target"))["module"]
    if adapters := dict(adapter_parameters(pipeline.unet)):
        if all(name.isdecimal() for name in weights):  # the average of a list of adapters
            weights = dict(zip(adapters, weights.values(), strict=True))
        for name, parameter in adapters.items():
            parameter.copy_(weights[name])
        return
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        # a teacher's networks are named, a student is one UNet
        parts[part if part in parts else "unet"][rest if part in parts else name] = value
    pipeline.unet.load_state_dict(parts["unet"])
    if states := parts["text_encoder"]:
        encoder = pipeline.text_encoder
        if any("network" in name for name in states):
            text.unbake_measurements(encoder)
        encoder.load_state_dict(states)
        text.bake_measurements(encoder)


@contextmanager
def sampling_cost(network: nn.Module) -> Iterator[dict[str, float]]:
    """Measures what is drawn inside: fills the dict when the block ends.

    `seconds`; `evaluations` of the network, one for each image or token that goes through it, so
    that guidance counts twice.
    """
    cost: dict[str, float] = {"seconds": 0.0, "evaluations": 0}

    def count(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        cost["evaluations"] += len(given[0])

    hook = network.register_forward_pre_hook(count)
    began = time.monotonic()
    try:
        yield cost
    finally:
        hook.remove()
    cost["seconds"] = round(time.monotonic() - began, 3)


def draw(
    pipeline: StableDiffusionPipeline | StableUnCLIPPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    solver: str,
    **settings: Any,
) -> np.ndarray:
    """Grey images (b, resolution, resolution) uint8; `settings` as of `draw_as`."""
    if solver in SCHEDULERS:
        pipeline.scheduler = _with_settings_of(pipeline.scheduler, SCHEDULERS[solver])
    images = draw_as("np", pipeline, prompts, seeds, **settings)
    return np.clip(np.rint(images.mean(-1) * 255), 0, 255).astype(np.uint8)


def draw_as(
    output_type: str,
    pipeline: StableDiffusionPipeline | StableUnCLIPPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    guidance: float,
    resolution: int,
    **more: Any,
) -> Any:
    """What a pipeline draws with its own scheduler, one generator per image.

    `output_type` is diffusers': "np" for pixels (b, resolution, resolution, 3) in 0..1, "latent"
    for scaled latents (b, c, h, w). `guidance` is diffusers' guidance scale 1 + w; a student takes
    it as its condition. `more` are arguments of the pipeline as it names them.
    """
    return pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        # on the CPU, so that a seed means the same image on every device
        generator=seed_generators(seeds),
        height=resolution,
        width=resolution,
        output_type=output_type,
        **more,
    ).images


def _with_settings_of(scheduler: Any, kind: type[DDIMScheduler]) -> Any:
    """A scheduler of a kind of DDIM with what another states.

    What that one leaves to its class is as Stable Diffusion has it: DDIM's own defaults clip
    latents as if they were pixels.
    """
    config = scheduler.config
    left = config.get("_use_default_values") or ()
    stated = {name: config[name] for name in DDIM if name in config and name not in left}
    return kind.from_config(config, **DDIM | stated)


@dataclass
class PipelineDrawer:
    """Draws with a Stable Diffusion."""

    pipeline: StableDiffusionPipeline | StableUnCLIPPipeline

    @property
    def network(self) -> nn.Module:
        """The UNet."""
        return self.pipeline.unet

    def draw(self, prompts: list[str], seeds: list[int], **settings: Any) -> np.ndarray:
        """Grey images (b, resolution, resolution) uint8; settings as of `draw`."""
        return draw(self.pipeline, prompts, seeds, **settings)


def pipeline_drawer(run: Run, model: str) -> PipelineDrawer:
    """Of a model whose export is a pipeline."""
    return PipelineDrawer(load_pipeline(run.path(model, "export"), run.config.sampling.precision))


def adapters_drawer(run: Run, model: str) -> PipelineDrawer:
    """Of a model whose export holds adapters: its base with them."""
    base, export = run.base(model), run.path(model, "export")
    return PipelineDrawer(load_pipeline(base, run.config.sampling.precision, adapters=export))
