"""The task of each model of a run: on which films it trains, and from which earlier models.

Each generator reads the layout that the paper gave it. `models.MODELS` says which function makes
the task of which model.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hpc_hipgen.config import autoencoder_config
from hpc_hipgen.files import LOCAL, reading_export
from hpc_hipgen.models import MODELS
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.layouts import Films
    from hpc_hipgen.training.task import Task


def task_of(run: Run, model: str) -> Task:
    """The task of a model, without a probe."""
    return resolve_name(MODELS[model].task)(run, model)


def measured_task(run: Run, model: str) -> Task:
    """The task of a model, with the run's probe where its settings ask for one."""
    task = task_of(run, model)
    if getattr(getattr(run.config, model), "measurement_weight", 0):
        from hpc_hipgen.generators.llcm import DistillationTask
        from hpc_hipgen.generators.probe import MeasuredTask, load_probe

        assert isinstance(task, MeasuredTask), f"{model} can hold no probe's reading"
        probe = load_probe(run.path("probe", "export"))
        task.measure_with(probe)
        if run.config.feedback and isinstance(task, DistillationTask):
            from hpc_hipgen.generators.probe_calibration import probe_error

            task.allow_for(probe_error(run, model, probe, task.films.captions))
    return task


def load_autoencoder(run: Run) -> Any:
    """The run's autoencoder: its own, or the pretrained one (a VAE or a pipeline folder)."""
    from diffusers import AutoencoderKL

    folder = autoencoder_config(run.first_stage("autoencoder")).parent
    with reading_export(folder):
        return AutoencoderKL.from_pretrained(folder, **LOCAL)


def load_discrete_vae(run: Run) -> Any:
    """The run's discrete autoencoder: its own, or the pretrained one."""
    from hpc_hipgen.generators.discrete_vae import DiscreteAutoencoder

    folder = run.first_stage("discrete_vae")
    with reading_export(folder):
        return DiscreteAutoencoder.from_pretrained(folder, **LOCAL)


def _manifest(run: Run, split: str) -> Films:
    from hpc_hipgen.radiograph.layouts import read_manifest

    return read_manifest(run.path("data"), split)


def _pairs(run: Run) -> Films:
    from hpc_hipgen.radiograph.layouts import read_pairs

    return read_pairs(run.path("data"))


def _imagefolder(run: Run) -> Films:
    from hpc_hipgen.radiograph.layouts import read_imagefolder

    return read_imagefolder(run.path("data", "layouts", "imagefolder", "train"))


def _shards(run: Run) -> Films:
    """Raises ValueError where shards lack views that were prepared."""
    from hpc_hipgen.radiograph.layouts import read_shards

    folder = run.path("data", "layouts", "shards")
    films = read_shards(folder, "train")
    prepared = (run.done("prepare") or {}).get("views", {}).get("train", len(films))
    if len(films) != prepared:
        raise ValueError(f"{folder}: {len(films)} views, but {prepared} were prepared")
    return films


def ruler(run: Run, model: str) -> Task:
    """A ruler of hips, or the reward model: learns from the prepared views themselves."""
    from hpc_hipgen.rulers.ruler_training import RulerTask

    return RulerTask(run.config, run.path("data"), model)


def film_ruler(run: Run, _: str) -> Task:
    """Learns from drawn scenes."""
    from hpc_hipgen.rulers.film_ruler_training import FilmRulerTask

    return FilmRulerTask(run.config, run.path("scenes"))


def lab_ruler(run: Run, _: str) -> Task:
    """Learns from all films of a lab among drawn scenes, once they are cross-validated."""
    from hpc_hipgen.rulers.cross_validation import figures_of, measured_hips
    from hpc_hipgen.rulers.lab_ruler import fold_task

    task = fold_task(run, fold=None)[0]
    task.cross_validation = figures_of(run, measured_hips(run))
    return task


def autoencoder(run: Run, _: str) -> Task:
    """Learns from the views themselves."""
    from hpc_hipgen.generators.autoencoder import AutoencoderTask

    return AutoencoderTask(run.config, _manifest(run, "train"))


def probe(run: Run, _: str) -> Task:
    """Learns from the latents of views and their landmarks."""
    from hpc_hipgen.generators.probe import ProbeTask

    films, held_out = _imagefolder(run), _manifest(run, "validation")
    return ProbeTask(run.config, films, held_out, load_autoencoder(run), run.path("latents"))


def stable_diffusion(run: Run, model: str) -> Task:
    """A teacher: learns from an imagefolder."""
    from hpc_hipgen.generators.stable_diffusion import StableDiffusionTask

    section, cache = getattr(run.config, model), run.path("latents")
    return StableDiffusionTask(section, run.config, _imagefolder(run), load_autoencoder(run), cache)


def feedback(run: Run, model: str) -> Task:
    """Goes on from the teacher, by the captions of an imagefolder."""
    from hpc_hipgen.generators.feedback import FeedbackTask
    from hpc_hipgen.rulers.ruler import check_independent

    check_independent(run)
    reward_model = run.first_stage("reward_model")
    return FeedbackTask(run.config, _imagefolder(run), run.base(model), reward_model)


def llcm(run: Run, model: str) -> Task:
    """A student of the teacher: learns from shards."""
    from hpc_hipgen.generators.llcm import LLCMTask

    return LLCMTask(run.config, _shards(run), run.base(model), run.path("latents"), model)


def lcm_lora(run: Run, model: str) -> Task:
    """Adapters for the teacher, distilled from it: learn from shards."""
    from hpc_hipgen.generators.lora import LCMLoRATask

    return LCMLoRATask(run.config, _shards(run), run.base(model), run.path("latents"))


def lora(run: Run, model: str) -> Task:
    """Adapters for the teacher: learn from an imagefolder."""
    from hpc_hipgen.generators.lora import LoRATask

    return LoRATask(run.config, _imagefolder(run), run.base(model), run.path("latents"))


def dreambooth(run: Run, model: str) -> Task:
    """Goes on from the teacher, with a folder of films for each class."""
    from hpc_hipgen.generators.dreambooth import DreamBoothTask
    from hpc_hipgen.radiograph.layouts import read_classes

    films, prior = read_classes(run.path("data")), run.path(model, "prior")
    return DreamBoothTask(run.config, films, run.base(model), run.path("latents"), prior)


def discrete_vae(run: Run, _: str) -> Task:
    """Learns from the images of pairs."""
    from hpc_hipgen.generators.discrete_vae import DiscreteVAETask

    return DiscreteVAETask(run.config, _pairs(run))


def dall_e(run: Run, _: str) -> Task:
    """Learns from pairs of image and caption."""
    from hpc_hipgen.generators.dall_e import DallETask

    return DallETask(run.config, _pairs(run), load_discrete_vae(run), run.path("latents"))


def clip(run: Run, _: str) -> Task:
    """Learns from views and their captions."""
    from hpc_hipgen.generators.clip import CLIPTask

    return CLIPTask(run.config, _manifest(run, "train"), _manifest(run, "validation"))


def prior(run: Run, _: str) -> Task:
    """Learns from an imagefolder, in the space of the CLIP."""
    from hpc_hipgen.generators.clip import load_parts
    from hpc_hipgen.generators.prior import PriorTask

    parts, cache = load_parts(run.first_stage("clip")), run.path("latents")
    return PriorTask(run.config, _imagefolder(run), parts, cache)


def unclip(run: Run, _: str) -> Task:
    """Learns from an imagefolder, in the spaces of the CLIP and the autoencoder."""
    from hpc_hipgen.generators.unclip import UnCLIPTask

    films, folders = _imagefolder(run), (run.first_stage("clip"), run.first_stage("prior"))
    return UnCLIPTask(run.config, films, load_autoencoder(run), *folders, run.path("latents"))
