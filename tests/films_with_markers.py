"""Pictures whose hips are marked by dots, and a film ruler whose networks see nothing but dots.

So that everything around the networks can be tested to a fraction of a pixel: a head is a bright
dot, a rim point a dark one.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.rulers.film_ruler import Calibration, FilmRuler

GREY = 100


def marked_film(shape=(700, 900), turn=0.0, middle=None, distance=400, angles=(100.0, 85.0)):
    """A film (h, w) uint8 and the landmarks of its dots; `turn` in degrees, `distance` in px."""
    rows = []
    for sign, angle in zip((-1, 1), angles, strict=True):
        theta = np.radians(angle)
        arm = 0.14 * distance * np.array([-sign * np.cos(theta), -np.sin(theta)])
        rows.append(
            [sign * distance / 2, 0.0, 0.1 * distance, sign * distance / 2 + arm[0], arm[1]]
        )
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    place = np.array(middle or (shape[1] / 2, shape[0] / 2))
    matrix = np.column_stack([[cosine, sine], [-sine, cosine], place])
    landmarks = Landmarks(*(Hip(*row) for row in rows)).transform(matrix)
    return dotted(shape, landmarks), landmarks


def dotted(shape, landmarks, sides=(0, 1)):
    """A grey film with the dots of some sides."""
    film = np.full(shape, GREY, float)
    sigma = 0.018 * landmarks.head_distance
    y, x = np.mgrid[: shape[0], : shape[1]]
    for side in sides:
        head_x, head_y, _, rim_x, rim_y = landmarks.to_array()[side]
        film += 150 * np.exp(-((x - head_x) ** 2 + (y - head_y) ** 2) / (2 * sigma**2))
        film -= 95 * np.exp(-((x - rim_x) ** 2 + (y - rim_y) ** 2) / (2 * sigma**2))
    return np.clip(np.rint(film), 0, 255).astype(np.uint8)


class DotFinder(nn.Module):
    """Heat maps of the bright dots of either half; without a dot, no evidence."""

    def forward(self, images):
        whole = F.avg_pool2d(images[:, :1], 2)
        half = torch.arange(whole.shape[-1]) < whole.shape[-1] // 2
        maps = [torch.where(side, whole, torch.zeros(())) for side in (half, ~half)]
        return torch.cat(maps, 1).clamp_min(0.8).sub(1) * 20, whole[:, :0]


class DotHips(nn.Module):
    """Heat maps of the bright and the dark dot around the middle, and a constant radius."""

    def forward(self, images):
        whole = F.avg_pool2d(images[:, :1], 2)
        middle = F.pad(torch.ones(48, 48), (8, 8, 8, 8))  # corners may lie beyond the close-up
        whole = whole * middle
        maps = torch.cat([whole, -whole], 1)
        return maps.clamp_min(0.8).sub(1) * 20, torch.full_like(whole, 0.478)  # a tenth of D


def dot_ruler(**limits):
    """A film ruler that measures `marked_film`."""
    networks = nn.Module()
    networks.finder, networks.hip = DotFinder(), DotHips()
    networks.register_parameter("device", nn.Parameter(torch.zeros(())))
    return FilmRuler(networks, Calibration(0.5, 1.0, 0.0), **limits)
