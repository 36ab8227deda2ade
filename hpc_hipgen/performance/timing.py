"""Timing: turn by turn in one process, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn


def now() -> float:
    """Seconds on a clock that stands still for nobody, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    began = now()
    action()
    return now() - began


def turn_by_turn(
    actions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every repeat of each action; they take turns."""
    for _ in range(warmup):
        for action in actions.values():
            action()
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            found[name].append(seconds_of(action))
    return found


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster: the median over the turns of the ratio within a turn."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


@dataclass
class NetworkClock:
    """Seconds spent inside networks while it is active.

    Inside are calls of the modules within the outermost one, which is the loss, and backward
    passes. The loss's own arithmetic, data, optimizer, averages and the engine are outside.
    """

    seconds: float = 0.0
    _depth: int = 0
    _began: float = 0.0
    _hooks: list[Any] = field(default_factory=list)

    def __enter__(self) -> NetworkClock:
        """Starts at zero."""
        self.seconds, self._depth = 0.0, 0
        self._hooks = [
            nn.modules.module.register_module_forward_pre_hook(self._enter),
            nn.modules.module.register_module_forward_hook(self._leave, always_call=True),
        ]
        self._backward = torch.Tensor.backward
        torch.Tensor.backward = self._timed_backward()
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        torch.Tensor.backward = self._backward

    def _enter(self, module: nn.Module, _: Any) -> None:
        # what wraps the loss, such as the engine, is no level of its own
        self._depth += not _is_wrapper(module)
        if self._depth == 2 and not _is_wrapper(module):
            self._began = now()

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if self._depth == 2 and not _is_wrapper(module):
            self.seconds += now() - self._began
        self._depth -= not _is_wrapper(module)

    def _timed_backward(self) -> Callable[..., None]:
        inner, clock = self._backward, self

        def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            # recomputation inside the backward pass must not be counted twice
            clock._depth += 100
            began = now()
            inner(tensor, *args, **kwargs)
            clock.seconds += now() - began
            clock._depth -= 100

        return backward


def _is_wrapper(module: nn.Module) -> bool:
    return type(module).__name__ == "DeepSpeedEngine"


def profile_of(action: Callable[[], Any], rows: int = 20) -> str:
    """Table of the operations that take most time, of the GPU where there is one."""
    on_gpu = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        action()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return profile.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=60)
