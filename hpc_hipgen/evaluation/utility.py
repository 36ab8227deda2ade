"""Rulers of few films, with and without films that have no landmarks, and their learning curves.

What may be learnt from a generated film is the pair of angles that was asked for: where its
landmarks are, nobody knows. So such films have a loss in degrees alone, of the angle between the
points that the network finds. (Landmarks from the run's ruler would smuggle in the films that this
one has learnt from.) The same is done to training films in a third arm, where the angles are true:
what the films that the generator was trained on are worth without it. The run's own ruler, which
measures the generators, takes no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_hipgen.config import Experiment, Training
from hpc_hipgen.radiograph.geometry import norberg_angle, swap_sides
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import Ruler, standardise
from hpc_hipgen.rulers.ruler_training import (
    RulerLoss,
    RulerTask,
    expose,
    mirrored,
    move,
    norberg_angles,
)
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.utility import ALONE, ARMS

RESAMPLES = 2000
COLUMNS = (
    "films", "arm", "seeds", "mae", "low", "high", "bias", "refused",
    "difference", "difference_low", "difference_high",
)  # fmt: skip


@dataclass(frozen=True)
class AngleFilms:
    """Films without landmarks: images (m, h, w) uint8, angles (m, 2) degrees, image left, right."""

    images: np.ndarray
    angles: np.ndarray


class UtilityLoss(RulerLoss):
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
        found = self.found_points(more)
        off = (norberg_angles(found) - angles).abs().mean(1)
        return losses + self.weight * off, {**scalars, "degrees_without": off.mean()}


class UtilityTask(RulerTask):
    """A ruler that learns from a few films, and as many views without landmarks a step."""

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
        assert config.ruler
        self.config, self.films, self.more = config, films, more
        torch.manual_seed(seed)
        self.module = UtilityLoss(config.ruler.channels, weight)
        self.size = len(films)
        self.averages = {"export": WeightAverage.for_export(self.module, training)}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Views with landmarks, the same whatever else there is, and views without."""
        batch = super().batch(indices, random)
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


def learning_curve(
    results: Sequence[Mapping[str, Any]], dogs: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """A line for each number of films and arm: errors in degrees, with 95 % intervals.

    Dogs (with both hips and all films) and seeds are resampled, each on its own, the same way for
    every line, so that `difference` (MAE minus that of the arm `alone`) is paired.

    Args:
        results: of all cells: arm, number (of films), seed, errors (f, 2), refused. Every arm and
            number has the same seeds.
        dogs: f names, of the films' dogs.
        seed: of the bootstrap.
    """
    table: dict[tuple[int, str], dict[int, Mapping[str, Any]]] = {}
    for result in results:
        table.setdefault((result["number"], result["arm"]), {})[result["seed"]] = result
    seeds = sorted(next(iter(table.values())))
    weights = _resampled(len(seeds), dogs, seed)
    lines, alone = [], {}
    for (number, arm), cells in sorted(table.items(), key=lambda x: (x[0][0], ARMS.index(x[0][1]))):
        errors = np.array([cells[s]["errors"] for s in seeds])  # seeds, films, sides
        off = np.abs(errors).mean(2)
        spread = np.einsum("bs,sf,bf->b", weights[0], off, weights[1])
        line = {
            "films": number, "arm": arm, "seeds": len(seeds), "mae": float(off.mean()),
            "bias": float(errors.mean()), "refused": sum(cells[s]["refused"] for s in seeds),
            **dict(zip(("low", "high"), _interval(spread), strict=True)),
            "difference": None, "difference_low": None, "difference_high": None,
        }  # fmt: skip
        if arm == ALONE:
            alone[number] = (line["mae"], spread)
        elif number in alone:
            mae, other = alone[number]
            low, high = _interval(spread - other)
            line |= {"difference": line["mae"] - mae}
            line |= {"difference_low": low, "difference_high": high}
        lines.append(line)
    return lines


def _resampled(seeds: int, dogs: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of seeds (b, s) and of films (b, f) in resamples of seeds and of dogs; sums are 1."""
    rng = np.random.default_rng(seed)
    _, whose = np.unique(np.asarray(dogs), return_inverse=True)
    count = whose.max() + 1
    of_dogs = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    of_films = of_dogs[:, whose].astype(float)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    return of_seeds, of_films / of_films.sum(1, keepdims=True)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
