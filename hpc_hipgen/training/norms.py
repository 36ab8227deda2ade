"""Normalisation in the precision of its surroundings.

Autocast computes group and layer norms in fp32: what lies between two convolutions is turned into
fp32 and back. Their kernels add up in fp32 whatever they are given (torch's group norm then stores
mean and deviation in the type of the image), so that this costs much and gives little: of a
full-size LLCM step on an H100 an eighth of the kernels' time and 8 GiB (docs/performance.md), while
a trained teacher's gradient is off by 1.13 % of itself rather than 1.08 % (docs/log.md,
2026-11-27).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _normalised(
    function: Callable[..., Tensor], x: Tensor, over: Any, module: nn.GroupNorm | nn.LayerNorm
) -> Tensor:
    """`function` of x with a module's settings: in autocast's type, outside autocast in x's own."""
    weight, bias, kind = module.weight, module.bias, x.device.type
    if not torch.is_autocast_enabled(kind):
        return function(x, over, weight, bias, module.eps)
    dtype = torch.get_autocast_dtype(kind)
    x, weight, bias = (None if v is None else v.to(dtype) for v in (x, weight, bias))
    with torch.autocast(kind, enabled=False):
        return function(x, over, weight, bias, module.eps)


class GroupNorm(nn.GroupNorm):
    """torch's, which autocast leaves in its type."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's: (b, channels, ...)."""
        return _normalised(F.group_norm, x, self.num_groups, self)


class LayerNorm(nn.LayerNorm):
    """torch's, which autocast leaves in its type."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's: (..., *normalized_shape)."""
        return _normalised(F.layer_norm, x, self.normalized_shape, self)


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
}


def follow_autocast(network: nn.Module) -> nn.Module:
    """Makes all norms of a network follow autocast, in place; weights and names stay as they are.

    Only torch's own classes are changed: a subclass may do something else.
    """
    for module in network.modules():
        module.__class__ = OURS.get(type(module), type(module))
    return network
