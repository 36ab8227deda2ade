"""The sections of what is drawn, how it is scored and where the numbers go."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hpc_hipgen.config.base import TIMESTEPS, Section, check_teacher_steps


class Sampling(Section):
    """What is drawn for the test captions."""

    steps: int = Field(25, ge=1, le=TIMESTEPS - 1)  # of the teacher
    solver: Literal["paper", "leapfrog", "ddim"] = "ddim"
    # fresh noise in every step (eq. 16 of arXiv 2010.02502): 0 none, 1 as in ancestral sampling
    eta: float = Field(0.0, ge=0, le=1)
    guidance: float = Field(3.0, ge=1)  # guidance scale 1 + w, as in diffusers
    llcm_steps: tuple[int, ...] = (1, 2, 4, 8)  # of the LLCM and of the LCM-LoRA
    llcm_guidance: float | None = Field(None, ge=1)  # of the LLCM; default: guidance
    per_caption: int = Field(1, ge=1)
    shard_size: int = Field(84, ge=1)  # images per shard: one array task
    batch: int = Field(28, ge=1)
    # of the networks; noise is fp32 in both, so that a seed means the same image
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _eta_has_a_solver(self) -> Sampling:
        if self.eta and self.solver == "leapfrog":
            raise ValueError("sampling.eta: the leapfrog takes none, ddim does")
        return self

    @model_validator(mode="after")
    def _begins_with_noise(self) -> Sampling:
        if self.solver != "leapfrog":  # which has Karras' levels
            check_teacher_steps("sampling.steps", self.steps)
        return self

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
    artefacts: bool = True  # the last checkpoint and the export of every model, and the report
    # Where real films take part: also the report and its pictures, which show them. Models that
    # learnt from films are artefacts all the same.
    films: bool = False


class Logging(Section):
    """Where numbers go besides metrics.jsonl and TensorBoard, which are always written."""

    wandb: WandB | None = None
