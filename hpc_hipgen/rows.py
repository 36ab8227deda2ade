"""The rows of the report: what they are called, which model draws each, and how."""

from __future__ import annotations

from typing import Any

from hpc_hipgen.config import FEW_STEPS, GENERATORS, Experiment
from hpc_hipgen.models import MODELS

FILMS_ROW = "films"
"""Row of the real films of `evaluation.films`; they are no part of the data set."""

ROUND_TRIPS = ("round_trip", "round_trip_discrete")
"""Rows of test films after an autoencoder: that of latent diffusion, that of DALL-E."""

ROWS_OF_FILMS = ("ruler", FILMS_ROW, *ROUND_TRIPS)
"""Rows that hold films themselves: one image a film, whatever `per_caption` says."""

REFERENCE_ROW = "reference"
"""Not a row of the report: features of the training films, which distances compare with."""

CONTROLS_ROW = "controls"
"""Nor is this: features of what the memorisation audit is set and checked by."""

FEATURE_ROWS = (REFERENCE_ROW, CONTROLS_ROW)
"""Rows of the evaluation that hold features of films alone."""

STUDENT_SOLVER = "lcm"
"""What a student's own scheduler is called; no other fits what it was trained for."""

_WITH_FEEDBACK = {"stable_diffusion": "feedback", "stable_diffusion_untuned": "stable_diffusion"}
"""The row `stable_diffusion` is the teacher of the run: with feedback, the model that had it, and
then `stable_diffusion_untuned` is the one before."""


def report_rows(config: Experiment) -> list[str]:
    """Rows of the report of an experiment, each a folder of sample shards."""
    rows = ["ruler"]
    if config.evaluation.films:
        rows.append(FILMS_ROW)
    if config.autoencoder:
        rows.append("round_trip")
    if config.discrete_vae:
        rows.append("round_trip_discrete")
    for name in GENERATORS:
        if getattr(config, name):
            rows += model_rows(config, name)
    return rows


def row_model(config: Experiment, row: str) -> tuple[str, int | None]:
    """The model that draws a row, and the number of steps where the row's name says it."""
    model, _, steps = row.rpartition("_")
    if model in FEW_STEPS and steps.isdecimal():
        return model, int(steps)
    return (_WITH_FEEDBACK.get(row, row) if config.feedback else row), None


def model_rows(config: Experiment, model: str) -> list[str]:
    """The rows that a generator draws."""
    if model in FEW_STEPS:
        return [f"{model}_{steps}" for steps in config.sampling.llcm_steps]
    if config.feedback:
        return [next((row for row, name in _WITH_FEEDBACK.items() if name == model), model)]
    return [model]


def row_settings(config: Experiment, row: str) -> dict[str, Any]:
    """What a generated row is drawn with: steps, guidance scale, ..., or as tokens are.

    And the model's own section `sampling`, where it has one.
    """
    model, few = row_model(config, row)
    section, sampling = getattr(config, model), config.sampling
    own = section.sampling.model_dump() if hasattr(section, "sampling") else {}
    if MODELS[model].tokens:
        return own
    steps, guidance = sampling.steps, sampling.guidance
    solver: str = sampling.solver
    eta = sampling.eta
    if few is not None:
        steps, guidance, solver, eta = few, sampling.student_guidance, STUDENT_SOLVER, 0.0
    if not MODELS[model].guided:
        guidance = 1.0
    return {"steps": steps, "guidance": guidance, "solver": solver, "eta": eta} | own
