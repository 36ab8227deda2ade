"""A sweep: settings of sampling, crossed, on the exports and kept checkpoints of a run.

A cell is one combination; it is drawn and measured for every caption of a set with the same
seeds as any other cell, so that cells differ in their settings alone. Cells are the items of one
array stage; a second stage merges them. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from hpc_hipgen.config import (
    ADAPTED,
    FEW_STEPS,
    LLCM,
    TIMESTEPS,
    Adapters,
    ConfigError,
    Section,
    parse_settings,
    settings_tree,
)
from hpc_hipgen.config.base import check_teacher_steps
from hpc_hipgen.files import DamagedError, read_json, write_atomic
from hpc_hipgen.models import SWEPT
from hpc_hipgen.pipeline import Item, Stage
from hpc_hipgen.rows import model_rows, row_settings
from hpc_hipgen.run import Run
from hpc_hipgen.training.checkpoint_files import COMPLETE, checkpoint_path, named_checkpoints

EVEN = "even"
CAPTIONS = ("validation", "test", EVEN)
"""Whose captions are drawn for: the films of a split, or nobody's, with angles spread evenly."""

EXPORT = "export"
RULER = "ruler"
"""Instead of a generator: phantoms with the angles of the captions, which show its own error."""

if TYPE_CHECKING:
    Model = str
else:
    Model = Literal[*SWEPT]
STUDENT_SOLVER = "lcm"
"""What a student's own scheduler is called; no other fits what it was trained for."""


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

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:  # runs before what is above
        return value if isinstance(value, list | tuple) else [value]

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


@dataclass(frozen=True)
class Sweep:
    """A sweep of a run, as sweeps/<name>/sweep.json keeps it."""

    name: str
    split: str
    cells: tuple[Cell, ...]


def parse_grid(arguments: list[str]) -> Grid:
    """The grid of `key=[a,b]` arguments.

    Raises:
        ConfigError: one problem a line.
    """
    return parse_settings(Grid, settings_tree({}, arguments), "sweep")


def check_name(name: str) -> None:
    """Raises ConfigError unless a folder can be called so."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"--name {name}: letters, digits, '.', '_' and '-' only")
    if name.endswith(("-table", "-samples")):
        raise ConfigError(f"--name {name}: is what a stage of another would be called")


def plan(run: Run, grid: Grid, name: str, split: str) -> tuple[Sweep, list[str]]:
    """The cells of a grid that this run can draw, and a line for whatever is left out.

    Raises:
        ConfigError: a model or checkpoint that is not there, or nothing is left.
    """
    check_name(name)
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
    if split == EVEN and run.config.data.source == "phantom":
        cells.insert(0, Cell(RULER, EXPORT, "none", 0, 1.0))
    return Sweep(name, split, tuple(cells)), notes


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


def checkpoint_folder(run: Run, model: str, checkpoint: str) -> Path:
    """Where the checkpoint of so many images lies."""
    return checkpoint_path(run.path(model, "checkpoints"), int(checkpoint))


def check_there(run: Run, model: str, checkpoint: str) -> None:
    """Raises ConfigError unless the run has the export of a model, and that checkpoint."""
    adapters = isinstance(getattr(run.config, model), Adapters)
    file = "pytorch_lora_weights.safetensors" if adapters else "model_index.json"
    if not run.path(model, EXPORT, file).is_file():
        raise ConfigError(f"{run.path(model, EXPORT)}: no export; train {model} to its end first")
    if adapters and not (run.base(model) / "model_index.json").is_file():
        raise ConfigError(f"{run.base(model)}: no diffusers folder, on which {model} is drawn")
    if checkpoint == EXPORT:
        return
    folder = checkpoint_folder(run, model, checkpoint)
    if not (folder / COMPLETE).is_file():
        there = named_checkpoints(folder.parent)
        kept = sorted(int(p.name) for p in there if (p / COMPLETE).is_file())
        raise ConfigError(
            f"{folder}: no such checkpoint; {model} has those at "
            f"{', '.join(map(str, kept)) or 'no number of'} images"
        )


def check_ready(run: Run) -> None:
    """Raises ConfigError unless there are captions and a ruler for what is drawn for them."""
    if run.config.ruler is None:
        raise ConfigError(f"{run.folder}: this run has no generator")
    for path in (run.path("data", "manifest.csv"), run.first_stage("ruler") / "ruler.json"):
        if not path.is_file():
            raise ConfigError(f"{path}: missing; finish the run first")


def sweep_folder(run: Run, name: str) -> Path:
    """What a sweep writes lies here."""
    return run.path("sweeps", name)


def cell_folder(run: Run, name: str, cell: str) -> Path:
    """samples.tar and table.parquet of one cell."""
    return sweep_folder(run, name) / "cells" / cell


def cell_table(run: Run, item: Item, name: str) -> Path:
    """The file that marks a cell as measured."""
    return cell_folder(run, name, item[0]) / "table.parquet"


def save(run: Run, sweep: Sweep) -> None:
    """Writes sweep.json, or sees that it is the same.

    Raises:
        ConfigError: when a sweep of this name had another grid or split.
    """
    path = sweep_folder(run, sweep.name) / "sweep.json"
    if path.is_file():
        there = load(run, sweep.name)
        assert there
        # in whatever order: it follows the models' own, which is no part of the grid
        if (there.split, set(there.cells)) != (sweep.split, set(sweep.cells)):
            raise ConfigError(
                f"{path.parent} was made with another grid; choose another --name, or remove it"
            )
        return
    tree = {"split": sweep.split, "cells": [asdict(cell) for cell in sweep.cells]}
    write_atomic(path, json.dumps(tree, indent=1))


def load(run: Run, name: str) -> Sweep | None:
    """The sweep that was saved under a name, or None."""
    path = sweep_folder(run, name) / "sweep.json"
    if not path.is_file():
        return None
    tree = read_json(path)
    try:
        return Sweep(name, tree["split"], tuple(Cell(**cell) for cell in tree["cells"]))
    except (KeyError, TypeError):
        raise DamagedError(f"{path}: damaged; remove it and start again") from None


def items(run: Run, name: str) -> list[Item] | None:
    """The cells as items of an array stage; None before the sweep is saved."""
    sweep = load(run, name)
    return None if sweep is None else [(cell.name, 0) for cell in sweep.cells]


def graph(name: str) -> list[Stage]:
    """Two stages: the cells, drawn and measured, and the table that merges them."""
    return [
        Stage(
            f"sweep-{name}",
            "jobs.sweep:draw_and_measure",
            "gpu",
            arguments=(name,),
            items=partial(items, name=name),
            artefact=partial(cell_table, name=name),
            blocks=True,
        ),
        Stage(f"sweep-{name}-table", "jobs.sweep:merge", "cpu", (f"sweep-{name}",), (name,)),
    ]


def names(run: Run) -> list[str]:
    """The sweeps of a run."""
    return sorted(path.parent.name for path in run.path("sweeps").glob("*/sweep.json"))
