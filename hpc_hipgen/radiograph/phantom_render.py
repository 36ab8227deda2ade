"""From outlines to attenuation: every organ adds its thickness, as in a projection.

A `Canvas` is one film while it is drawn: a float image of attenuation, in the grey levels of a
well exposed film, and the similarity from anatomical units (D) to pixels. Bones are shells: an
X-ray crosses cortex and spongy bone along chords, so cortices are bright where they are seen
edge-on, and the medulla is dark.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from hpc_hipgen.radiograph.phantom_anatomy import (
    HEAD_X,
    Anatomy,
    HipShape,
    dorsal_wall,
    femur,
    hemipelvis,
    roof,
    spline,
)

_OVERSAMPLING = 2  # of the grid on which outlines become masks


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic between; `high` may be the smaller one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def chord(depth: np.ndarray, radius: float) -> np.ndarray:
    """Length that a ray `depth` inside the edge of a tube of `radius` travels within it."""
    inner = radius - np.clip(depth, 0, radius)
    return 2 * np.sqrt(np.maximum(radius**2 - inner**2, 0))


class Canvas:
    """A film in the making: attenuation `image` (H, W), anatomical coordinates of each pixel."""

    def __init__(self, height: int, width: int, matrix: np.ndarray):
        """`matrix` (2, 3) is the similarity from units of D to pixels."""
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.scale = float(np.sqrt(np.linalg.det(self.matrix[:, :2])))  # pixels per D
        inverse = np.linalg.inv(self.matrix[:, :2])
        offset = -inverse @ self.matrix[:, 2]
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        self.x = (inverse[0, 0] * columns + inverse[0, 1] * rows + offset[0]).astype(np.float32)
        self.y = (inverse[1, 0] * columns + inverse[1, 1] * rows + offset[1]).astype(np.float32)
        self.image = np.zeros((height, width), dtype=np.float32)

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
        self, outline: np.ndarray, holes: tuple[np.ndarray, ...] = ()
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """Window, coverage (0..1) and depth below the edge (in D) of a filled outline (n, 2)."""
        where = self.window(outline, 0.0)
        if where is None:
            return None
        n = _OVERSAMPLING
        top, left = where[0].start, where[1].start
        height, width = where[0].stop - top, where[1].stop - left
        # One pixel of margin on each side, so that a bone cut by the film's edge has no edge there.
        pad = 24
        mask = Image.new("L", ((width + 2 * pad) * n, (height + 2 * pad) * n))
        draw = ImageDraw.Draw(mask)
        for polygon, value in [(outline, 1), *((hole, 0) for hole in holes)]:
            corners = (self.pixels(polygon) - (left - pad, top - pad) + 0.5) * n - 0.5
            draw.polygon([tuple(corner) for corner in corners], fill=value)
        inside = np.asarray(mask)
        depth = distance_transform_edt(inside).astype(np.float32)
        shape = (height + 2 * pad, n, width + 2 * pad, n)
        cut = (slice(pad, -pad), slice(pad, -pad))
        coverage = inside.reshape(shape).mean(axis=(1, 3), dtype=np.float32)[cut]
        depth = np.maximum(depth - 0.5, 0).reshape(shape).mean(axis=(1, 3))[cut]
        return where, coverage, depth / (n * self.scale)

    def distance(self, where: tuple[slice, slice], line: np.ndarray) -> tuple[np.ndarray, ...]:
        """Distance (in D) of a window's pixels to a polyline (n, 2), and the place 0..1 on it."""
        x, y = self.x[where], self.y[where]
        best = np.full(x.shape, np.inf, dtype=np.float32)
        place = np.zeros_like(best)
        for i, (start, end) in enumerate(zip(line[:-1], line[1:], strict=True)):
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


def textures(rng: np.random.Generator, canvas: Canvas) -> dict[str, np.ndarray]:
    """Random fields of SD 1 of the film's shape: `fine` trabeculae, `coarse` and `cloud`."""
    fields = {}
    for name, sigma in (("fine", 0.006), ("coarse", 0.02), ("cloud", 0.10)):
        # Drawn on a grid that is as fine as the field needs, so that a cloud costs nothing.
        step = max(1.0, sigma * canvas.scale / 2)
        shape = [int(np.ceil(n / step)) + 4 for n in canvas.image.shape]
        field = gaussian_filter(
            rng.standard_normal(shape, dtype=np.float32), sigma * canvas.scale / step
        )
        field = (field - field.mean()) / field.std()
        if step > 1:
            grid = np.meshgrid(*(np.arange(n) / step for n in canvas.image.shape), indexing="ij")
            field = map_coordinates(field, grid, order=1)
        fields[name] = field[: canvas.image.shape[0], : canvas.image.shape[1]]
    return fields


def draw_bone(
    canvas: Canvas,
    outline: np.ndarray,
    *,
    radius: float,
    cortex: float,
    cortex_gain: float,
    spongy_gain: float,
    texture: np.ndarray,
    grain: float = 0.08,
    holes: tuple[np.ndarray, ...] = (),
    gain_map: np.ndarray | None = None,
) -> None:
    """Add a bone drawn as a shell.

    `radius` is half its thickness and `cortex` that of the shell in D; the gains are grey levels
    for a path as long as the whole bone is thick. `gain_map` (H, W) scales it from place to place.
    """
    found = canvas.shape(outline, holes)
    if found is None:
        return
    where, coverage, depth = found
    whole = chord(depth, radius)
    hollow = chord(depth - cortex, radius - cortex)
    spongy = hollow * (1 + grain * texture[where])
    added = (cortex_gain * (whole - hollow) + spongy_gain * spongy) / (2 * radius)
    if gain_map is not None:
        added = added * gain_map[where]
    canvas.image[where] += added * np.minimum(coverage * 1.0, 1.0)


def draw_head(canvas: Canvas, hip: HipShape, sign: float, texture: np.ndarray) -> None:
    """Add the femoral head: a thin shell around spongy bone, exactly the landmark's circle."""
    centre = np.array([sign * HEAD_X, 0.0])
    where = canvas.window(centre + hip.radius * np.array([[-1, -1], [1, 1]]), 0.02)
    if where is None:
        return
    distance = np.hypot(canvas.x[where] - centre[0], canvas.y[where] - centre[1])
    depth = hip.radius - distance
    pixel = 1 / canvas.scale
    coverage = smoothstep(depth, -0.5 * pixel, 0.5 * pixel)
    whole = chord(np.maximum(depth, 0), hip.radius)
    hollow = chord(np.maximum(depth - 0.010, 0), hip.radius - 0.010)
    ball = 72 * hollow / (2 * hip.radius) * (1 + 0.05 * texture[where])
    canvas.image[where] += coverage * (6 + ball + 95 * (whole - hollow) / (2 * hip.radius))


def draw_half(canvas: Canvas, hip: HipShape, anatomy: Anatomy, sign: float, texture: dict) -> None:
    """Add one half of the pelvis and its femur."""
    outline, foramen, medial = (mirrored(part, sign) for part in hemipelvis(hip, anatomy))
    gain = 0.55 + 0.45 * smoothstep(canvas.y, 0.16, -0.02)
    draw_bone(
        canvas, outline, holes=(foramen,), radius=0.055, cortex=0.014, cortex_gain=95,
        spongy_gain=48, texture=texture["fine"], grain=0.10, gain_map=gain,
    )  # fmt: skip
    surface = roof(hip)
    wall = np.vstack([dorsal_wall(hip), surface[::-1]])
    draw_bone(
        canvas, mirrored(wall, sign), radius=0.03, cortex=0.008, cortex_gain=28, spongy_gain=16,
        texture=texture["fine"],
    )  # fmt: skip
    up = (surface - [HEAD_X, 0.0]) * 1.06 + [HEAD_X, 0.0]
    canvas.stroke(mirrored(up[: len(up) // 2 + 2], sign), 0.011, 34, taper=(0.0, 0.35))
    canvas.stroke(mirrored(dorsal_wall(hip), sign), 0.006, 12, taper=(0.0, 0.2))
    inner = medial[(medial[:, 1] < 0.0) & (medial[:, 1] > -0.95)] * np.array([1, 1.0])
    canvas.stroke(mirrored(inner + [0.02, 0.0], sign), 0.014, 34, taper=(0.25, 0.3))
    draw_bone(
        canvas, mirrored(femur(hip), sign), radius=hip.shaft_half_width, cortex=0.026,
        cortex_gain=105, spongy_gain=42, texture=texture["fine"], grain=0.09,
    )  # fmt: skip
    draw_head(canvas, hip, sign, texture["fine"])


def vertebra(centre: np.ndarray, width: float, height: float, angle: float) -> np.ndarray:
    """Outline (n, 2) of a vertebral body with flared ends; `angle` in radians from the y axis."""
    half = np.array(
        [
            (0.5, -0.5),
            (0.48, -0.38),
            (0.38, -0.1),
            (0.37, 0.1),
            (0.46, 0.38),
            (0.49, 0.5),
            (0.0, 0.47),
        ]
    )
    points = np.vstack([half, half[-2::-1] * [-1, 1], [(0.0, -0.47)]]) * [width, height]
    cos, sin = np.cos(angle), np.sin(angle)
    return spline(points @ np.array([[cos, -sin], [sin, cos]]) + centre, closed=True, samples=4)


def spine(anatomy: Anatomy) -> list[tuple[np.ndarray, float, float, float]]:
    """Centre, width, height and angle of the sacral and caudal vertebrae, cranial ones first."""
    bodies = []
    y, heading = -1.15, 0.0
    x = anatomy.spine_shift - 0.3 * anatomy.spine_bend
    for i in range(16):
        sacral = y < -0.42
        height = 0.17 if sacral else 0.150 - 0.001 * i
        width = 0.20 if sacral else max(0.085, 0.165 - 0.009 * (i - 5))
        heading = np.radians(0.35 * anatomy.tail_angle * max(0, i - 6)) + 0.4 * anatomy.spine_bend
        y += 0.5 * height * np.cos(heading)
        x += 0.5 * height * np.sin(heading)
        bodies.append((np.array([x, y]), width, height - 0.022, -heading))
        y += 0.5 * height * np.cos(heading)
        x += 0.5 * height * np.sin(heading)
    return bodies


def draw_spine(canvas: Canvas, anatomy: Anatomy, texture: dict) -> None:
    """Add sacrum, its wings and the caudal vertebrae."""
    shift = anatomy.spine_shift
    half = np.array(
        [(0.10, -0.16), (0.12, -0.32), (0.17, -0.47), (0.26, -0.60), (0.33, -0.72), (0.28, -0.90)]
    )
    sacrum = np.vstack([half, half[::-1] * [-1, 1]]) + [shift, 0]
    draw_bone(
        canvas, spline(sacrum, closed=True), radius=0.07, cortex=0.012, cortex_gain=30,
        spongy_gain=22, texture=texture["coarse"], grain=0.2,
    )  # fmt: skip
    for centre, width, height, angle in spine(anatomy):
        draw_bone(
            canvas, vertebra(centre, width, height, angle), radius=0.05, cortex=0.012,
            cortex_gain=52, spongy_gain=26, texture=texture["fine"], grain=0.12,
        )  # fmt: skip


def draw_soft_tissue(canvas: Canvas, rng: np.random.Generator, texture: dict) -> None:
    """Add body and thighs; air outside."""
    x, y = np.abs(canvas.x), canvas.y
    edge = rng.uniform(1.05, 1.35) + 0.06 * np.sin(2.0 * y + rng.uniform(0, 6.28))
    body = np.sqrt(np.maximum(1 - (x / edge) ** 6, 0)) * smoothstep(edge - x, 0.0, 0.04)
    level = 56 + 14 * smoothstep(x, 0.65, 0.30)
    canvas.image += body * (level + 2.5 * texture["cloud"] + 1.2 * texture["coarse"])
