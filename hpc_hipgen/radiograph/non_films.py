"""Pictures that show no hips: what a ruler for films must learn to refuse."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom


def draw_non_film(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw (size, size) uint8: noise, a gradient, a pattern, a heap of shapes, or a chest."""
    kinds = (_noise, _gradient, _pattern, _leaves, _leaves, _chest)
    image = kinds[int(rng.integers(len(kinds)))](rng, size)
    image = image + rng.uniform(0, 6) * rng.standard_normal((size, size))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _spectrum(rng: np.random.Generator, size: int, power: float) -> np.ndarray:
    """Noise (size, size) of mean 0 and SD 1 whose amplitude falls with frequency to a power."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    waves = np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-power
    field = np.fft.irfft2(waves, (size, size))
    return (field - field.mean()) / (field.std() + 1e-9)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.uniform(20, 200) + rng.uniform(5, 70) * _spectrum(rng, size, rng.uniform(0, 2))


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    turn, (y, x) = rng.uniform(0, 2 * np.pi), np.mgrid[:size, :size] / size
    ramp = np.cos(turn) * x + np.sin(turn) * y
    if rng.random() < 0.4:
        ramp = np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1))
    return rng.uniform(0, 255) + rng.uniform(-255, 255) * ramp


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, a chequerboard or rings."""
    y, x = np.mgrid[:size, :size]
    turn, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    kind = rng.integers(3)
    if kind == 2:
        u = np.hypot(x - rng.uniform(0, size), y - rng.uniform(0, size))
    wave = np.sin(2 * np.pi * u / period)
    if kind == 1:
        wave = wave * np.sin(2 * np.pi * v / period)
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return rng.uniform(60, 190) + rng.uniform(20, 120) * wave


def _leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """A heap of shapes of all sizes, the model of a photograph ("dead leaves")."""
    image = Image.new("L", (size, size), int(rng.integers(256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 160))):
        extent = size * min(0.6, 0.03 / rng.uniform(0.02, 1) ** 1.2)
        x, y = rng.uniform(0, size, 2)
        a, b = extent * rng.uniform(0.3, 1, 2)
        grey, kind = int(rng.integers(256)), rng.integers(4)
        if kind == 0:
            draw.rectangle([x - a, y - b, x + a, y + b], fill=grey)
        elif kind == 1:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
            draw.polygon([(x + a * np.cos(t), y + b * np.sin(t)) for t in angles], fill=grey)
        elif kind == 2:
            draw.ellipse([x - a, y - b, x + a, y + b], fill=grey)
        else:
            width = int(rng.integers(1, 2 + size // 20))
            draw.arc([x - a, y - b, x + a, y + b], 0, rng.uniform(60, 360), grey, width)
    heap = gaussian_filter(np.asarray(image, np.float32), rng.uniform(0, 1.5))
    return heap + rng.uniform(0, 25) * _spectrum(rng, size, 1)


def _chest(rng: np.random.Generator, size: int) -> np.ndarray:
    """A trunk with lungs, ribs, heart and spine, seen from any side."""
    image = Image.new("F", (size, size), 0.0)
    draw = ImageDraw.Draw(image)

    def oval(x: float, y: float, a: float, b: float, grey: float) -> None:
        draw.ellipse([(x - a) * size, (y - b) * size, (x + a) * size, (y + b) * size], fill=grey)

    oval(0.5, 0.5, rng.uniform(0.35, 0.55), rng.uniform(0.4, 0.7), rng.uniform(60, 110))
    for sign in (-1, 1):
        oval(0.5 + sign * 0.17, 0.45, rng.uniform(0.1, 0.16), rng.uniform(0.25, 0.4), 30)
    oval(0.5 + rng.normal(0, 0.04), 0.55, rng.uniform(0.08, 0.16), rng.uniform(0.12, 0.2), 120)
    wide = max(2, round(size * rng.uniform(0.01, 0.025)))
    for y in np.arange(0.1, 0.9, rng.uniform(0.06, 0.1)):
        for sign in (-1, 1):
            box = [0.5 + sign * 0.2 - 0.2, y - 0.1, 0.5 + sign * 0.2 + 0.2, y + 0.15]
            draw.arc([size * v for v in box], 180, 360, rng.uniform(90, 150), wide)
    half = rng.uniform(0.03, 0.05)
    for y in np.arange(0.0, 1.0, 0.08):
        box = [0.5 - half, y, 0.5 + half, y + 0.065]
        draw.rectangle([size * v for v in box], fill=rng.uniform(130, 190))
    field = gaussian_filter(np.asarray(image), size * rng.uniform(0.003, 0.012))
    field = field + rng.uniform(2, 10) * zoom(rng.standard_normal((8, 8)), size / 8, order=1)
    return np.rot90(field, int(rng.integers(4)))
