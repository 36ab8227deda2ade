"""From attenuation to a film: exposure, noise, collimation, and what is burned into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter


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
    """Draw an exposure; class 2 has strong contrast and is never flat."""
    kind = str(rng.choice(["good", "flat", "dark"], p=[0.78, 0.12, 0.10]))
    gain, offset, gamma = rng.normal(1.05, 0.09), rng.normal(0, 5), rng.normal(1.0, 0.08)
    blur, noise = rng.uniform(0.002, 0.005), rng.uniform(1.0, 3.0)
    sharpen, reach = rng.uniform(0.15, 0.85), rng.uniform(0.02, 0.06)
    if prompt_class == 2:
        kind, gain, gamma = "good", gain * 1.12, gamma + 0.15
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
    film: np.ndarray, text: str, at: tuple[float, float], size: float, level: float
) -> np.ndarray:
    """Burn `text` into a film, `at` the top-left corner in pixels."""
    height, width = film.shape
    layer = Image.new("L", (width, height))
    font = ImageFont.load_default(max(size, 6))
    ImageDraw.Draw(layer).text(at, text, fill=255, font=font)
    ink = np.asarray(layer, dtype=np.float32) / 255
    return film * (1 - ink) + level * ink


def draw_overlays(film: np.ndarray, prompt_class: int, rng: np.random.Generator) -> np.ndarray:
    """Burn in the date of classes 1 to 3 and the L of class 3."""
    height, width = film.shape
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(2004, 2024)
    level, size = rng.uniform(110, 190), width * rng.uniform(0.026, 0.034)
    if prompt_class in (1, 2, 3):
        film = _write(
            film, f"{month}/{day}/{year}", (width - 5.6 * size, 0.03 * height), size, level
        )
    if prompt_class == 3:
        film = _write(film, "L", (0.93 * width, rng.uniform(0.3, 0.6) * height), 2.2 * size, 250)
    return film
