"""Normalisation in the precision of its surroundings.

Autocast computes group and layer norms in fp32: what lies between two convolutions is turned into
fp32 and back. Their kernels add up in fp32 whatever they are given (torch's group norm then stores
mean and deviation in the type of the image), so that this costs much and gives little: of a
full-size LLCM step on an H100 an eighth of the kernels' time and 8 GiB, while a trained teacher's
gradient is off by 1.13 % of itself rather than 1.08 % (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _surroundings(x: Tensor, norm: Callable[..., Tensor], *parameters: Tensor | None) -> Tensor:
    """A norm of x in autocast's type, or in x's own outside autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return norm(x, *parameters)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return norm(x.to(dtype), *(None if p is None else p.to(dtype) for p in parameters))


class GroupNorm(nn.GroupNorm):
    """torch's, which autocast leaves in its type."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's: (b, channels, ...)."""

        def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)

        return _surroundings(x, norm, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """torch's, which autocast leaves in its type."""

    def forward(self, x: Tensor) -> Tensor:
        """As torch's: (..., *normalized_shape)."""

        def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

        return _surroundings(x, norm, self.weight, self.bias)


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
