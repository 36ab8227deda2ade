"""A whole experiment, and the checks that involve several of its sections."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, model_validator

from hpc_hipgen.config.base import (
    ADAPTED,
    FEW_STEPS,
    FIRST_STAGES,
    GENERATORS,
    LANDMARKS,
    NEEDS,
    TAUGHT,
    TIMESTEPS,
    TRAINED,
    ConfigError,
    Section,
    check_multiples,
)
from hpc_hipgen.config.data import (
    VIEWS_OF_A_FILM,
    Autoencoder,
    Data,
    DiscreteVAE,
    FilmRuler,
    LabRuler,
    Probe,
    Ruler,
)
from hpc_hipgen.config.generators import (
    CAPTION_TOKENS,
    LLCM,
    DallE,
    Diffusion,
    DreamBooth,
    Feedback,
    LCMLoRA,
    LoRA,
)
from hpc_hipgen.config.scoring import Evaluation, Logging, Sampling
from hpc_hipgen.config.unclip import CLIP, Prior, UnCLIP, check_unclip

S = TypeVar("S", bound=Section)


class Experiment(Section):
    """A whole experiment: one file of configs/."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)  # as many bits as torch's generators on a CPU take
    data: Data = Data()
    ruler: Ruler | None = None
    reward_model: Ruler | None = None  # a second ruler: feedback asks it, it measures no report
    film_ruler: FilmRuler | None = None  # an experiment of its own
    lab_ruler: LabRuler | None = None  # goes on from it
    autoencoder: Autoencoder | None = None
    probe: Probe | None = None  # what generators with a measurement_weight are trained with
    discrete_vae: DiscreteVAE | None = None
    clip: CLIP | None = None
    prior: Prior | None = None
    stable_diffusion: Diffusion | None = None
    feedback: Feedback | None = None  # goes on from the teacher, and is the teacher from then on
    stable_diffusion_caption: Diffusion | None = None  # the baseline: digits only
    llcm: LLCM | None = None
    llcm_paper: LLCM | None = None  # beside it, to compare the solvers
    llcm_ddim: LLCM | None = None
    lora: LoRA | None = None
    lcm_lora: LCMLoRA | None = None
    dreambooth: DreamBooth | None = None
    dall_e: DallE | None = None
    unclip: UnCLIP | None = None
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        return _check_experiment(self)

    def section(self, name: str, kind: type[S]) -> S:
        """The section `name`, of a class; raises ValueError naming it where it is not given."""
        found = getattr(self, name)
        if not isinstance(found, kind):
            raise ValueError(f"key '{name}' is missing")
        return found

    def trained(self) -> list[str]:
        """Names of the models that this experiment trains, in order."""
        sections = {name: getattr(self, name) for name in TRAINED}
        return [
            name
            for name, section in sections.items()
            if section and not (name in FIRST_STAGES and getattr(section, "pretrained", None))
        ]

    def given_models(self) -> dict[str, Path]:
        """Folders of models from elsewhere that this experiment goes on from or takes, by key.

        But for rulers, which no generator learns from.
        """
        sections = {name: getattr(self, name) for name in TRAINED}
        return {
            f"{name}.{key}": folder
            for name, section in sections.items()
            if not isinstance(section, Ruler | FilmRuler | LabRuler)
            for key in ("pretrained", "base")
            if (folder := getattr(section, key, None))
        }

    def film_sets(self) -> dict[str, tuple[Path, Path]]:
        """Folder and landmark table of each set of real films, by the key that names it."""
        named = {"data": self.data, "evaluation": self.evaluation, "lab_ruler": self.lab_ruler}
        return {
            f"{name}.films": (section.films, section.landmarks or section.films / LANDMARKS)
            for name, section in named.items()
            if section and section.films
        }


def _check_experiment(config: Experiment) -> Experiment:
    """Checks that involve several sections; raises ValueError naming the key."""
    if config.film_ruler:
        return _check_film_ruler(config, config.film_ruler)
    _check_needs(config)
    if config.ruler is None:
        raise ValueError("key 'ruler' is missing")
    _check_probe(config)
    _check_other_captions(config)
    baseline = config.stable_diffusion_caption
    if baseline and baseline.conditioning != "caption":
        raise ValueError("stable_diffusion_caption.conditioning: must be 'caption'")
    for solver in ("paper", "ddim"):
        student = getattr(config, f"llcm_{solver}")
        if student and student.solver != solver:
            raise ValueError(f"llcm_{solver}.solver: must be '{solver}'")
    for name in ("ruler", "reward_model", "autoencoder", "discrete_vae", "clip", "prior"):
        section = getattr(config, name)
        if section and section.pretrained is None and section.training is None:
            raise ValueError(f"{name}: give either pretrained (a folder) or training")
    for name in ("stable_diffusion", "stable_diffusion_caption"):
        if section := getattr(config, name):
            _check_measurements(name, section)
    for name in ADAPTED:
        own = config.stable_diffusion or (config.feedback and name != "feedback")
        if (section := getattr(config, name)) and not (section.base or own):
            raise ValueError(
                f"{name}.base: give a diffusers folder of Stable Diffusion, or train "
                "stable_diffusion"
            )
    _check_feedback(config)
    if config.data.source == "phantom":
        check_batches(config, config.data.train)
    _check_shapes(config)
    _check_steps(config)
    _check_captions_dropped(config)
    _check_apart(config.data.films, config.evaluation.films)
    return config


def _check_needs(config: Experiment) -> None:
    """The sections without which another one cannot be are there; raises ValueError."""
    for name, needed in NEEDS.items():
        for other, why in needed.items():
            if why is not None and getattr(config, name) and not getattr(config, other):
                raise ValueError(f"{other}: needed by {name}{why}")


def _check_film_ruler(config: Experiment, section: FilmRuler) -> Experiment:
    """A film ruler is trained alone, on scenes of its own; raises ValueError naming the key."""
    fields = Experiment.model_fields
    for name in ("data", "sampling", "evaluation", *TRAINED):
        own = name in ("film_ruler", "lab_ruler")
        given = getattr(config, name)
        if name == "data" and config.lab_ruler:  # how its films are masked, and nothing else
            given = given.model_copy(update={"deidentify": True, "keep_markers": True})
        if not own and given != fields[name].get_default():
            raise ValueError(f"{name}: a film ruler is an experiment of its own, which ignores it")
    if section.pretrained and not config.lab_ruler:
        raise ValueError("film_ruler.pretrained: given, but there is no lab_ruler to go on from it")
    for name in ("finder", "hip"):
        channels = getattr(section, name)
        check_multiples(f"film_ruler.{name}", channels, 8)
        if not 2 <= len(channels) <= 6:
            raise ValueError(f"film_ruler.{name}: 2 to 6 levels are needed, not {len(channels)}")
    for name in config.trained():
        batch = getattr(config, name).training.batch
        if batch > section.dogs:
            raise ValueError(
                f"{name}.training.batch: {batch} is above film_ruler.dogs, {section.dogs}"
            )
    return config


def check_batches(config: Experiment, films: int) -> None:
    """Every batch fits into the views of so many training films; raises ConfigError naming it."""
    for name in config.trained():
        section, views, least = getattr(config, name), config.data.views, ""
        own = min(films, section.instances) if isinstance(section, DreamBooth) else films
        if own < films and config.data.balance:
            views, least = math.ceil(VIEWS_OF_A_FILM[0] * views), "at least "
        if section.training.batch > own * views:
            raise ConfigError(
                f"{name}.training.batch: {section.training.batch} is more than the data set has "
                f"({own} films x {least}{views} views = {own * views})"
            )


def _check_shapes(config: Experiment) -> None:
    """Networks that are built here can be built, and take the views; raises ValueError."""
    resolution = config.data.resolution
    for name in ("ruler", "reward_model"):
        if (ruler := getattr(config, name)) and ruler.pretrained is None:
            check_multiples(f"{name}.channels", ruler.channels, 8)
            stride = 2 ** len(ruler.channels)
            check_multiples("data.resolution", [resolution], stride, f"the stride of the {name}")
    for name in ("autoencoder", "discrete_vae"):
        _check_autoencoder(name, getattr(config, name), resolution)
    if config.dall_e:
        _check_dall_e(config.dall_e, config.discrete_vae)
    check_unclip(config.unclip, config.clip, config.prior, resolution)
    for name in ("stable_diffusion", "stable_diffusion_caption"):
        section = getattr(config, name)
        if section is None or section.pretrained:
            continue
        channels, head = section.unet.block_out_channels, section.unet.head_dim
        check_multiples(f"{name}.unet.block_out_channels", channels, 16)
        for width in channels:
            check_multiples(
                f"{name}.unet.block_out_channels",
                [width],
                max(1, width // head),
                "the number of heads",
            )
        check_multiples(f"{name}.text.hidden_size", [section.text.hidden_size], section.text.heads)


def _check_probe(config: Experiment) -> None:
    """A probe has latents to read and somebody who asks it; raises ValueError."""
    asking = [n for n in GENERATORS if getattr(getattr(config, n), "measurement_weight", 0) > 0]
    if asking and not config.probe:
        raise ValueError(f"{asking[0]}.measurement_weight: needs a probe; give the section 'probe'")
    if config.probe and not asking:
        raise ValueError("probe: no generator has a measurement_weight, nobody would ask it")
    for name in asking:
        key, base = f"{name}.base", getattr(getattr(config, name), "base", None)
        if not base and config.feedback and name in TAUGHT:
            key, base = "feedback.base", config.feedback.base
        if base and base != config.section("autoencoder", Autoencoder).pretrained:
            raise ValueError(
                f"{name}.measurement_weight: the probe reads latents of the run's autoencoder, "
                f"{key} has its own; set it to 0, or autoencoder.pretrained to the base"
            )


def _check_feedback(config: Experiment) -> None:
    """Feedback has a ruler of its own to ask; raises ValueError."""
    asked, measuring = config.reward_model, config.section("ruler", Ruler)
    if asked and not config.feedback:
        raise ValueError("reward_model: given, but there is no feedback to ask it")
    if config.feedback and config.feedback.base and config.stable_diffusion:
        raise ValueError(
            "feedback.base: given, but stable_diffusion is trained, too, which nothing would go on "
            "from; leave one of them out"
        )
    given = [os.path.realpath(r.pretrained) for r in (asked, measuring) if r and r.pretrained]
    if len(set(given)) < len(given):
        raise ValueError(
            "reward_model.pretrained: is ruler.pretrained; what is trained to please a ruler must "
            "be measured by another"
        )


def _check_other_captions(config: Experiment) -> None:
    """Views of a film have captions of their own, and a probe moves angles; raises ValueError."""
    for name in GENERATORS:
        section = getattr(config, name)
        if not getattr(section, "other_captions", 0):
            continue
        if not config.data.warp:
            raise ValueError(
                f"{name}.other_captions: all views of a film have the same angles without data.warp"
            )
        if not section.measurement_weight:
            raise ValueError(
                f"{name}.other_captions: needs a probe; give {name}.measurement_weight"
            )


def _check_autoencoder(name: str, auto: Autoencoder | DiscreteVAE | None, resolution: int) -> None:
    """An autoencoder that is built here takes the views and their windows; raises ValueError."""
    if auto is None or auto.pretrained:
        return
    what = f"the stride of the {name}"
    check_multiples(f"{name}.block_out_channels", auto.block_out_channels, 8)
    stride = 2 ** (len(auto.block_out_channels) - 1)
    check_multiples("data.resolution", [resolution], stride, what)
    if auto.window:
        check_multiples(f"{name}.window", [auto.window], stride, what)
        if auto.window > resolution:
            raise ValueError(f"{name}.window: {auto.window} is above data.resolution, {resolution}")
    if isinstance(auto, Autoencoder) and auto.scale_equivariance:
        key = f"{name}.window" if auto.window else "data.resolution"
        halved = f"twice {what}, which its scale_equivariance needs"
        check_multiples(key, [auto.window or resolution], 2 * stride, halved)


def _check_dall_e(section: DallE, vae: DiscreteVAE | None) -> None:
    """The transformer can be built, and draws from a codebook that is there; raises ValueError."""
    check_multiples("dall_e.width", [section.width], section.heads, "dall_e.heads")
    needed = CAPTION_TOKENS[section.conditioning]
    if section.text_length < needed:
        raise ValueError(
            f"dall_e.text_length: {section.text_length}, but with conditioning "
            f"'{section.conditioning}' captions have up to {needed} tokens"
        )
    top_k = section.sampling.top_k
    if vae and vae.pretrained is None and top_k and top_k > vae.codes:
        raise ValueError(f"dall_e.sampling.top_k: {top_k} is above discrete_vae.codes, {vae.codes}")
    if section.sampling.guidance > 1 and section.caption_dropout == 0:
        raise ValueError(
            "dall_e.sampling.guidance: needs dall_e.caption_dropout, from which the model learns "
            "images without a caption"
        )


def _check_measurements(name: str, section: Diffusion) -> None:
    """New tokens in a pretrained text encoder mean nothing untrained; raises ValueError."""
    if section.pretrained and section.conditioning == "measurement" and not section.train_text:
        raise ValueError(
            f"{name}.train_text: must be true, or the measurement tokens that are added to a "
            "pretrained text encoder stay random"
        )


def _check_steps(config: Experiment) -> None:
    """The timesteps that are trained on and sampled at exist; raises ValueError."""
    steps = config.sampling.llcm_steps
    for name in FEW_STEPS:
        section = getattr(config, name)
        if section is None:
            continue
        if TIMESTEPS % section.skip:
            raise ValueError(
                f"{name}.skip: {section.skip} does not divide the {TIMESTEPS} timesteps"
            )
        most = TIMESTEPS // section.skip
        if not steps or len(set(steps)) < len(steps) or not all(1 <= n <= most for n in steps):
            raise ValueError(
                f"sampling.llcm_steps: different numbers within 1..{most} ({name}.skip "
                f"{section.skip}) are needed, not {list(steps)}"
            )
        if isinstance(section, LLCM):
            _check_guidance(name, section, config.sampling)


def _check_guidance(name: str, section: LLCM, sampling: Sampling) -> None:
    """The student is sampled with a guidance weight that it knows; raises ValueError."""
    low, high = section.guidance
    scale = sampling.student_guidance
    if not 0 <= low <= high:
        raise ValueError(f"{name}.guidance: 0 <= w_min <= w_max is needed, not [{low:g}, {high:g}]")
    if not section.knows(scale):
        own = sampling.llcm_guidance is not None
        advice = "" if own else "; give sampling.llcm_guidance to draw it with another"
        raise ValueError(
            f"sampling.{'llcm_' if own else ''}guidance: w = {scale - 1:g} (the scale less 1) is "
            f"outside {name}.guidance [{low:g}, {high:g}], for which the student is trained{advice}"
        )


def _check_captions_dropped(config: Experiment) -> None:
    """Guidance subtracts what a model sees without a caption, and learns; raises ValueError."""
    guided = ["sampling.guidance"] if config.sampling.guidance > 1 else []
    students = {n: section for n in FEW_STEPS if (section := getattr(config, n))}
    taught = [
        f"{n}.guidance" for n, s in students.items() if s.guidance_range[1] > 0 and not s.base
    ]
    for name, keys in (
        ("stable_diffusion", guided + taught),
        ("stable_diffusion_caption", guided),
        ("unclip", guided),
    ):
        section = getattr(config, name)
        if section and keys and not section.guidable:
            raise ValueError(
                f"{keys[0]}: needs {name}.caption_dropout, from which the model learns images "
                "without a caption"
            )


def _check_apart(trained: Path | None, measured: Path | None) -> None:
    """No film is both trained on and measured; raises ValueError."""
    if trained and measured:
        first, second = (Path(os.path.realpath(folder)) for folder in (trained, measured))
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise ValueError(
                f"evaluation.films: {measured} shares films with data.films, which train"
            )
