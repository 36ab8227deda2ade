"""What there is to know of each model that an experiment can train, beside its settings.

Functions are named as "module:function", as stages name theirs, so that this module stays light.
"""

from __future__ import annotations

from dataclasses import dataclass

_STOCK = """A stock diffusers pipeline:

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("FOLDER")
```"""
_UNCLIP = _STOCK.replace("StableDiffusionPipeline", "StableUnCLIPPipeline")
_ADAPTERS = """On its base, with stock diffusers:

```python
pipeline.load_lora_weights("FOLDER")
```"""
_OURS = "Read by hpc_hipgen (`{}`)."
_MEASURE = "`python -m jobs.measure FILES... --ruler FOLDER` of hpc_hipgen."

_PIPELINE = "hpc_hipgen.generators.sampling:pipeline_drawer"
_ON_BASE = "hpc_hipgen.generators.sampling:adapters_drawer"

DRAWS = (
    "Draws ventrodorsal hip radiographs of dogs for a caption that names the Norberg angle of "
    "either hip."
)


@dataclass(frozen=True)
class Model:
    """A model, by the name of its section.

    task: function of the Run and that name; returns the Task by which it is trained.
    title, what, use: of its model card: its name for people, what it does, and how it is loaded.
    drawer: of a generator: function of the Run and its name; returns the Drawer of its export.
    label: of a generator: of its rows in the report, with {steps}, where it takes any.
    guided: whether it is drawn at the scales of `sampling`; else it has its guidance in its weights
    or learnt to draw without, and the scale is 1.
    tokens: whether it draws tokens one by one, without the steps and solvers of a diffusion.
    ruler: whether it finds landmarks, in a network too small to be worth several GPUs.
    scored: of what is no generator: rows of films in the report by which it is judged.
    """

    task: str
    title: str
    use: str
    what: str = DRAWS
    drawer: str | None = None
    label: str = ""
    guided: bool = True
    tokens: bool = False
    ruler: bool = False
    scored: tuple[str, ...] = ()


def _llcm(title: str, label: str) -> Model:
    """A student; they differ in their solvers."""
    return Model(
        task="hpc_hipgen.tasks:llcm",
        title=title,
        use=_STOCK,
        drawer=_PIPELINE,
        label=label,
    )


MODELS = {
    "ruler": Model(
        task="hpc_hipgen.tasks:ruler",
        title="Landmark network",
        what="Finds both femoral heads and acetabular rims in a ventrodorsal hip radiograph of a "
        "dog, from which both Norberg angles follow.",
        use=_OURS.format("rulers.ruler.load_ruler"),
        ruler=True,
        scored=("ruler", "films"),
    ),
    "reward_model": Model(
        task="hpc_hipgen.tasks:ruler",
        title="Reward model",
        what="A second landmark network for ventrodorsal hip radiographs of dogs: a generator is "
        "tuned by it, nothing is measured by it.",
        use=_OURS.format("rulers.ruler.load_ruler"),
        ruler=True,
    ),
    "film_ruler": Model(
        task="hpc_hipgen.tasks:film_ruler",
        title="Landmark networks for whole films",
        what="Find and measure both hips in a whole ventrodorsal radiograph of a dog.",
        use=_MEASURE,
        ruler=True,
    ),
    "lab_ruler": Model(
        task="hpc_hipgen.tasks:lab_ruler",
        title="Landmark networks for the whole films of one lab",
        what="Find and measure both hips in a whole ventrodorsal radiograph of a dog.",
        use=_MEASURE,
        ruler=True,
    ),
    "autoencoder": Model(
        task="hpc_hipgen.tasks:autoencoder",
        title="KL autoencoder",
        what="Encodes ventrodorsal hip radiographs of dogs into latents, and back.",
        use='`diffusers.AutoencoderKL.from_pretrained("FOLDER")`.',
        scored=("round_trip",),
    ),
    "probe": Model(
        task="hpc_hipgen.tasks:probe",
        title="Probe",
        what="Reads landmarks off the latents of ventrodorsal hip radiographs of dogs; generators "
        "are trained with it, nothing is measured by it.",
        use=_OURS.format("generators.probe.load_probe"),
    ),
    "discrete_vae": Model(
        task="hpc_hipgen.tasks:discrete_vae",
        title="Discrete VAE",
        what="Encodes ventrodorsal hip radiographs of dogs into entries of a codebook, and back.",
        use=_OURS.format("generators.discrete_vae.DiscreteAutoencoder"),
        scored=("round_trip_discrete",),
    ),
    "clip": Model(
        task="hpc_hipgen.tasks:clip",
        title="CLIP",
        what="Embeds ventrodorsal hip radiographs of dogs and their captions into one space.",
        use=_OURS.format("generators.clip.load_parts"),
    ),
    "prior": Model(
        task="hpc_hipgen.tasks:prior",
        title="Prior of unCLIP",
        what="Draws the CLIP embedding of a ventrodorsal hip radiograph of a dog for a caption.",
        use=_OURS.format("generators.prior.load_prior"),
    ),
    "stable_diffusion": Model(
        task="hpc_hipgen.tasks:stable_diffusion",
        title="Stable Diffusion",
        use=_STOCK,
        drawer=_PIPELINE,
        label="Stable Diffusion, {steps}",
    ),
    "feedback": Model(
        task="hpc_hipgen.tasks:feedback",
        title="Stable Diffusion with feedback",
        use=_STOCK + "\n\nIt was tuned without guidance: use `guidance_scale=1`.",
        drawer=_PIPELINE,
        label="Stable Diffusion, feedback, {steps}",
        guided=False,
    ),
    "stable_diffusion_caption": Model(
        task="hpc_hipgen.tasks:stable_diffusion",
        title="Stable Diffusion, angles as digits",
        use=_STOCK,
        drawer=_PIPELINE,
        label="Stable Diffusion, digits only, {steps}",
    ),
    "llcm": _llcm("Leapfrog Latent Consistency Model", "LLCM, {steps}"),
    "llcm_paper": _llcm(
        "Latent Consistency Model by the published leapfrog",
        "LLCM by the published solver, {steps}",
    ),
    "llcm_ddim": _llcm("Latent Consistency Model by DDIM", "LLCM by DDIM, {steps}"),
    "lora": Model(
        task="hpc_hipgen.tasks:lora",
        title="LoRA",
        use=_ADAPTERS,
        drawer=_ON_BASE,
        label="LoRA, {steps}",
    ),
    "lcm_lora": Model(
        task="hpc_hipgen.tasks:lcm_lora",
        title="LCM-LoRA",
        use=_ADAPTERS
        + "\n\nIts scheduler is `LCMScheduler`, in `scheduler/`; use `guidance_scale=1`.",
        drawer=_ON_BASE,
        label="LCM-LoRA, {steps}",
        guided=False,  # a scale above 1 would guide it twice
    ),
    "dreambooth": Model(
        task="hpc_hipgen.tasks:dreambooth",
        title="DreamBooth",
        use=_STOCK
        + "\n\nIt draws what it has learnt where the token of a class (`subjects` in the "
        "settings above) stands before the caption of a film of that class, as the run's do.",
        drawer=_PIPELINE,
        label="DreamBooth, {steps}",
    ),
    "dall_e": Model(
        task="hpc_hipgen.tasks:dall_e",
        title="DALL-E",
        use=_OURS.format("generators.dall_e.load_parts"),
        drawer="hpc_hipgen.generators.dall_e:drawer",
        label="DALL-E",
        tokens=True,
    ),
    "unclip": Model(
        task="hpc_hipgen.tasks:unclip",
        title="unCLIP",
        use=_UNCLIP,
        drawer="hpc_hipgen.generators.unclip:drawer",
        label="unCLIP, {steps}",
    ),
}
"""All of them, in the order of `config.TRAINED`."""

RULERS = tuple(name for name, model in MODELS.items() if model.ruler)
"""Rulers, of hips and of whole films."""

SWEPT = tuple(name for name, model in MODELS.items() if model.drawer and not model.tokens)
"""Generators of which `jobs.sweep` crosses steps, solvers and guidance scales."""
