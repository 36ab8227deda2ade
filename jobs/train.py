"""The training stages: the ruler, the autoencoder and the generators, one model a call.

    python -m jobs.train --run results/llcm ruler
    python -m jobs.train --run results/llcm stable_diffusion

Goes on from the last complete checkpoint of <run>/<model>/checkpoints, and writes <run>/<model>/
export when the model has seen all its images. Does nothing when that is already there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.config import TRAINED
from hpc_hipgen.run import FEW_STEPS, Run, atomic_folder

if TYPE_CHECKING:
    from hpc_hipgen.training.task import Task


def train(run: Run, model: str) -> dict[str, Any]:
    """Trains one model of the run on all its ranks; rank 0 writes the export.

    Returns figures for the stage's record. Raises ValueError for a model that the experiment does
    not train.
    """
    from hpc_hipgen.evaluation.model_card import write_card
    from hpc_hipgen.tracking import tracked
    from hpc_hipgen.training import loop
    from hpc_hipgen.training.checkpoint import complete_checkpoints
    from hpc_hipgen.training.engine import init_distributed, rank

    if model not in run.config.trained():
        raise ValueError(f"{run.folder}: this experiment does not train '{model}'")
    stage = f"train-{model}"
    if done := run.done(stage):
        return done
    init_distributed()
    task = measured_task(run, model)
    settings = getattr(run.config, model).training
    folder = run.path(model)
    with tracked(run, model, active=rank() == 0) as tracker:
        seed = run.config.seed
        figures = loop.train(task, settings, folder, seed=seed, title=model, also=tracker.log)
        if rank() == 0:
            with atomic_folder(folder / "export") as export:
                figures |= task.export(export)
                write_card(run, model, export, figures, {})
            for checkpoint in complete_checkpoints(folder / "checkpoints")[:1]:
                tracker.artefact("checkpoint", checkpoint, images=figures["images"])
            tracker.artefact("model", folder / "export", **figures)
            print(f"{model}: done, {_line(figures)}", file=sys.stderr, flush=True)
            run.mark_done(stage, **figures)
    return figures


def measured_task(run: Run, model: str) -> Task:
    """The model's task, with the run's probe where its settings ask for one."""
    task = task_of(run, model)
    if getattr(getattr(run.config, model), "measurement_weight", 0):
        from hpc_hipgen.generators.probe import load_probe

        task.measure_with(load_probe(run.path("probe", "export")))
    return task


def task_of(run: Run, model: str) -> Task:
    """The model's task; each generator reads the layout that the paper gave it."""
    from hpc_hipgen.radiograph import layouts

    config, data = run.config, run.path("data")
    if model == "ruler":
        from hpc_hipgen.evaluation.ruler_training import RulerTask

        return RulerTask(config, data)
    if model == "film_ruler":
        from hpc_hipgen.evaluation.film_ruler_training import FilmRulerTask

        return FilmRulerTask(config, run.path("scenes"))
    if model == "lab_ruler":
        from hpc_hipgen.evaluation.lab_ruler import fold_task
        from jobs.cross_validate import figures_of, measured_hips

        task, _ = fold_task(run, fold=None)
        task.cross_validation = figures_of(run, measured_hips(run))
        return task
    if model == "autoencoder":
        from hpc_hipgen.generators.autoencoder import AutoencoderTask

        return AutoencoderTask(config, layouts.read_manifest(data, "train"))
    if model == "discrete_vae":
        from hpc_hipgen.generators.discrete_vae import DiscreteVAETask

        return DiscreteVAETask(config, layouts.read_pairs(data))
    if model == "dall_e":
        from hpc_hipgen.generators.dall_e import DallETask

        return DallETask(config, layouts.read_pairs(data), load_discrete_vae(run))
    if model == "clip":
        from hpc_hipgen.generators.clip import CLIPTask

        return CLIPTask(config, *(layouts.read_manifest(data, s) for s in ("train", "validation")))
    cache = run.path("latents")
    if model == "probe":
        from hpc_hipgen.generators.probe import ProbeTask

        held_out = layouts.read_manifest(data, "validation")
        films = layouts.read_imagefolder(data / "layouts" / "imagefolder" / "train")
        return ProbeTask(config, films, held_out, load_autoencoder(run), cache)
    if model == "dreambooth":
        from hpc_hipgen.generators.dreambooth import DreamBoothTask

        prior = run.path(model, "prior")
        return DreamBoothTask(config, layouts.read_classes(data), run.base(model), cache, prior)
    if model in FEW_STEPS:
        from hpc_hipgen.generators.llcm import LLCMTask
        from hpc_hipgen.generators.lora import LCMLoRATask

        folder = data / "layouts" / "shards"
        films = layouts.read_shards(folder, "train")
        prepared = (run.done("prepare") or {}).get("views", {}).get("train", len(films))
        if len(films) != prepared:
            raise ValueError(f"{folder}: {len(films)} views, but {prepared} were prepared")
        if model == "lcm_lora":
            return LCMLoRATask(config, films, run.base(model), cache)
        return LLCMTask(config, films, run.base(model), cache, model)
    films = layouts.read_imagefolder(data / "layouts" / "imagefolder" / "train")
    if model == "prior":
        from hpc_hipgen.generators.clip import load_parts
        from hpc_hipgen.generators.prior import PriorTask

        return PriorTask(config, films, load_parts(run.first_stage("clip")))
    if model == "unclip":
        from hpc_hipgen.generators.unclip import UnCLIPTask

        folders = (run.first_stage("clip"), run.first_stage("prior"))
        return UnCLIPTask(config, films, load_autoencoder(run), *folders, cache)
    if model == "lora":
        from hpc_hipgen.generators.lora import LoRATask

        return LoRATask(config, films, run.base(model), cache)
    from hpc_hipgen.generators.stable_diffusion import StableDiffusionTask

    section = getattr(config, model)
    return StableDiffusionTask(section, config, films, load_autoencoder(run), cache)


def load_autoencoder(run: Run) -> Any:
    """The run's autoencoder: its own, or the pretrained one (a VAE or a pipeline folder)."""
    from diffusers import AutoencoderKL

    folder = run.first_stage("autoencoder")
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def load_discrete_vae(run: Run) -> Any:
    """The run's discrete autoencoder: its own, or the pretrained one."""
    from hpc_hipgen.generators.discrete_vae import DiscreteAutoencoder

    folder = run.first_stage("discrete_vae")
    return DiscreteAutoencoder.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def _line(figures: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" for name, value in figures.items() if isinstance(value, int | float)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.train",
        description="Train one model of a run; started again, it goes on where it stopped.",
    )
    parser.add_argument("--run", required=True, help="run folder, e.g. results/llcm")
    parser.add_argument("model", choices=TRAINED)
    given = parser.parse_args(arguments)
    from hpc_hipgen.training.outcome import exit_status

    def work() -> None:
        figures = train(Run(given.run), given.model)
        print(f"{given.model}: complete, {_line(figures)}")

    return exit_status(work, Path(given.run))


if __name__ == "__main__":
    sys.exit(main())
