"""The one switch between xformers attention on CUDA and torch's own elsewhere."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def xformers_works() -> bool:
    """True when xformers runs forward and backward on this GPU; tried once, never on CPU."""
    if not torch.cuda.is_available():
        return False
    try:
        from xformers.ops import memory_efficient_attention

        query = torch.randn(1, 16, 1, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        memory_efficient_attention(query, query, query).sum().backward()
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        log.warning("xformers attention is not usable here, torch's is used instead: %s", error)
        return False
    return True


def best_attention() -> XFormersAttnProcessor | AttnProcessor2_0:
    """What diffusers' attention layers are to compute with: xformers where it works, else SDPA."""
    return XFormersAttnProcessor() if xformers_works() else AttnProcessor2_0()


def use_best_attention(unet: nn.Module) -> None:
    """Sets the attention of a diffusers UNet.

    (`set_attention_backend` has no effect on UNet2DConditionModel in diffusers 0.42.)
    """
    unet.set_attn_processor(best_attention())
