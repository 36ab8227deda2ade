"""Networks that are only evaluated while others are trained."""

from __future__ import annotations

import torch
from torch import nn

from hpc_hipgen.training.engine import place

CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)
"""Layers whose weights autocast turns into bf16; it would do so at every call of a frozen one."""


def freeze(network: nn.Module, bf16: bool) -> nn.Module:
    """Makes a network ready for evaluation under the autocast of a training run, in place.

    With bf16 its matrices are stored as autocast would cast them: the outputs stay the same to the
    bit, and the memory of the weights halves. It then runs under autocast only.
    """
    place(network.requires_grad_(False).eval())
    if bf16:
        for layer in network.modules():
            if isinstance(layer, CAST_BY_AUTOCAST):
                layer.to(torch.bfloat16)
    return network
