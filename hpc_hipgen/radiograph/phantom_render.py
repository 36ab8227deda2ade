"""From outlines to attenuation: every organ adds its thickness, as in a projection.

A `Canvas` is one film while it is drawn: a float image of attenuation, in the grey levels of a
well exposed film, and the similarity from anatomical units (D) to pixels. Bones are shells: an
X-ray crosses cortex and spongy bone along chords, so cortices are bright where they are seen
edge-on, and the medulla is dark.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NotRequired, TypedDict, Unpack

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter

OVERSAMPLING = 2
"""Of the grid on which outlines become masks: a film's; 1 costs a third."""


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between; `high` may be the smaller one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def chord(depth: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """Length that a ray `depth` inside the edge of a tube of `radius` travels within it."""
    inner = radius - np.clip(depth, 0, radius)
    return 2 * np.sqrt(np.maximum(radius**2 - inner**2, 0))


def _shrink(fine: np.ndarray, n: int) -> np.ndarray:
    """Mean of each block of n x n pixels."""
    blocks = [fine[i::n, j::n] for i in range(n) for j in range(n)]
    return sum(blocks[1:], start=blocks[0]) / np.float32(n * n)


class Canvas:
    """A film in the making: attenuation `image` (H, W), anatomical coordinates of each pixel."""

    def __init__(
        self, height: int, width: int, matrix: np.ndarray, oversampling: int = OVERSAMPLING
    ):
        """`matrix` (2, 3) is the similarity from units of D to pixels."""
        self.oversampling = oversampling
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.scale = float(np.sqrt(np.linalg.det(self.matrix[:, :2])))  # pixels per D
        inverse = np.linalg.inv(self.matrix[:, :2])
        offset = -inverse @ self.matrix[:, 2]
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        self.x = (inverse[0, 0] * columns + inverse[0, 1] * rows + offset[0]).astype(np.float32)
        self.y = (inverse[1, 0] * columns + inverse[1, 1] * rows + offset[1]).astype(np.float32)
        self.image = np.zeros((height, width), dtype=np.float32)

    def halved(self) -> Canvas:
        """An empty canvas of the same place with half as many pixels a side."""
        height, width = (-(-n // 2) + 1 for n in self.image.shape)
        return Canvas(height, width, self.matrix / 2)

    def enlarge(self, small: np.ndarray) -> None:
        """Add an image drawn on the `halved` canvas."""
        height, width = self.image.shape
        wide = _lerp(small.T, np.arange(width) / 2).T
        self.image += _lerp(wide, np.arange(height) / 2)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Anatomical points (n, 2) in pixels."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def window(self, points: np.ndarray, margin: float) -> tuple[slice, slice] | None:
        """Part of the film around anatomical `points`, `margin` in D; None when outside."""
        height, width = self.image.shape
        pixels, margin = self.pixels(points), margin * self.scale + 2
        left, top = np.floor(pixels.min(axis=0) - margin).astype(int)
        right, bottom = np.ceil(pixels.max(axis=0) + margin).astype(int) + 1
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)

    def shape(
        self,
        outline: np.ndarray,
        holes: tuple[np.ndarray, ...] = (),
        where: tuple[slice, slice] | None = None,
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """Window, coverage (0..1) and depth below the edge (in D) of a filled outline (n, 2).

        The window is the outline's own unless `where` names another.
        """
        where = where or self.window(outline, 0.0)
        if where is None:
            return None
        n = self.oversampling
        top, left = where[0].start, where[1].start
        height, width = where[0].stop - top, where[1].stop - left
        # Where the film cuts a bone, the mask goes on beyond the cut: a cut is no edge of the bone.
        reach = int(0.1 * self.scale) + 2
        pad = [reach if cut else 1 for cut in (top == 0, left == 0)]
        far = (where[0].stop == self.image.shape[0], where[1].stop == self.image.shape[1])
        pad += [reach if cut else 1 for cut in far]
        grid = ((height + pad[0] + pad[2]) * n, (width + pad[1] + pad[3]) * n)
        mask = Image.new("L", (grid[1], grid[0]))
        draw = ImageDraw.Draw(mask)
        for polygon, value in [(outline, 1), *((hole, 0) for hole in holes)]:
            corners = (self.pixels(polygon) - (left - pad[1], top - pad[0]) + 0.5) * n - 0.5
            draw.polygon([tuple(corner) for corner in corners], fill=value)
        inside = np.asarray(mask)
        depth = distance_transform_edt(inside).astype(np.float32)
        cut = (slice(pad[0], pad[0] + height), slice(pad[1], pad[1] + width))
        coverage = _shrink(inside.astype(np.float32), n)[cut]
        depth = _shrink(np.maximum(depth - 0.5, 0), n)[cut]
        return where, coverage, depth / (n * self.scale)

    def distance(self, where: tuple[slice, slice], line: np.ndarray) -> tuple[np.ndarray, ...]:
        """Distance (in D) of a window's pixels to a polyline (n, 2), and the place 0..1 on it."""
        x, y = self.x[where], self.y[where]
        best = np.full(x.shape, np.inf, dtype=np.float32)
        place = np.zeros_like(best)
        for i, (start, end) in enumerate(pairwise(line)):
            along = (end - start).astype(np.float32)
            norm = float(along @ along) or 1.0
            dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
            t = np.clip((dx * along[0] + dy * along[1]) / norm, 0, 1)
            d = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2
            closer = d < best
            best = np.where(closer, d, best)
            place = np.where(closer, (i + t) / (len(line) - 1), place)
        return np.sqrt(best), place

    def stroke(
        self, line: np.ndarray, sigma: float, gain: float, taper: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Add a soft line of `gain` levels; `taper` fades a share of its two ends."""
        line = line[:: max(1, len(line) // 12)] if len(line) > 16 else line
        where = self.window(line, 3 * sigma)
        if where is None:
            return
        distance, place = self.distance(where, line)
        fade = np.ones_like(place)
        if taper[0]:
            fade *= smoothstep(place, 0.0, taper[0])
        if taper[1]:
            fade *= smoothstep(place, 1.0, 1.0 - taper[1])
        self.image[where] += gain * fade * np.exp(-0.5 * (distance / sigma) ** 2)


def mirrored(points: np.ndarray, sign: float) -> np.ndarray:
    """Lateral coordinates (n, 2) on a side of the film: sign -1 is the image's left."""
    return points * np.array([sign, 1.0])


_GRAINS = {"fine": (0.006, 0.006), "coarse": (0.018, 0.018), "lump": (0.035, 0.035)}
_GRAINS |= {"cloud": (0.11, 0.11), "streak": (0.10, 0.010)}


def textures(rng: np.random.Generator, canvas: Canvas) -> dict[str, np.ndarray]:
    """Random fields (H, W) of mean 0 and SD 1: trabeculae `fine`, `coarse`, `lump`, `cloud` and
    muscle `streak`s along the body, by the grain's size along and across in D (`_GRAINS`)."""
    height, width = canvas.image.shape
    fields = {}
    for name, grain in _GRAINS.items():
        # Drawn on a grid as coarse as the grain allows, so that a cloud costs nothing.
        step = [max(1.0, sigma * canvas.scale / 1.5) for sigma in grain]
        shape = [int(np.ceil(n / s)) + 2 for n, s in zip((height, width), step, strict=True)]
        field = rng.standard_normal(shape, dtype=np.float32)
        field = gaussian_filter(
            field, [g * canvas.scale / s for g, s in zip(grain, step, strict=True)]
        )
        field = (field - field.mean()) / field.std()
        if max(step) > 1:
            rows, columns = np.arange(height) / step[0], np.arange(width) / step[1]
            field = _lerp(_lerp(field, rows).T, columns).T
        fields[name] = field[:height, :width]
    return fields


def _lerp(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows (m,) of a field by linear interpolation: (len(at), ...)."""
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return field[low] * (1 - part) + field[low + 1] * part


class BoneLook(TypedDict):
    """What `shell` makes of an outline."""

    radius: float
    cortex: float | np.ndarray
    cortex_gain: float
    spongy_gain: float
    grain: NotRequired[float]
    holes: NotRequired[tuple[np.ndarray, ...]]
    where: NotRequired[tuple[slice, slice] | None]


def shell(
    canvas: Canvas,
    outline: np.ndarray,
    texture: np.ndarray,
    *,
    radius: float,
    cortex: float | np.ndarray,
    cortex_gain: float,
    spongy_gain: float,
    grain: float = 0.08,
    holes: tuple[np.ndarray, ...] = (),
    where: tuple[slice, slice] | None = None,
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Window and attenuation of a bone drawn as a shell; None outside the film.

    `radius` is half its thickness and `cortex` that of the shell in D,
    one number or a map (H, W); the gains are grey levels
    for a path as long as the whole bone is thick. `grain` is the relative SD of spongy bone.
    """
    found = canvas.shape(outline, holes, where)
    if found is None:
        return None
    where, coverage, depth = found
    if isinstance(cortex, np.ndarray):
        cortex = cortex[where]
    whole = chord(depth, radius)
    hollow = chord(depth - cortex, radius - cortex)
    spongy = hollow * (1 + grain * texture[where])
    added = (cortex_gain * (whole - hollow) + spongy_gain * spongy) / (2 * radius)
    return where, added * coverage


def draw_bone(
    canvas: Canvas, outline: np.ndarray, texture: np.ndarray, **look: Unpack[BoneLook]
) -> None:
    """Add a `shell` to the film."""
    found = shell(canvas, outline, texture, **look)
    if found is not None:
        canvas.image[found[0]] += found[1]
