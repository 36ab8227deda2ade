"""The sections of the films, of a training run and of the first stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, PositiveFloat, model_validator

from hpc_hipgen.config.base import Channels, Section, check_brings_its_own

VIEWS_OF_A_FILM = (0.5, 4.0)
"""Fewest and most that `balance` gives a film, in parts of `views`."""


class Data(Section):
    """The films: where they come from and how they are cropped."""

    source: Literal["phantom", "films"] = "phantom"
    films: Path | None = None  # folder of PNG, JPEG, TIFF or DICOM files
    landmarks: Path | None = None  # CSV or COCO JSON; default: landmarks.csv in the folder
    # Text burned into films, these and evaluation.films, is masked and reported; phantoms have none
    # of a patient's. False: it stays, and models learn it.
    deidentify: bool = True
    keep_markers: bool = True  # but for the L or R of a side, where a film is not mirrored
    train: int = Field(219, gt=0)  # phantoms to draw; for films, the proportion of dogs
    validation: int = Field(31, gt=0)
    test: int = Field(84, gt=0)
    resolution: int = Field(128, ge=32, le=2048, multiple_of=8)  # pixels, square views
    head_distance: float = Field(0.6, ge=0.2, le=0.8)  # D as a fraction of the view's width
    views: int = Field(16, ge=1)  # crops of one training film: the nominal one, then jittered ones
    # Share of the full jitter (4 degrees, 3 % of the width, 5 % zoom). A generator learns the angle
    # far sooner from hips that stay in place; the ruler has its own, larger, augmentation.
    jitter: float = Field(0.25, ge=0, le=1)
    # Degrees: spread by which the angles of a jittered view differ from its film's; 0: none. Few
    # films then show many angles, and are not learnt by heart with the one they have.
    warp: float = Field(0.0, ge=0, le=6)
    # Films with rare angles get more views than others, which `views` is the mean of then: 1: as if
    # all angles were equally frequent, within half and four times the mean; 0: all have as many.
    balance: float = Field(0.0, ge=0, le=1)
    # Share of the training phantoms whose angles are drawn evenly over their range: of the
    # population's, one in fifty is below 80 degrees, and what is rare is drawn badly.
    even_angles: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _films_given(self) -> Data:
        if self.source == "films" and self.films is None:
            raise ValueError("data.films: a folder is needed when data.source is 'films'")
        if self.source == "phantom" and (self.films or self.landmarks):
            key = "films" if self.films else "landmarks"
            raise ValueError(f"data.{key}: given, but data.source is 'phantom', which ignores it")
        if self.warp and self.views == 1:
            raise ValueError("data.warp: given, but the one view of data.views is the nominal one")
        if self.balance and self.views == 1:
            raise ValueError("data.balance: given, but data.views leaves every film one view")
        if self.source == "films" and self.even_angles:
            raise ValueError("data.even_angles: given, but films have the angles that they have")
        return self


class Plateau(Section):
    """When the loss counts as no longer falling (torch's ReduceLROnPlateau)."""

    images: int = Field(219, gt=0)  # whose mean loss is compared with the best so far
    patience: int = Field(10, ge=0)  # such means without a better one
    factor: float = Field(0.1, gt=0, lt=1)  # of the rate from then on


Beta = Annotated[float, Field(ge=0, lt=1)]


class Training(Section):
    """One training run. Everything is counted in training images seen (the one clock)."""

    images: int = Field(gt=0)  # length of the run
    batch: int = Field(gt=0)  # images an optimizer step, over all ranks
    micro_batch: int | None = Field(None, gt=0)  # images a rank holds at once; the rest accumulates
    # muon: fewer images for the same loss in networks that learn from nothing (training/muon.py)
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(gt=0, le=1)
    # cosine: down to 1 % of lr at the end; plateau: lowered whenever the loss stops falling
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    plateau: Plateau = Plateau()
    warmup_images: int = Field(0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)  # gradient norm
    # time constant of the average of the weights, in effect at most a ninth of `images`: a young
    # average forgets faster (`training/average.py`); 0: none, and of students their target
    ema_images: float = Field(0.0, ge=0)
    # auto: bf16 where the hardware computes in it, else fp32: emulated, it is ten times slower
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # with several ranks; one alone has nothing to share. 0 with muon, which needs whole matrices
    zero_stage: Literal[0, 1, 2, 3] = 1
    # processes that make batches ahead: for small networks on a GPU, which wait for the host
    workers: int = Field(0, ge=0)
    # on a GPU the same bits every time, slower; on a CPU they always are
    deterministic: bool = False
    compile: bool = False  # torch.compile, block by block: a slow start, for long runs on GPUs
    # between two checkpoints, of which two are kept; by default no fewer than 60 batches
    checkpoint_images: int = Field(2_000, gt=0)
    # and, for sweeps over checkpoints, the weight average of the first one after every multiple of
    # this
    keep_images: int | None = Field(None, gt=0)
    log_images: int = Field(512, gt=0)  # between two lines of metrics.jsonl

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        more = {"zero_stage": 0} if values.get("optimizer") == "muon" else {}
        batch, keep = values.get("batch"), values.get("keep_images")
        if isinstance(batch, int) and 60 * batch > 2_000:
            # those that are kept must have been written
            most = max(2_000, keep) if isinstance(keep, int) else 60 * batch
            more["checkpoint_images"] = min(60 * batch, most)
        return {**more, **values}

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(
                f"zero_stage: muon needs whole matrices on every rank, so 0, not {self.zero_stage}"
            )
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"batch: {self.batch} is not a multiple of micro_batch {self.micro_batch}"
            )
        if self.images < self.batch:
            raise ValueError(f"images: {self.images} is less than one batch of {self.batch}")
        if self.warmup_images >= self.images:
            raise ValueError(
                f"warmup_images: {self.warmup_images} of {self.images} images, which leaves none "
                "for the rate itself"
            )
        if self.schedule != "plateau" and self.plateau != Plateau():
            raise ValueError(f"plateau: given, but schedule is '{self.schedule}', which ignores it")
        return self


class FirstStage(Protocol):
    """A section that names a pretrained model, or says how one is trained."""

    @property
    def training(self) -> Training | None:
        """None where the pretrained one is taken."""
        ...


def training_of(section: FirstStage) -> Training:
    """How a first stage is trained; raises ValueError where its section does not say."""
    if section.training is None:
        raise ValueError(f"{type(section).__name__}: no training is given")
    return section.training


class Ruler(Section):
    """The landmark network that measures the angles."""

    channels: Channels = (16, 32, 64, 96)
    pretrained: Path | None = None  # <run>/ruler/export of another run: nothing is trained
    training: Training | None = None


class FilmRuler(Section):
    """The networks that find and measure the hips of whole films (`jobs.measure`)."""

    dogs: int = Field(6000, gt=0)  # drawn, a film and a close-up of one hip each
    held_out: int = Field(400, ge=10)  # films that calibrate the uncertainty; as many test it
    finder: Channels = (8, 16, 32, 64, 64)  # channels of the levels
    hip: Channels = (16, 32, 64, 96, 96)
    pretrained: Path | None = None  # <run>/film_ruler/export of another run: nothing is trained
    training: Training | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FilmRuler:
        if self.pretrained is None and self.training is None:
            raise ValueError("give either pretrained (a folder) or training")
        check_brings_its_own(self, self.pretrained, ("finder", "hip"))
        return self


class LabRuler(Section):
    """A film ruler that goes on learning from a lab's own films, cross-validated by dog."""

    films: Path | None = None  # folder of whole films: PNG, JPEG, TIFF or DICOM
    landmarks: Path | None = None  # CSV or COCO JSON; default: landmarks.csv in the folder
    folds: int = Field(5, ge=2)  # every film is measured by the fold that saw no film of its dog
    film_share: float = Field(0.5, gt=0, lt=1)  # of the training images; the rest are drawn
    training: Training


class Autoencoder(Section):
    """The KL autoencoder (diffusers AutoencoderKL); trained from scratch unless `pretrained`."""

    pretrained: Path | None = None
    block_out_channels: Channels = (16, 32, 64)  # stride 2 ** (levels - 1)
    layers_per_block: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)
    kl_weight: float = Field(1e-6, ge=0)
    # Of what latents of half the size are decoded to, against views of half the size. More makes
    # latents smoother: easier to denoise, but they say less of a view.
    scale_equivariance: float = Field(0.0, ge=0)
    hip_weight: float = Field(4.0, ge=0)  # extra weight of the pixels around the hips
    # Pixels; trains on windows of the views, most of them at a hip. It has no attention, so what
    # is learnt on windows holds for views, and a window costs less.
    window: int | None = Field(None, ge=16)
    training: Training | None = None

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> Autoencoder:
        keys = ("block_out_channels", "layers_per_block", "latent_channels")
        check_brings_its_own(self, self.pretrained, keys)
        return self


class Probe(Section):
    """The network that reads angles off latents, for `measurement_weight` of the generators."""

    width: int = Field(32, ge=8, multiple_of=8)  # channels of its first layer
    noise: float = Field(0.3, ge=0)  # most noise that it is trained with; latents have variance 1
    training: Training


class DiscreteVAE(Section):
    """The autoencoder of DALL-E, whose latents are entries of a codebook."""

    pretrained: Path | None = None  # <run>/discrete_vae/export of another run
    block_out_channels: Channels = (16, 32, 32, 64)  # stride 2 ** (levels - 1)
    layers_per_block: int = Field(1, ge=1)
    codes: int = Field(512, ge=2)  # entries of the codebook
    code_width: int = Field(32, ge=1)  # channels of an entry
    # Of the Gumbel-softmax: from the first to the second over `anneal`, a share of the run, after
    # which the decoder sees single entries.
    temperature: tuple[PositiveFloat, PositiveFloat] = (1.0, 0.0625)
    anneal: float = Field(0.5, gt=0, le=1)
    noise: float = Field(0.0, ge=0)  # of Gumbel's distribution; 1: the entries are drawn
    kl_weight: float = Field(0.0, ge=0)  # of the divergence from even use of the codebook
    hip_weight: float = Field(4.0, ge=0)  # extra weight of the pixels around the hips
    window: int | None = Field(None, ge=16)  # as of the autoencoder
    training: Training | None = None

    @model_validator(mode="after")
    def _shapes_are_its_own(self) -> DiscreteVAE:
        keys = ("block_out_channels", "layers_per_block", "codes", "code_width")
        check_brings_its_own(self, self.pretrained, keys)
        return self
