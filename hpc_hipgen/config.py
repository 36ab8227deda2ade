"""The description of an experiment: one strict YAML file, checked before anything is submitted.

Every setting is a field of one of the models below, with its range. An unknown key, a value out
of range or settings that contradict each other raise `ConfigError` with one line per problem.
Nothing heavy is imported here: this module is what the login node runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

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

FIRST_STAGES = ("ruler", "autoencoder", "discrete_vae")
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


class Denoising(Section):
    """What every model has that is trained with the denoising loss."""

    caption_dropout: float = Field(0.1, ge=0, lt=1)
    # Off: with v-prediction it takes the weight from the noise levels where the angle is decided.
    min_snr_gamma: float | None = Field(None, gt=0)
    hip_weight: float = Field(4.0, ge=0)  # extra loss weight of the latents around the hips
    gradient_checkpointing: bool = False
    training: Training


class Diffusion(Denoising):
    """A text-to-image latent diffusion model: the teacher (`stable_diffusion`)."""

    pretrained: Path | None = None  # a diffusers folder, e.g. Stable Diffusion 1.5
    conditioning: Literal["measurement", "caption"] = "measurement"
    text: Text = Text()
    # False: the encoder keeps its first weights, and the states of captions are computed once.
    train_text: bool = False
    unet: UNet = UNet()
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> Diffusion:
        for key, default in (("unet", UNet()), ("text", Text())):
            if self.pretrained and getattr(self, key) != default:
                raise ValueError(
                    f"{key}: given, but the pretrained folder {self.pretrained} brings its own; "
                    f"leave {key} out, or pretrained"
                )
        return self


class Distillation(Section):
    """What every model has that is distilled from a teacher with the consistency loss."""

    solver: Literal["paper", "leapfrog", "ddim"] = "leapfrog"
    skip: int = Field(20, ge=1, le=250)  # k: the teacher jumps from t_(n+k) to t_n
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


class LLCM(Distillation):
    """The Leapfrog Latent Consistency Model, distilled from the teacher."""

    guidance: tuple[float, float] = (2.0, 6.0)  # w is drawn from [w_min, w_max]


class Adapters(Section):
    """Low-rank adapters on the UNet of a Stable Diffusion that stays as it is."""

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    rank: int = Field(16, ge=1, le=256)
    # attention: the projections that LoRA is mostly put on; all: convolutions and the inputs of
    # time and pooled caption too, for a small UNet that reads the caption through them
    layers: Literal["attention", "all"] = "all"


class LoRA(Denoising, Adapters):
    """Adapters trained with the denoising loss (LoRA, arXiv 2106.09685)."""


class LCMLoRA(Distillation, Adapters):
    """Adapters distilled from their own base (LCM-LoRA, arXiv 2311.05556)."""

    guidance: float = Field(2.0, ge=0)  # the one w that is distilled; the student has no input


class DreamBooth(Denoising):
    """Subjects with a rare token each, learnt from a few films (DreamBooth, arXiv 2208.12242)."""

    base: Path | None = None  # a diffusers folder; default: the run's own stable_diffusion
    # Prompt class, i.e. folder of layouts/classes, to the token that stands before its captions.
    subjects: dict[Annotated[int, Field(ge=1, le=4)], str] = {
        1: "sks",
        2: "ohwx",
        3: "zwx",
        4: "qxv",
    }
    films: int = Field(4, ge=3, le=5)  # instance films a subject
    prior_images: int = Field(84, ge=1)  # drawn by the base itself before training
    prior_weight: float = Field(1.0, ge=0)
    train_text: bool = False

    @model_validator(mode="after")
    def _tokens(self) -> DreamBooth:
        tokens = list(self.subjects.values())
        if not tokens or len(set(tokens)) < len(tokens):
            raise ValueError("subjects: one token a class, all different, is needed")
        for token in tokens:
            if not (token.isascii() and token.isalnum() and token == token.lower()):
                raise ValueError(f"subjects: '{token}' is not one lower-case word")
        return self

    @property
    def instances(self) -> int:
        """Instance films of all subjects, where each class has enough."""
        return len(self.subjects) * self.films

    def prompt(self, caption: str, prompt_class: int) -> str:
        """The caption of a film, after the token of its subject where it belongs to one."""
        token = self.subjects.get(prompt_class)
        return f"{token} {caption}" if token else caption


class Sampling(Section):
    """What is drawn for the test captions."""

    steps: int = Field(25, ge=1, le=TIMESTEPS - 1)  # of the teacher
    solver: Literal["paper", "leapfrog", "ddim"] = "ddim"
    guidance: float = Field(3.0, ge=1)  # guidance scale 1 + w, as in diffusers
    llcm_steps: tuple[int, ...] = (1, 2, 4, 8)  # of the LLCM and of the LCM-LoRA
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


class WandB(Section):
    """A project of Weights & Biases."""

    project: str = Field(min_length=1)
    entity: str | None = None  # user or team; default: the one of the login
    # Compute nodes have no internet: `wandb sync RUN/wandb/offline-*` sends all of it later.
    mode: Literal["offline", "online"] = "offline"
    artefacts: bool = True  # the last checkpoint and the export of every model


class Logging(Section):
    """Where numbers go besides metrics.jsonl and TensorBoard, which are always written."""

    wandb: WandB | None = None


class Experiment(Section):
    """A whole experiment: one file of configs/."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    data: Data = Data()
    ruler: Ruler
    autoencoder: Autoencoder | None = None
    discrete_vae: DiscreteVAE | None = None
    stable_diffusion: Diffusion | None = None
    stable_diffusion_caption: Diffusion | None = None  # the baseline: digits only
    llcm: LLCM | None = None
    lora: LoRA | None = None
    lcm_lora: LCMLoRA | None = None
    dreambooth: DreamBooth | None = None
    dall_e: DallE | None = None
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

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
    for name in ("stable_diffusion", "stable_diffusion_caption"):
        if section := getattr(config, name):
            _check_measurements(name, section)
    for name in ADAPTED:
        if (section := getattr(config, name)) and not (section.base or config.stable_diffusion):
            raise ValueError(
                f"{name}.base: give a diffusers folder of Stable Diffusion, or train "
                "stable_diffusion"
            )
    if config.data.source == "phantom":
        check_batches(config, config.data.train)
    _check_shapes(config)
    _check_steps(config)
    _check_apart(config.data.films, config.evaluation.films)
    return config


def check_batches(config: Experiment, films: int) -> None:
    """Every batch fits into the views of so many training films; raises ConfigError naming it."""
    views = config.data.views
    for name in config.trained():
        section = getattr(config, name)
        own = min(films, section.instances) if isinstance(section, DreamBooth) else films
        if section.training.batch > own * views:
            raise ConfigError(
                f"{name}.training.batch: {section.training.batch} is more than the data set has "
                f"({own} films x {views} views = {own * views})"
            )


def check_inputs(config: Experiment, origin: str, done: Iterable[str] = ()) -> None:
    """Sees that the weights and folders that an experiment reads are there.

    Args:
        config: the experiment.
        origin: named in the message.
        done: stages that are done, whose inputs are no longer needed.

    Raises:
        ConfigError: one line for each that is missing.
    """
    done = set(done)
    problems = [] if "prepare" in done else _missing_films(config)
    for name in ("autoencoder", "stable_diffusion", "stable_diffusion_caption"):
        section = getattr(config, name)
        folder = section.pretrained if section else None
        if folder and f"train-{name}" not in done and not folder.exists():
            problems.append(_absent(f"{name}.pretrained", folder))
    for name in ADAPTED:
        section = getattr(config, name)
        if section and section.base and f"train-{name}" not in done:
            if not (section.base / "model_index.json").is_file():
                problems.append(
                    f"{name}.base: {section.base} holds no diffusers pipeline (model_index.json)"
                )
    if config.discrete_vae and (folder := config.discrete_vae.pretrained):
        if not (folder / "config.json").is_file():
            problems.append(
                f"discrete_vae.pretrained: {folder} holds no config.json; give the folder "
                "discrete_vae/export of a run"
            )
    weights = config.evaluation.inception
    if weights and not weights.is_file():
        problems.append(_absent("evaluation.inception", weights))
    if config.ruler.pretrained:
        try:
            _check_ruler(config.ruler.pretrained, config.data)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(f"{origin}: {problem}" for problem in problems))


def _missing_films(config: Experiment) -> list[str]:
    given = {"data.films": config.data.films, "evaluation.films": config.evaluation.films}
    return [
        f"{key}: {path} is not a folder"
        for key, path in given.items()
        if path and not path.is_dir()
    ]


def _absent(key: str, path: Path) -> str:
    return (
        f"{key}: {path} does not exist; on a machine with internet, such as the login node, "
        "`bash sbatch/prefetch.sh` fetches the known weights into weights/"
    )


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
    for name, section in (("llcm", llcm), ("lcm_lora", config.lcm_lora)):
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
    if llcm is None:
        return
    low, high = llcm.guidance
    if not 0 <= low <= high:
        raise ValueError(f"llcm.guidance: 0 <= w_min <= w_max is needed, not [{low:g}, {high:g}]")
    w = config.sampling.student_guidance - 1
    if not low <= w <= high:
        raise ValueError(
            f"sampling.llcm_guidance: w = {w:g} (the scale less 1) is outside llcm.guidance "
            f"[{low:g}, {high:g}], for which the student is trained"
        )


def _check_apart(trained: Path | None, measured: Path | None) -> None:
    """No film is both trained on and measured; raises ValueError."""
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
    """Reads an experiment file, applies `key.sub=value` overrides and checks the settings.

    The files that they name need not be there (see `check_inputs`). Values of overrides are YAML
    (`llcm.guidance=[2,6]`, `autoencoder.pretrained=null`).

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
    return parse_experiment(settings_tree(tree, overrides or []), str(path))


def parse_experiment(tree: dict[str, Any], origin: str) -> Experiment:
    """Checks a tree of plain values; `origin` is named in the message of ConfigError."""
    return parse_settings(Experiment, tree, origin)


Settings = TypeVar("Settings", bound=Section)


def parse_settings(kind: type[Settings], tree: dict[str, Any], origin: str) -> Settings:
    """Checks a tree of plain values against a group of settings.

    Raises:
        ConfigError: one problem a line, each with `origin` and its key.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(origin, e) for e in error.errors())) from None


def settings_tree(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The tree changed by `key.sub=value` overrides, values in YAML; raises ConfigError."""
    for override in overrides:
        _apply_override(tree, override)
    return tree


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
