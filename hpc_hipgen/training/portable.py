"""The state of an engine as whole tensors by parameter name, whatever the ranks and ZeRO stage.

DeepSpeed's own files hold one partition a rank, so they fit that number of ranks and that stage
only. Weights and moments are fp32 at every stage here (bf16 is autocast), so that gathering them
and handing them out again changes no bit.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hpc_hipgen.training.average import gathered
from hpc_hipgen.training.engine import rank, world_size
from hpc_hipgen.training.muon import MOMENTS, Muon

FROZEN = "frozen"
"""Part of a state with the sums of weights that are not trained, where they are left out."""

_GATHERED_AT_ONCE = 32


def state_of(engine: Any, frozen: bool = True) -> dict[str, Any]:
    """Weights, buffers, moments and step count; called by every rank, whole on rank 0 only.

    Without `frozen` it holds the shapes and sums of weights that are not trained instead of them.
    """
    parameters = dict(engine.module.named_parameters())
    state: dict[str, Any] = {"weights": {}, FROZEN: {}}
    for names in _batches(parameters):
        with gathered([parameters[name] for name in names]):
            for name in names:
                if frozen or parameters[name].requires_grad:
                    state["weights"][name] = _kept(parameters[name])
                else:
                    state[FROZEN][name] = _sum(parameters[name])
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    states = _partition_states(engine)
    state["step"] = int(next(iter(states))["step"]) if states else 0
    for key in MOMENTS:
        kept = {name: p for name, p in trained.items() if key in _moments(engine, p)}
        state[key] = {name: _kept(_moment(engine, p, key)) for name, p in kept.items()}
    state["buffers"] = {name: _kept(b) for name, b in _buffers(engine).items()}
    return state


def load_state(engine: Any, state: dict[str, Any]) -> None:
    """Inverse of `state_of`, on any number of ranks; every rank holds the whole state.

    Raises:
        ValueError: for the state of another network, or of one beside other frozen weights; names
            the first parameter.
    """
    parameters = dict(engine.module.named_parameters())
    _check_names(engine, parameters, state)
    frozen = state.get(FROZEN, {})  # older states have none: all weights are there
    for names in _batches({n: p for n, p in parameters.items() if n not in frozen}):
        _set_weights({name: parameters[name] for name in names}, state["weights"])
    for names in _batches({n: p for n, p in parameters.items() if n in frozen}):
        _check_sums({name: parameters[name] for name in names}, frozen)
    for name, buffer in _buffers(engine).items():
        buffer.copy_(state["buffers"][name])
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()  # the masters follow the weights
    _start_moments(engine, state["step"])
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            for key in _moments(engine, parameter):
                _set_moment(engine, parameter, key, state[key][name])


def _buffers(engine: Any) -> dict[str, Tensor]:
    """Buffers that are learnt or counted; constants, which are not persistent, are left out."""
    whole = engine.module.state_dict(keep_vars=True)
    return {name: b for name, b in engine.module.named_buffers() if name in whole}


def _batches(parameters: dict[str, nn.Parameter]) -> list[list[str]]:
    """Names a few at a time: a partitioned network need not fit on one rank."""
    names = iter(parameters)
    return list(iter(lambda: list(islice(names, _GATHERED_AT_ONCE)), []))


def _kept(value: Tensor) -> Tensor | None:
    """A copy on the CPU on rank 0, which writes it; nothing elsewhere."""
    return value.detach().to("cpu", copy=True).contiguous() if rank() == 0 else None


def _sum(value: Tensor) -> Tensor:
    """Shape and sum of the bits of a float32 tensor, the same in whatever order it is added up."""
    total = value.detach().view(torch.int32).sum(dtype=torch.int64)
    return torch.tensor([*value.shape, int(total)])


def _check_sums(parameters: dict[str, nn.Parameter], sums: dict[str, Tensor]) -> None:
    """Sees that weights that are not trained are those of the state."""
    with gathered(list(parameters.values())):
        for name, parameter in parameters.items():
            if not torch.equal(sums[name], _sum(parameter)):
                raise ValueError(f"{name} of the base has changed since")


def _set_weights(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    """Copies weights into parameters; a partitioned one takes rank 0's and shares it out."""

    def copy() -> None:
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])

    chosen = list(parameters.values())
    if not any(hasattr(p, "ds_id") for p in chosen):
        copy()
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(chosen, modifier_rank=0):
        if rank() == 0:
            copy()


def _check_names(engine: Any, parameters: dict[str, nn.Parameter], state: dict[str, Any]) -> None:
    """Sees that the state belongs to this network."""
    here = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    buffers = _buffers(engine)
    here |= {name: tuple(b.shape) for name, b in buffers.items()}
    kept = {name: value for name, value in state["buffers"].items() if name in buffers}
    there = {name: tuple(value.shape) for name, value in [*state["weights"].items(), *kept.items()]}
    there |= {name: tuple(v[:-1].tolist()) for name, v in state.get(FROZEN, {}).items()}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise ValueError(f"{name}: {there.get(name)} in the checkpoint, {here.get(name)} here")


def _optimizer(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer, which DeepSpeed wraps from ZeRO stage 1 on."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _partitions(engine: Any) -> list[Tensor]:
    """What torch's optimizer steps: the parameters, or this rank's flat parts of them."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return [p for group in _optimizer(engine).param_groups for p in group["params"]]


def _partition_states(engine: Any) -> list[dict[str, Any]]:
    states = _optimizer(engine).state
    return [states[p] for p in _partitions(engine) if "step" in states.get(p, {})]


def _moments(engine: Any, parameter: nn.Parameter) -> tuple[str, ...]:
    """The moments that the optimizer has of a parameter, or of a partition."""
    optimizer = _optimizer(engine)
    return optimizer.moments(parameter) if isinstance(optimizer, Muon) else MOMENTS


def _moment(engine: Any, parameter: nn.Parameter, key: str) -> Tensor:
    """A whole moment of one parameter, from all ranks."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if _is_partitioned(parameter):
        return safe_get_full_optimizer_state(parameter, key)
    return _optimizer(engine).state[parameter][key]


def _set_moment(engine: Any, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    """Gives every rank its part of a moment."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    value = value.to(parameter.device)
    if hasattr(parameter, "ds_id"):
        # DeepSpeed's own setter of whole values fails where the ranks do not divide the elements
        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
        part = padded.narrow(0, size * rank(), size)
        safe_set_local_optimizer_state(parameter, part, key)
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        _optimizer(engine).state[parameter][key].copy_(value)


def _is_partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _start_moments(engine: Any, step: int) -> None:
    """Makes the optimizer's state as its first step would: zero moments, and the step count."""
    optimizer = _optimizer(engine)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for part in _partitions(engine):
        count = torch.tensor(float(step), device=part.device if fused else "cpu")
        zeros = {key: torch.zeros_like(part.data) for key in _moments(engine, part)}
        optimizer.state[part] = {"step": count, **zeros}
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link:  # stages 1 and 2: which part of a flat moment belongs to which parameter
        link()
