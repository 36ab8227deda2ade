"""Training of the ruler, on the training split only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.config import Experiment
from hpc_hipgen.evaluation.faithfulness import faithfulness
from hpc_hipgen.files import save_network
from hpc_hipgen.radiograph.duplicates import fingerprint, kept_fingerprints
from hpc_hipgen.radiograph.geometry import swap_sides
from hpc_hipgen.radiograph.layouts import Films, read_manifest
from hpc_hipgen.rulers.ruler import (
    SETTINGS,
    Ruler,
    RulerNetwork,
    mass_near,
    norberg_angles,
    points_of,
    read_points,
    standardise,
)
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.task import FilmTask

HEAT_SIGMA = 1.5
"""Width of the target heat maps, in their pixels."""

RADIUS_WEIGHT, HEAT_WEIGHT, ANGLE_WEIGHT = 0.2, 1.0, 0.05

COLLAPSED = 0.75
"""Median confidence below which a ruler has not learnt its points: 0.9 is usual."""


class RulerLoss(nn.Module):
    """The network with its loss."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        """See `RulerNetwork`."""
        super().__init__()
        self.network = RulerNetwork(channels)

    def forward(self, images: Tensor, points: Tensor, radii: Tensor) -> tuple[Tensor, dict]:
        """Per-image losses of views (b, 1, h, w), points (b, 4, 2) and radii (b, 2), in pixels.

        What is read off a map counts by the map's mass at its point, so the shapes of maps are
        learnt first. The expectations of flat maps would pull a hip's head and rim into one blob,
        which most first weights never part again (docs/log.md, 2026-11-28).
        """
        logits, log_radii = self.network(images)
        found, found_radii, _ = read_points(logits, log_radii)
        distance = (found - points).norm(dim=-1)
        off = (norberg_angles(found) - norberg_angles(points)).abs()
        ratio = (found_radii / radii).log().abs() * 10
        trust = mass_near(logits, points).detach()
        losses = (
            (trust * distance).mean(1)
            + HEAT_WEIGHT * heat_loss(logits, points).mean(1)
            + RADIUS_WEIGHT * (trust[:, ::2] * ratio).mean(1)
            + ANGLE_WEIGHT * trust.amin(1) * off.mean(1)
        )
        return losses, {"pixels": distance.mean(), "degrees": off.mean()}


def heat_loss(logits: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy (b, n) of n maps to Gaussians of `HEAT_SIGMA` around points (b, n, 2).

    It keeps heat maps compact, not only centred.
    """
    h, w = logits.shape[2:]
    centres = (points - 0.5) / 2
    ys = torch.arange(h, device=logits.device) - centres[..., 1:]
    xs = torch.arange(w, device=logits.device) - centres[..., :1]
    target = -(ys[..., :, None] ** 2 + xs[..., None, :] ** 2) / (2 * HEAT_SIGMA**2)
    target = target.flatten(2).softmax(-1)
    return -(target * logits.flatten(2).float().log_softmax(-1)).sum(-1)


def ruler_batch(films: Films, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
    """The views `indices` (b,) of films with their landmarks, augmented, for a `RulerLoss`."""
    views = torch.from_numpy(films.images[indices]).float()[:, None] / 255
    landmarks = torch.from_numpy(films.landmarks[indices]).float()
    views, points, radii = move(views, landmarks, random)
    return {"images": standardise(expose(views, random)), "points": points, "radii": radii}


class RulerTask(FilmTask):
    """The ruler for the training loop."""

    reads_views = True

    def __init__(self, config: Experiment, data: Path, name: str = "ruler") -> None:
        """Reads the training split of a prepared data folder; `name`: of the section."""
        self.config, self.data, self.name = config, data, name
        self.section = getattr(config, name)
        super().__init__(read_manifest(data, "train"))
        self.held_out = read_manifest(data, "validation")
        torch.manual_seed(config.seed + (name != "ruler"))  # the second is another ruler
        self.module = RulerLoss(self.section.channels)
        self.averages = {"export": WeightAverage.for_export(self.module, self.section.training)}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Views of the films with their landmarks, augmented, for each ruler in its own way."""
        random = random if self.name == "ruler" else random.fork(self.name)
        return ruler_batch(self.films, indices, random)

    def export(self, folder: Path) -> dict[str, float | None]:
        """Writes the averaged network, and its error on the validation split."""
        network = self.averages["export"].module.network.float().cpu()
        resolution = self.config.data.resolution
        error = ruler_error(Ruler(network, resolution), self.held_out)
        confidence = error["confidence"]
        assert confidence is not None, "a median of numbers"
        if confidence < COLLAPSED:
            print(
                f"warning: {self.name}: the maps of a hip mark its head and its rim alike "
                f"(confidence {confidence:.2f}), which biases angles; train it longer",
                file=sys.stderr,
            )
        settings = {
            "channels": list(self.section.channels),
            "resolution": resolution,
            "head_distance": self.config.data.head_distance,
            "source": self.config.data.source,
            "training_films": self.training_films(),
        }
        save_network(network, folder, SETTINGS, {**settings, "validation": error})
        return {f"validation_{k}": v for k, v in error.items()}

    def training_films(self) -> list[str] | None:
        """Fingerprints of real films and of their nominal views, by which a run knows them again.

        Whole films know no landmarks, and views no header that was written anew.
        """
        if self.config.data.source != "films":
            return None
        first = {film: i for i, film in reversed(list(enumerate(self.films.film)))}
        views = [fingerprint(self.films.images[i]) for i in first.values()]
        whole = kept_fingerprints(self.data)
        return sorted({*views, *(whole[film] for film in first if film in whole)})


def ruler_error(ruler: Ruler, films: Films) -> dict[str, float | None]:
    """Mean absolute error in degrees by patient side, on views of known angles."""
    measured = ruler.measure(films.images)
    found = swap_sides(np.array([(m.image_left, m.image_right) for m in measured]))
    left = faithfulness(films.patient_left, found[:, 0])
    right = faithfulness(films.patient_right, found[:, 1])
    return {
        "mae_left": left["mae"],
        "mae_right": right["mae"],
        "refused": sum(bool(m.reason) for m in measured),
        "confidence": float(np.median([m.confidence for m in measured])),
    }


def mirrored(random: ImageRandom) -> Tensor:
    """Which of the views `move` mirrors, (b,) bool."""
    return random.uniform("move", 5)[:, 4] < 0.5


def move(views: Tensor, landmarks: Tensor, random: ImageRandom) -> tuple[Tensor, Tensor, Tensor]:
    """Turns, shifts, zooms and mirrors views (b, 1, n, n) with their landmarks (b, 2, 5).

    Similarities only, so the angles stay. Rotation up to 10 degrees, zoom 0.85 to 1.18, shift up
    to 6 % of the width.

    Returns:
        views, points (b, 4, 2) in the order of `ruler.POINTS`, radii (b, 2).
    """
    b, _, n, _ = views.shape
    u = random.uniform("move", 5) * 2 - 1
    angle, zoom = torch.deg2rad(u[:, 0] * 10), torch.exp(u[:, 1] * 0.166)
    shift = u[:, 2:4] * 0.06 * n
    swapped = mirrored(random)
    mirror = torch.where(swapped, -1.0, 1.0)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    # Forward map: p -> R p + shift about the centre, after mirroring x.
    rotate = torch.stack([cosine, -sine, sine, cosine], -1).view(b, 2, 2)
    forward = rotate.clone()
    forward[:, :, 0] *= mirror[:, None]
    backward = torch.linalg.inv(forward)
    # affine_grid works in units of half the image.
    offset = -(backward @ shift[:, :, None]) / (n / 2)
    grid = F.affine_grid(torch.cat([backward, offset], -1), list(views.shape), align_corners=False)
    views = F.grid_sample(views, grid, mode="bicubic", padding_mode="border", align_corners=False)
    middle = (n - 1) / 2
    points = points_of(landmarks) - middle
    points = (forward @ points.mT).mT + shift[:, None] + middle
    points = torch.where(swapped[:, None, None], points[:, [2, 3, 0, 1]], points)
    radii = landmarks[..., 2] * zoom[:, None]
    return views.clamp(0, 1), points, torch.where(swapped[:, None], radii.flip(1), radii)


def expose(views: Tensor, random: ImageRandom) -> Tensor:
    """Varies exposure, sharpness and noise of views (b, 1, n, n) in 0..1."""
    u = random.uniform("expose", 4)[:, :, None, None, None]
    views = views.clamp_min(1e-4) ** torch.exp((u[:, 0] - 0.5) * 1.4)
    blurred = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    views = torch.lerp(views, blurred, (u[:, 1] * 1.5 - 0.25).clamp(0, 1))
    noise = random.normal("grain", *views.shape[1:])
    return views * (0.4 + 0.6 * u[:, 2]) + noise * 0.04 * u[:, 3] ** 2
