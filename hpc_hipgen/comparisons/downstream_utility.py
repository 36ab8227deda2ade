"""Downstream utility: do generated films help a ruler that has few films to learn from?

A cell is one ruler: so many training films with landmarks, one seed, and one arm, that is what it
sees beside them. All cells of a seed see the same films (the first n of one order), in the same
order and with the same augmentation. Generated films are drawn first, in shards. Nothing heavy is
imported here.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from hpc_hipgen.comparisons.cells import Comparison, one_is_a_list
from hpc_hipgen.config import ConfigError, parse_settings, settings_tree
from hpc_hipgen.files import read_json
from hpc_hipgen.pipeline import Item, Stage, count_films
from hpc_hipgen.rows import ROWS_OF_FILMS, row_model
from hpc_hipgen.run import Run
from hpc_hipgen.shards import shard_name

ALONE, GENERATED, ANGLES = ARMS = ("alone", "generated", "angles")
ARM_LABELS = {
    ALONE: "films with landmarks alone",
    GENERATED: "and generated films",
    ANGLES: "and other training films, their angles alone",
}


@dataclass(frozen=True)
class Cell:
    """One ruler: `arm` one of `ARMS`, `films` with landmarks, `seed` from 0."""

    arm: str
    films: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-{self.films}-{self.seed}"


class Utility(Comparison):
    """Which rulers are compared; the folder of one has metrics.jsonl, too."""

    job = folder = "utility"
    function = "jobs.utility:train_and_measure"
    result = "result.json"

    row: str  # of the report: which generator draws
    films: tuple[int, ...] = (10, 20, 40, 80, 160)  # with landmarks
    seeds: int = Field(3, ge=1)
    generated: int = Field(438, ge=1)  # films drawn; as many views of other films in that arm
    images: int = Field(6000, gt=0)  # of films with landmarks that each ruler sees
    # Of a degree off on a film without landmarks; on one with landmarks a pixel off weighs 1, which
    # is some 3 degrees. Not tuned.
    weight: float = Field(0.1, gt=0)

    _lists = field_validator("films", mode="before")(one_is_a_list)

    @field_validator("films")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(n < 1 for n in value) or len(set(value)) < len(value):
            raise ValueError("different numbers of films, 1 or more")
        return tuple(sorted(value))

    def cells(self, run: Run) -> list[Cell]:
        """All rulers; with all films of a run there are no others to add."""
        every = count_films(run.path("data", "manifest.csv"), "train")
        return [
            Cell(arm, films, seed)
            for films in self.films
            for seed in range(self.seeds)
            for arm in ARMS
            if arm != ANGLES or films < every
        ]

    def cell_names(self, run: Run) -> list[str]:
        """Of `cells`."""
        return [cell.name for cell in self.cells(run)]

    @classmethod
    def sample_shard(cls, run: Run, item: Item, name: str) -> Path:
        """Where generated films lie (webdataset)."""
        return cls.path(run, name, "samples", shard_name(item[1], "tar"))

    @classmethod
    def sample_items(cls, run: Run, name: str) -> list[Item] | None:
        """The shards of generated films; None before the settings are saved."""
        if (found := cls.load(run, name)) is None:
            return None
        shards = ceil(found.generated / run.config.sampling.shard_size)
        return [(found.row, shard) for shard in range(shards)]

    @classmethod
    def before(cls, name: str) -> list[Stage]:
        """Generated films, shard by shard."""
        return [
            Stage(
                f"utility-{name}-samples",
                "jobs.utility:draw",
                "gpu",
                arguments=(name,),
                items=partial(cls.sample_items, name=name),
                artefact=partial(cls.sample_shard, name=name),
            )
        ]


def plan(run: Run, arguments: list[str]) -> Utility:
    """The settings of `key=value` arguments, checked against the run.

    Raises:
        ConfigError: one problem a line.
    """
    tree = settings_tree({}, arguments)
    drawn = [row for row in run.rows() if row not in ROWS_OF_FILMS]
    if not drawn:
        raise ConfigError(f"{run.folder}: this run has no generator")
    settings = parse_settings(Utility, {"row": drawn[-1]} | tree, "utility")
    if settings.row not in drawn:
        raise ConfigError(f"row={settings.row}: not one of {', '.join(drawn)}")
    export = run.path(row_model(run.config, settings.row)[0], "export")
    if not export.is_dir():
        raise ConfigError(f"{export}: missing; train it to its end first")
    _check_films(run, settings)
    return settings


def _check_films(run: Run, settings: Utility) -> None:
    """Raises ConfigError unless the run's films suffice for the smallest and the largest number."""
    path = run.path("data", "manifest.csv")
    if not path.is_file():
        raise ConfigError(f"{path}: missing; finish the run first")
    with path.open(newline="", encoding="utf-8") as file:
        views = [row["film"] for row in csv.DictReader(file) if row["split"] == "train"]
    films = len(set(views))
    if settings.films[-1] > films:
        raise ConfigError(f"films={settings.films[-1]}: the run has {films} training films")
    if run.config.ruler is None:
        raise ConfigError(f"{run.folder}: this experiment has no ruler")
    if run.config.ruler.training is None:
        raise ConfigError("ruler.training: missing in this run, and says how rulers are trained")
    batch = run.config.ruler.training.batch
    least = sum(sorted(Counter(views).values())[: settings.films[0]])  # which films, is left to lot
    if least < batch:
        raise ConfigError(f"films={settings.films[0]}: {least} views, less than a batch of {batch}")
    if settings.images < batch:
        raise ConfigError(f"images={settings.images}: less than a batch of {batch}")


def summaries(run: Run) -> dict[str, dict[str, Any]]:
    """What finished comparisons found, by name."""
    found = {name: Utility.path(run, name, "summary.json") for name in Utility.names(run)}
    return {name: read_json(path) for name, path in found.items() if path.is_file()}
