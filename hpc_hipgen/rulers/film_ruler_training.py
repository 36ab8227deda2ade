"""Training of the film ruler on drawn scenes, and its calibration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.config import Experiment, Training, training_of
from hpc_hipgen.config import FilmRuler as FilmRulerSection
from hpc_hipgen.radiograph.scene_store import read_scenes
from hpc_hipgen.rulers.film_check import CALLED, held_out_report, measured_phantoms
from hpc_hipgen.rulers.film_networks import (
    SIZE,
    FilmNetworks,
    cut,
    network_input,
    presence_logit,
)
from hpc_hipgen.rulers.film_ruler import (
    Calibration,
    FilmRuler,
    save_film_ruler,
)
from hpc_hipgen.rulers.ruler import read_points
from hpc_hipgen.rulers.ruler_training import RADIUS_WEIGHT, expose, heat_loss
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import Task

HEAT_WEIGHT, PRESENCE_WEIGHT, TURN_WEIGHT = 1.5, 2.0, 0.1
"""The first is high because points are read at the peaks of heat maps, not from all their mass."""

BEND_PIXELS = 2.5
"""Greatest local displacement of a view: the drawing knows few forms of an outline."""


class FilmRulerLoss(nn.Module):
    """Both networks with their loss."""

    def __init__(self, networks: FilmNetworks) -> None:
        """`networks` are trained in place."""
        super().__init__()
        self.networks = networks

    def forward(
        self,
        films: Tensor,
        heads: Tensor,
        seen: Tensor,
        close_ups: Tensor,
        points: Tensor,
        radius: Tensor,
        present: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-dog losses of a film and a close-up each.

        Args:
            films, close_ups: network inputs (b, 2, n, n).
            heads, points: (b, 2, 2) in pixels, see `Scene`.
            seen: (b, 2), 1 where a head is there; present: (b, 1), 1 where a hip is.
            radius: (b,) of the head in pixels.
        """
        film_logits, _ = self.networks.finder(films)
        missing, film_pixels = _marks(film_logits, heads, seen)
        logits, log_radii = self.networks.hip(close_ups)
        there = present.expand(-1, 2)
        absent, pixels = _marks(logits, points, there)
        found, radii, _ = read_points(logits, log_radii)
        off = _turn(found, points) * present[:, 0]
        ratio = (radii[:, 0] / radius).log().abs() * present[:, 0]
        losses = missing + absent + TURN_WEIGHT * off + 10 * RADIUS_WEIGHT * ratio
        scalars = {
            "film_pixels": _mean(film_pixels, seen),
            "pixels": _mean(pixels, there),
            "degrees": _mean(off, present[:, 0]),
        }
        return losses, scalars


def _marks(logits: Tensor, points: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Loss (b,) of maps (b, k, h, w), and distances (b, k) in pixels to points that are there."""
    evidence = presence_logit(logits)
    presence = F.binary_cross_entropy_with_logits(evidence, there, reduction="none")
    found, _, _ = read_points(logits, logits[:, :0])
    distance = (found - points).norm(dim=-1) * there
    heat = heat_loss(logits, points) * there
    losses = distance + HEAT_WEIGHT * heat + PRESENCE_WEIGHT * presence
    return losses.mean(1), distance.detach()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return values.detach().sum() / weights.sum().clamp_min(1)


def _turn(found: Tensor, points: Tensor) -> Tensor:
    """Degrees (b,) by which the line from head to rim, points (b, 2, 2), is turned."""
    arm, true = found[:, 1] - found[:, 0], points[:, 1] - points[:, 0]
    cross = (arm[:, 0] * true[:, 1] - arm[:, 1] * true[:, 0]).abs()
    return torch.rad2deg(torch.atan2(cross, (arm * true).sum(-1)))


class FilmRulerTask(Task):
    """The film ruler for the training loop; one image of the clock is a film and a close-up."""

    def __init__(
        self,
        config: Experiment,
        scenes: Path,
        networks: FilmNetworks | None = None,
        training: Training | None = None,
    ) -> None:
        """Reads the prepared scenes; `networks` that go on learning, by `training`, or new ones."""
        self.section = config.section("film_ruler", FilmRulerSection)
        training = training or training_of(self.section)
        self.scenes = read_scenes(scenes)
        self.size = len(self.scenes)
        torch.manual_seed(config.seed)
        self.networks = networks or FilmNetworks(self.section.finder, self.section.hip)
        self.module = FilmRulerLoss(self.networks)
        self.averages = {"export": WeightAverage.for_export(self.networks, training)}

    def drawings(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of some `Scenes`."""
        return {name: np.array(a[indices]) for name, a in vars(self.scenes).items()}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Films and close-ups of some dogs, moved, bent and exposed anew."""
        part = self.drawings(indices)
        tensors = {name: torch.from_numpy(a).float() for name, a in part.items()}
        films, heads = vary(tensors["films"], tensors["heads"], random.fork("film"), FILM_MOVES)
        seen = tensors["seen"] * ((heads > 4) & (heads < SIZE - 5)).all(-1)
        fork = random.fork("hip")
        close_ups, points, zoom = vary_close_ups(tensors["close_ups"], tensors["points"], fork)
        return {
            "films": films,
            "heads": heads,
            "seen": seen,
            "close_ups": close_ups,
            "points": points,
            "radius": tensors["radius"] * zoom,
            "present": tensors["present"],
        }

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the dogs."""
        return [f"scene {i}" for i in indices]

    def export(self, folder: Path) -> dict[str, float | None]:
        """Calibrates on held-out phantoms, writes the ruler and its error on others."""
        networks = self.averages["export"].module.float().cpu()
        ruler = FilmRuler(networks, min_presence=0.0, max_uncertainty=np.inf)
        count = self.section.held_out
        found, errors = measured_phantoms(ruler, range(count))
        features = np.stack([m.features for m in found])
        known = np.isfinite(errors) & np.isfinite(features).all(-1)
        ruler.calibration = calibrate(features[known], errors[known])
        ruler = FilmRuler(networks, ruler.calibration)
        error = held_out_report(ruler, range(count, 2 * count))
        save_film_ruler(ruler, folder, {"held_out_phantoms": error})
        return {f"held_out_{name}": value for name, value in error.items()}


FILM_MOVES = (4.0, 0.1, 0.06)
HIP_MOVES = (12.0, 0.17, 0.1)
"""Largest rotation in degrees, log zoom, and shift as a share of the width."""


def vary_close_ups(
    images: Tensor, points: Tensor, random: ImageRandom
) -> tuple[Tensor, Tensor, Tensor]:
    """As `vary` with `HIP_MOVES`; also the zoom (b,), by which a radius grows."""
    zoom = torch.exp(_moves(random, HIP_MOVES)[1])
    return *vary(images, points, random, HIP_MOVES, crop=1.0), zoom


def _moves(random: ImageRandom, most: tuple[float, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation in radians (b,), log zoom (b,) and shift (b, 2) as a share of the width."""
    u = random.uniform("move", 4) * 2 - 1
    return torch.deg2rad(u[:, 0] * most[0]), u[:, 1] * most[1], u[:, 2:] * most[2]


def vary(
    images: Tensor,
    points: Tensor,
    random: ImageRandom,
    most: tuple[float, float, float],
    crop: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Moves, bends and exposes images (b, n, n) in 0..255 with their points (b, k, 2) in pixels.

    Args:
        images: drawings.
        points: in their pixels.
        random: of this batch.
        most: see `FILM_MOVES`.
        crop: pixels of a view per pixel of a drawing before zooming; None: all of it is shown.

    Returns:
        Network inputs (b, 2, SIZE, SIZE) and points in their pixels.
    """
    n = images.shape[-1]
    angle, log_zoom, shift = _moves(random, most)
    scale = torch.exp(-log_zoom) * (1 / crop if crop else n / SIZE)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2)
    offset = (n - 1) / 2 - linear @ ((SIZE - 1) / 2 + shift[..., None] * SIZE)
    bend = _bend(random)
    views = cut(images[:, None] / 255, torch.cat([linear, offset], -1), SIZE, bend)
    moved = _seen_at(points, linear, offset[..., 0], bend)
    views = expose(_sharpen_or_soften(views, random).clamp(0, 1), random)
    return network_input(_tone(views, random)), moved


def _bend(random: ImageRandom) -> Tensor:
    """A smooth field (b, 2, SIZE, SIZE) of displacements up to `BEND_PIXELS`; none in a quarter."""
    knots = (random.uniform("bend", 2, 6, 6) * 2 - 1) * BEND_PIXELS
    strength = (random.uniform("bend strength") * 4 / 3 - 1 / 3).clamp_min(0)
    field = F.interpolate(knots, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    return field * strength[:, None, None, None]


def _seen_at(points: Tensor, linear: Tensor, offset: Tensor, bend: Tensor) -> Tensor:
    """Where points (b, k, 2) of a drawing appear in a view: the inverse, by iteration."""
    inverse = torch.linalg.inv(linear)
    displaced = torch.zeros_like(points)
    for _ in range(4):
        seen = (points - offset[:, None] - displaced) @ inverse.mT
        grid = (seen * 2 / (SIZE - 1) - 1).clamp(-1, 1)[:, :, None]
        displaced = F.grid_sample(bend, grid, align_corners=True)[..., 0].mT
    return seen


def _sharpen_or_soften(views: Tensor, random: ImageRandom) -> Tensor:
    """Edge enhancement of two thirds of the views, as viewers apply it; haze in the others."""
    strength = (random.uniform("sharpen") * 3 - 1)[:, None, None, None]
    smooth = F.avg_pool2d(views, 5, stride=1, padding=2, count_include_pad=False)
    return views + strength * (views - smooth)


def _tone(views: Tensor, random: ImageRandom) -> Tensor:
    """Uneven light, burnt-out or drowned grey levels and a veil, as real films have them."""
    light = F.interpolate(
        random.normal("light", 1, 3, 3), size=(SIZE, SIZE), mode="bicubic", align_corners=True
    )
    u = random.uniform("tone", 4)[:, :, None, None, None]
    views = views * torch.exp(light * 0.35 * u[:, 0])
    middle, steep = 0.15 + 0.5 * u[:, 1], 3 + 9 * u[:, 2]
    curved = torch.sigmoid(steep * (views - middle))
    return torch.where(u[:, 3] < 0.35, curved, views)


def calibrate(features: np.ndarray, errors: np.ndarray) -> Calibration:
    """The interval of features (m, 2) that holds 95 % of absolute errors (m,), in degrees.

    A non-negative least-squares fit of the error, stretched until 95 % of all errors and 95 % of
    those of hips called +-2 degrees or better are within. Fewer than 20 hips say nothing: then a
    cautious guess, which calls none so well.
    """
    if len(errors) < 20:
        return Calibration()
    usual = Calibration(*nnls(np.column_stack([np.ones(len(features)), features]), errors)[0])
    scale = np.maximum(usual.half_width(features), 1e-3)
    stretch = np.quantile(errors / scale, 0.95)
    while True:
        called = stretch * scale <= CALLED
        # by a standard error more than is said, so that it holds of other hips too
        least = 0.95 + math.sqrt(0.95 * 0.05 / max(1, called.sum()))
        if not called.any() or (errors[called] <= CALLED).mean() >= least:
            break
        stretch *= 1.02
    return Calibration(*(float(stretch * value) for value in vars(usual).values()))
