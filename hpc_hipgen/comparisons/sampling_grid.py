"""A sweep: settings of sampling, crossed, on the exports and kept checkpoints of a run.

A cell is one combination; it is drawn and measured for every caption of a set with the same
seeds as any other cell, so that cells differ in their settings alone. Nothing heavy is imported
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import field_validator

from hpc_hipgen.comparisons.cells import Comparison, one_is_a_list
from hpc_hipgen.comparisons.ready import EXPORT, check_there
from hpc_hipgen.config import (
    ADAPTED,
    FEW_STEPS,
    LLCM,
    TIMESTEPS,
    ConfigError,
    Section,
    parse_settings,
    settings_tree,
)
from hpc_hipgen.config.base import check_teacher_steps
from hpc_hipgen.models import SWEPT
from hpc_hipgen.rows import STUDENT_SOLVER, model_rows, row_settings
from hpc_hipgen.run import Run

MADE = ("even", "fresh")
CAPTIONS = ("validation", "test", *MADE)
"""Whose captions are drawn for: the films of a split, or nobody's (`radiograph.made_captions`)."""

RULER = "ruler"
"""Instead of a generator: phantoms with the angles of the captions, which show its own error."""

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*SWEPT]


class Grid(Section):
    """What is crossed; empty: as in the run's own rows."""

    model: tuple[Model, ...] = ()
    checkpoint: tuple[str, ...] = (EXPORT,)
    solver: tuple[Literal["paper", "leapfrog", "ddim"], ...] = ()
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _images_or_export(cls, value: list[Any]) -> list[str]:
        found = [str(v) for v in value]
        if not all(v == EXPORT or re.fullmatch("[1-9][0-9]*", v) for v in found):
            raise ValueError("'export', or the images seen of kept checkpoints")
        return found

    _lists = field_validator("*", mode="before")(one_is_a_list)  # runs before what is above

    @field_validator("*")
    @classmethod
    def _different(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:  # only what was given
        if not value:
            raise ValueError("no value is given; leave it out for the run's own")
        if len(set(value)) < len(value):
            raise ValueError("a value is given twice")
        return value

    @field_validator("steps")
    @classmethod
    def _steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= steps < TIMESTEPS for steps in value):
            raise ValueError(f"steps lie within 1..{TIMESTEPS - 1}")
        return value

    @field_validator("guidance")
    @classmethod
    def _guidance(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(1 <= scale < float("inf") for scale in value):
            raise ValueError("guidance scales are 1 or more (1 is without guidance)")
        return value


@dataclass(frozen=True)
class Cell:
    """One combination of the grid."""

    model: str
    checkpoint: str  # "export", or images seen
    solver: str
    steps: int
    guidance: float  # diffusers' scale, 1 + w

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}-{self.checkpoint}-{self.solver}-{self.steps}-{self.guidance:g}"


class Sweep(Comparison):
    """A sweep of a run; the folder of a cell has samples.tar, too."""

    job = "sweep"
    folder = "sweeps"
    function = "jobs.sweep:draw_and_measure"
    result = "table.parquet"
    blocks = True
    others = "another grid"

    split: str
    cells: tuple[Cell, ...]

    def cell_names(self, run: Run) -> list[str]:
        """As they stand there."""
        return [cell.name for cell in self.cells]

    def same(self, other: Self) -> bool:
        """In whatever order: it follows the models' own, which is no part of the grid."""
        return (self.split, set(self.cells)) == (other.split, set(other.cells))


def plan(run: Run, arguments: list[str], split: str) -> tuple[Sweep, list[str]]:
    """The cells of a grid that this run can draw, and a line for whatever is left out.

    Args:
        run: with exports of what is drawn with.
        arguments: the grid, as `key=[a,b]`.
        split: one of `CAPTIONS`.

    Raises:
        ConfigError: one problem of the grid a line; a model or checkpoint that is not there, or
            nothing is left.
    """
    grid = parse_settings(Grid, settings_tree({}, arguments), "sweep")
    there = [model for model in SWEPT if model in run.config.trained()]
    models = grid.model or there
    if not models:
        raise ConfigError(f"{run.folder}: this run has no generator")
    cells: list[Cell] = []
    notes: list[str] = []
    for model in models:
        if model not in there:
            raise ConfigError(f"{run.folder}: has no {model}; it has {', '.join(there) or 'none'}")
        solvers, steps, scales = _crossed(run, grid, model, notes)
        for checkpoint in grid.checkpoint:
            check_there(run, model, checkpoint)
            crossed = product(solvers, steps, scales)
            cells += [Cell(model, checkpoint, s, n, float(g)) for s, n, g in crossed]
    if not cells:
        raise ConfigError("; ".join(["sweep: nothing is left to draw", *notes]))
    phantoms = run.config.data.source == "phantom"
    if split == "fresh" and not phantoms:
        raise ConfigError(f"--split fresh: {run.folder} has films, whose angles are not phantoms'")
    if split in MADE and phantoms:
        cells.insert(0, Cell(RULER, EXPORT, "none", 0, 1.0))
    return Sweep(split=split, cells=tuple(cells)), notes


def _crossed(
    run: Run, grid: Grid, model: str, notes: list[str]
) -> tuple[Iterable[str], list[int], list[float]]:
    """Solvers, steps and guidance scales of one model; notes what it cannot do."""
    sampling = run.config.sampling
    if model not in FEW_STEPS:
        solvers, steps = grid.solver or (sampling.solver,), list(grid.steps or (sampling.steps,))
        if set(solvers) != {"leapfrog"}:  # which has Karras' levels
            for number in steps:
                check_teacher_steps(f"{model}: steps", number)
        return solvers, steps, _scales(run, grid, model, notes)
    student = getattr(run.config, model)
    if grid.solver:
        notes.append(f"{model}: solver {', '.join(grid.solver)} ignored, a student has its own")
    most = TIMESTEPS // student.skip
    steps = [n for n in grid.steps or sampling.llcm_steps if n <= most]
    if gone := [str(n) for n in grid.steps if n not in steps]:
        notes.append(f"{model}: steps {', '.join(gone)} left out, it has {most} at most")
    if not isinstance(student, LLCM):
        if grid.guidance:
            notes.append(f"{model}: guidance ignored, its adapters hold their own")
        return (STUDENT_SOLVER,), steps, [1.0]
    low, high = student.guidance
    scales = [g for g in grid.guidance or (sampling.student_guidance,) if student.knows(g)]
    if gone := [f"{g:g}" for g in grid.guidance if g not in scales]:
        notes.append(
            f"{model}: guidance {', '.join(gone)} left out, it is trained for {low + 1:g} to "
            f"{high + 1:g}"
        )
    return (STUDENT_SOLVER,), steps, scales


def _scales(run: Run, grid: Grid, model: str, notes: list[str]) -> list[float]:
    """Guidance scales of a teacher; one that saw captions alone has nothing to be guided by."""
    (row,) = model_rows(run.config, model)
    scales = list(grid.guidance or (row_settings(run.config, row)["guidance"],))
    section = getattr(run.config, model)
    if model in ADAPTED and not section.base:  # what it goes on from
        section = run.config.stable_diffusion
    if getattr(section, "guidable", True):
        return scales
    if gone := [f"{g:g}" for g in scales if g > 1]:
        notes.append(f"{model}: guidance {', '.join(gone)} left out, its caption_dropout is 0")
    return [g for g in scales if g <= 1]
