"""The description of an experiment: one strict YAML file, checked before anything is submitted.

Every setting is a field of one of the models here, with its range. An unknown key, a value out
of range or settings that contradict each other raise `ConfigError` with one line per problem.
Nothing heavy is imported here: this package is what the login node runs.
"""

from hpc_hipgen.config.base import (
    ADAPTED,
    DDIM,
    FEW_STEPS,
    FIRST_STAGES,
    GENERATORS,
    LANDMARKS,
    LLCMS,
    NEEDS,
    SCHEDULE,
    TAUGHT,
    TIMESTEPS,
    TRAINED,
    ConfigError,
    Section,
)
from hpc_hipgen.config.data import (
    Autoencoder,
    Data,
    DiscreteVAE,
    FilmRuler,
    LabRuler,
    Probe,
    Ruler,
    Training,
)
from hpc_hipgen.config.experiment import Experiment, check_batches
from hpc_hipgen.config.generators import (
    LLCM,
    Adapters,
    DallE,
    Denoising,
    Diffusion,
    Distillation,
    DreamBooth,
    Feedback,
    LCMLoRA,
    LoRA,
    Text,
    TokenSampling,
    UNet,
)
from hpc_hipgen.config.inputs import autoencoder_config, check_inputs
from hpc_hipgen.config.reading import (
    load_experiment,
    parse_experiment,
    parse_settings,
    settings_tree,
)
from hpc_hipgen.config.scoring import Evaluation, Logging, Sampling, WandB
from hpc_hipgen.config.unclip import CLIP, Prior, UnCLIP, UnCLIPSampling, Vision

__all__ = [
    "ADAPTED",
    "CLIP",
    "DDIM",
    "FEW_STEPS",
    "FIRST_STAGES",
    "GENERATORS",
    "LANDMARKS",
    "LLCM",
    "LLCMS",
    "NEEDS",
    "SCHEDULE",
    "TAUGHT",
    "TIMESTEPS",
    "TRAINED",
    "Adapters",
    "Autoencoder",
    "ConfigError",
    "DallE",
    "Data",
    "Denoising",
    "Diffusion",
    "DiscreteVAE",
    "Distillation",
    "DreamBooth",
    "Evaluation",
    "Experiment",
    "Feedback",
    "FilmRuler",
    "LCMLoRA",
    "LabRuler",
    "LoRA",
    "Logging",
    "Prior",
    "Probe",
    "Ruler",
    "Sampling",
    "Section",
    "Text",
    "TokenSampling",
    "Training",
    "UNet",
    "UnCLIP",
    "UnCLIPSampling",
    "Vision",
    "WandB",
    "autoencoder_config",
    "check_batches",
    "check_inputs",
    "load_experiment",
    "parse_experiment",
    "parse_settings",
    "settings_tree",
]
