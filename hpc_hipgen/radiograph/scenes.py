"""Scenes that the film ruler learns from: whole films and close-ups of one hip, of any variety.

The same pelvis as the phantom's (`phantom.py`), but with its parameters drawn independently of each
other and far beyond any population: a head may leave its socket whatever the angle, a neck may be
as wide as its head, every line may be faint or bright (`phantom_look.py`). Films are turned, cut
and placed at will, and some of them show one hip, none, or no dog at all (`non_films.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpc_hipgen.radiograph.geometry import Angles, Landmarks
from hpc_hipgen.radiograph.non_films import draw_non_film
from hpc_hipgen.radiograph.phantom import draw_dog
from hpc_hipgen.radiograph.phantom_anatomy import (
    HEAD_X,
    Anatomy,
    HipShape,
    sample_anatomy,
    sample_angles,
)
from hpc_hipgen.radiograph.phantom_look import sample_look
from hpc_hipgen.radiograph.phantom_overlays import (
    collimate,
    draw_overlays,
    expose,
    sample_exposure,
)
from hpc_hipgen.radiograph.phantom_render import Canvas

CLOSE_UP = 0.62
"""Width of the close-up of a hip that the networks see, in D (distance between the heads)."""

CLOSE_UP_MARGIN = 1.25
"""Width of the drawing of a close-up, in widths of what is seen of it."""

NO_HIP_SHARE, NON_FILM_SHARE, ODD_SHARE = 0.12, 0.08, 0.08
"""Of the close-ups: without a hip. Of the films: no radiograph; inverted or not upright."""

_EDGE = 0.16
"""A head is there when it lies at least this far (in D) within the film: its rim is there too."""


@dataclass(frozen=True)
class Scene:
    """A square drawing: `image` (n, n) uint8 and what is to be found in it.

    A film: `points` (2, 2) are the head centres at the image's left and right, `present` (2,).
    A close-up: `points` (2, 2) are head centre and rim point of a hip at the image's left,
    `radius` that of the head, `present` (1,). Pixels; points that are not present mean nothing.
    """

    image: np.ndarray
    points: np.ndarray
    present: np.ndarray
    radius: float = 1.0


def _sample_wide_hip(hip: HipShape, rng: np.random.Generator, stretch: float) -> HipShape:
    """A hip of the same angle with all else drawn independently of it."""
    loose = rng.uniform(0, 0.95) if rng.random() < 0.5 else hip.subluxation + rng.normal(0, 0.15)
    return replace(
        hip,
        radius=float(np.clip(hip.radius * stretch * rng.uniform(0.95, 1.05), 0.088, 0.148)),
        rim_ratio=float(np.clip(rng.normal(1.2, 0.08), 1.04, 1.5)),
        gap=float(rng.uniform(0.0, 0.13)),
        subluxation=float(np.clip(loose, 0, 0.95)),
        flatness=float(rng.uniform(0, 1)),
        abduction=float(np.clip(hip.abduction + rng.normal(0, 6), -10, 38)),
        shaft_half_width=float(rng.uniform(0.068, 0.11)),
        trochanter_x=float(rng.uniform(0.76, 0.93)),
        trochanter_y=float(rng.uniform(-0.07, 0.14)),
        osteophyte=float(rng.uniform(0, 1) if rng.random() < 0.4 else 0.0),
        dorsal_cover=float(rng.uniform(-0.55, 0.45)),
        ascent=float(rng.uniform(-0.35, 0.5)),
    )


def sample_wide_anatomy(rng: np.random.Generator) -> Anatomy:
    """A pelvis whose angles are spread over 60 to 122 degrees, all else independent of them."""
    if rng.random() < 0.5:
        angles = sample_angles(rng)
    else:
        shared = rng.uniform(68, 116)
        angles = Angles(*(float(a) for a in np.clip(shared + rng.normal(0, 6, 2), 60, 122)))
    anatomy, stretch = sample_anatomy(rng, angles), rng.uniform(0.88, 1.2)
    return replace(
        anatomy,
        left=_sample_wide_hip(anatomy.left, rng, stretch),
        right=_sample_wide_hip(anatomy.right, rng, stretch),
        inlet=float(rng.uniform(0.88, 1.12)),
        length=float(rng.uniform(0.85, 1.18)),
        ischium=float(rng.uniform(0.7, 1.2)),
        flare=float(rng.uniform(-0.2, 0.2)),
    )


def _draw(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Grey levels (h, w) float of a dog, exposed, on a canvas."""
    look = sample_look(rng)
    other = sample_look(rng) if rng.random() < 0.3 else look  # one film's hips look alike
    draw_dog(canvas, anatomy, lambda name: rng, (look, other))
    _clutter(canvas, rng)
    exposure = sample_exposure(rng, int(rng.integers(1, 5)))
    return expose(canvas.image, exposure, canvas.scale, rng)


def _clutter(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add soft lines that belong to nothing: folds, fat planes, wires, edges of other bones."""
    height, width = canvas.image.shape
    for _ in range(rng.integers(0, 6)):
        start, end = rng.uniform(0, 1, (2, 2)) * (width, height)
        middle = (start + end) / 2 + rng.normal(0, 0.12, 2) * (width, height)
        row, column = int(min(start[1], height - 1)), int(min(start[0], width - 1))
        at = np.array([canvas.x[row, column], canvas.y[row, column]])
        line = at + (np.array([start, middle, end]) - start) / canvas.scale
        canvas.stroke(line, float(rng.uniform(0.004, 0.03)), float(rng.uniform(-18, 28)))


def _grey(film: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(film), 0, 255).astype(np.uint8)


def draw_close_up(rng: np.random.Generator, size: int) -> Scene:
    """Draw one hip of the image's left side, the line between both heads horizontal.

    The head centre lies in the middle of `size` pixels that span `CLOSE_UP_MARGIN` x `CLOSE_UP`,
    so that shifting and turning what a network sees leaves few empty corners. `NO_HIP_SHARE` of
    the drawings show another part of a dog, or no dog.
    """
    scale = size / (CLOSE_UP * CLOSE_UP_MARGIN)
    anatomy, middle = sample_wide_anatomy(rng), (size - 1) / 2
    absent = rng.random() < NO_HIP_SHARE
    if absent and rng.random() < 0.4:
        return Scene(draw_non_film(rng, size), np.full((2, 2), middle), np.zeros(1, bool))
    centre = np.array([-HEAD_X, 0.0])
    while absent and min(np.hypot(*(centre - (sign * HEAD_X, 0.0))) for sign in (-1, 1)) < 0.3:
        centre = rng.uniform((-1.0, -1.1), (1.0, 1.1))
    matrix = np.column_stack([scale * np.eye(2), middle - scale * centre])
    canvas = Canvas(size, size, matrix, oversampling=1)
    film = _draw(canvas, anatomy, rng)
    if rng.random() < 0.1:
        film = collimate(film, canvas, rng)
    hip = anatomy.landmarks(matrix).image_left
    points = np.array([[hip.head_x, hip.head_y], [hip.rim_x, hip.rim_y]])
    return Scene(_grey(film), points, np.array([not absent]), hip.head_radius)


def close_up_matrices(heads: np.ndarray, size: int) -> np.ndarray:
    """Similarities (b, 2, 2, 3) from film pixels to those of each hip's close-up with margin.

    The line between the heads (b, 2, 2) becomes horizontal, the hip's head goes to the middle of
    `size` pixels, and the close-up of the right one is mirrored.
    """
    across = heads[:, 1] - heads[:, 0]
    distance = np.maximum(np.hypot(across[:, 0], across[:, 1]), 1.0)
    scale = size / (CLOSE_UP * CLOSE_UP_MARGIN) / distance
    cosine, sine = (across / distance[:, None] * scale[:, None]).T
    turn = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], 1)
    linear = np.stack([turn, np.array([[-1.0, 0.0], [0.0, 1.0]]) @ turn], 1)
    offset = (size - 1) / 2 - np.einsum("bsij,bsj->bsi", linear, heads)
    return np.concatenate([linear, offset[..., None]], -1)


def _place(rng: np.random.Generator, size: int) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of a film in pixels, the similarity (2, 3) from units of D to pixels."""
    aspect = rng.uniform(0.7, 2.0)
    height, width = (size, round(size * aspect)) if aspect < 1 else (round(size / aspect), size)
    d = rng.uniform(0.24, 0.62) * width if aspect > 1 else rng.uniform(0.3, 0.66) * width
    turn = np.radians(rng.uniform(-20, 20) if rng.random() < 0.4 else rng.normal(0, 4))
    # Both heads within the film, but for those that are cut away on purpose.
    free = np.array([max(0.0, width - 1.4 * d), max(0.0, height - 0.5 * d)])
    origin = np.array([width, height]) * (0.5, 0.48) + rng.uniform(-0.5, 0.5, 2) * free * 0.9
    if rng.random() < 0.12:
        origin = rng.uniform(-0.3, 1.3, 2) * (width, height)
    cos, sin = d * np.cos(turn), d * np.sin(turn)
    return (height, width), np.array([[cos, -sin, origin[0]], [sin, cos, origin[1]]])


def _hide(film: np.ndarray, heads: np.ndarray, d: float, rng: np.random.Generator) -> np.ndarray:
    """Black or white bars over a part of a film; returns which heads (2,) are still seen."""
    height, width = film.shape
    seen = np.ones(2, bool)
    draw = rng.random()
    if draw < 0.08:  # half of the film is missing
        side = int(rng.integers(2))
        edge = round(heads[side, 0] + (1 - 2 * side) * d * rng.uniform(0.2, 0.45))
        edge = int(np.clip(edge, 0, width))
        film[:, slice(0, edge) if side == 0 else slice(edge, None)] = rng.choice([0, 0, 255])
        seen[side] = False
    elif draw < 0.15:  # a lead strip, away from the hips
        row = int(rng.uniform(0, height))
        if np.abs(heads[:, 1] - row).min() > 0.35 * d:
            film[row : row + max(1, round(0.1 * d))] = rng.choice([0, 255])
    return seen


def draw_wide_film(rng: np.random.Generator, size: int) -> tuple[np.ndarray, Landmarks]:
    """Draw a whole film of the wide population, `size` pixels at its longer side.

    Upright and not inverted; the landmarks may lie outside it.
    """
    shape, matrix = _place(rng, size)
    anatomy = sample_wide_anatomy(rng)
    canvas = Canvas(*shape, matrix, oversampling=1)
    film = collimate(_draw(canvas, anatomy, rng), canvas, rng)
    film = draw_overlays(film, canvas, int(rng.integers(1, 5)), rng)
    return _grey(film), anatomy.landmarks(matrix)


def heads_inside(landmarks: Landmarks, shape: tuple[int, ...]) -> np.ndarray:
    """Which heads (2,) lie well within a film of `shape` (h, w), so that their rim does too."""
    heads, margin = landmarks.to_array()[:, :2], _EDGE * landmarks.head_distance
    return np.all((heads > margin) & (heads < np.array(shape[::-1]) - 1 - margin), axis=1)


def draw_film_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw a whole film, put into a square of `size` pixels at its top left, black beside it.

    A head counts as present when it lies well within an upright film that is not inverted.
    """
    if rng.random() < NON_FILM_SHARE:
        return Scene(draw_non_film(rng, size), np.zeros((2, 2)), np.zeros(2, bool))
    film, landmarks = draw_wide_film(rng, size)
    heads = landmarks.to_array()[:, :2]
    present = heads_inside(landmarks, film.shape)
    present &= _hide(film, heads, landmarks.head_distance, rng)
    odd = rng.random()
    if odd < ODD_SHARE:
        present[:] = False
        film = 255 - film if odd < ODD_SHARE / 2 else np.rot90(film, int(rng.integers(1, 4)))
    image = np.zeros((size, size), np.uint8)
    image[: film.shape[0], : film.shape[1]] = film
    return Scene(image, heads, present)
