"""Rulers of few films, with and without films that have no landmarks.

What may be learnt from a generated film is the pair of angles that was asked for: where its
landmarks are, nobody knows. So such films have a loss in degrees alone, of the angle between the
points that the network finds. (Landmarks from the run's ruler would smuggle in the films that this
one has learnt from.) The same is done to training films in a third arm, where the angles are true:
what the films that the generator was trained on are worth without it. The run's own ruler, which
measures the generators, takes no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_hipgen.config import Experiment, Training
from hpc_hipgen.config import Ruler as RulerSection
from hpc_hipgen.radiograph.geometry import norberg_angle, swap_sides
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import Ruler, norberg_angles, read_points, standardise
from hpc_hipgen.rulers.ruler_training import (
    RulerLoss,
    expose,
    mirrored,
    move,
    ruler_batch,
)
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import FilmTask


@dataclass(frozen=True)
class AngleFilms:
    """Films without landmarks: images (m, h, w) uint8, angles (m, 2) degrees, image left, right."""

    images: np.ndarray
    angles: np.ndarray


class FewFilmsLoss(RulerLoss):
    """The ruler's loss, and that of films without landmarks."""

    def __init__(self, channels: tuple[int, ...], weight: float) -> None:
        """`weight`: of a degree off on a film without landmarks."""
        super().__init__(channels)
        self.weight = weight

    def forward(
        self,
        images: Tensor,
        points: Tensor,
        radii: Tensor,
        more: Tensor | None = None,
        angles: Tensor | None = None,
    ) -> tuple[Tensor, dict]:
        """`more` (b, 1, h, w): views without landmarks, `angles` (b, 2) theirs, in degrees."""
        losses, scalars = super().forward(images, points, radii)
        if more is None or angles is None:
            return losses, scalars
        found, _, confidence = read_points(*self.network(more))
        off = (norberg_angles(found) - angles).abs().mean(1)
        # as in `RulerLoss`: flat maps, whose points mean nothing, are left to films with landmarks
        trust = confidence.amin(1).detach()
        return losses + self.weight * trust * off, {**scalars, "degrees_without": off.mean()}


class FewFilmsTask(FilmTask):
    """A ruler that learns from a few films, and as many views without landmarks a step."""

    reads_views = True

    def __init__(
        self,
        config: Experiment,
        training: Training,
        films: Films,
        more: AngleFilms | None,
        weight: float,
        seed: int,
    ) -> None:
        """`films` have landmarks; `more` have none; `seed` is of the first weights."""
        super().__init__(films)
        self.config, self.more = config, more
        torch.manual_seed(seed)
        self.module = FewFilmsLoss(config.section("ruler", RulerSection).channels, weight)
        self.averages = {"export": WeightAverage.for_export(self.module, training)}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Views with landmarks, the same whatever else there is, and views without."""
        batch = ruler_batch(self.films, indices, random)
        if self.more is None:
            return batch
        fork = random.fork("more")
        picks = (fork.uniform("pick", 1)[:, 0] * len(self.more.images)).long().numpy()
        views = torch.from_numpy(self.more.images[picks]).float()[:, None] / 255
        angles = torch.from_numpy(self.more.angles[picks]).float()
        views, _, _ = move(views, torch.zeros(len(picks), 2, 5), fork)
        angles = torch.where(mirrored(fork)[:, None], swap_sides(angles), angles)
        return batch | {"more": standardise(expose(views, fork)), "angles": angles}

    def ruler(self) -> Ruler:
        """The averaged network."""
        network = self.averages["export"].module.network.float().cpu()
        return Ruler(network, self.config.data.resolution)


def chosen_films(films: Films, count: int, seed: int) -> tuple[Films, Films]:
    """All views of `count` films, and those of the others; a larger count contains a smaller."""
    names = sorted(set(films.film))
    order = np.random.default_rng([seed, 91]).permutation(len(names))
    few = {names[i] for i in order[:count]}
    inside = [name in few for name in films.film]
    return (
        films.take(np.flatnonzero(inside).tolist()),
        films.take(np.flatnonzero(np.logical_not(inside)).tolist()),
    )


def angles_alone(films: Films, most: int) -> AngleFilms | None:
    """At most so many views, spread evenly, without their landmarks; None without views."""
    if not len(films):
        return None
    picks = np.unique(np.linspace(0, len(films) - 1, min(most, len(films))).round().astype(int))
    angles = swap_sides(np.stack([films.patient_left, films.patient_right], 1))
    return AngleFilms(films.images[picks], angles[picks])


def held_out_errors(ruler: Ruler, films: Films) -> dict[str, Any]:
    """Signed errors in degrees (n, 2), patient left and right, of every film, refused or not."""
    measured = ruler.measure(films.images)
    marks = np.stack([m.landmarks for m in measured])
    heads, rims = marks[..., :2], marks[..., 3:]
    found = swap_sides(norberg_angle(heads, heads[:, ::-1], rims))
    truth = np.stack([films.patient_left, films.patient_right], 1)
    return {
        "films": films.film,
        "errors": (found - truth).round(4).tolist(),
        "refused": sum(bool(m.reason) for m in measured),
    }
