"""A network's FLOPs and memory, found by running it on tensors that have shapes and no contents.

Nothing is computed and nothing allocated, so that a network of a billion parameters is gone through
in seconds on a login node.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from hpc_hipgen.training.norms import follow_autocast

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Cost:
    """Of one call, or of one call with its backward pass.

    Attributes:
        flops: multiplications and additions of the matrix products and convolutions; a
            multiply-add counts two.
        peak: bytes beside weights and gradients at the worst moment.
    """

    flops: int
    peak: int


class _Meter(TorchDispatchMode):
    """Adds up, while it is active, FLOPs and the bytes of new storages that are still referenced.

    FlopCounterMode's formulas without its hooks, which tell modules apart and take half the time.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.seen = weakref.WeakSet(t.untyped_storage() for t in known)
        self.formulas = flop_counter().flop_registry
        self.flops = self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if formula := self.formulas.get(func.overloadpacket):
            self.flops += formula(*args, **given, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


def simulate(
    build: Callable[[], nn.Module],
    inputs: Callable[[], tuple[tuple, dict[str, Any]]],
    *,
    backward: bool,
    bf16: bool,
) -> Cost:
    """The cost of one call of a network.

    Args:
        build: makes the network.
        inputs: makes its positional and keyword arguments.
        backward: with the backward pass; the network is in training mode then.
        bf16: under autocast.
    """
    gc.freeze()  # else it goes through all that was imported, over and over
    with FakeTensorMode(allow_non_fake_inputs=True), _kernels(), _thawed():
        network = follow_autocast(build()).train(backward).requires_grad_(backward)
        args, kwargs = inputs()
        weights = [*network.parameters(), *network.buffers()]
        gradients = nullcontext() if backward else torch.no_grad()
        cast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        with _Meter(weights) as meter:
            with gradients, cast:
                output = network(*args, **kwargs)
                loss = output[0].float().square().mean()
                del output
            if backward:
                hooks = [_gradient_hook(p) for p in network.parameters()]
                loss.backward()
                del hooks
        return Cost(meter.flops, meter.peak)


def flop_counter() -> FlopCounterMode:
    """Counts FLOPs as `Cost` has them, of attention too: torch's on CPUs, and xformers' flash.

    torch has formulas of the kernels of its own for GPUs alone.
    """
    formulas: dict[Any, Callable[..., int]] = {
        _ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        _ATTENTION_BACKWARD: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
    }
    xformers = torch.ops.xformers_flash
    if hasattr(xformers, "flash_fwd"):  # where it was imported, and has kernels
        formulas[xformers.flash_fwd] = lambda *given, **_: sdpa_flop_count(
            *map(_heads_first, given[:3])
        )
        # what comes first says how gradients are stored
        formulas[xformers.flash_bwd] = lambda *given, **_: sdpa_backward_flop_count(
            *map(_heads_first, given[1:5])
        )
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _heads_first(shape: Sequence[int]) -> tuple[int, ...]:
    """(b, h, n, d), as torch has attention's inputs, of xformers' (b, n, h, d)."""
    images, places, heads, width = shape
    return images, heads, places, width


@contextmanager
def _thawed() -> Iterator[None]:
    try:
        yield
    finally:
        gc.unfreeze()


def _gradient_hook(parameter: nn.Parameter) -> Any:
    """Takes a gradient away once it is there: gradients are counted apart."""

    def drop(p: nn.Parameter) -> None:
        p.grad = None

    return parameter.register_post_accumulate_grad_hook(drop)


@contextmanager
def _kernels() -> Iterator[None]:
    """Attention without its matrix, as the kernels in use have it."""

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return _ATTENTION(q, k, v)[0]

    usual = F.scaled_dot_product_attention
    # what the stand-in does not look at is not among its arguments
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual
