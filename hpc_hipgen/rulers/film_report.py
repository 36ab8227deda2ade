"""What the film ruler said of many films: a table, a JSON file and a picture of each film."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from hpc_hipgen.radiograph.films import SYNTHETIC, SpacedFilm
from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS, PATIENT_SIDES, Landmarks, fci_grade
from hpc_hipgen.rulers.film_ruler import FilmMeasurement

MEASURED, UNCERTAIN, REFUSED, UNREADABLE = "measured", "uncertain", "refused", "unreadable"

CAVEAT = (
    "Measured by software trained on {}. The uncertainty is that of 95 % of hips on "
    "{}; on other films it may be larger. FCI bands follow from the angle alone, a grade also "
    "weighs the joint's shape and arthrosis. Not for diagnosis or breeding decisions."
)

COLUMNS = (
    "film", "status", "reason", "patient_left", "patient_right", "uncertainty_left",
    "uncertainty_right", "fci_left", "fci_right", "patient_at_right", "sides_from", "presence",
    "inverted", "width", "height",
    "pixel_height_mm", "pixel_width_mm", *LANDMARK_COLUMNS, "synthetic",
)  # fmt: skip

_MARK = ("measured-by", "hpc_hipgen")
_LONGEST = 1000  # pixels of an overlay's longer side
_COLOURS = ((255, 90, 90), (90, 200, 255))


def film_line(name: str, film: SpacedFilm, found: FilmMeasurement) -> dict[str, Any]:
    """One line, `COLUMNS`, of a film; angles in degrees, landmarks in pixels of the file.

    None where there is no value; the film was measured with square pixels (`SpacedFilm.square`).
    The patient's left hip is at the image's right unless the file says otherwise.
    """
    hips = [(found.image_left, found.uncertainty[0]), (found.image_right, found.uncertainty[1])]
    left, right = hips if film.mirrored else hips[::-1]
    line: dict[str, Any] = dict.fromkeys(COLUMNS)
    height, width = film.image.shape
    line |= {
        "film": name,
        "status": REFUSED if found.reason else UNCERTAIN if found.warning else MEASURED,
        "reason": found.reason or found.warning,
        "patient_at_right": "right" if film.mirrored else "left",
        "sides_from": "PatientOrientation" if film.patient_at_right else "assumed",
        "presence": round(found.presence, 3),
        "inverted": found.inverted,
        "width": width,
        "height": height,
        "synthetic": film.synthetic,
    }
    if film.spacing:
        line["pixel_height_mm"], line["pixel_width_mm"] = film.spacing
    if found.reason:
        return line
    for side, (angle, doubt) in (("left", left), ("right", right)):
        line[f"patient_{side}"] = round(angle, 2)
        line[f"uncertainty_{side}"] = round(float(doubt), 2)
        line[f"fci_{side}"] = fci_grade(angle)
    marks = Landmarks.from_array(found.landmarks).stretch(1 / film.aspect)
    return line | {name: round(value, 2) for name, value in marks.flat().items()}


def unreadable_line(name: str, reason: str) -> dict[str, Any]:
    """The line of a file that could not be read."""
    return dict.fromkeys(COLUMNS) | {"film": name, "status": UNREADABLE, "reason": reason}


def caveat(lab_films: int) -> str:
    """`CAVEAT` of a ruler that has seen so many films of a lab."""
    if lab_films:
        seen = f"drawings and {lab_films} films of one lab"
        return CAVEAT.format(seen, "films of that lab that it had not seen")
    return CAVEAT.format("drawings alone", "drawings")


def to_json(lines: Sequence[Mapping[str, Any]], lab_films: int = 0, **about: Any) -> str:
    """The text of measurements.json: `about` the ruler, the caveat, and the films."""
    content = {**about, "caveat": caveat(lab_films), "films": list(lines)}
    return json.dumps(content, indent=1, allow_nan=False)


def overlay(image: np.ndarray, line: Mapping[str, Any], found: FilmMeasurement) -> bytes:
    """A PNG of a film (h, w) uint8 with square pixels: circles, rim points, angles or the reason.

    Marked in its text and at its foot as measured by software, and in its text where it is a
    drawing.
    """
    scale = min(1.0, _LONGEST / max(image.shape))
    size = tuple(max(1, round(n * scale)) for n in image.shape[::-1])
    shown = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    letter = max(10, round(max(size) / 50))
    font = ImageFont.load_default(letter)
    page = Image.new("RGB", (size[0], size[1] + 3 * letter), (0, 0, 0))
    page.paste(shown.convert("RGB"), (0, 0))
    draw = ImageDraw.Draw(page)
    if np.isfinite(found.landmarks).all():
        half = np.array([0.5, 0.5, 0, 0.5, 0.5])  # pixel centres are at integers
        rows = (found.landmarks + half) * scale - half
        _draw_hips(draw, rows, max(1, round(letter / 10)))
    text = "refused: " + found.reason if found.reason else _angles(line)
    draw.text((letter // 2, size[1] + letter // 4), text, (255, 255, 255), font)
    foot = "measured by hpc_hipgen; not for diagnosis or breeding decisions"
    draw.text((letter // 2, size[1] + letter * 3 // 2), foot, (170, 170, 170), font)
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_MARK)
    if line.get("synthetic"):
        mark.add_text(*SYNTHETIC)
    buffer = io.BytesIO()
    page.save(buffer, "png", pnginfo=mark, compress_level=1)
    return buffer.getvalue()


def _angles(line: Mapping[str, Any]) -> str:
    """Both angles in the order of the image: the patient's right is at its left, or left."""
    order = PATIENT_SIDES[:: 1 if line["patient_at_right"] == "right" else -1]
    parts = [
        f"{side[0].upper()} {line[f'patient_{side}']:.1f} ± {line[f'uncertainty_{side}']:.1f}° "
        f"(band {line[f'fci_{side}']})"
        for side in order
    ]
    return "      ".join(parts)


def _draw_hips(draw: ImageDraw.ImageDraw, rows: np.ndarray, width: int) -> None:
    """Circles, the line between the heads and the arms to the rims, (2, 5) in pixels."""
    draw.line([tuple(rows[0, :2]), tuple(rows[1, :2])], (230, 230, 120), width)
    for (x, y, r, rim_x, rim_y), colour in zip(rows, _COLOURS, strict=True):
        draw.ellipse([x - r, y - r, x + r, y + r], outline=colour, width=width)
        draw.line([(x, y), (rim_x, rim_y)], colour, width)
        dot = 2 * width + 1
        draw.ellipse([rim_x - dot, rim_y - dot, rim_x + dot, rim_y + dot], outline=(120, 255, 120))


def compare(
    lines: Iterable[Mapping[str, Any]], known: Mapping[str, Landmarks]
) -> tuple[list[str], dict[str, Any]]:
    """Measured against annotated angles.

    Args:
        lines: of films.
        known: landmarks of some in square pixels, by the film's name.

    Returns:
        A table for people, one row a hip, and its figures: mean absolute error, bias and worst
        error in degrees, hips measured and not.
    """
    width = max([4, *(len(name) for name in known)])
    text = [f"{'film':{width}}  side   annotated  measured   error  uncertainty"]
    errors: list[float] = []
    missed = 0
    for line in lines:
        if line["film"] not in known:
            continue
        angles = known[line["film"]].norberg_angles()
        for side in PATIENT_SIDES:
            at_right = side == (line["patient_at_right"] or "left")  # unknown of unreadable films
            true = angles.image_right if at_right else angles.image_left
            angle = line[f"patient_{side}"]
            row = f"{line['film']:{width}}  {side:5}  {true:9.1f}"
            if angle is None:
                missed += 1
                text.append(f"{row}   {line['status']}: {line['reason']}")
                continue
            errors.append(angle - true)
            row += f"  {angle:8.1f}  {angle - true:+6.1f}  ± {line[f'uncertainty_{side}']:.1f}"
            text.append(row)
    figures: dict[str, Any] = {"hips": len(errors), "not_measured": missed}
    summary = f"{len(errors)} hips measured, {missed} not"
    if errors:
        mae, bias = fmean(map(abs, errors)), fmean(errors)
        figures |= {"mae": mae, "bias": bias, "worst": max(map(abs, errors))}
        summary += f"; mean absolute error {mae:.2f}, bias {bias:+.2f}, "
        summary += f"worst {figures['worst']:.1f} degrees"
    return [*text, summary], figures
