"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpc_hipgen.config import Training


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Makes whole parameters readable on every rank; costs nothing below ZeRO stage 3."""
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    else:
        yield


RESOLUTION = 20
"""Times that an average is updated at least within its time constant."""


class WeightAverage:
    """A copy of a module that follows its weights: average += (1 - decay) (weights - average)."""

    def __init__(
        self, source: nn.Module, decay: float, warmup: bool = False, every: int = 1
    ) -> None:
        """Starts as a copy of `source`, which must not be partitioned yet.

        Args:
            source: the module that is trained.
            decay: per optimizer step, in [0, 1).
            warmup: lower the decay at the start to (1 + step) / (10 + step), so that the first
                weights do not weigh long. The time constant is then at most (step + 10) / 9.
            every: optimizer steps of which only the last is taken, for all of them, once it is
                eight times as old.
        """
        self.source = source
        self.decay = decay
        self.warmup = warmup
        self.every = every
        self.steps = 0
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    @classmethod
    def for_export(cls, source: nn.Module, training: Training) -> WeightAverage:
        """The average that a run exports: time constant `ema_images`, or 0: the last weights."""
        steps = training.ema_images / training.batch  # of its time constant
        every = max(1, min(8, int(steps / RESOLUTION)))  # it reads and writes all weights
        return cls(source, max(0.0, 1 - 1 / steps) if steps else 0.0, warmup=True, every=every)

    @torch.no_grad()
    def update(self) -> None:
        """Follows the source by one optimizer step."""
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        every = self.every if self.steps > 8 * self.every else 1  # a young one follows each step
        if self.steps % every:
            return
        both = zip(self.source.parameters(), self.module.parameters(), strict=True)
        sources, targets = zip(*(pair for pair in both if pair[0].requires_grad), strict=True)
        with gathered(list(sources)):
            torch._foreach_lerp_(
                [t.data for t in targets], [s.data for s in sources], 1 - decay**every
            )
        for target, source in zip(self.module.buffers(), self.source.buffers(), strict=True):
            target.copy_(source)

    def state_dict(self, frozen: bool = True) -> dict[str, Tensor | int | dict[str, Tensor]]:
        """Weights and step count; `frozen`: with the weights that are not trained."""
        left_out = set() if frozen else self._frozen()
        weights = {n: w for n, w in self.module.state_dict().items() if n not in left_out}
        return {"steps": self.steps, "module": weights}

    def load_state_dict(self, state: dict) -> None:
        """Inverse of `state_dict`; frozen weights that it left out stay as they are."""
        self.steps = int(state["steps"])
        frozen = self._frozen()
        as_they_are = {n: w for n, w in self.module.state_dict().items() if n in frozen}
        self.module.load_state_dict(as_they_are | state["module"])

    def _frozen(self) -> set[str]:
        parameters = self.source.named_parameters(remove_duplicate=False)
        return {name for name, parameter in parameters if not parameter.requires_grad}
