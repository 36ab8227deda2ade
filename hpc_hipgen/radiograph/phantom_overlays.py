"""From attenuation to a film: exposure, noise, collimation, and what is burned into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from hpc_hipgen.radiograph.phantom_render import Canvas


@dataclass(frozen=True)
class Exposure:
    """How attenuation becomes grey."""

    kind: str
    """"good", "flat" (bone compressed into a narrow band) or "dark"."""
    gain: float
    offset: float
    gamma: float
    blur: float
    """Sigma of the focal spot's blur in D."""
    sharpen: float
    """Strength of the edge enhancement that readers apply."""
    reach: float
    """Sigma of that enhancement in D."""
    noise: float
    """SD of the grain in grey levels at a mid grey."""


def sample_exposure(rng: np.random.Generator, prompt_class: int) -> Exposure:
    """Draw an exposure: class 2 has strong contrast, class 3 is never grey, class 4 is sharp."""
    kind = str(rng.choice(["good", "flat", "dark"], p=[0.70, 0.15, 0.15]))
    gain, offset, gamma = rng.normal(1.05, 0.09), rng.normal(0, 5), rng.normal(1.0, 0.08)
    blur, noise = rng.uniform(0.002, 0.005), rng.uniform(1.2, 3.0)
    sharpen, reach = rng.uniform(0.15, 0.85), rng.uniform(0.02, 0.06)
    if prompt_class == 2:
        kind, gain, gamma = "good", gain * 1.15, gamma + 0.60
    if prompt_class == 4:
        kind, blur, sharpen = "good", 0.75 * blur, sharpen + 0.2
    if prompt_class == 3:
        kind, gamma = "dark" if kind == "flat" else kind, gamma + 0.12
    if kind == "flat":
        gain, offset, sharpen = 0.5 * gain, 22 + offset, 0.3 * sharpen
    if kind == "dark":
        gain = 0.66 * gain
    return Exposure(kind, gain, offset, gamma, blur, sharpen, reach, noise)


def expose(
    attenuation: np.ndarray, exposure: Exposure, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Grey levels (H, W) float of an attenuation image; air stays black.

    `scale` is D in pixels: blur and edge enhancement belong to the anatomy, grain to the pixels.
    """
    attenuation = gaussian_filter(attenuation, exposure.blur * scale)
    smooth = gaussian_filter(attenuation, exposure.reach * scale)
    attenuation = attenuation + exposure.sharpen * (attenuation - smooth)
    level = np.clip(attenuation, 0, None) / 128
    film = 128 * exposure.gain * level**exposure.gamma + exposure.offset * np.clip(level * 4, 0, 1)
    film = np.where(film > 190, 190 + 60 * np.tanh((film - 190) / 60), film)
    grain = rng.standard_normal(film.shape, dtype=np.float32)
    grain = 0.75 * grain + 1.4 * gaussian_filter(grain, 0.8)
    return film + exposure.noise * grain * np.sqrt(np.clip(film, 4, None) / 100)


def _write(
    film: np.ndarray, text: str, at: np.ndarray, size: float, level: float, anchor: str
) -> np.ndarray:
    """Burn `text` of `size` pixels into a film at a place in pixels, `anchor` as in Pillow."""
    height, width = film.shape
    layer = Image.new("L", (width, height))
    font = ImageFont.load_default(max(size, 6))
    ImageDraw.Draw(layer).text((float(at[0]), float(at[1])), text, 255, font=font, anchor=anchor)
    ink = np.asarray(layer, dtype=np.float32) / 255
    below = film[ink > 0.3]
    if below.size:  # legible on whatever lies below; only a seam of it may lie within the film
        level = min(255.0, max(level, float(np.percentile(below, 80)) + 50))
    return film * (1 - ink) + level * ink


def _date(rng: np.random.Generator) -> str:
    """A date as one of the usual viewers burns it in."""
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(2003, 2025)
    hour, minute = rng.integers(8, 19), rng.integers(0, 60)
    style = rng.integers(0, 4)
    if style == 0:
        return f"{month}/{day}/{year}"
    if style == 1:
        return f"{day:02d}.{month:02d}.{year}"
    if style == 2:
        return f"{year}-{month:02d}-{day:02d}"
    return f"{day:02d}/{month:02d}/{year % 100:02d} {hour}:{minute:02d}"


def draw_objects(canvas: Canvas, rng: np.random.Generator) -> None:
    """Add what lies in the beam with the dog: now and then a catheter or a cassette's edge."""
    catheter, band = rng.random() < 0.07, rng.random() < 0.10
    bend, phase, side = rng.normal(0.0, 0.06), rng.uniform(0, 6.28), rng.choice([-1.0, 1.0])
    reach, gain = rng.uniform(1.0, 1.3), rng.uniform(20, 70)
    if catheter:
        y = np.linspace(-0.15, 1.2, 16)
        x = bend + 0.03 * np.sin(3 * y + phase)
        for shift in (-0.011, 0.011):
            canvas.stroke(np.stack([x + shift, y], axis=1), 0.005, 16)
    if band:
        edge = (side * canvas.x - reach) * canvas.scale
        canvas.image += gain * np.clip(edge + 0.5, 0, 1) * (side * canvas.x < reach + 0.12)


def collimate(film: np.ndarray, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Black out what the beam's diaphragm hides in one film of three, well away from the hips."""
    used = rng.random() < 0.35
    left, right = rng.uniform(-1.15, -0.93), rng.uniform(0.93, 1.15)
    top, bottom = rng.uniform(-1.0, -0.66), rng.uniform(0.72, 1.0)
    keep, soft = rng.random(4) < (0.6, 0.6, 0.4, 0.4), rng.uniform(0.004, 0.02)
    turn = np.radians(rng.normal(0, 1.5))
    if not used:
        return film
    x = canvas.x * np.cos(turn) + canvas.y * np.sin(turn)
    y = canvas.y * np.cos(turn) - canvas.x * np.sin(turn)
    sides = (x - left, right - x, y - top, bottom - y)
    for distance, hidden in zip(sides, keep, strict=True):
        if hidden:
            film = film * np.clip(distance / soft + 0.5, 0.03, 1)
    return film


def _reader_lines(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the faint horizontal lines of a dirty plate reader to one film of six."""
    used, count = rng.random() < 0.16, rng.integers(1, 4)
    rows = rng.uniform(0, 1, 3)[:count] * (film.shape[0] - 1)
    gains = rng.choice([-1.0, 1.0], 3) * rng.uniform(4, 12, 3)
    if used:
        film = film.copy()
        for row, gain in zip(rows.astype(int), gains, strict=False):
            film[row] += gain * (film[row] > 8)
    return film


def draw_overlays(
    film: np.ndarray, canvas: Canvas, prompt_class: int, rng: np.random.Generator
) -> np.ndarray:
    """Burn in the date of classes 1 to 3, the L of class 3 and, rarely, other marks.

    The date ends 0.8 D right of the midline or at the film's edge and stands at the top of what
    a crop to the pelvis shows; its grey is that of white, grey or red letters.
    """
    height, width = film.shape
    film = _reader_lines(film, rng)
    text, level = _date(rng), float(rng.choice([235, 180, 128, 76]) + rng.uniform(-15, 15))
    size, jitter = canvas.scale * rng.uniform(0.062, 0.080), rng.uniform(0, 0.04, 2)
    origin = canvas.pixels(np.zeros((1, 2)))[0]
    x = min(origin[0] + (0.80 - jitter[0]) * canvas.scale, 0.985 * width)
    y = max(origin[1] - (0.755 - jitter[1]) * canvas.scale, 0.015 * height)
    if prompt_class in (1, 2, 3):
        film = _write(film, text, np.array([x, y]), size, level, "ra")
    place = np.array([rng.uniform(0.68, 0.75), rng.uniform(-0.56, -0.28)]) * canvas.scale
    mark_size, other = canvas.scale * rng.uniform(0.12, 0.16), rng.random() < 0.15
    place[1] = max(place[1], y + 1.3 * size + 0.5 * mark_size - origin[1])  # below the date
    if prompt_class == 3:
        film = _write(film, "L", origin + place, mark_size, 252, "mm")
    elif prompt_class == 2 and other:
        film = _write(film, "R", origin + place * [-1, 1], mark_size, 240, "mm")
    return film
