"""The description of an experiment: one strict YAML file, checked before anything is submitted.

Every setting is a field of one of the models here, with its range. An unknown key, a value out
of range or settings that contradict each other raise `ConfigError` with one line per problem.
Nothing heavy is imported here: this package is what the login node runs.
"""

from hpc_hipgen.config.base import (
    ADAPTED,
    DDIM,
    FEW_STEPS,
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
    training_of,
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
)
from hpc_hipgen.config.inputs import (
    autoencoder_config,
    autoencoder_stride,
    check_inputs,
    input_notes,
)
from hpc_hipgen.config.reading import (
    load_experiment,
    parse_experiment,
    parse_settings,
    settings_tree,
)
from hpc_hipgen.config.scoring import WandB
from hpc_hipgen.config.unclip import CLIP, Prior, UnCLIP
