"""What all groups of settings share, and the names of the sections that are models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TIMESTEPS = 1000
"""Of the noise schedule of Stable Diffusion."""

FIRST_STAGES = ("ruler", "film_ruler", "autoencoder", "discrete_vae")
"""Sections of which a pretrained one is taken as it is; others go on training from it."""

ADAPTED = ("lora", "lcm_lora", "dreambooth")
"""Sections whose model starts from a Stable Diffusion: `base`, or the run's own."""

GENERATORS = ("stable_diffusion", "stable_diffusion_caption", "llcm", *ADAPTED, "dall_e")
"""Sections of the generators, in the order in which they are trained."""

TRAINED = (*FIRST_STAGES, *GENERATORS)
"""Sections of an experiment that are models, in the order of their training."""


class ConfigError(ValueError):
    """What is wrong with an experiment file, one problem a line."""


class Section(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
