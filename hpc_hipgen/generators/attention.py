"""The one switch between xformers attention on CUDA and torch's own, elsewhere or where faster."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from torch import nn

log = logging.getLogger(__name__)


HOPPER = (9, 0)
"""Compute capability from which torch's attention has kernels of its own (cuDNN's), and is faster.

On an H100 a full-size LLCM step does 35 images/s with these and 30 with xformers'
(docs/performance.md).
"""


HEADS = (40, 64, 160)
"""Widths of heads that are tried: Stable Diffusion 1.5 has 40 to 160."""


@lru_cache(maxsize=1)
def uses_xformers() -> bool:
    """True on a GPU older than Hopper where xformers runs forward and backward; tried once."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= HOPPER:
        return False
    try:
        from xformers.ops import memory_efficient_attention

        for width in HEADS:
            query = torch.randn(1, 16, 1, width, device="cuda", dtype=torch.bfloat16)
            query.requires_grad_()
            memory_efficient_attention(query, query, query).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        log.warning("xformers attention is not usable here, torch's is used instead: %s", error)
        return False
    return True


def best_attention() -> XFormersAttnProcessor | AttnProcessor2_0:
    """What diffusers' attention layers are to compute with: xformers, else torch's SDPA."""
    return XFormersAttnProcessor() if uses_xformers() else AttnProcessor2_0()


def use_best_attention(unet: nn.Module) -> None:
    """Sets the attention of a diffusers UNet.

    (`set_attention_backend` has no effect on UNet2DConditionModel in diffusers 0.42.) In bf16
    xformers has no kernel for heads whose width is no multiple of 8.
    """
    layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
    fits = all(layer.inner_dim // layer.heads % 8 == 0 for layer in layers)
    unet.set_attn_processor(best_attention() if fits else AttnProcessor2_0())
