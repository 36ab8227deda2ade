"""LoRA and LCM-LoRA: low-rank adapters on the UNet of a Stable Diffusion that stays as it is.

A trained matrix W becomes W + B A with B A of low rank (Hu et al. 2021, arXiv 2106.09685). B
starts at zero, so that the model starts as its base. A LoRA learns from films, with the denoising
loss; an LCM-LoRA (Luo et al. 2023, arXiv 2311.05556) learns few-step sampling from its own base
by consistency distillation. Both are exported as the file that diffusers' `load_lora_weights`
takes, a small part of the size of the model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from hpc_hipgen.config import Adapters, Experiment, LCMLoRA, LoRA
from hpc_hipgen.generators.attention import use_best_attention
from hpc_hipgen.generators.llcm import DistillationTask, lcm_scheduler
from hpc_hipgen.generators.stable_diffusion import DenoisingTask, adapted_parts
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.average import WeightAverage

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj")
LAYERS = {"attention": ATTENTION, "all": (*ATTENTION, *MORE)}
"""Ends of the names of the layers that get an adapter, by `Adapters.layers`."""

POOLED_CAPTION = "add_embedding.proj"
"""Where a small UNet of ours takes the pooled caption in; a stock one has no such layer."""

ADAPTER = "default"  # peft's name for the only adapter of a model


def add_adapters(unet: UNet2DConditionModel, section: Adapters) -> None:
    """Freezes the UNet and puts adapters on its layers, in place."""
    unet.requires_grad_(False)
    layers = list(LAYERS[section.layers])
    if section.layers == "all" and any(name == POOLED_CAPTION for name, _ in unet.named_modules()):
        layers.append(POOLED_CAPTION)
    # alpha = rank is a scale of 1: a loader that is told nothing of alpha draws the same images
    settings = LoraConfig(r=section.rank, lora_alpha=section.rank, target_modules=layers)
    unet.add_adapter(settings, adapter_name=ADAPTER)


def adapter_parameters(unet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' weights with their names, in the order of the network's parameters.

    By name and not by what is trained: a copy that is only averaged trains nothing.
    """
    for name, parameter in unet.named_parameters():
        if _is_adapter(name):
            yield name, parameter


def _is_adapter(name: str) -> bool:
    return re.search(rf"\.lora_[AB]\.{ADAPTER}\.weight$", name) is not None


def adapter_list(unet: nn.Module) -> nn.ParameterList:
    """The adapters alone, so that an average costs their size and not the model's."""
    return nn.ParameterList(weight for _, weight in adapter_parameters(unet))


class AdapterAverage(WeightAverage):
    """The average of an `adapter_list`."""

    def load_state_dict(self, state: dict) -> None:
        """As of any average; takes those of a whole network, too, as they once were."""
        weights = state["module"]
        if not all(name.isdecimal() for name in weights):
            adapters = [weight for name, weight in weights.items() if _is_adapter(name)]
            state = state | {"module": {str(i): w for i, w in enumerate(adapters)}}
        super().load_state_dict(state)


def save_adapters(names: list[str], weights: list[Tensor], folder: Path) -> dict[str, float]:
    """Writes pytorch_lora_weights.safetensors; returns figures for the record.

    The names are peft's (`lora_A`, `lora_B`). diffusers' `convert_state_dict_to_diffusers` would
    rename the attention layers alone, and its loader, which judges by the first name, would then
    leave them out without an error.
    """
    plain = [name.replace(f".{ADAPTER}.", ".") for name in names]
    layers = {  # whole rows: safetensors takes no other layout
        n: w.detach().float().cpu().contiguous() for n, w in zip(plain, weights, strict=True)
    }
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, safe_serialization=True
    )
    return {"parameters": float(sum(w.numel() for w in weights))}


class LoRATask(DenoisingTask):
    """A LoRA for the training loop."""

    stores_frozen = False

    def __init__(self, config: Experiment, films: Films, base: Path, cache: Path) -> None:
        """`films`: the training split; `base`: a diffusers folder of Stable Diffusion."""
        section = config.section("lora", LoRA)
        parts = adapted_parts(base, section, config.data.resolution)
        torch.manual_seed(config.seed)
        add_adapters(parts.unet, section)
        super().__init__(section, config, films, parts, cache)
        self.names = [name for name, _ in adapter_parameters(parts.unet)]

    def trained(self) -> nn.Module:
        """The adapters."""
        return adapter_list(self.parts.unet)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged adapters."""
        return save_adapters(self.names, list(self.averages["export"].module), folder)


class LCMLoRATask(DistillationTask):
    """An LCM-LoRA for the training loop: the distillation of the LLCM, with adapters alone.

    The student has no input for the guidance weight: one weight is distilled, and the exported
    adapters are sampled with guidance scale 1.
    """

    section: LCMLoRA
    stores_frozen = False

    def __init__(self, config: Experiment, films: Films, base: Path, cache: Path) -> None:
        """`films`: the training split; `base`: a diffusers folder, the teacher too."""
        super().__init__(config.section("lcm_lora", LCMLoRA), config, films, base, cache)

    def build_student(self, teacher: UNet2DConditionModel) -> UNet2DConditionModel:
        """A copy of the teacher with adapters; they alone are trained."""
        student = copy.deepcopy(teacher)
        use_best_attention(student)
        add_adapters(student, self.section)
        return student

    def export_average(self) -> WeightAverage:
        """Of the adapters; the target is a whole UNet, which the loss asks."""
        return AdapterAverage.for_export(adapter_list(self.module.student), self.section.training)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged adapters, and the LCM scheduler that they are sampled with."""
        names, weights = zip(*adapter_parameters(self.averages["target"].module), strict=True)
        if "export" in self.averages:
            weights = tuple(self.averages["export"].module)
        scheduler = lcm_scheduler(self.parts.prediction, self.section.skip)
        scheduler.save_pretrained(folder / "scheduler")
        return save_adapters(list(names), list(weights), folder)
