"""De-identification of films: what was burned into the pixels is found, masked and reported.

A date or a name in a corner tells whose film it is, and a generator learns it by heart. The boxes
that `burned_in.py` finds are filled with what surrounds them. The letter of a side (L, R) tells
nobody's name and may stay. **A box that comes within two head radii of a hip is never filled**: it
would change what the angles are measured on. It is reported instead, and somebody has to look.

No search finds everything: handwriting, a label photographed with the dog or letters of
three pixels are beyond it. Look at the contact sheet before sharing films or a model of them.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from hpc_hipgen.radiograph.burned_in import Box, Mark, find_marks
from hpc_hipgen.radiograph.captions import DATE_CLASSES
from hpc_hipgen.radiograph.films import SpacedFilm
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.tables import csv_text, shortlist

MASKED, KEPT, NEAR_HIP, MISSED, DROPPED = "masked", "kept", "near a hip", "not found", "dropped"
"""What was done: filled; a letter of a side that stays; not filled; said to be there, yet not
found; left out on reading."""

COLUMNS = ("film", "what", "action", "left", "top", "right", "bottom")
"""Of the report. The box is in pixels of the film, its last two are the first pixels outside."""

PROTECTED = 2.0
"""Head radii around a head centre or rim point in which nothing is filled."""

_BORDER = 3  # pixels around a box whose median it is filled from


@dataclass(frozen=True)
class Finding:
    """One line of the report: `what` is text, colour, marker or overlay plane."""

    what: str
    action: str
    box: Box | None = None

    def line(self, film: str) -> dict[str, object]:
        """The line, `COLUMNS`."""
        box = self.box or ("", "", "", "")
        return dict(zip(COLUMNS, (film, self.what, self.action, *box), strict=True))


def mask_film(
    film: SpacedFilm, landmarks: Landmarks | None = None, keep_markers: bool = True
) -> tuple[np.ndarray, list[Finding]]:
    """Mask a film.

    Args:
        film: as read.
        landmarks: of the film in its pixels; their surroundings are left as they are.
        keep_markers: leave the L or R of a side.

    Returns:
        The masked film (h, w) uint8, and what was found in it.
    """
    findings = [Finding("overlay plane", DROPPED)] * film.overlays
    for mark in find_marks(film.image, film.colour):
        if mark.what == "marker" and keep_markers:
            action = KEPT
        else:
            action = NEAR_HIP if _near_hip(mark, landmarks) else MASKED
        findings.append(Finding(mark.what, action, mark.box))
    if film.burned_in == "YES" and all(
        finding.what in ("marker", "overlay plane") for finding in findings
    ):
        findings.append(Finding("text", MISSED))
    boxes = [finding.box for finding in findings if finding.action == MASKED and finding.box]
    return fill(film.image, boxes), findings


def _near_hip(mark: Mark, landmarks: Landmarks | None) -> bool:
    """True when a box comes within `PROTECTED` head radii of a head centre or rim point."""
    if landmarks is None:
        return False
    low, high = np.array(mark.box[:2]) - 0.5, np.array(mark.box[2:]) - 0.5
    for head_x, head_y, radius, rim_x, rim_y in landmarks.to_array():
        for point in ((head_x, head_y), (rim_x, rim_y)):
            if np.hypot(*(np.clip(point, low, high) - point)) < PROTECTED * radius:
                return True
    return False


def fill(image: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """A film (h, w) uint8 whose boxes are filled from the pixels along their sides.

    A pixel is the mean of the four sides' medians, weighted by the inverse of its distance; a side
    that lies outside the film does not count.
    """
    filled = image.copy()
    for x0, y0, x1, y1 in boxes:
        height, width = y1 - y0, x1 - x0
        sides = (
            (image[max(0, y0 - _BORDER) : y0, x0:x1], 0, np.arange(1, height + 1)[:, None]),
            (image[y1 : y1 + _BORDER, x0:x1], 0, np.arange(height, 0, -1)[:, None]),
            (image[y0:y1, max(0, x0 - _BORDER) : x0], 1, np.arange(1, width + 1)[None]),
            (image[y0:y1, x1 : x1 + _BORDER], 1, np.arange(width, 0, -1)[None]),
        )
        total, weights = np.zeros((height, width)), np.zeros((height, width))
        for strip, axis, distance in sides:
            if strip.size:
                border = ndimage.median_filter(np.median(strip, axis), size=9, mode="nearest")
                total += np.expand_dims(border, axis) / distance
                weights += 1 / distance
        if weights.any():  # a box of the whole film has no surroundings: black
            filled[y0:y1, x0:x1] = np.rint(total / weights)
        else:
            filled[y0:y1, x0:x1] = 0
    return filled


def summary(lines: Sequence[dict[str, object]], films: int) -> list[str]:
    """What was done to so many films, for people; films to look at by name."""

    def named(action: str) -> str:
        return shortlist(str(line["film"]) for line in lines if line["action"] == action)

    count = {
        a: sum(line["action"] == a for line in lines) for a in (MASKED, KEPT, NEAR_HIP, MISSED)
    }
    touched = len({line["film"] for line in lines if line["action"] == MASKED})
    text = [
        f"{films} films searched for burned-in text: {count[MASKED]} places masked in {touched}"
        f" films, {count[KEPT]} side markers kept"
    ]
    if count[NEAR_HIP]:
        text.append(f"NOT masked, too near a hip, look at them: {named(NEAR_HIP)}")
    if count[MISSED]:
        text.append(f"BurnedInAnnotation is YES, but none was found, look: {named(MISSED)}")
    return text


_COLOURS = {MASKED: (255, 80, 80), KEPT: (80, 220, 80), NEAR_HIP: (255, 220, 0)}

THUMBNAIL, SHEET = 256, 500
"""Pixels a side of a film on the contact sheet, and films on it at most."""


def thumbnail(masked: np.ndarray, findings: Sequence[Finding]) -> np.ndarray:
    """A masked film, small, (THUMBNAIL, THUMBNAIL, 3) uint8, its boxes drawn by what was done."""
    picture = Image.fromarray(masked).convert("RGB")
    scale = THUMBNAIL / max(picture.size)
    size = tuple(max(1, round(scale * n)) for n in picture.size)
    picture = picture.resize(size, Image.Resampling.BOX, reducing_gap=2)
    draw = ImageDraw.Draw(picture)
    for finding in findings:
        if finding.box and finding.action in _COLOURS:
            draw.rectangle([scale * v for v in finding.box], outline=_COLOURS[finding.action])
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    sheet.paste(picture)
    return np.asarray(sheet)


def contact_sheet(thumbnails: Sequence[np.ndarray]) -> bytes:
    """A PNG of thumbnails, six side by side."""
    columns = min(6, len(thumbnails))
    rows = -(-len(thumbnails) // columns)
    sheet = np.zeros((rows * THUMBNAIL, columns * THUMBNAIL, 3), np.uint8)
    for number, small in enumerate(thumbnails):
        y, x = (THUMBNAIL * n for n in divmod(number, columns))
        sheet[y : y + THUMBNAIL, x : x + THUMBNAIL] = small
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Searched:
    """A film in which burned-in text was looked for: what was found, and a small picture of it.

    `prompt_class`: of its caption; None where it has none.
    """

    film: str
    findings: Sequence[Finding]
    thumbnail: np.ndarray
    prompt_class: int | None = None

    @property
    def writing_left(self) -> bool:
        """Whether a letter or text is known to be left in the film."""
        return any(finding.action not in (MASKED, DROPPED) for finding in self.findings)


class Masking:
    """The report of masked films, taken one by one; keeps no more thumbnails than are shown."""

    def __init__(self) -> None:
        self._lines: list[dict[str, object]] = []
        self._films = self._dated = 0
        self._shown: list[Searched] = []

    def add(self, film: Searched | None) -> None:
        """Takes a film; None where nobody looked."""
        if film is None:
            return
        self._films += 1
        self._lines += [finding.line(film.film) for finding in film.findings]
        masked = any(finding.action == MASKED for finding in film.findings)
        self._dated += masked and film.prompt_class in DATE_CLASSES
        # those with something first
        bisect.insort(self._shown, film, key=lambda shown: (not shown.findings, shown.film))
        del self._shown[SHEET:]

    def write(self, folder: Path) -> list[str]:
        """Writes the table and the contact sheet, of films that were searched; in words."""
        if not self._films:
            return []
        lines = sorted(self._lines, key=lambda line: str(line["film"]))
        (folder / "deidentified.csv").write_text(csv_text(lines, COLUMNS), encoding="utf-8")
        sheet = contact_sheet([film.thumbnail for film in self._shown])
        (folder / "deidentified.png").write_bytes(sheet)
        text = summary(lines, self._films)
        if self._films > SHEET:
            text.append(f"deidentified.png shows {SHEET} of {self._films} films")
        if self._dated:
            text.append(
                f"{self._dated} of these films are of a prompt class whose caption names a date, "
                "which may be masked now: class 4 names none"
            )
        return text
