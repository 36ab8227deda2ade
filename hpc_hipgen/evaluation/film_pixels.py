"""How alike films are in their pixels: the hips alone, whatever their exposure, place or side."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import orth
from scipy.ndimage import gaussian_filter

from hpc_hipgen.radiograph.pictures import Pictures
from hpc_hipgen.radiograph.views import HEIGHT_OF_HEADS

SIDE = 64
"""Larger films are averaged down to so many pixels a side."""

SHIFT = 3 / 64
"""How far a copy may be shifted, as a fraction of the width: 6 pixels of 128."""

FINE, COARSE = 1.0, 4.0
"""Sigmas in pixels between which detail counts: grain is below, the exposure's gradient above."""

HALF_WIDTH, HALF_HEIGHT = 0.6, 0.43
"""The window around both hips, in distances between the heads. Dates, film markers and the edges of
films lie outside it; the femoral heads, the rims, the pelvic canal and the obturators inside."""

CHUNK = 128  # films at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest film of each of n images.

    distance: (n,) float64, 0 for a copy; film: (n,) int64, its place in the gallery; mirrored:
    (n,) bool, it is near as its mirror image.
    """

    distance: np.ndarray
    film: np.ndarray
    mirrored: np.ndarray

    @classmethod
    def among(cls, likeness: np.ndarray, mirrored: np.ndarray | None = None) -> Nearest:
        """By the likeness (n, m) of images to films, and to their mirror images, 1 for the same."""
        sides = [likeness] if mirrored is None else [likeness, mirrored]
        best = np.maximum.reduce(sides)
        film, line = best.argmax(axis=1), np.arange(len(best))
        turned = best[line, film] > likeness[line, film]
        return cls(1 - best[line, film].astype(np.float64), film, turned)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) of length one; zero stays zero."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)


class FilmPixels:
    """A gallery of films, each as what is its own in a window around the hips.

    The measure is a normalised cross-correlation, maximal over shifts and the mirror image, of
    band-passed windows. All hips are alike, and are more alike where they lie alike, so what is
    common is taken off first: a level of grey, the mean window of the films, and to first order
    what a small shift, turn or zoom makes of it (the tangents of Simard et al. 1993). What remains
    tells one film from another, and hardly changes when the crop does.
    """

    def __init__(self, films: np.ndarray | Pictures, head_distance: float) -> None:
        """Learns what is common from the films, and keeps them as the gallery.

        films: (m, h, w) uint8; head_distance: between the heads, as a fraction of the width.
        """
        self._side = side = min(SIDE, *films.shape[1:])
        self._reach = max(1, round(SHIFT * side))
        self._centre = round(HEIGHT_OF_HEADS * side), side // 2
        room = min(self._centre[0], side - self._centre[0]) - self._reach
        self._half = (
            min(int(HALF_HEIGHT * head_distance * side), room),
            min(int(HALF_WIDTH * head_distance * side), side // 2 - self._reach),
        )
        windows = np.concatenate([self._window(x) for x in self._chunks(films)])
        mean = unit(windows - windows.mean(axis=1, keepdims=True)).mean(axis=0)
        self._common = orth(_tangents(mean.reshape([2 * half for half in self._half])))
        self._gallery = self._own(windows)

    def against(self, films: np.ndarray) -> FilmPixels:
        """The same measure with another gallery (m, h, w) uint8."""
        other = copy.copy(self)
        windows = [self._window(x) for x in self._chunks(films)]
        other._gallery = self._own(np.concatenate(windows))
        return other

    def nearest(self, images: np.ndarray) -> Nearest:
        """The nearest film of the gallery for each image (n, h, w) uint8."""
        sides = (self._chunks(side) for side in (images, images[:, :, ::-1]))
        parts = [
            Nearest.among(*(self._likeness(part) for part in both))
            for both in zip(*sides, strict=True)
        ]
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Nearest(*map(np.concatenate, columns))

    def _chunks(self, images: np.ndarray | Pictures) -> Iterator[np.ndarray]:
        """Band-passed small images (n, side, side) float32, CHUNK at a time."""
        for start in range(0, len(images), CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + CHUNK])).float()
            small = torch.nn.functional.adaptive_avg_pool2d(part[:, None], self._side)[:, 0].numpy()
            fine, coarse = (gaussian_filter(small, (0, s, s)) for s in (FINE, COARSE))
            yield fine - coarse

    def _window(self, images: np.ndarray, down: int = 0, right: int = 0) -> np.ndarray:
        """The pixels (n, d) of the window, moved by so many pixels."""
        (y, x), (height, width) = self._centre, self._half
        y, x = y + down, x + right
        window = images[:, y - height : y + height, x - width : x + width]
        return window.reshape(len(images), -1)

    def _own(self, windows: np.ndarray) -> np.ndarray:
        """What is a film's own in windows (n, d), of length one: exposure goes with the rest."""
        return unit(windows - (windows @ self._common) @ self._common.T)

    def _likeness(self, images: np.ndarray) -> np.ndarray:
        """Highest correlation (n, m) with each film of the gallery over all shifts."""
        shifts = range(-self._reach, self._reach + 1)
        best = np.full((len(images), len(self._gallery)), -1, np.float32)
        for down in shifts:
            for right in shifts:
                window = self._window(images, down, right)
                # `_own` of the window, unwritten: the gallery has no part in what is taken off
                whole = (window**2).sum(axis=1)
                own = whole - ((window @ self._common) ** 2).sum(axis=1)
                length = np.sqrt(own.clip(1e-6 * whole + 1e-9))[:, None]
                np.maximum(best, window @ self._gallery.T / length, out=best)
        return best


def _tangents(mean: np.ndarray) -> np.ndarray:
    """Columns (h * w, 6): grey, the mean window, and its change by shifts, a turn and a zoom."""
    height, width = mean.shape
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    down, right = np.gradient(mean)
    changes = (np.ones_like(mean), mean, down, right, right * y - down * x, right * x + down * y)
    return np.stack([change.ravel() for change in changes], axis=1).astype(np.float32)
