"""Everything that waits for a GPU, in one report and under 8 minutes: `make gpu-check`.

Attention kernels against plain attention, one rank at every ZeRO stage, steps of the full-size LLCM
in bf16 with the memory that `jobs.plan` predicts (32 images at once want 80 GB), where the time
of a step goes and what diffusers' documented step does, and the benchmark's training rows. Writes
results/benchmarks/gpu-check-GPU.md. Without a GPU it says so and ends well. A check that fails does
not stop the others; the exit status is 1 then, and where torch cannot use the GPU that there is.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import documented_parser
from hpc_hipgen.files import write_atomic

SECONDS = 460
"""Of all checks together; what is not done then is stopped and reported."""

COMMANDS = {
    "full-size step, checkpointed": ["-m", "hpc_hipgen.performance.full_size", "--images", "8",
                                     "--steps", "4"],
    "full-size step, all activations kept": ["-m", "hpc_hipgen.performance.full_size", "--images",
                                             "8", "--steps", "4", "--no-checkpointing"],
    "full-size step, 32 images": ["-m", "hpc_hipgen.performance.full_size", "--images", "32",
                                  "--steps", "4", "--no-checkpointing", "--profile"],
    "full-size step, 32 images, the same bits every time": [
        "-m", "hpc_hipgen.performance.full_size", "--images", "32", "--steps", "4",
        "--no-checkpointing", "llcm.training.deterministic=true"],
    "full-size step against diffusers'": [
        "-m", "hpc_hipgen.performance.full_size", "--images", "16", "--steps", "4",
        "--no-checkpointing", "--against", "diffusers"],
    "benchmark": ["-m", "jobs.benchmark", "--only", "training", "--repeats", "3"],
    "against diffusers": ["-m", "jobs.benchmark", "--against", "diffusers", "--repeats", "3"],
}  # fmt: skip


def attention() -> str:
    """The attention that is chosen against plain attention, forward and backward, in bf16."""
    import torch
    from diffusers.models.attention_processor import Attention, AttnProcessor

    from hpc_hipgen.generators.attention import best_attention, uses_xformers

    torch.manual_seed(0)
    layer = Attention(320, heads=8, dim_head=40).cuda()
    x = torch.randn(2, 4096, 320, device="cuda", requires_grad=True)
    found = []
    for processor in (AttnProcessor(), best_attention()):
        layer.set_processor(processor)
        with torch.autocast("cuda", torch.bfloat16):
            output = layer(x)
        (gradient,) = torch.autograd.grad(output.float().square().mean(), x)
        found.append((output.float(), gradient))
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True)]
    assert max(errors) < 0.02, f"relative errors {errors}"
    kernel = "xformers" if uses_xformers() else "SDPA"
    return f"{kernel}: relative errors {errors[0]:.1e} forward, {errors[1]:.1e} backward"


def zero_stages() -> str:
    """A small network on one rank at every ZeRO stage: the same losses."""
    import torch
    from torch import nn

    from hpc_hipgen.config import Training
    from hpc_hipgen.training import engine

    engine.init_distributed()
    found = {}
    for stage in (0, 1, 2, 3):
        torch.manual_seed(0)
        settings = Training(images=80, batch=8, lr=1e-2, zero_stage=stage)
        network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        built = engine.build_engine(network, settings, stage)  # one rank alone would use none
        x = torch.randn(8, 8, device="cuda")
        for _ in range(10):
            loss = (built(x).float() - x[:, :1]).square().mean()
            built.backward(loss)
            assert engine.step(built, settings)
        found[stage] = loss.item()
        built.destroy()
    assert max(found.values()) - min(found.values()) < 1e-3, str(found)
    return ", ".join(f"stage {stage}: loss {loss:.5f}" for stage, loss in found.items())


def command(arguments: list[str], seconds: float) -> str:
    """Output of a command of this project."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    documented_parser("gpu_check", __doc__).parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        from hpc_hipgen.training import engine

        try:
            engine.device()
        except RuntimeError as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return 1
        print("gpu-check: no GPU here, so nothing was checked; run it on a node that has one")
        return 0
    from hpc_hipgen.performance.hardware import describe, short_name

    end = time.monotonic() + SECONDS
    checks: dict[str, Callable[[], str]] = {"attention": attention, "ZeRO stages": zero_stages}

    def in_time(words: list[str]) -> str:
        return command(words, max(1.0, end - time.monotonic()))

    checks |= {name: partial(in_time, words) for name, words in COMMANDS.items()}
    parts = ["# GPU check", "; ".join(f"{k}: {v}" for k, v in describe().items()) + "."]
    failed = 0
    for name, check in checks.items():
        print(f"gpu-check: {name}", file=sys.stderr, flush=True)
        try:
            parts.append(f"## {name}: passed\n\n{check()}")
        except Exception as error:  # whatever it is belongs into the report
            failed += 1
            parts.append(f"## {name}: FAILED\n\n{type(error).__name__}: {error}")
    path = Path("results/benchmarks") / f"gpu-check-{short_name()}.md"
    write_atomic(path, "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))
    print(f"Report: {path}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
