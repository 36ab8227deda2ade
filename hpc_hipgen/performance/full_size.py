"""One LLCM step of the full Stable Diffusion 1.5, random weights: does the planned memory hold?

    python -m hpc_hipgen.performance.full_size                     batch 1, bf16, a minute or more
    python -m hpc_hipgen.performance.full_size --images 8 --steps 5      on a GPU
    ... --images 32 --no-checkpointing --profile      as configured, and where the time goes
    ... --images 16 --no-checkpointing --against diffusers      and diffusers' step, turn by turn

Needs 22 GiB. Prints the memory that `jobs.plan` predicts and the largest that was seen, and exits 1
when they are more than 15 % apart. No test runs it: do so by hand after a change of the step.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hpc_hipgen import ROOT
from hpc_hipgen.arguments import documented_parser
from hpc_hipgen.config import LLCM, Experiment, Text, load_experiment
from hpc_hipgen.generators import text
from hpc_hipgen.generators.frozen import freeze
from hpc_hipgen.generators.llcm import DistillationLoss, build_student
from hpc_hipgen.generators.stable_diffusion import StableDiffusionParts
from hpc_hipgen.performance.hardware import peak_tflops
from hpc_hipgen.performance.plan import GIB, LEVELS_1_5, TEXT_1_5, make_plan, unet_shape
from hpc_hipgen.performance.recipe import DiffusersRecipe
from hpc_hipgen.performance.timing import profile_of, ratio, seconds_of, turn_by_turn
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.batches import Batches
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import build_engine, init_distributed, place, uses_bf16
from hpc_hipgen.training.loop import optimizer_step
from hpc_hipgen.training.task import Task

CONFIG = ROOT / "configs" / "llcm_a100.yaml"
TOLERANCE = 0.15


VAE = {
    "block_out_channels": LEVELS_1_5,
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
"""Of Stable Diffusion 1.5, where it differs from the defaults of diffusers' AutoencoderKL."""

TEXT = Text(
    hidden_size=TEXT_1_5["hidden_size"],
    layers=TEXT_1_5["num_hidden_layers"],
    heads=TEXT_1_5["num_attention_heads"],
    max_length=77,
)
"""Of the same, but for the vocabulary, of which nothing is computed."""


class FullSize(Task):
    """The task of an LLCM on made-up latents; nothing of it is exported."""

    def __init__(self, config: Experiment) -> None:
        """Teacher, student and target of the experiment's architecture with random weights."""
        section = config.section("llcm", LLCM)
        self.shape, self.section = unet_shape(config, "llcm"), section
        teacher = _random(self.shape.build)
        student = build_student(teacher)
        if section.gradient_checkpointing:
            student.enable_gradient_checkpointing()
        teacher = freeze(teacher, uses_bf16(section.training))
        self.module = DistillationLoss(student, teacher, section, "epsilon")
        self.averages = {"target": WeightAverage(student, section.ema_decay)}
        self.module.frozen["target"] = place(self.averages["target"].module)
        self.size = 1_000_000

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Noise for latents and states."""
        _, height, width = self.shape.latent
        b = len(indices)
        return {
            "latents": random.normal("latents", *self.shape.latent),
            "noise": random.normal("noise", *self.shape.latent),
            "t": random.integers("timestep", 49) * 20 + 39,
            "w": random.uniform("guidance") * 8,
            "states": random.normal("states", *self.shape.text),
            "null": torch.zeros(b, *self.shape.text),
            "weight": torch.ones(b, 1, height, width),
        }

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the images."""
        return [f"image-{i}" for i in indices]


def _random(build: Any) -> nn.Module:
    """A network with small random weights, without the wait for a proper initialisation."""
    with torch.device("meta"):
        network = build(False)
    network = network.to_empty(device="cpu")
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.02, 0.02)
    return network


def used_bytes() -> int:
    """The most memory that was used so far: of the GPU by tensors, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _experiment(images: int, checkpointing: bool, settings: Sequence[str] = ()) -> Experiment:
    """The paper's run with all images of a batch held at once."""
    changed = [
        f"llcm.training.batch={images}",
        "llcm.training.micro_batch=null",
        f"llcm.gradient_checkpointing={str(checkpointing).lower()}",
        "data.views=64",
        *settings,
    ]
    return load_experiment(CONFIG, changed)


def check(
    images: int,
    steps: int,
    checkpointing: bool,
    profiled: bool = False,
    settings: Sequence[str] = (),
) -> dict[str, float]:
    """Takes the steps; returns bytes predicted and seen, and the speed.

    `profiled`: prints where the time of one more step goes. `settings`: changes to the experiment.
    """
    config = _experiment(images, checkpointing, settings)
    plan = make_plan(config, "llcm")
    init_distributed()
    base = used_bytes()
    task = FullSize(config)
    training = task.section.training
    engine, source = build_engine(task.module, training), Batches(task, training, 0)

    def step(i: int) -> None:
        optimizer_step(engine, source, training, i * images, "llcm")

    seconds = [seconds_of(partial(step, i)) for i in range(steps)]
    if profiled:
        print(profile_of(lambda: step(steps)))
    speed = images / median(seconds[1:] or seconds)
    need = plan.need(training.zero_stage, 1, images)
    found = {
        "predicted": base + need.total,
        "seen": used_bytes(),
        "images/s": speed,
        "TFLOP/s": speed * plan.flops_per_image / 1e12,
    }
    if torch.cuda.is_available() and (peak := peak_tflops(torch.cuda.get_device_name())):
        found["MFU"] = found["TFLOP/s"] / peak
    return found


def against_diffusers(
    images: int, steps: int, checkpointing: bool, settings: Sequence[str] = ()
) -> dict[str, float]:
    """Our step and that of `performance.recipe`, turn by turn: images/s, and the ratio.

    Ours has cached latents and states, the documented one encodes 512 px images and captions.
    """
    config = _experiment(images, checkpointing, settings)
    init_distributed()
    task = FullSize(config)
    training = task.section.training
    theirs = DiffusersRecipe(_parts(config, task), task.section)
    engine, source = build_engine(task.module, training), Batches(task, training, 0)
    size = config.data.resolution
    pixels, captions = torch.rand(images, 3, size, size) * 2 - 1, ["a radiograph"] * images
    turns = turn_by_turn(
        {
            "ours": lambda: optimizer_step(engine, source, training, 0, "llcm"),
            "diffusers'": lambda: theirs.step(pixels, captions),
        },
        steps,
    )
    speeds = {f"{name}, images/s": images / median(seconds) for name, seconds in turns.items()}
    return speeds | {"ratio": ratio(turns["diffusers'"], turns["ours"])}


def _parts(config: Experiment, task: FullSize) -> StableDiffusionParts:
    """A Stable Diffusion of random weights around the task's architecture."""
    tokenizer = text.build_tokenizer(TEXT)
    return StableDiffusionParts(
        AutoencoderKL(**VAE, sample_size=config.data.resolution),
        _random(task.shape.build),
        tokenizer,
        text.build_text_encoder(TEXT, tokenizer),
        "epsilon",
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 1 when prediction and measurement disagree."""
    parser = documented_parser("full_size", __doc__, package="hpc_hipgen.performance")
    parser.add_argument("--images", type=int, default=1, help="in a batch (1)")
    parser.add_argument("--steps", type=int, default=2, help="the second has moments to keep (2)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--profile", action="store_true", help="print where a step's time goes")
    either.add_argument("--against", choices=("diffusers",), help="what to compare the step with")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help="settings to change")
    options = parser.parse_args(arguments)
    if options.against:
        found = against_diffusers(
            options.images, options.steps, not options.no_checkpointing, options.settings
        )
        print(", ".join(f"{name} {value:.3g}" for name, value in found.items()))
        return 0
    found = check(
        options.images,
        options.steps,
        not options.no_checkpointing,
        options.profile,
        options.settings,
    )
    off = found["predicted"] / found["seen"] - 1
    print(
        f"memory: {found['predicted'] / GIB:.2f} GiB predicted, {found['seen'] / GIB:.2f} GiB seen "
        f"({off:+.1%}); {found['images/s']:.3f} images/s, {found['TFLOP/s']:.3f} TFLOP/s"
        + (f", {found['MFU']:.1%} of the peak" if "MFU" in found else "")
    )
    return int(abs(off) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
