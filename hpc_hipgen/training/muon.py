"""Muon: filters move by the orthogonal matrix that is nearest to their averaged gradient.

A gradient's few large singular values do not drown the many small ones, as they do in AdamW. Small
batches of small networks need half the images for the same loss (docs/log.md, 2026-11-27).
Source: K. Jordan and others, https://kellerjordan.github.io/posts/muon/ (2024); the scale that
lets it take AdamW's learning rate is that of arXiv 2502.16982, section 2.2. torch.optim.Muon has
neither filters of convolutions nor fp32, which CPUs without bf16 need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter; Muon keeps the first."""

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial of degree five that drives singular values to about 1."""

ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update at learning rate 1: what AdamW's updates have."""

NARROWEST = 16
"""Filters with fewer rows or columns are left to AdamW: those at a network's ends, mostly."""


def takes(parameter: Tensor) -> bool:
    """Whether Muon moves a parameter: filters (outputs, inputs, height, width), not projections.

    The projections of a small UNet's attention and time cost as much as its filters, and gained it
    nothing (docs/log.md, 2026-11-27).
    """
    return parameter.ndim == 4 and min(len(parameter), parameter[0].numel()) >= NARROWEST


class Muon(torch.optim.AdamW):
    """Muon for filters of convolutions, fused AdamW for all else, with one learning rate.

    Attributes:
        grad_scale: gradients are divided by it as they are read, None for 1; torch's fused AdamW
            has the same attribute.
    """

    grad_scale: Tensor | None = None
    param_groups: list[dict[str, Any]]

    def __init__(self, parameters: Iterable[nn.Parameter], **adamw: Any) -> None:
        """`adamw`: lr, betas and weight_decay, as AdamW takes them; lr and decay hold for both."""
        trained = list(parameters)
        kinds = {muon: [p for p in trained if takes(p) == muon] for muon in (True, False)}
        groups = [{"params": some, "muon": muon} for muon, some in kinds.items() if some]
        super().__init__(groups, fused=True, **adamw)

    def moments(self, parameter: Tensor) -> tuple[str, ...]:
        """Names of what is kept of a parameter, besides the count of its steps."""
        return MOMENTS[:1] if takes(parameter) else MOMENTS

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Moves all parameters that have a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _move(self, group: dict[str, Any]) -> None:
        """Moves the filters, those of one shape together."""
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, direction in zip(parameters, self._directions(parameters), strict=True):
            shapes[len(parameter), parameter[0].numel()].append((parameter, direction))
        for shape, pairs in shapes.items():
            update = orthogonal(torch.stack([direction.reshape(shape) for _, direction in pairs]))
            moved = [parameter for parameter, _ in pairs]
            changes = [u.view_as(p) for u, p in zip(update, moved, strict=True)]
            torch._foreach_add_(moved, changes, alpha=-group["lr"] * RMS * max(shape) ** 0.5)

    def _directions(self, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        """Nesterov's momentum of the parameters' gradients; counts the step."""
        for parameter in parameters:
            if parameter not in self.state:
                step = torch.zeros((), device=parameter.device)
                self.state[parameter] = {"step": step, "exp_avg": torch.zeros_like(parameter)}
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters]
        if self.grad_scale is not None:
            gradients = torch._foreach_div(gradients, self.grad_scale)
        averages = [state["exp_avg"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(averages, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, averages, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Orthogonal matrices near to matrices (n, rows, columns): singular values of 0.7 to 1.2.

    Newton-Schulz iterations of X -> a X + b (X X') X + c (X X')^2 X. On a CPU they run in fp32 on
    the small matrix X X' alone: each is a polynomial of it, so their product can meet X at the end,
    for half the arithmetic. A GPU takes X along, in bf16, where that product would lose too much.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    result = _by_gram(x) if x.device.type == "cpu" else _by_steps(x.bfloat16()).to(matrices.dtype)
    return result.mT if tall else result


def _polynomial(gram: Tensor) -> Tensor:
    """a + b S + c S^2 for symmetric S (n, r, r)."""
    a, b, c = NEWTON_SCHULZ
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


def _by_steps(x: Tensor) -> Tensor:
    for _ in range(ITERATIONS):
        x = _polynomial(x @ x.mT) @ x
    return x


def _by_gram(x: Tensor) -> Tensor:
    gram = x @ x.mT
    product = step = _polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = step @ gram @ step
        step = _polynomial(gram)
        product = step @ product
    return product @ x
