"""The ruler: a landmark network that measures both Norberg angles of a view, or refuses.

Four heat maps (two head centres, two rim points) are reduced to points by their expectation
(integral regression, Sun et al. 2018, arXiv 1711.08229), which resolves fractions of a pixel; two
radius maps are read off under the head's heat map. It is trained on the training split only
(`ruler_training.py`), never on generated images.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.files import reading_export, sha256_of
from hpc_hipgen.radiograph.geometry import Landmarks, caudal_rims
from hpc_hipgen.run import Run

POINTS = ("left head", "left rim", "right head", "right rim")
"""Order of the heat maps; sides of the image."""

SETTINGS = "ruler.json"
"""Channels, resolution and more of a stored ruler, beside its weights."""

WINDOW = 3
"""Half width, in heat map pixels, of the window whose mass is a point's confidence."""


@dataclass(frozen=True)
class Measurement:
    """What the ruler says of one view; angles are NaN when it refuses and says why."""

    image_left: float
    image_right: float
    confidence: float
    landmarks: np.ndarray
    reason: str = ""


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class RulerNetwork(nn.Module):
    """A small U-Net whose output has half the input's resolution."""

    def __init__(
        self,
        channels: tuple[int, ...],
        inputs: int = 1,
        points: int = 4,
        radii: int = 2,
    ) -> None:
        """`channels` of the levels, from half the input's resolution downwards; `inputs` channels
        of the images, `points` heat maps and `radii` maps of log radii."""
        super().__init__()
        self.points = points
        self.stem = _block(inputs, channels[0], stride=2)
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairs)
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(_block(a, a) for a, _ in pairs)
        self.head = nn.Conv2d(channels[0], points + radii, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps views (b, inputs, h, w), standardised, to maps at half resolution.

        Returns:
            logits of the heat maps (b, points, h/2, w/2) and log radii (b, radii, h/2, w/2), the
            latter relative to a tenth of the width.
        """
        features = [self.stem(images)]
        for layer in self.down:
            features.append(layer(features[-1]))
        x = features.pop()
        for lateral, up in zip(reversed(self.lateral), reversed(self.up), strict=True):
            x = F.interpolate(lateral(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(x + features.pop())
        maps = self.head(x)
        return maps[:, : self.points], maps[:, self.points :]


def standardise(images: Tensor) -> Tensor:
    """Views (b, 1, h, w) float to mean 0 and standard deviation 1 each: exposure does not count."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) / (images.std((1, 2, 3), keepdim=True) + 1e-3)


def read_points(logits: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads points, radii and confidences off the maps of n points and r radii.

    Heads and rims alternate; the first r heads have a radius.

    Returns:
        points (b, n, 2) in pixels of the view, radii (b, r) in pixels, and confidences (b, n):
        the share of a heat map's mass within `WINDOW` of its expectation.
    """
    b, n, h, w = logits.shape
    mass = logits.flatten(2).float().softmax(-1).view(b, n, h, w)
    ys = torch.arange(h, device=logits.device, dtype=torch.float32)
    xs = torch.arange(w, device=logits.device, dtype=torch.float32)
    centres = torch.stack([(mass.sum(2) * xs).sum(-1), (mass.sum(3) * ys).sum(-1)], -1)
    log_radius = (mass[:, ::2][:, : radii.shape[1]] * radii.float()).sum((2, 3))
    # A map pixel covers two view pixels: its centre lies between them.
    return centres * 2 + 0.5, log_radius.exp() * (0.1 * 2 * w), _mass_near(mass, centres)


def mass_near(logits: Tensor, points: Tensor) -> Tensor:
    """Share (b, n) of the mass of n maps that lies within `WINDOW` of points (b, n, 2)."""
    return _mass_near(logits.flatten(2).float().softmax(-1).view_as(logits), (points - 0.5) / 2)


def _mass_near(mass: Tensor, centres: Tensor) -> Tensor:
    """The same of normalised maps; `centres` (b, n, 2) in map pixels."""
    h, w = mass.shape[2:]
    near_x = (torch.arange(w, device=mass.device) - centres[..., :1]).abs() <= WINDOW
    near_y = (torch.arange(h, device=mass.device) - centres[..., 1:]).abs() <= WINDOW
    return (mass * near_y[..., :, None] * near_x[..., None, :]).sum((2, 3))


def points_of(landmarks: Tensor) -> Tensor:
    """Points (b, 4, 2) in the order of `POINTS`, of landmarks (b, 2, 5)."""
    return torch.stack([landmarks[..., :2], landmarks[..., 3:]], 2).flatten(1, 2)


def norberg_angles(points: Tensor) -> Tensor:
    """Both angles in degrees, (b, 2), of points (b, 4, 2) in the order of `POINTS`."""
    heads, rims = points[:, ::2], points[:, 1::2]
    across, arm = heads.flip(1) - heads, rims - heads
    cross = (across[..., 0] * arm[..., 1] - across[..., 1] * arm[..., 0]).abs()
    dot = (across * arm).sum(-1)
    return torch.rad2deg(torch.atan2(cross, dot))


class Ruler:
    """Measures views with a trained network."""

    def __init__(self, network: RulerNetwork, resolution: int, min_confidence: float = 0.05):
        """Views must be square with `resolution` pixels a side."""
        self.network = network.eval()
        self.resolution = resolution
        self.min_confidence = min_confidence

    @torch.no_grad()
    def measure(self, images: np.ndarray, batch: int = 64) -> list[Measurement]:
        """Measures views (n, h, w) uint8; the mean of the view and its mirror image.

        Raises:
            ValueError: when the size is not the one the ruler was trained for.
        """
        if images.shape[1:] != (self.resolution, self.resolution):
            raise ValueError(
                f"the ruler measures {self.resolution} x {self.resolution} views, "
                f"not {images.shape[1]} x {images.shape[2]}"
            )
        results: list[Measurement] = []
        device = next(self.network.parameters()).device
        for start in range(0, len(images), batch):
            views = torch.from_numpy(images[start : start + batch]).float().to(device)[:, None]
            results += self._measure_batch(standardise(views))
        return results

    def _measure_batch(self, views: Tensor) -> list[Measurement]:
        points, radii, confidence = read_points(*self.network(views))
        mirrored, mirrored_radii, mirrored_confidence = read_points(*self.network(views.flip(-1)))
        mirrored = mirrored[:, [2, 3, 0, 1]]
        mirrored[..., 0] = self.resolution - 1 - mirrored[..., 0]
        points = ((points + mirrored) / 2).double().cpu().numpy()
        radii = ((radii + mirrored_radii.flip(-1)) / 2).double().cpu().numpy()
        confidence = torch.minimum(confidence, mirrored_confidence[:, [2, 3, 0, 1]])
        return [
            self._verdict(p, r, c)
            for p, r, c in zip(points, radii, confidence.min(1).values.tolist(), strict=True)
        ]

    def _verdict(self, points: np.ndarray, radii: np.ndarray, confidence: float) -> Measurement:
        rows = [[*points[0], radii[0], *points[1]], [*points[2], radii[1], *points[3]]]
        landmarks = np.array(rows)
        reason = ""
        if confidence < self.min_confidence:
            reason = f"no clear landmarks (confidence {confidence:.2f})"
        elif points[2, 0] - points[0, 0] < 0.2 * self.resolution:
            reason = "the two femoral heads are not apart"
        elif caudal_rims(landmarks[:, :2], landmarks[:, 3:]).any():
            reason = "a rim lies below the heads"
        if reason:
            return Measurement(np.nan, np.nan, confidence, landmarks, reason)
        angles = Landmarks.from_array(landmarks).norberg_angles()
        return Measurement(angles.image_left, angles.image_right, confidence, landmarks)


def load_ruler(folder: Path, min_confidence: float = 0.05) -> Ruler:
    """Loads what `RulerTask.export` wrote: model.safetensors and ruler.json.

    Raises:
        ValueError: when the folder holds no ruler.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder}: holds no ruler ({SETTINGS})")
    with reading_export(folder, RuntimeError, TypeError):
        settings = json.loads((folder / SETTINGS).read_text())
        network = RulerNetwork(tuple(settings["channels"]))
        load_model(network, folder / "model.safetensors")
        return Ruler(network, settings["resolution"], min_confidence)


def check_independent(run: Run) -> None:
    """Sees, once both are there, that what is tuned to please a ruler is measured by another.

    Raises:
        ValueError: when feedback asks the very ruler that measures, wherever each came from.
    """
    if not run.config.feedback:
        return
    paths = [run.first_stage(name) / "model.safetensors" for name in ("ruler", "reward_model")]
    if all(path.is_file() for path in paths) and sha256_of(paths[0]) == sha256_of(paths[1]):
        raise ValueError(
            f"{paths[1].parent}: is the ruler that measures; what is trained to please a ruler "
            "must be measured by another"
        )


def ruler_of(run: Run, device: str) -> Ruler:
    """The ruler that measures a run: its own, or the pretrained one.

    Raises:
        ValueError: when feedback asked it, too, or its folder holds none.
    """
    check_independent(run)
    ruler = load_ruler(run.first_stage("ruler"), run.config.evaluation.min_confidence)
    ruler.network.to(device)
    return ruler
