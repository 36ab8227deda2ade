"""The film ruler of a lab: training on its films among drawings, cross-validated by dog."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_hipgen.config import Experiment, LabRuler
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.films import read_spaced_film
from hpc_hipgen.radiograph.lab_films import LabFilm, prepared_films, scenes_of
from hpc_hipgen.radiograph.scene_store import read_scenes
from hpc_hipgen.rulers.cross_validation import Hip, hips_of
from hpc_hipgen.rulers.film_check import held_out_report
from hpc_hipgen.rulers.film_ruler import (
    Calibration,
    FilmMeasurement,
    FilmRuler,
    load_film_ruler,
    save_film_ruler,
)
from hpc_hipgen.rulers.film_ruler_training import FilmRulerTask
from hpc_hipgen.run import Run

BATCH = 8
"""Films measured at once."""


class LabRulerTask(FilmRulerTask):
    """A trained film ruler that goes on learning from a lab's films, among drawn scenes.

    Data items 0 .. `drawn` - 1 are drawn scenes, those from there on scenes of films; of all items
    a share of `lab_ruler.film_share` is of films, and each scene is among them.
    """

    def __init__(
        self,
        config: Experiment,
        scenes: Path,
        films: Path,
        chosen: Sequence[LabFilm],
        base: FilmRuler,
    ) -> None:
        """`films`: the prepared films, of which only the `chosen` are seen."""
        section = config.section("lab_ruler", LabRuler)
        networks = base.networks.train().to(memory_format=torch.contiguous_format)
        super().__init__(config, scenes, networks, section.training)
        self.base, self.chosen = base, list(chosen)
        self.films = read_scenes(films)
        self.numbers = scenes_of(prepared_films(films), chosen)
        share = section.film_share
        self.drawn = max(len(self.scenes), ceil(len(self.numbers) * (1 - share) / share))
        self.size = self.drawn + max(len(self.numbers), round(self.drawn * share / (1 - share)))
        self.cross_validation: dict[str, Any] = {}

    def _place(self, index: int) -> tuple[bool, int]:
        """Whether a data item is of a film, and the number of its scene."""
        if index < self.drawn:
            return False, index % len(self.scenes)
        return True, int(self.numbers[(index - self.drawn) % len(self.numbers)])

    def drawings(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of some scenes, drawn or of films."""
        places = [self._place(int(index)) for index in indices]
        sources = vars(self.scenes), vars(self.films)
        return {
            name: np.stack([sources[of_film][name][number] for of_film, number in places])
            for name in sources[0]
        }

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the scenes."""
        places = [self._place(int(index)) for index in indices]
        return [f"scene {number}{' of the films' if film else ''}" for film, number in places]

    def ruler(self, calibration: Calibration | None = None) -> FilmRuler:
        """The ruler as trained so far; stated uncertainties by default those of its base."""
        networks = self.averages["export"].module.float().cpu()
        return FilmRuler(networks, calibration or self.base.calibration, lab_films=len(self.chosen))

    def export(self, folder: Path) -> dict[str, float | None]:
        """Writes the ruler with its error on drawings and in cross-validation (no film's name)."""
        known = self.base.calibration
        factor = self.cross_validation["stretch"]
        ruler = self.ruler(Calibration(*(factor * value for value in vars(known).values())))
        count = self.section.held_out
        error = held_out_report(ruler, range(count, 2 * count))
        settings = {"held_out_phantoms": error, "cross_validation": self.cross_validation}
        save_film_ruler(ruler, folder, settings)
        figures = {f"held_out_{name}": value for name, value in error.items()}
        after = self.cross_validation["after"]
        return figures | {f"films_{name}": after[name] for name in ("mae", "bias", "refused")}


def fold_task(run: Run, fold: int | None) -> tuple[LabRulerTask, list[LabFilm]]:
    """The task of a fold, which sees no film of it, and the films that it is to measure.

    `fold` None: all films are seen, and none is measured.
    """
    folder = run.path("lab_films")
    films = prepared_films(folder)
    seen = [film for film in films if film.fold != fold]
    held_out = [film for film in films if film.fold == fold]
    base = load_film_ruler(run.first_stage("film_ruler"))
    return LabRulerTask(run.config, run.path("scenes"), folder, seen, base), held_out


def measure_held_out(run: Run, task: LabRulerTask, films: Sequence[LabFilm]) -> list[Hip]:
    """The hips of films, measured by the ruler that the task started from and by its own.

    Raises:
        ValueError: when a film can no longer be read.
    """
    base = load_film_ruler(run.first_stage("film_ruler"))  # the task's has been trained on
    folder = run.config.section("lab_ruler", LabRuler).films
    assert folder, "its films were prepared"
    return hips_of(films, *(measure_films(folder, ruler, films) for ruler in (base, task.ruler())))


def measure_films(
    folder: Path, ruler: FilmRuler, films: Sequence[LabFilm]
) -> list[FilmMeasurement]:
    """What a ruler finds in prepared films of a lab's folder, in the pixels of their landmarks."""
    found = []
    starts = range(0, len(films), BATCH)
    for start in progress(starts, len(starts), "measuring held-out films"):
        batch = films[start : start + BATCH]
        images = [read_spaced_film(folder / film.name).standard() for film in batch]
        found += ruler.measure(images)
    return found
