"""DeepSpeed's settings, and what each rank holds."""

import copy
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from hpc_hipgen.config import Training
from hpc_hipgen.training import engine


def training(**more):
    return Training(**{"images": 64, "batch": 16, "lr": 1e-3} | more)


def test_the_batch_is_shared_out(monkeypatch):
    assert engine.micro_batch(training()) == 16
    assert engine.micro_batch(training(micro_batch=4)) == 4
    monkeypatch.setattr(engine, "world_size", lambda: 8)
    assert engine.micro_batch(training()) == 2
    assert engine.micro_batch(training(micro_batch=4)) == 2, "a rank has no more than its share"
    settings = engine.deepspeed_settings(training(micro_batch=1))
    assert settings["train_batch_size"] == 16
    assert settings["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.parametrize(
    "ranks, more, words",
    [(3, {}, "16 does not divide among 3"), (2, {"batch": 24, "micro_batch": 8}, "multiple")],
)
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, ranks, more, words):
    monkeypatch.setattr(engine, "world_size", lambda: ranks)
    with pytest.raises(ValueError, match=words):
        engine.micro_batch(training(**more))


def test_one_rank_alone_shares_nothing(monkeypatch, every_stage):
    monkeypatch.setattr(engine, "zero_stage", every_stage)
    settings = engine.deepspeed_settings(training(zero_stage=2, clip=0.5))
    assert settings["zero_optimization"]["stage"] == settings["gradient_clipping"] == 0
    assert engine.deepspeed_settings(training(), stage=3)["zero_optimization"]["stage"] == 3
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    settings = engine.deepspeed_settings(training(zero_stage=2, clip=0.5))
    assert settings["zero_optimization"]["stage"] == 2 and settings["gradient_clipping"] == 0.5


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_is_autocast_over_fp32_weights_and_gradients(stage):
    engine.init_distributed()
    settings = training(precision="bf16", zero_stage=stage, clip=1e9, betas=(0.0, 0.0))
    layer = engine.place(nn.Linear(8, 8))
    first = layer.weight.detach().clone()
    built = engine.build_engine(layer, settings)
    output = built(torch.randn(16, 8, device=engine.device()))
    assert output.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    built.backward(output.float().square().mean())
    assert engine.step(built, settings)
    # without momentum AdamW moves each weight by lr: a step taken falsely before would show
    assert torch.allclose(
        (layer.weight - first).abs(), torch.tensor(1e-3, device=first.device), rtol=1e-2
    )
    built.destroy()


@pytest.mark.parametrize("clip", [0.1, 1e9])
def test_a_step_is_that_of_torch_with_clipped_gradients(clip):
    engine.init_distributed()
    more = {"clip": clip, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    settings = training(precision="fp32", zero_stage=0, **more)
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    theirs = copy.deepcopy(layer)
    built = engine.build_engine(layer, settings)
    optimizer = torch.optim.AdamW(
        theirs.parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay
    )
    for _ in range(5):
        x = torch.randn(16, 8)
        built.backward(built(x.to(engine.device())).square().sum())
        assert engine.step(built, settings)
        theirs(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        assert (norm > clip) == (clip < 1)
        optimizer.step()
        optimizer.zero_grad()
    for ours, torchs in zip(layer.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours.cpu(), torchs, rtol=1e-5, atol=1e-6)
    built.destroy()


def test_a_network_is_compiled_when_asked_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    engine.init_distributed()
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for layer, asked in zip(layers, (True, False), strict=True):
        engine.build_engine(layer, training(compile=asked, zero_stage=0)).destroy()
    assert compiled == layers[:1]


def test_of_diffusers_networks_blocks_are_compiled_also_of_frozen_ones(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    trained, frozen = (
        nn.ModuleList([ResnetBlock2D(in_channels=8, temb_channels=8, groups=4), nn.Conv2d(8, 8, 1)])
        for _ in range(2)
    )
    trained.frozen = {"teacher": frozen}
    engine._compile(trained)
    assert compiled == [trained[0], frozen[0]]


def test_the_group_in_which_gradients_are_added_up_waits_as_long_as_ours(monkeypatch):
    engine.init_distributed()
    monkeypatch.setattr(engine, "TIMEOUT", timedelta(minutes=45))
    built = engine.build_engine(nn.Linear(2, 2), training(zero_stage=0))
    group = built.seq_data_parallel_group
    assert group is not torch.distributed.group.WORLD, "else this would be of no use"
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=45)
    built.destroy()


def test_joining_twice_is_joining_once():
    engine.init_distributed()
    engine.init_distributed()
    assert (engine.rank(), engine.world_size()) == (0, 1)


def test_a_port_that_another_program_has_is_said_to_be(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        def join(**_):
            torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=True)

        monkeypatch.setattr("deepspeed.init_distributed", join)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match=f"port {port} of this node is in use"):
            engine.init_distributed()


@pytest.mark.parametrize("hardware", [True, False])
def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch, hardware):
    monkeypatch.setattr(engine, "bf16_in_hardware", lambda: hardware)
    assert engine.uses_bf16(training()) is hardware
    assert engine.uses_bf16(training(precision="bf16"))
    assert not engine.uses_bf16(training(precision="fp32"))


def test_the_hardware_can_be_asked():
    assert engine.bf16_in_hardware() in (True, False)


FAILS = """
import atexit, time, torch
from hpc_hipgen.training import engine
torch.cuda.is_available, engine.world_size = lambda: True, lambda: 2
engine._leave_group = lambda: time.sleep(600)  # as NCCL waits for the others
atexit.register(engine._leave_group)
print("said")
engine.leave_at_once()
raise RuntimeError("why")
"""


@pytest.mark.parametrize(
    "variables, fails",
    [
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, True),  # its number, of one
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("driver", [True, False])
def test_gpus_that_torch_cannot_use_are_no_reason_to_work_on_the_cpu(
    monkeypatch, tmp_path, variables, fails, driver
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "_DRIVER", tmp_path / "version")
    if driver:
        (tmp_path / "version").touch()
    for name in ("SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    engine._check_no_gpu.cache_clear()
    try:
        if fails and driver:
            with pytest.raises(
                RuntimeError, match=r"has GPUs for this process, and torch .* cannot"
            ):
                engine.device()
        else:
            assert engine.device().type == "cpu"
    finally:
        engine._check_no_gpu.cache_clear()


def test_a_rank_that_failed_ends_without_waiting_for_the_others():
    call = [sys.executable, "-c", FAILS]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "said\n")
    assert "RuntimeError: why" in done.stderr
