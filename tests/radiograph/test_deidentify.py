"""De-identification: text of any colour and place is found and masked, hips are left alone."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from hpc_hipgen.radiograph import deidentify
from hpc_hipgen.radiograph.burned_in import Mark, find_marks
from hpc_hipgen.radiograph.deidentify import (
    COLUMNS,
    Finding,
    Searched,
    contact_sheet,
    fill,
    mask_film,
    thumbnail,
)
from hpc_hipgen.radiograph.films import SpacedFilm
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.tables import csv_text

WHITE, GREY, BLACK = (255, 255, 255), (150, 150, 150), (0, 0, 0)
RED, BLUE = (220, 0, 0), (60, 60, 255)


@pytest.fixture(scope="module")
def phantom():
    """A film without date or marker."""
    return draw_phantom(5, 3, 384, prompt_class=4)


def written(image, text, at, ink=WHITE, size=16, anchor="la"):
    """The film with text burned in, as `SpacedFilm`, and the text's box."""
    picture = Image.fromarray(image).convert("RGB")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    draw.text(at, text, ink, font, anchor)
    pixels = np.asarray(picture)
    difference = pixels.max(2) - pixels.min(2)
    film = SpacedFilm(np.asarray(picture.convert("L")), colour=difference)
    return film, draw.textbbox(at, text, font, anchor)


def covered(boxes, box):
    """Share of a box that boxes cover."""
    x0, y0, x1, y1 = (round(v) for v in box)
    mask = np.zeros((y1 - y0, x1 - x0), bool)
    for left, top, right, bottom in boxes:
        mask[max(0, top - y0) : max(0, bottom - y0), max(0, left - x0) : max(0, right - x0)] = True
    return mask.mean()


@pytest.mark.parametrize("ink", [WHITE, GREY, RED, BLUE])
@pytest.mark.parametrize("corner", ["la", "ra", "ld", "rd"])
def test_a_date_is_masked_in_every_corner_and_colour(phantom, corner, ink):
    height, width = phantom.image.shape
    at = (4 if corner[0] == "l" else width - 4, 4 if corner[1] == "a" else height - 4)
    film, box = written(phantom.image, "12.03.2019", at, ink, anchor=corner)
    masked, findings = mask_film(film, phantom.landmarks)
    assert {finding.action for finding in findings} == {"masked"}
    assert covered([finding.box for finding in findings], box) > 0.95
    x0, y0, x1, y1 = (round(v) for v in box)
    # what is left is no farther from the film before than grey levels differ there anyway
    before, after = (image[y0:y1, x0:x1].astype(float) for image in (phantom.image, masked))
    assert np.abs(after - before).mean() < before.std()
    assert find_marks(masked) == []


def test_a_film_without_text_is_left_as_it_is(phantom):
    masked, findings = mask_film(SpacedFilm(phantom.image), phantom.landmarks)
    assert findings == [] and np.array_equal(masked, phantom.image)


def test_text_near_a_hip_is_reported_and_not_masked(phantom):
    hip = phantom.landmarks.image_left
    film, box = written(phantom.image, "12.03.2019", (hip.head_x, hip.head_y), RED, anchor="mm")
    masked, findings = mask_film(film, phantom.landmarks)
    assert [finding.action for finding in findings] == ["near a hip"]
    assert covered([findings[0].box], box) > 0.9
    assert np.array_equal(masked, film.image)
    assert [finding.action for finding in mask_film(film)[1]] == ["masked"]  # no hips known


@pytest.mark.parametrize("ink", [WHITE, RED])
@pytest.mark.parametrize("letter", ["L", "R"])
def test_the_letter_of_a_side_may_stay(letter, ink):
    film, box = written(np.zeros((384, 384), np.uint8), letter, (300, 60), ink, size=30)
    kept, findings = mask_film(film)
    assert [(f.what, f.action) for f in findings] == [("marker", "kept")]
    assert covered([findings[0].box], box) > 0.5 and np.array_equal(kept, film.image)
    masked, findings = mask_film(film, keep_markers=False)
    assert [f.action for f in findings] == ["masked"] and masked.max() == 0


def test_what_a_dicom_file_says_of_itself_is_in_the_report(phantom):
    film = SpacedFilm(phantom.image, burned_in="YES", overlays=1)
    _, findings = mask_film(film, phantom.landmarks)
    assert findings == [Finding("overlay plane", "dropped"), Finding("text", "not found")]


def test_the_letter_of_a_side_is_not_the_text_that_a_dicom_file_states():
    film, _ = written(np.zeros((384, 384), np.uint8), "L", (300, 60), size=30)
    _, findings = mask_film(replace(film, burned_in="YES"))
    assert [finding.action for finding in findings] == ["kept", "not found"]
    missed = Searched("a", findings[1:], thumbnail(film.image, []))
    assert missed.writing_left, "nobody knows where, so that it is not mirrored"


def test_boxes_are_filled_from_their_surroundings():
    ramp = np.repeat(np.arange(0, 120, 2, dtype=np.uint8)[:, None], 80, 1)
    spoilt = ramp.copy()
    spoilt[20:30, 10:60] = 255
    assert np.abs(fill(spoilt, [(10, 20, 60, 30)]).astype(int) - ramp).max() <= 6
    corner = ramp.copy()
    corner[:10, :20] = 255
    assert fill(corner, [(0, 0, 20, 10)]).max() == ramp.max()
    assert fill(spoilt, [(0, 0, 80, 60)]).max() == 0  # no surroundings
    along = fill(spoilt.T.copy(), [(20, 10, 30, 60)])
    assert np.array_equal(along, fill(spoilt, [(10, 20, 60, 30)]).T)


def test_the_report_is_a_table_and_a_picture(phantom):
    finding = Finding("text", "masked", (1, 2, 30, 14))
    lines = list(csv.DictReader(io.StringIO(csv_text([finding.line("a.png")], COLUMNS))))
    assert tuple(lines[0]) == COLUMNS and lines[0]["right"] == "30"
    small = thumbnail(phantom.image, [finding])
    sheet = Image.open(io.BytesIO(contact_sheet([small] * 7)))
    assert sheet.size == (6 * 256, 2 * 256)


def test_no_more_thumbnails_are_kept_than_are_shown(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(deidentify, "SHEET", 2)
    finding = Finding("text", "masked", (1, 2, 30, 14))
    masking = deidentify.Masking()
    for name, findings in (("d", []), ("c", []), ("b", [finding]), ("a", []), ("e", [])):
        masking.add(Searched(name, findings, thumbnail(phantom.image, findings), 4))
    assert [film.film for film in masking._shown] == ["b", "a"]
    said = masking.write(tmp_path)
    assert "deidentified.png shows 2 of 5 films" in said and "1 places masked in 1" in said[0]
    assert Image.open(tmp_path / "deidentified.png").size == (2 * 256, 256)
    assert (tmp_path / "deidentified.csv").read_text().splitlines()[1:] == [
        "b,text,masked,1,2,30,14"
    ]


def test_what_is_protected_reaches_two_radii_around_head_and_rim():
    landmarks = Landmarks(Hip(100, 150, 20, 95, 100), Hip(260, 150, 20, 265, 100))
    actions = {}
    for box in ((140, 145, 160, 155), (141, 145, 160, 155), (90, 40, 100, 61), (90, 40, 100, 60)):
        actions[box] = deidentify._near_hip(Mark("text", box), landmarks)
    assert list(actions.values()) == [True, False, True, False]


@pytest.mark.parametrize("ink", [WHITE, BLACK])
@pytest.mark.parametrize("quarters", [0, 1, 3])
def test_text_may_be_dark_and_may_run_along_the_film(phantom, quarters, ink):
    ground = np.rot90(np.maximum(phantom.image, 120) if ink == BLACK else phantom.image, quarters)
    across, _ = written(ground, "WALDMANN", (4, 4), ink)
    _, findings = mask_film(SpacedFilm(np.rot90(across.image, -quarters)))
    assert {(finding.what, finding.action) for finding in findings} == {("text", "masked")}
    found = np.zeros(phantom.image.shape, bool)
    for x0, y0, x1, y1 in (finding.box for finding in findings):
        found[y0:y1, x0:x1] = True
    assert np.rot90(found, quarters)[across.image != ground].mean() > 0.98


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_letters_of_a_large_film_may_be_large(size):
    film, box = written(np.zeros((1100, 1100), np.uint8), "12.03.2019", (40, 60), size=size)
    masked, findings = mask_film(SpacedFilm(film.image))
    assert covered([finding.box for finding in findings], box) > 0.95 and masked.max() == 0


@pytest.mark.parametrize("size", [7, 9])
def test_letters_of_a_small_film_may_be_small(size):
    film, box = written(np.zeros((300, 300), np.uint8), "12.03.2019", (40, 60), size=size)
    _, findings = mask_film(SpacedFilm(film.image))
    assert covered([finding.box for finding in findings], box) > 0.95


def test_the_tint_of_a_film_is_no_drawn_colour_and_a_picture_in_colour_tells_nothing(phantom):
    tint = np.full_like(phantom.image, 60)
    film, box = written(phantom.image, "12.03.2019", (4, 4), RED)
    assert find_marks(phantom.image, tint) == []
    marks = find_marks(phantom.image, np.where(film.colour > 60, film.colour, tint))
    assert [mark.what for mark in marks] == ["colour"] and covered([marks[0].box], box) > 0.95
    half = np.where(np.arange(tint.shape[1]) % 2 == 0, 0, tint + 40).astype(np.uint8)
    assert find_marks(phantom.image, np.broadcast_to(half, tint.shape)) == []
