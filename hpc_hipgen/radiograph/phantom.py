"""Phantom films: ventrodorsal hip radiographs drawn from a parametric pelvis.

The landmarks are exact by construction: the femoral heads are the landmark circles and the rim
point is the corner where the lateral border of the ilium meets the acetabular roof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_hipgen.radiograph.captions import PROMPT_CLASSES
from hpc_hipgen.radiograph.geometry import Angles, Landmarks
from hpc_hipgen.radiograph.phantom_anatomy import Anatomy, sample_anatomy
from hpc_hipgen.radiograph.phantom_look import PHANTOM_LOOK, Look
from hpc_hipgen.radiograph.phantom_organs import draw_half, draw_soft_tissue, draw_spine
from hpc_hipgen.radiograph.phantom_overlays import (
    Exposure,
    collimate,
    draw_objects,
    draw_overlays,
    expose,
    sample_exposure,
)
from hpc_hipgen.radiograph.phantom_render import Canvas, textures

# Independent random streams, so that a change in one part leaves the others as they are.
_STREAMS = (
    "class", "anatomy", "position", "tissue", "texture", "exposure", "noise", "overlays", "objects",
    "collimation",
)  # fmt: skip


@dataclass(frozen=True)
class Phantom:
    """One film: grey `image` (H, W) uint8, its landmarks in pixels and its prompt class."""

    image: np.ndarray
    landmarks: Landmarks
    prompt_class: int

    @property
    def angles(self) -> Angles:
        """Both Norberg angles in degrees, from the landmarks."""
        return self.landmarks.norberg_angles()


def _stream(seed: int, index: int, name: str) -> np.random.Generator:
    """The random numbers of one part of one phantom."""
    return np.random.default_rng([seed, index, _STREAMS.index(name)])


def _position(
    rng: np.random.Generator, prompt_class: int, size: int
) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of a film in pixels and the similarity (2, 3) from units of D to pixels."""
    aspect = rng.choice(
        [1.235, rng.uniform(1.0, 1.15), rng.uniform(1.3, 1.45), 1.6], p=[0.55, 0.2, 0.17, 0.08]
    )
    fraction = rng.uniform(0.44, 0.54)
    turn = float(np.clip(rng.normal(0, 1.8), -4.5, 4.5))
    shift = rng.uniform(-1, 1, 2) * (0.04, 0.05)
    close, tilt = rng.uniform(0.55, 0.595), rng.uniform(3.0, 7.0)
    if prompt_class == 1:
        fraction, turn = close, -tilt
    if prompt_class == 3:
        shift, turn = shift * 0.2, turn * 0.5
    width, height = size, round(size / aspect)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    d = fraction * width
    origin = (width / 2 + shift[0] * width, (0.47 + shift[1]) * height)
    return (height, width), np.array(
        [[d * cos, -d * sin, origin[0]], [d * sin, d * cos, origin[1]]]
    )


def sample_parameters(
    seed: int, index: int, prompt_class: int | None = None, angles: Angles | None = None
) -> tuple[int, Anatomy, Exposure]:
    """Prompt class, pelvis and exposure of a phantom without drawing it.

    Raises ValueError for an unknown class or an angle outside 40..140 degrees.
    """
    drawn = int(_stream(seed, index, "class").choice(list(PROMPT_CLASSES)))
    chosen = drawn if prompt_class is None else prompt_class
    if chosen not in PROMPT_CLASSES:
        raise ValueError(f"prompt class {chosen!r} is none of {list(PROMPT_CLASSES)}")
    anatomy = sample_anatomy(_stream(seed, index, "anatomy"), angles)
    return chosen, anatomy, sample_exposure(_stream(seed, index, "exposure"), chosen)


def draw_dog(
    canvas: Canvas,
    anatomy: Anatomy,
    stream: Callable[[str], np.random.Generator],
    looks: tuple[Look, Look] = (PHANTOM_LOOK, PHANTOM_LOOK),
) -> None:
    """Add flesh, spine, both halves of pelvis and femora, and what lies in the beam with them.

    `stream` names the random numbers of "texture", "tissue" and "objects"; `looks` are those of
    the hips at the image's left and right.
    """
    texture = textures(stream("texture"), canvas)
    draw_soft_tissue(canvas, anatomy, stream("tissue"))
    draw_spine(canvas, anatomy, texture)
    hips = (anatomy.left, anatomy.right)
    for sign, hip, look in zip((-1.0, 1.0), hips, looks, strict=True):
        draw_half(canvas, hip, anatomy, sign, texture, look)
    draw_objects(canvas, stream("objects"))


def draw_phantom(
    seed: int,
    index: int,
    size: int = 384,
    prompt_class: int | None = None,
    angles: Angles | None = None,
) -> Phantom:
    """Draw film `index` of the population `seed`, a whole film as a hospital would give it.

    `size` is the longest side in pixels (at least 64). The class is drawn with equal probability
    when None; `angles` in degrees are hit exactly when given. The result depends on the arguments
    alone. Raises ValueError for an unknown class, an angle outside 40..140 or a smaller size.
    """
    if size < 64:
        raise ValueError(f"a phantom of {size} pixels shows no hip: 64 at least")
    chosen, anatomy, exposure = sample_parameters(seed, index, prompt_class, angles)
    (height, width), matrix = _position(_stream(seed, index, "position"), chosen, size)
    canvas = Canvas(height, width, matrix)
    draw_dog(canvas, anatomy, lambda name: _stream(seed, index, name))
    film = expose(canvas.image, exposure, canvas.scale, _stream(seed, index, "noise"))
    film = collimate(film, canvas, _stream(seed, index, "collimation"))
    film = draw_overlays(film, canvas, chosen, _stream(seed, index, "overlays"))
    image = np.clip(np.round(film), 0, 255).astype(np.uint8)
    return Phantom(image, anatomy.landmarks(matrix), chosen)
