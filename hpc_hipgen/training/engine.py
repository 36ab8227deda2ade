"""DeepSpeed, set up the same way on CPU and GPU, on one rank and on many."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import platform
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_hipgen.config import Training
from hpc_hipgen.parallel import NO_GPU
from hpc_hipgen.training.muon import Muon
from hpc_hipgen.training.norms import follow_autocast

TIMEOUT = timedelta(minutes=30)
"""What waits for another rank for longer is ended: rank 0 writes to disks that may be slow."""

BUCKET = 50_000_000
"""Gradients, in elements, that ranks add up at once from ZeRO-1 on (DeepSpeed's own: ten times it).

Two such buckets are kept, and none is sent before it is full: a larger one than the network is
sent after the backward pass, not beside it.
"""


_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")  # in which a UNet spends its time


def device() -> torch.device:
    """The device of this rank: its GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    _check_no_gpu()
    return torch.device("cpu")


_DRIVER = Path("/proc/driver/nvidia/version")


@functools.cache
def _check_no_gpu() -> None:
    """Sees that it is no mistake that a process works on the CPU, for days maybe.

    Raises:
        RuntimeError: when it was given GPUs, which torch cannot use.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = visible not in NO_GPU
    if "SLURM_JOB_ID" in os.environ:
        numbers = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
        given &= bool(numbers) or os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")
    if given and _DRIVER.is_file():
        raise RuntimeError(
            f"{platform.node()} has GPUs for this process, and torch {torch.__version__} cannot "
            f"use them: it needs a driver for CUDA {torch.version.cuda}, and a container its --nv; "
            "with CUDA_VISIBLE_DEVICES= (empty) it works on the CPU"
        )


def init_distributed() -> None:
    """Joins the process group; a single process needs no launcher and no environment.

    The launcher (hpc_hipgen/cluster/rendezvous.py) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT; without them this is a world of one.
    """
    if device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it looked for a GPU
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if torch.distributed.is_initialized():
        return
    # What `deterministic` asks cuBLAS for, read when it starts; it costs 32 MB, so all have it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Without LOCAL_RANK DeepSpeed looks for MPI.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    # Its shared-memory all-reduce for CPUs is compiled at first use, and gains nothing here.
    __compatible_ops__["deepspeed_shm_comm"] = False
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if torch.cuda.device_count() == 1:  # some sites show each rank its own GPU alone
            os.environ["LOCAL_RANK"] = "0"
        torch.cuda.set_device(device())
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    backend = "nccl" if on_gpu else "gloo"
    if os.environ["WORLD_SIZE"] == "1":
        # A lone process meets itself in memory: a free port may be taken before it is listened on.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(
            backend, store=store, rank=0, world_size=1, timeout=TIMEOUT
        )
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise RuntimeError(
            f"port {os.environ['MASTER_PORT']} of this node is in use by another program; start "
            "the stage again: the port follows from the job's id, and another job has another one"
        ) from error
    atexit.register(_leave_group)


def _leave_group() -> None:
    """Ends the threads of the process group while python is whole.

    A thread of gloo that lets go of a tensor while python is being taken down aborts the process
    (github.com/pytorch/pytorch/issues/190489). The threads end with the last reference to the
    groups, of which DeepSpeed holds some. Those that an engine of ZeRO stage 3 holds outlive it:
    its threads get the time to let go of the last call's tensors.
    """
    from deepspeed import comm

    if torch.distributed.is_initialized():
        comm.destroy_process_group()
    gc.collect()
    time.sleep(0.1)


def leave_at_once() -> None:
    """Has a rank that failed end without a word to the others, once it has said why.

    Leaving NCCL's group waits for ranks that wait for this one; only when it has ended does Slurm
    end them, too.
    """
    if torch.cuda.is_available() and world_size() > 1:
        atexit.unregister(_leave_group)
        atexit.register(os._exit, 1)
        for stream in (sys.stdout, sys.stderr):  # the last that is registered runs first
            atexit.register(stream.flush)


def rank() -> int:
    """This process's rank, 0 outside a process group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def place(module: nn.Module) -> nn.Module:
    """Puts a network on this rank's device, in place; its norms follow autocast from then on."""
    return follow_autocast(module.to(device()))


def place_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Puts the inputs of a network where `place` puts the network."""
    return {name: value.to(device(), non_blocking=True) for name, value in batch.items()}


def bf16_in_hardware() -> bool:
    """Whether this rank's device computes in bf16, and does not only emulate it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("aarch64", "arm64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def uses_bf16(training: Training) -> bool:
    """Whether a run trains in bf16: as configured, or, for `auto`, as the hardware can."""
    if training.precision == "auto":
        return bf16_in_hardware()
    return training.precision == "bf16"


def micro_batch(training: Training) -> int:
    """Images that one rank holds at once.

    Raises:
        ValueError: when the batch cannot be shared out evenly among the ranks.
    """
    share, rest = divmod(training.batch, world_size())
    if rest:
        raise ValueError(
            f"training.batch: {training.batch} does not divide among {world_size()} ranks; choose "
            "a multiple of them, or another number of GPUs"
        )
    size = min(training.micro_batch or share, share)
    if share % size:
        raise ValueError(
            f"training.micro_batch: {share} images per rank are not a multiple of {size}; choose "
            "one of their divisors"
        )
    return size


def zero_stage(training: Training) -> int:
    """The ZeRO stage that is used: one rank has nobody to share with, and only pays for trying.

    There DeepSpeed copies every gradient four times and keeps the weights twice (docs/log.md,
    2026-11-22).
    """
    return training.zero_stage if world_size() > 1 else 0


def deepspeed_settings(training: Training, stage: int | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration of a training run.

    To DeepSpeed all is fp32, at every ZeRO stage; bf16 is `build_engine`'s matter. `stage`: of
    ZeRO, by default that of `zero_stage`.
    """
    stage = zero_stage(training) if stage is None else stage
    return {
        "train_batch_size": training.batch,
        "train_micro_batch_size_per_gpu": micro_batch(training),
        "gradient_clipping": training.clip if stage else 0.0,  # without ZeRO `step` does it
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": stage > 0 and torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # it has the host wait for the GPU at the beginning and the end of every micro-batch
        "timers": {"throughput": {"enabled": False}},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def build_engine(module: nn.Module, training: Training, stage: int | None = None) -> Any:
    """Wraps the module for training; `init_distributed` comes first.

    bf16 means torch's autocast over fp32 weights. It stands inside the module: DeepSpeed switches
    off one around its engine, and its own would round gradients before ranks add them up. `stage`:
    as of `deepspeed_settings`.
    """
    import deepspeed

    _choose_kernels(training.deterministic)
    place(module)
    if uses_bf16(training):
        module.forward = torch.autocast(device().type, torch.bfloat16)(module.forward)
    if training.compile:
        _compile(module)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=_optimizer(module, training),
        config=deepspeed_settings(training, stage),
        dist_init_required=False,
    )
    # DeepSpeed adds up in a group of its own, which has torch's default: 10 minutes for NCCL
    torch.distributed.distributed_c10d._set_pg_timeout(TIMEOUT, engine.seq_data_parallel_group)
    return engine


def _compile(module: nn.Module) -> None:
    """Has torch compile the blocks of diffusers' networks, trained or frozen, each by itself.

    That takes seconds a block where a loss as a whole takes minutes, and the gradients of a block
    are there, for the ranks to add up, while the backward pass goes on to the next. A module
    without such blocks is compiled as it is.
    """
    networks = [module, *getattr(module, "frozen", {}).values()]
    blocks = [part for net in networks for part in net.modules() if type(part).__name__ in _BLOCKS]
    # blocks share their code, and one of another shape is another compilation of it
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for part in blocks or [module]:
        part.compile()


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained."""
    settings: dict[str, Any] = {
        "lr": training.lr,
        "betas": training.betas,
        "weight_decay": training.weight_decay,
    }
    trained = [p for p in module.parameters() if p.requires_grad]
    if training.optimizer == "muon":
        return Muon(trained, **settings)
    # torch's fused one: one pass over the memory instead of eight, and nothing to compile
    return torch.optim.AdamW(trained, fused=True, **settings)


def _choose_kernels(deterministic: bool) -> None:
    """Kernels that add up in a fixed order, where a GPU has them, or the fastest ones.

    torch warns of an operation that has none such.
    """
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.deterministic = deterministic


def step(engine: Any, training: Training) -> bool:
    """The optimizer step, where the batch is complete; between its micro-batches nothing.

    Returns:
        False, on every rank, when the gradient is not finite: then no weight was changed.
    """
    complete = engine.is_gradient_accumulation_boundary()
    if complete and not engine.zero_optimization():
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            return False
        # both optimizers divide by this as they read gradients: clipping without a pass of its own
        engine.optimizer.grad_scale = (norm / training.clip).clamp_min(1)
    engine.step()
    return not (complete and getattr(engine.optimizer, "overflow", False))
