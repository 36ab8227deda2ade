"""Warps: training views whose Norberg angles differ from their film's.

A film shows one pair of angles, however often it is cropped; a generator that sees few films learns
each with its angle by heart. A warp moves the cranial acetabular rim along the femoral head by a
few degrees and takes the landmark with it, so one film serves for many angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpc_hipgen.radiograph.captions import ANGLE_MAX, ANGLE_MIN
from hpc_hipgen.radiograph.geometry import Landmarks

_REACH = 0.4
"""Standard deviation of a warp as a fraction of the arm from head centre to rim: at the head
centre 4 % of the displacement is left, so the head stays round."""

_MOST = math.radians(14)
"""A rim turns by no more than this: then the steepest gradient of a displacement is 0.4, and a
warp with gradients below 1 folds nothing over."""

_INVERSIONS = 30
"""Fixed-point steps of the inverse: each leaves less than half of the error."""


@dataclass(frozen=True)
class Warp:
    """Gaussian displacements in a plane, each around the point at which its own centre arrives.

    Attributes:
        centres: (n, 2) where the displaced points arrive.
        shifts: (n, 2) how far they came.
        spreads: (n,) standard deviations, in the same unit.
    """

    centres: np.ndarray
    shifts: np.ndarray
    spreads: np.ndarray

    def source(self, points: np.ndarray) -> np.ndarray:
        """Where what arrives at `points` (..., 2) comes from, same shape."""
        away = points[..., None, :] - self.centres
        weights = np.exp(-np.sum(away**2, -1) / (2 * self.spreads**2))
        return points - weights @ self.shifts

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Where `points` (..., 2) arrive: the inverse of `source`."""
        arrived = points
        for _ in range(_INVERSIONS):
            arrived = points + (arrived - self.source(arrived))
        return arrived

    def landmarks(self, landmarks: Landmarks) -> Landmarks:
        """Landmarks after the warp; the radii stay."""
        rows = landmarks.to_array()
        rows[:, :2], rows[:, 3:] = self.moved(rows[:, :2]), self.moved(rows[:, 3:])
        return Landmarks.from_array(rows)


def rim_warp(landmarks: Landmarks, degrees: tuple[float, float]) -> Warp:
    """The warp that turns each rim point about its head centre.

    Args:
        landmarks: before the warp.
        degrees: by which the Norberg angles at the image's left and right grow; each is limited
            to +-14. The angles after the warp differ from these by a few per cent, because the
            head centres give way a little: take them from the moved landmarks.
    """
    rows = landmarks.to_array()
    heads, rims = rows[:, :2], rows[:, 3:]
    arms, across = rims - heads, heads[::-1] - heads
    side = np.sign(across[:, 0] * arms[:, 1] - across[:, 1] * arms[:, 0])
    turn = side * np.clip(np.radians(degrees), -_MOST, _MOST)
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = np.stack(
        [cosine * arms[:, 0] - sine * arms[:, 1], sine * arms[:, 0] + cosine * arms[:, 1]], -1
    )
    arrived = heads + turned
    return Warp(arrived, arrived - rims, _REACH * np.hypot(*arms.T))


def draw_rim_warp(landmarks: Landmarks, spread: float, rng: np.random.Generator) -> Warp:
    """A `rim_warp` by normal amounts of standard deviation `spread` degrees.

    The angles stay among those that a caption can name.
    """
    angles = landmarks.norberg_angles()
    present = np.array([angles.image_left, angles.image_right])
    wanted = present + rng.normal(0.0, spread, size=2)
    left, right = np.clip(wanted, ANGLE_MIN + 1, ANGLE_MAX - 1) - present
    return rim_warp(landmarks, (float(left), float(right)))
