"""The description of an experiment: one strict YAML file, checked before anything is submitted.

Every setting is a field of one of the models below, with its range. An unknown key, a value out
of range or settings that contradict each other raise `ConfigError` with one line per problem.
Nothing heavy is imported here: this module is what the login node runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

TIMESTEPS = 1000
"""Of the noise schedule of Stable Diffusion."""


class ConfigError(ValueError):
    """What is wrong with an experiment file, one problem a line."""


class Section(BaseModel):
    """A group of settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """The films: where they come from and how they are cropped."""

    source: Literal["phantom", "films"] = "phantom"
    films: Path | None = None  # folder of PNG, JPEG or DICOM files
    landmarks: Path | None = None  # CSV or COCO JSON; default: landmarks.csv in the folder
    train: int = Field(219, gt=0)  # phantoms to draw; for films, the proportion of dogs
    validation: int = Field(31, gt=0)
    test: int = Field(84, gt=0)
    resolution: int = Field(128, ge=32, le=2048, multiple_of=8)  # pixels, square views
    head_distance: float = Field(0.6, ge=0.2, le=0.8)  # D as a fraction of the view's width
    views: int = Field(16, ge=1)  # crops of one training film: the nominal one, then jittered ones
    # Share of the full jitter (4 degrees, 3 % of the width, 5 % zoom). A generator learns the angle
    # far sooner from hips that stay in place; the ruler has its own, larger, augmentation.
    jitter: float = Field(0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _films_given(self) -> Data:
        if self.source == "films" and self.films is None:
            raise ValueError("data.films: a folder is needed when data.source is 'films'")
        if self.source == "phantom" and (self.films or self.landmarks):
            raise ValueError("data.films: given, but data.source is 'phantom', which ignores it")
        return self


class Training(Section):
    """One training run. Everything is counted in training images seen (the one clock)."""

    images: int = Field(gt=0)  # length of the run
    batch: int = Field(gt=0)  # images an optimizer step, over all ranks
    micro_batch: int | None = Field(None, gt=0)  # images a rank holds at once; the rest accumulates
    lr: float = Field(gt=0, le=1)
    schedule: Literal["constant", "cosine"] = "cosine"  # cosine: down to 1 % of lr at the end
    warmup_images: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)  # gradient norm
    ema_images: float = Field(0.0, ge=0)  # time constant of the weight average; 0: no average
    precision: Literal["fp32", "bf16"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    checkpoint_images: int = Field(2_000, gt=0)  # between two checkpoints
    log_images: int = Field(512, gt=0)  # between two lines of metrics.jsonl

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"batch: {self.batch} is not a multiple of micro_batch {self.micro_batch}"
            )
        if self.images < self.batch:
            raise ValueError(f"images: {self.images} is less than one batch of {self.batch}")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage: 0 with bf16 takes a false first optimizer step in DeepSpeed 0.19; "
                "use 1 or more"
            )
        return self


class Ruler(Section):
    """The landmark network that measures the angles."""

    channels: tuple[int, ...] = (16, 32, 64, 96)
    pretrained: Path | None = None  # <run>/ruler/export of another run: nothing is trained
    training: Training


class Autoencoder(Section):
    """The KL autoencoder (diffusers AutoencoderKL); trained from scratch unless `pretrained`."""

    pretrained: Path | None = None
    block_out_channels: tuple[int, ...] = (16, 32, 64)  # stride 2 ** (levels - 1)
    layers_per_block: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    kl_weight: float = Field(1e-6, ge=0)
    hip_weight: float = Field(4.0, ge=0)  # extra weight of the pixels around the hips
    # Pixels; trains on windows of the views, most of them at a hip. It has no attention, so what
    # is learnt on windows holds for views, and a window costs less.
    window: int | None = Field(None, ge=16)
    training: Training | None = None


class Text(Section):
    """The CLIP text encoder that is built when none is given."""

    hidden_size: int = Field(128, gt=0, multiple_of=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    max_length: int = Field(64, ge=56, le=77)  # tokens; captions with digits have up to 52


class UNet(Section):
    """Shape of the diffusers UNet2DConditionModel when none is given."""

    block_out_channels: tuple[int, ...] = (64, 128, 128)
    attention: tuple[bool, ...] = (False, True, True)  # cross-attention at each level
    layers_per_block: int = Field(1, ge=1)
    head_dim: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _levels(self) -> UNet:
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError("attention: one entry per level of block_out_channels is needed")
        return self


class Diffusion(Section):
    """A text-to-image latent diffusion model: the teacher (`stable_diffusion`)."""

    pretrained: Path | None = None  # a diffusers folder, e.g. Stable Diffusion 1.5
    conditioning: Literal["measurement", "caption"] = "measurement"
    text: Text = Text()
    # False: the encoder keeps its first weights, and the states of captions are computed once.
    train_text: bool = False
    unet: UNet = UNet()
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    # Off: with v-prediction it takes the weight from the noise levels where the angle is decided.
    min_snr_gamma: float | None = Field(None, gt=0)
    hip_weight: float = Field(4.0, ge=0)  # extra loss weight of the latents around the hips
    gradient_checkpointing: bool = False
    training: Training


class LLCM(Section):
    """The Leapfrog Latent Consistency Model, distilled from the teacher."""

    solver: Literal["paper", "leapfrog", "ddim"] = "leapfrog"
    skip: int = Field(20, ge=1, le=250)  # k: the teacher jumps from t_(n+k) to t_n
    guidance: tuple[float, float] = (2.0, 6.0)  # w is drawn from [w_min, w_max]
    huber_c: float = Field(0.001, gt=0)
    ema_decay: float = Field(0.95, ge=0, lt=1)  # of the target network, per optimizer step
    hip_weight: float = Field(4.0, ge=0)
    gradient_checkpointing: bool = False
    training: Training


class DiscreteVAE(Section):
    """The autoencoder of DALL-E, whose latents are entries of a codebook."""

    pretrained: Path | None = None  # <run>/discrete_vae/export of another run
    block_out_channels: tuple[int, ...] = (16, 32, 32, 64)  # stride 2 ** (levels - 1)
    layers_per_block: int = Field(1, ge=1)
    codes: int = Field(512, ge=2)  # entries of the codebook
    code_width: int = Field(32, ge=1)  # channels of an entry
    # Of the Gumbel-softmax: from the first to the second over `anneal`, a share of the run.
    temperature: tuple[PositiveFloat, PositiveFloat] = (1.0, 0.0625)
    anneal: float = Field(0.75, gt=0, le=1)
    kl_weight: float = Field(0.0, ge=0)  # of the divergence from even use of the codebook
    hip_weight: float = Field(4.0, ge=0)  # extra weight of the pixels around the hips
    window: int | None = Field(None, ge=16)  # as of the autoencoder
    training: Training | None = None


class TokenSampling(Section):
    """How DALL-E draws the next token."""

    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, ge=1)  # among the k most probable codes
    top_p: float = Field(1.0, gt=0, le=1)  # among the fewest codes of this total probability
    guidance: float = Field(1.0, ge=1)  # guidance scale on the logits; 1: none, half the time


class DallE(Section):
    """The autoregressive transformer over the tokens of a caption and of its image."""

    conditioning: Literal["measurement", "caption"] = "measurement"
    text_length: int = Field(64, ge=2)  # tokens of a caption; with digits they have up to 52
    width: int = Field(192, gt=0)
    layers: int = Field(6, ge=1)
    heads: int = Field(6, ge=1)
    text_weight: float = Field(0.125, ge=0, lt=1)  # share of the text in the loss
    hip_weight: float = Field(4.0, ge=0)  # extra loss weight of the image tokens around the hips
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    gradient_checkpointing: bool = False
    sampling: TokenSampling = TokenSampling()
    training: Training


class Sampling(Section):
    """What is drawn for the test captions."""

    steps: int = Field(25, ge=1, le=TIMESTEPS - 1)  # of the teacher
    solver: Literal["paper", "leapfrog", "ddim"] = "ddim"
    guidance: float = Field(3.0, ge=1)  # guidance scale 1 + w, as in diffusers
    llcm_steps: tuple[int, ...] = (1, 2, 4, 8)
    llcm_guidance: float | None = Field(None, ge=1)  # default: guidance
    per_caption: int = Field(1, ge=1)
    shard_size: int = Field(84, ge=1)  # images per shard: one array task
    batch: int = Field(28, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def student_guidance(self) -> float:
        """Guidance scale of the LLCM rows."""
        return self.guidance if self.llcm_guidance is None else self.llcm_guidance


class Evaluation(Section):
    """How the samples are scored, and real films that are measured beside the test split."""

    films: Path | None = None  # folder of real films: the row `films`; never trained on
    landmarks: Path | None = None  # theirs; default: landmarks.csv in the folder
    min_confidence: float = Field(0.05, ge=0, le=1)  # below it the ruler refuses
    inception: Path | None = None  # torch-fidelity's Inception weights; without: EfficientNet
    permutations: int = Field(1000, ge=0)
    batch: int = Field(84, ge=1)

    @model_validator(mode="after")
    def _films_given(self) -> Evaluation:
        if self.landmarks and self.films is None:
            raise ValueError("evaluation.landmarks: given without evaluation.films")
        return self


TRAINED = (
    "ruler",
    "autoencoder",
    "discrete_vae",
    "stable_diffusion",
    "stable_diffusion_caption",
    "llcm",
    "dall_e",
)
"""Sections of an experiment that are models, in the order of their training."""

FIRST_STAGES = ("ruler", "autoencoder", "discrete_vae")
"""Those of which a pretrained one is taken as it is; others go on training from it."""


class Experiment(Section):
    """A whole experiment: one file of configs/."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    data: Data = Data()
    ruler: Ruler
    autoencoder: Autoencoder | None = None
    stable_diffusion: Diffusion | None = None
    stable_diffusion_caption: Diffusion | None = None  # the baseline: digits only
    llcm: LLCM | None = None
    discrete_vae: DiscreteVAE | None = None
    dall_e: DallE | None = None
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        return _check_experiment(self)

    def trained(self) -> list[str]:
        """Names of the models that this experiment trains, in order."""
        sections = {name: getattr(self, name) for name in TRAINED}
        return [
            name
            for name, section in sections.items()
            if section and not (name in FIRST_STAGES and section.pretrained)
        ]


def _check_experiment(config: Experiment) -> Experiment:
    """Checks that involve several sections; raises ValueError naming the key."""
    if config.stable_diffusion and not config.autoencoder:
        raise ValueError("autoencoder: needed by stable_diffusion")
    if config.llcm and not config.stable_diffusion:
        raise ValueError("llcm: needs stable_diffusion, its teacher")
    if config.dall_e and not config.discrete_vae:
        raise ValueError("discrete_vae: needed by dall_e")
    baseline = config.stable_diffusion_caption
    if baseline and baseline.conditioning != "caption":
        raise ValueError("stable_diffusion_caption.conditioning: must be 'caption'")
    for name in ("autoencoder", "discrete_vae"):
        auto = getattr(config, name)
        if auto and auto.pretrained is None and auto.training is None:
            raise ValueError(f"{name}: give either pretrained (a folder) or training")
    count = config.data.train * config.data.views
    for name in TRAINED:
        section = getattr(config, name)
        training = section.training if section else None
        if config.data.source == "phantom" and training and training.batch > count:
            raise ValueError(
                f"{name}.training.batch: {training.batch} is more than the data set has "
                f"({config.data.train} films x {config.data.views} views = {count})"
            )
        folder = section.pretrained if section and hasattr(section, "pretrained") else None
        if folder is not None and not folder.exists():
            raise ValueError(f"{name}.pretrained: {folder} does not exist; put the weights there")
        if isinstance(section, Diffusion):
            _check_measurements(name, section)
    _check_shapes(config)
    _check_steps(config)
    _check_film_folders(config.data.films, config.evaluation.films)
    if config.ruler.pretrained:
        _check_ruler(config.ruler.pretrained, config.data)
    if config.evaluation.inception and not config.evaluation.inception.is_file():
        raise ValueError(f"evaluation.inception: {config.evaluation.inception} does not exist")
    return config


def _check_shapes(config: Experiment) -> None:
    """Networks that are built here can be built, and take the views; raises ValueError."""
    resolution = config.data.resolution
    if config.ruler.pretrained is None:
        _multiples("ruler.channels", config.ruler.channels, 8)
        _multiples(
            "data.resolution",
            [resolution],
            2 ** len(config.ruler.channels),
            "the stride of the ruler",
        )
    for name in ("autoencoder", "discrete_vae"):
        _check_autoencoder(name, getattr(config, name), resolution)
    if config.dall_e:
        _check_dall_e(config.dall_e, config.discrete_vae)
    for name in ("stable_diffusion", "stable_diffusion_caption"):
        section = getattr(config, name)
        if section is None or section.pretrained:
            continue
        channels, head = section.unet.block_out_channels, section.unet.head_dim
        _multiples(f"{name}.unet.block_out_channels", channels, 16)
        for width in channels:
            _multiples(
                f"{name}.unet.block_out_channels",
                [width],
                max(1, width // head),
                "the number of heads",
            )
        _multiples(f"{name}.text.hidden_size", [section.text.hidden_size], section.text.heads)


def _check_autoencoder(name: str, auto: Autoencoder | DiscreteVAE | None, resolution: int) -> None:
    """An autoencoder that is built here takes the views and their windows; raises ValueError."""
    if auto is None or auto.pretrained:
        return
    what = f"the stride of the {name}"
    _multiples(f"{name}.block_out_channels", auto.block_out_channels, 8)
    stride = 2 ** (len(auto.block_out_channels) - 1)
    _multiples("data.resolution", [resolution], stride, what)
    if auto.window:
        _multiples(f"{name}.window", [auto.window], stride, what)
        if auto.window > resolution:
            raise ValueError(f"{name}.window: {auto.window} is above data.resolution, {resolution}")


def _check_dall_e(section: DallE, vae: DiscreteVAE | None) -> None:
    """The transformer can be built, and draws from a codebook that is there; raises ValueError."""
    _multiples("dall_e.width", [section.width], section.heads, "dall_e.heads")
    top_k = section.sampling.top_k
    if vae and vae.pretrained is None and top_k and top_k > vae.codes:
        raise ValueError(f"dall_e.sampling.top_k: {top_k} is above discrete_vae.codes, {vae.codes}")
    if section.sampling.guidance > 1 and section.caption_dropout == 0:
        raise ValueError(
            "dall_e.sampling.guidance: needs dall_e.caption_dropout, from which the model learns "
            "images without a caption"
        )


def _multiples(key: str, values: Iterable[int], of: int, what: str = "a group's channels") -> None:
    for value in values:
        if value % of:
            raise ValueError(f"{key}: {value} is not a multiple of {of}, {what}")


def _check_measurements(name: str, section: Diffusion) -> None:
    """New tokens in a pretrained text encoder mean nothing untrained; raises ValueError."""
    if section.pretrained and section.conditioning == "measurement" and not section.train_text:
        raise ValueError(
            f"{name}.train_text: must be true, or the measurement tokens that are added to a "
            "pretrained text encoder stay random"
        )


def _check_steps(config: Experiment) -> None:
    """The timesteps that are trained on and sampled at exist; raises ValueError."""
    llcm, steps = config.llcm, config.sampling.llcm_steps
    if llcm is None:
        return
    low, high = llcm.guidance
    if not 0 <= low <= high:
        raise ValueError(f"llcm.guidance: 0 <= w_min <= w_max is needed, not [{low:g}, {high:g}]")
    if TIMESTEPS % llcm.skip:
        raise ValueError(f"llcm.skip: {llcm.skip} does not divide the {TIMESTEPS} timesteps")
    w = config.sampling.student_guidance - 1
    if not low <= w <= high:
        raise ValueError(
            f"sampling.llcm_guidance: w = {w:g} (the scale less 1) is outside llcm.guidance "
            f"[{low:g}, {high:g}], for which the student is trained"
        )
    most = TIMESTEPS // llcm.skip
    if not steps or len(set(steps)) < len(steps) or not all(1 <= n <= most for n in steps):
        raise ValueError(
            f"sampling.llcm_steps: different numbers within 1..{most} (llcm.skip {llcm.skip}) are "
            f"needed, not {list(steps)}"
        )


def _check_film_folders(trained: Path | None, measured: Path | None) -> None:
    """Folders of films exist, and none is both trained on and measured; raises ValueError."""
    for key, folder in (("data.films", trained), ("evaluation.films", measured)):
        if folder and not folder.is_dir():
            raise ValueError(f"{key}: {folder} is not a folder")
    if trained and measured:
        first, second = trained.resolve(), measured.resolve()
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise ValueError(
                f"evaluation.films: {measured} shares films with data.films, which train"
            )


def _check_ruler(folder: Path, data: Data) -> None:
    """A pretrained ruler measures views of the size and crop of `data`; raises ValueError."""
    try:
        settings = json.loads((folder / "ruler.json").read_text())
    except FileNotFoundError:
        raise ValueError(
            f"ruler.pretrained: {folder} holds no ruler.json; give the folder ruler/export of a run"
        ) from None
    except ValueError:
        raise ValueError(f"ruler.pretrained: {folder / 'ruler.json'} is damaged") from None
    for key in ("resolution", "head_distance"):
        made, wanted = settings.get(key), getattr(data, key)
        if made is not None and made != wanted:
            raise ValueError(
                f"ruler.pretrained: {folder} was trained on views with {key} {made:g}, but "
                f"data.{key} is {wanted:g}; set data.{key}={made:g}, or train a ruler"
            )


def load_experiment(path: Path | str, overrides: list[str] | None = None) -> Experiment:
    """Reads an experiment file, applies `key.sub=value` overrides and checks it.

    Values of overrides are YAML (`llcm.guidance=[2,6]`, `autoencoder.pretrained=null`).

    Raises:
        ConfigError: one problem a line, each with its key.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the experiments are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    for override in overrides or []:
        _apply_override(tree, override)
    return parse_experiment(tree, str(path))


def parse_experiment(tree: dict[str, Any], origin: str) -> Experiment:
    """Checks a tree of plain values; `origin` is named in the message of ConfigError."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(origin, e) for e in error.errors())) from None


def _problem(origin: str, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{key}'"
    if error["type"] == "missing":
        return f"{origin}: key '{key}' is missing"
    shown = "" if error["type"] == "value_error" else f" (got {error['input']!r})"
    return f"{origin}: {key + ': ' if key else ''}{message}{shown}"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}': expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"'{override}': the value is not valid YAML") from None
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{override}': '{parent}' is not a section")
    node[last] = value
