"""Does a film ruler refuse what is no film, and measure what is one, and how well?

The films are held-out phantoms. What is none are forty pictures that are no radiographs of a
pelvis: photographs, micrographs, scans and documents that come with scikit-image and pydicom, and
drawings. None is of the kinds that a film ruler is trained to refuse (`radiograph/non_films.py`),
or drawn by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.films import read_film
from hpc_hipgen.radiograph.scene_store import draw_held_out

if TYPE_CHECKING:
    from hpc_hipgen.rulers.film_ruler import FilmMeasurement, FilmRuler

BUNDLED = {
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png",
        "coffee.png", "coins.png", "grass.png", "horse.png", "hubble_deep_field.jpg", "ihc.png",
        "moon.png", "motorcycle_left.png", "page.png", "phantom.png", "retina.jpg", "rocket.jpg",
    ),
    "pydicom/data/test_files": (
        "693_J2KI.dcm", "CT_small.dcm", "examples_overlay.dcm", "examples_palette.dcm",
        "examples_rgb_color.dcm", "image_dfl.dcm", "liver_1frame.dcm",
    ),
}  # fmt: skip
"""Pictures that the wheels of two packages of the environment hold."""

PHANTOMS = range(100_000, 100_400, 2)
"""Numbers of the phantoms that are to be measured; no ruler was calibrated or tested on them."""

CALLED = 2.0
"""Degrees; of the hips that are said to be known so well, 95 % are."""

LEAST_REFUSED, MOST_REFUSED, LEAST_WITHIN = 0.95, 0.01, 0.95
"""Of the pictures, at least; of the phantoms, less than: what a ruler is expected to do."""

_SIZE = 480  # pixels of a drawn picture


def non_films() -> dict[str, np.ndarray]:
    """Forty pictures (h, w) uint8 by name.

    Raises:
        ValueError: when a package lacks one of the `BUNDLED` ones.
    """
    found = {}
    for folder, names in BUNDLED.items():
        package, _, below = folder.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ValueError(f"{package} is not installed")
        for name in names:
            found[name] = read_film(Path(spec.origin).parent / below / name)
    return {**found, **_drawn()}


def refused_non_films(ruler: FilmRuler) -> dict[str, bool]:
    """Whether a ruler refuses each of the pictures of `non_films`."""
    pictures = non_films()
    measured = ruler.measure(list(pictures.values()))
    return {name: bool(m.reason) for name, m in zip(pictures, measured, strict=True)}


def measured_phantoms(
    ruler: FilmRuler, numbers: Sequence[int]
) -> tuple[list[FilmMeasurement], np.ndarray]:
    """What a ruler says of held-out films, and its absolute errors (n, 2) in degrees."""
    drawn = run_parallel(draw_held_out, numbers)
    films, landmarks = zip(*progress(drawn, len(numbers), "held-out phantoms"), strict=True)
    found = [m for i in range(0, len(films), 16) for m in ruler.measure(films[i : i + 16])]
    angles = [mark.norberg_angles() for mark in landmarks]
    errors = [
        (m.image_left - a.image_left, m.image_right - a.image_right)
        for m, a in zip(found, angles, strict=True)
    ]
    return found, np.abs(np.array(errors))


def film_ruler_error(ruler: FilmRuler, numbers: Sequence[int]) -> dict[str, float | None]:
    """Errors in degrees, refusals and how far the stated uncertainty holds, on held-out films.

    `mae`, `worst` and `refused` are of phantom films, `wide_...` of the wide population; `called`
    hips are those said to be known to +-2 degrees, of films that are not refused, `within` the
    share of these that are. None where nothing was measured.
    """
    found, errors = measured_phantoms(ruler, numbers)
    phantom = np.array(numbers) % 2 == 0
    refused = np.array([bool(m.reason) for m in found])
    result: dict[str, float | None] = {}
    for name, chosen in (("", phantom), ("wide_", ~phantom)):
        measured = errors[chosen & ~refused]
        result[f"{name}films"] = int(chosen.sum())
        result[f"{name}refused"] = int((chosen & refused).sum())
        result[f"{name}mae"] = float(measured.mean()) if measured.size else None
        result[f"{name}worst"] = float(measured.max()) if measured.size else None
    sure = (np.array([m.uncertainty for m in found]) <= CALLED) & ~refused[:, None]
    result["called"] = int(sure.sum())
    result["within"] = float((errors[sure] <= CALLED).mean()) if sure.any() else None
    return result


def held_out_report(ruler: FilmRuler, numbers: Sequence[int]) -> dict[str, float | None]:
    """`film_ruler_error`, and how many of forty pictures that are no films are refused."""
    refused = refused_non_films(ruler)
    counts = {"non_films": len(refused), "non_films_refused": sum(refused.values())}
    return film_ruler_error(ruler, numbers) | counts


def verdict(ruler: FilmRuler) -> tuple[list[str], bool]:
    """Lines that say how a ruler does, and whether it does as is expected of one."""
    refused = refused_non_films(ruler)
    error = film_ruler_error(ruler, PHANTOMS)
    count, films = len(refused), error["films"]
    accepted = [name for name, is_refused in refused.items() if not is_refused]
    assert films and error["refused"] is not None
    lines = [
        f"pictures that are no films, refused: {count - len(accepted)} of {count}"
        + (f"; measured: {', '.join(accepted)}" if accepted else ""),
        f"phantoms, refused: {error['refused']} of {films}",
    ]
    if error["mae"] is not None:
        off = f"{error['mae']:.2f}, worst {error['worst']:.1f} degrees"
        lines.append(f"phantoms, mean absolute error: {off}")
    if error["within"] is not None:
        called = f"{error['called']} of {2 * films} hips called ± 2 degrees or better"
        lines.append(f"{called}, {error['within']:.1%} of these are")
    good = count - len(accepted) >= LEAST_REFUSED * count
    good &= error["refused"] < MOST_REFUSED * films
    return lines, good and (error["within"] is None or error["within"] >= LEAST_WITHIN)


def _drawn() -> dict[str, np.ndarray]:
    """Noise, plain areas, patterns, pages of text and shapes."""
    rng, (y, x) = np.random.default_rng(40), np.mgrid[:_SIZE, :_SIZE] / _SIZE
    coarse = rng.integers(0, 256, (24, 24), dtype=np.uint8)
    salt = rng.choice([0, 128, 255], (_SIZE, _SIZE), p=[0.1, 0.8, 0.1])
    disc = np.hypot(x - 0.5, y - 0.5)
    fields = {
        "black": np.zeros_like(x),
        "white": np.full_like(x, 255),
        "noise": rng.uniform(0, 255, x.shape),
        "salt and pepper": salt,
        "gradient": 255 * x,
        "spot": 255 * np.exp(-8 * disc**2),
        "stripes": 127.5 + 127.5 * np.sign(np.sin(60 * (x + y))),
        "chequerboard": 255.0 * ((np.floor(8 * x) + np.floor(8 * y)) % 2),
        "rings": 127.5 + 100 * np.cos(70 * disc),
    }
    pictures = {name: np.clip(field, 0, 255).astype(np.uint8) for name, field in fields.items()}
    pictures["coarse noise"] = np.asarray(Image.fromarray(coarse).resize((_SIZE, _SIZE)))
    pictures |= {"page": _page(255, 0), "screen": _page(10, 220)}
    return pictures | {"discs": _discs(), "boxes": _boxes(rng), "curves": _curves()}


def _page(paper: int, ink: int) -> np.ndarray:
    """A page of text."""
    image = Image.new("L", (_SIZE, _SIZE), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for line in range(20):
        words = " ".join(("report of the findings and of the method " * 2).split()[line % 5 :])
        draw.text((30, 30 + 21 * line), words[:48], ink, font)
    return np.asarray(image)


def _discs() -> np.ndarray:
    """Two bright discs side by side, with nothing around them."""
    image = Image.new("L", (_SIZE, _SIZE), 40)
    draw = ImageDraw.Draw(image)
    for x in (150, 330):
        draw.ellipse([x - 25, 215, x + 25, 265], fill=200)
    return np.asarray(image)


def _boxes(rng: np.random.Generator) -> np.ndarray:
    """A bar chart."""
    image = Image.new("L", (_SIZE, _SIZE), 255)
    draw = ImageDraw.Draw(image)
    for number, height in enumerate(rng.integers(40, 380, 9)):
        draw.rectangle([45 + 45 * number, 430 - int(height), 75 + 45 * number, 430], fill=90)
    draw.line([(30, 20), (30, 430), (460, 430)], 0, 3)
    return np.asarray(image)


def _curves() -> np.ndarray:
    """Traces of a recording."""
    image, x = Image.new("L", (_SIZE, _SIZE), 0), np.arange(_SIZE)
    draw = ImageDraw.Draw(image)
    for number in range(5):
        y = 60 + 90 * number + 30 * np.sin(x / (6 + 5 * number)) * np.sin(x / 70)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), 230, 2)
    return np.asarray(image)
