"""What all groups of settings share, and the names of the sections that are models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

TIMESTEPS, BETA_START, BETA_END = 1000, 0.00085, 0.012
"""Of the noise schedule of Stable Diffusion."""

SCHEDULE = {
    "num_train_timesteps": TIMESTEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
}
"""That schedule, as diffusers' schedulers take it."""

DDIM = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
"""What Stable Diffusion sets of DDIM's scheduler, whose own defaults are those of pixels."""

LANDMARKS = "landmarks.csv"
"""The landmark table of a folder of films, where no other is named."""

FIRST_STAGES = (
    "ruler", "reward_model", "film_ruler", "lab_ruler",
    "autoencoder", "probe", "discrete_vae", "clip", "prior",
)  # fmt: skip
"""Sections of which a pretrained one is taken as it is; others go on training from it."""

LLCMS = ("llcm", "llcm_paper", "llcm_ddim")
"""Sections of the LLCM: the experiment's own, and students of the other two solvers."""

FEW_STEPS = (*LLCMS, "lcm_lora")
"""Students: a row of the report for each number of steps of `sampling.llcm_steps`."""

TAUGHT = (*LLCMS, "lora", "lcm_lora", "dreambooth")
"""Sections whose model starts from a teacher: `base`, or the run's own, with its feedback."""

ADAPTED = ("feedback", *TAUGHT)
"""Sections whose model starts from a Stable Diffusion: `base`, or the run's own."""

GENERATORS = (
    "stable_diffusion", "feedback", "stable_diffusion_caption", *TAUGHT, "dall_e", "unclip"
)  # fmt: skip
"""Sections of the generators, in the order in which they are trained."""

TRAINED = (*FIRST_STAGES, *GENERATORS)
"""Sections of an experiment that are models, in the order of their training."""

_TEACHER: dict[str, str | None] = {"stable_diffusion": None, "feedback": None, "probe": None}

NEEDS: dict[str, dict[str, str | None]] = {
    "lab_ruler": {"film_ruler": ", which goes on from it"},
    "probe": {"autoencoder": ", which reads its latents"},
    "prior": {"clip": ""},
    "stable_diffusion": {"autoencoder": "", "probe": None},
    "feedback": {"stable_diffusion": None, "reward_model": ", which asks it"},
    "stable_diffusion_caption": {"autoencoder": "", "probe": None},
    **dict.fromkeys(TAUGHT, _TEACHER),
    # students allow for what the probe reads wrongly, by the reward model
    **dict.fromkeys(FEW_STEPS, _TEACHER | {"reward_model": None}),
    "dall_e": {"discrete_vae": ""},
    "unclip": {"autoencoder": "", "probe": None, "clip": None, "prior": ""},
}
"""Models that a model may be trained on, where an experiment trains them; `pipeline.needed` says
which it is.

With a text the experiment must have that section, and the text ends the message which says so.
"""


Channels = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
"""Of the levels of a network, at least one."""


_MANY_STEPS, _NEAR_NOISE = 10, 900


def leading_timesteps(steps: int, n: int = TIMESTEPS, offset: int = 1) -> list[int]:
    """Timesteps at which a teacher draws, falling: multiples of n // steps, and the offset."""
    return [k * (n // steps) + offset for k in reversed(range(steps))]


def check_teacher_steps(key: str, steps: int) -> None:
    """The first of many evenly spaced timesteps is near pure noise, from which drawing begins.

    501 steps begin at timestep 501 ("leading" spacing), where half of the signal should be there
    already. Few steps are meant to be coarse.

    Raises:
        ConfigError: naming the key, and numbers near by that do better.
    """

    def first(n: int) -> int:
        return leading_timesteps(n)[0]

    if steps < _MANY_STEPS or first(steps) >= _NEAR_NOISE:
        return
    good = [n for n in range(_MANY_STEPS, TIMESTEPS) if first(n) >= _NEAR_NOISE]
    near = max(n for n in good if n < steps), min(n for n in good if n > steps)
    raise ConfigError(
        f"{key}: {steps} steps would begin at timestep {first(steps)} of {TIMESTEPS}, for they are "
        f"a whole number of timesteps apart; take {near[0]} or {near[1]}"
    )


class ConfigError(ValueError):
    """What is wrong with an experiment file, one problem a line."""


class Section(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:  # true would be 1
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is no value of it")
        return value


def check_brings_its_own(section: Section, folder: Path | None, keys: Iterable[str]) -> None:
    """None of the keys is given where a folder brings them; raises ValueError naming the key."""
    for key in keys:
        if folder and getattr(section, key) != type(section).model_fields[key].default:
            raise ValueError(
                f"{key}: given, but the pretrained folder {folder} brings its own; leave {key} "
                "out, or pretrained"
            )


def check_multiples(
    key: str, values: Iterable[int], of: int, what: str = "a group's channels"
) -> None:
    """All values are multiples of `of`; raises ValueError naming the key and what `of` is."""
    for value in values:
        if value % of:
            raise ValueError(f"{key}: {value} is not a multiple of {of}, {what}")
