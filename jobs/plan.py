"""Says what an experiment will need before it is submitted: memory of a GPU, FLOPs, hours.

    python -m jobs.plan configs/llcm_a100.yaml
    python -m jobs.plan configs/llcm_a100.yaml llcm.gradient_checkpointing=true --gpus 16
    python -m jobs.plan configs/llcm_a100.yaml --images-per-second 118.5      hours at that speed

The networks are gone through on tensors without contents: nothing is computed, no weights are
needed (of a `base`, only the settings in its folder), and a login node will do. Figures are for
bf16 autocast over fp32 weights. Memory leaves out what CUDA and NCCL keep for themselves, about 1.5
GiB, and fragmentation: leave a tenth free.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.config import ConfigError, Experiment, load_experiment
from hpc_hipgen.performance import PLANNED

if TYPE_CHECKING:
    from hpc_hipgen.performance.plan import Plan

ROOM = 0.9
"""Share of a GPU's memory that a plan may fill."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 2 for a mistake of the user."""
    options = _parser().parse_intermixed_args(arguments)
    return status_of(lambda: _plan(options), ValueError)


def _plan(options: argparse.Namespace) -> int:
    """Prints what the models of an experiment will need."""
    config = load_experiment(options.config, options.settings)
    models = _plannable(config)
    if options.model and options.model not in models:
        raise ConfigError(f"{options.config}: does not train {options.model}")
    if not 0 < options.utilisation <= 1 or options.gpus < 1:
        raise ConfigError("--utilisation must be within 0 and 1, --gpus at least 1")
    rates = (options.memory, options.tflops, options.images_per_second)
    if any(rate is not None and rate <= 0 for rate in rates):
        raise ConfigError("--memory, --tflops and --images-per-second must be above 0")
    if not models:
        raise ConfigError(f"{options.config}: trains neither {' nor '.join(PLANNED)}")
    for model in [options.model] if options.model else models:
        print(report(config, model, options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = documented_parser("plan", __doc__)
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help="changed settings"
    )
    parser.add_argument("--model", choices=PLANNED, help="default: both")
    parser.add_argument("--gpus", type=int, default=8, help="of the whole run (8)")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of one of them (80)")
    parser.add_argument("--tflops", type=float, default=312.0, help="peak of one, bf16 (312: A100)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak (0.4)")
    parser.add_argument("--images-per-second", type=float, help="of all GPUs, instead of a share")
    return parser


def _plannable(config: Experiment) -> list[str]:
    return [m for m in PLANNED if getattr(config, m)]


def report(config: Experiment, model: str, options: argparse.Namespace) -> str:
    """The plan of one model as text."""
    from hpc_hipgen.performance.plan import make_plan

    plan = make_plan(config, model)
    lines = [f"{model} of {config.name}: {plan.parameters / 1e6:.1f} M parameters"]
    for part, flops in plan.flops.items():
        lines.append(f"  {part:40} {flops / 1e12:8.3f} TFLOP an image")
    lines.append(f"  {'together':40} {plan.flops_per_image / 1e12:8.3f} TFLOP an image")
    images = plan.training.images
    if options.images_per_second:
        rate = options.images_per_second
        hours = images / rate / 3600
        used = rate * plan.flops_per_image / (options.gpus * options.tflops * 1e12)
        basis = f"{rate:g} images/s, which is {used:.1%} of the peak"
    else:
        hours = plan.hours(options.gpus, options.tflops, options.utilisation)
        rate = images / hours / 3600
        basis = f"{options.utilisation:.0%} of the peak, which is {rate:.1f} images/s"
    lines.append(
        f"  {images:,} images on {options.gpus} GPUs of {options.tflops:g} TFLOP/s: "
        f"{hours:.1f} hours at {basis}"
    )
    every = min(plan.training.checkpoint_images, images)
    lines.append(
        f"  {-(-images // every)} checkpoints of {plan.checkpoint_bytes / 1e9:.1f} GB, one every "
        f"{every / rate / 60:.1f} minutes of training, which waits for each (checkpoint_images)"
    )
    return "\n".join([*lines, *_memory(plan, options), ""])


def _memory(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Memory by ZeRO stage, and how many images a GPU can hold at once there."""
    training, gpus = plan.training, options.gpus
    share = max(1, training.batch // gpus)
    held = min(training.micro_batch or share, share)
    limit = options.memory * 1e9
    names = ("weights", "gradients", "moments", "copies", "frozen", "activations")
    lines = [
        f"  memory of a GPU in GB, {held} images at once, {-(-share // held)} times a step:",
        "    ZeRO  "
        + "".join(f"{name:>12}" for name in (*names, "at worst"))
        + "  largest fitting",
    ]
    for stage in plan.stages:
        need = plan.need(stage, gpus, held, share > held)
        row = [getattr(need, name) for name in names]
        most = [
            n for n in range(1, share + 1) if share % n == 0 and _fits(plan, stage, gpus, n, limit)
        ]
        fitting = f"{max(most)} images" if most else "none"
        mark = " *" if stage == training.zero_stage else "  "
        lines.append(
            f"    {stage}{mark}   "
            + "".join(f"{value / 1e9:12.2f}" for value in (*row, need.total))
            + f"  {fitting}"
        )
    lines.append(f"    (* as configured; fitting: into {ROOM:.0%} of {options.memory:g} GB)")
    return lines


def _fits(plan: Plan, stage: int, gpus: int, images: int, limit: float) -> bool:
    share = max(1, plan.training.batch // gpus)
    return plan.need(stage, gpus, images, share > images).total <= ROOM * limit


if __name__ == "__main__":
    sys.exit(main())
