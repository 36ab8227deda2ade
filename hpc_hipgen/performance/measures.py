"""What `jobs.benchmark` measures, a function a row; each returns lines of its table."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from hpc_hipgen import ROOT
from hpc_hipgen.config import LLCM
from hpc_hipgen.generators.drawing import OneDrawer, drawer_of
from hpc_hipgen.performance.hardware import peak_tflops
from hpc_hipgen.performance.simulation import flop_counter
from hpc_hipgen.performance.timing import NetworkClock, ratio, seconds_of, turn_by_turn
from hpc_hipgen.rows import row_settings
from hpc_hipgen.run import Run

Line = dict[str, Any]

JOBS = tuple(sorted(path.stem for path in (ROOT / "jobs").glob("[!_]*.py")))
SAMPLED = (("stable_diffusion", "ddim", (10, 20)), ("llcm", "lcm", (1, 2, 4)))
"""Models with their solvers and numbers of steps."""

WORKING_IMPORTS = {
    "train (as it works)": "import deepspeed, hpc_hipgen.generators.llcm, hpc_hipgen.training.loop",
    "sample (as it works)": "import hpc_hipgen.generators.sampling",
    "evaluate (as it works)": "import pandas, hpc_hipgen.rulers.ruler, "
    "hpc_hipgen.evaluation.distances",
}


class Trained:
    """A model of a run with its engine, ready to take optimizer steps."""

    def __init__(self, run: Run, model: str, probe: bool = True) -> None:
        """`probe`: with the measurement loss, where the settings ask for one."""
        from hpc_hipgen.tasks import measured_task, task_of
        from hpc_hipgen.training.batches import Batches
        from hpc_hipgen.training.engine import build_engine, init_distributed, place
        from hpc_hipgen.training.learning_rate import LearningRate
        from hpc_hipgen.training.record import Window

        init_distributed()
        self.run, self.model = run, model
        self.task = (measured_task if probe else task_of)(run, model)
        self.training = getattr(run.config, model).training
        for average in self.task.averages.values():
            place(average.module)
        self.engine = build_engine(self.task.module, self.training)
        self.source = Batches(self.task, self.training, run.config.seed)
        self.rate, self.window = LearningRate(self.training), Window()
        self.images = 0

    def step(self) -> None:
        """One optimizer step, as the training loop takes it."""
        from hpc_hipgen.training.loop import optimizer_step

        optimizer_step(self.engine, self.source, self.training, self.images, self.model)
        self.images += self.training.batch


def training(run: Run, repeats: int) -> list[Line]:
    """Images/s, share of the step inside the networks, and FLOPs of every model of the run."""
    lines = []
    for model in run.config.trained():
        trained = Trained(run, model)
        trained.step()
        with flop_counter() as counter:
            trained.step()
        seconds, shares = [], []
        for _ in range(repeats):
            with NetworkClock() as clock:
                seconds.append(seconds_of(trained.step))
            shares.append(clock.seconds / seconds[-1])
        trained.engine.destroy()
        lines.append(
            {
                "experiment": run.config.name,
                "model": model,
                "batch": trained.training.batch,
                "images/s": trained.training.batch / median(seconds),
                "in the networks": median(shares),
                **_used(counter.get_total_flops() / median(seconds)),
            }
        )
    return lines


def _used(flops_per_second: float) -> Line:
    """FLOP/s, and their share of the peak where it is known."""
    line: Line = {"TFLOP/s": flops_per_second / 1e12}
    if torch.cuda.is_available() and (peak := peak_tflops(torch.cuda.get_device_name())):
        line["of the peak (MFU)"] = flops_per_second / 1e12 / peak
    return line


def against_diffusers(run: Run, repeats: int) -> list[Line]:
    """Our step of the LLCM against the documented one on the same networks, batch and films."""
    from hpc_hipgen.generators.autoencoder import to_pixels
    from hpc_hipgen.generators.stable_diffusion import load_parts
    from hpc_hipgen.performance.recipe import DiffusersRecipe
    from hpc_hipgen.training.task import FilmTask

    ours = Trained(run, "llcm", probe=False)  # which the documented step has none of
    assert isinstance(ours.task, FilmTask)
    section = run.config.section("llcm", LLCM)
    theirs = DiffusersRecipe(load_parts(run.base("llcm")), section)
    films, batch = ours.task.films, ours.training.batch
    chosen = [i % len(films) for i in range(batch)]
    pixels, captions = to_pixels(films.images[chosen]), [films.captions[i] for i in chosen]
    shares = []

    def clocked() -> None:
        with NetworkClock() as clock:
            seconds = seconds_of(ours.step)
        shares.append(clock.seconds / seconds)

    turns = turn_by_turn(
        {"ours": ours.step, "diffusers": lambda: theirs.step(pixels, captions)}, repeats
    )
    for _ in range(max(3, repeats // 3)):
        clocked()
    ours.engine.destroy()
    return [
        {
            "experiment": run.config.name,
            "solver": section.solver,
            "batch": batch,
            "ours, images/s": batch / median(turns["ours"]),
            "diffusers' recipe, images/s": batch / median(turns["diffusers"]),
            "ratio": ratio(turns["diffusers"], turns["ours"]),
            "ours in the networks": median(shares),
        }
    ]


def sampling(run: Run, repeats: int) -> list[Line]:
    """Images/s of the teacher, the student and DALL-E."""
    config, lines, drawers = run.config, [], OneDrawer(partial(drawer_of, run))
    batch = min(config.sampling.batch, 8)
    prompts = ["norberg angle left 100 degrees, right 95 degrees"] * batch

    def measure(model: str, steps: int, settings: dict[str, Any]) -> None:
        seeds, resolution, drawer = list(range(batch)), config.data.resolution, drawers.of(model)
        seconds = _median(
            lambda: drawer.draw(prompts, seeds, resolution=resolution, **settings), repeats
        )
        lines.append({"model": model, "steps": steps, "images/s": batch / seconds})

    for model, solver, steps in SAMPLED:
        for count in steps if getattr(config, model) else ():
            measure(model, count, {"steps": count, "guidance": 2.0, "solver": solver})
    if config.dall_e:
        from hpc_hipgen.generators.dall_e import DallEDrawer

        dall_e = drawers.of("dall_e")
        assert isinstance(dall_e, DallEDrawer)
        measure("dall_e", dall_e.parts.grid**2, row_settings(config, "dall_e"))
    return lines


def evaluation(run: Run, repeats: int) -> list[Line]:
    """Seconds per 1,000 images of the ruler, the features and the Fréchet distance."""
    from hpc_hipgen.evaluation.distances import frechet_distance, load_backbone
    from hpc_hipgen.rulers.ruler import ruler_of
    from hpc_hipgen.training.engine import device

    images = np.random.default_rng(0).integers(0, 256, (32, *[run.config.data.resolution] * 2))
    images = images.astype(np.uint8)
    ruler, backbone = ruler_of(run, device().type), load_backbone().to(device())
    features = np.random.default_rng(1).standard_normal((2, 1000, backbone.num_features))
    rows: dict[str, tuple[Callable[[], Any], int]] = {
        "ruler": (lambda: ruler.measure(images), len(images)),
        f"features ({backbone.name})": (lambda: backbone.extract(images), len(images)),
        "Fréchet distance of 1,000 and 1,000": (lambda: frechet_distance(*features), 1000),
    }
    return [
        {"what": name, "seconds per 1,000 images": _median(action, repeats) * 1000 / count}
        for name, (action, count) in rows.items()
    ]


def checkpoints(run: Run, repeats: int) -> list[Line]:
    """Seconds to save a checkpoint and to go on from it."""
    from hpc_hipgen.training import checkpoint

    model = "llcm" if run.config.llcm else run.config.trained()[-1]
    trained = Trained(run, model)
    trained.step()
    state = trained.engine, trained.task, trained.rate, trained.window
    folder = run.path("checkpoints-timed")
    turns = turn_by_turn(
        {
            "save": lambda: checkpoint.save(*state, folder, trained.images),
            "load": lambda: checkpoint.restore(*state, folder),
        },
        repeats,
        warmup=0,
    )
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    trained.engine.destroy()
    began = time.perf_counter()
    again = Trained(run, model)
    checkpoint.restore(again.engine, again.task, again.rate, again.window, folder)
    again.step()
    resumed = time.perf_counter() - began
    again.engine.destroy()
    return [
        {
            "model": model,
            "MB": size / 1e6,
            "save, s": median(turns["save"]),
            "load, s": median(turns["load"]),
            "start to first new step without imports, s": resumed,
        }
    ]


def imports(run: Run, repeats: int) -> list[Line]:
    """Seconds of `--help` of every job, and of what jobs import when they work."""
    commands = {f"{job} --help": ["-m", f"jobs.{job}", "--help"] for job in JOBS}
    commands |= {name: ["-c", code] for name, code in WORKING_IMPORTS.items()}

    def start(arguments: list[str]) -> None:
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )

    turns = turn_by_turn({k: partial(start, a) for k, a in commands.items()}, repeats, warmup=0)
    return [{"job": name, "seconds": median(seconds)} for name, seconds in turns.items()]


def _median(action: Callable[[], Any], repeats: int) -> float:
    return median(turn_by_turn({"": action}, repeats)[""])
