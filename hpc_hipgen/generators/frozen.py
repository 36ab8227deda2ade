"""Networks that are only evaluated while others are trained."""

from __future__ import annotations

import gc

import torch
from torch import nn

from hpc_hipgen.training.engine import place
from hpc_hipgen.training.norms import GroupNorm, LayerNorm

CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear, GroupNorm, LayerNorm)
"""Layers whose weights are used in bf16 under autocast; they are cast at every call otherwise."""


def freeze(network: nn.Module, bf16: bool) -> nn.Module:
    """Makes a network ready for evaluation under the autocast of a training run, in place.

    With bf16 its weights are stored as they would be cast: the outputs stay the same to the
    bit, and the memory of them halves. It then runs under autocast only.
    """
    place(network.requires_grad_(False).eval())
    if bf16:
        for layer in network.modules():
            if isinstance(layer, CAST_BY_AUTOCAST):
                layer.to(torch.bfloat16)
    return network


def let_go() -> None:
    """Frees what pipelines took that nobody holds any more, before others are loaded or trained.

    Networks under autocast refer to themselves, and would stay beside these.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
