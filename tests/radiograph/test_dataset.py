"""Data sets: views of films, the same bytes whatever the processes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from dicom_files import dicom
from film_folder import LANDMARKS, PROPORTIONS, as_dicom, film_folder, write_table
from PIL import Image, ImageDraw, ImageFont

from hpc_hipgen.radiograph.captions import MIRROR_CLASSES
from hpc_hipgen.radiograph.dataset import ViewSettings, write_dataset
from hpc_hipgen.radiograph.film_set import FilmFile, film_files, phantom_films
from hpc_hipgen.radiograph.films import FilmErrors
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.phantom import draw_phantom

SMALL = ViewSettings(resolution=64, head_distance=0.6, views=3, seed=1)


def made(folder, films, settings=SMALL, processes=1):
    folder.mkdir()
    return write_dataset(folder, films, settings, processes)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    films = phantom_films(3, {"train": 6, "validation": 1, "test": 2}, 64)
    return folder, films, *made(folder, films)


def test_training_films_have_more_views(phantoms):
    _, _, rows, _, _ = phantoms
    assert Counter(row["split"] for row in rows) == {"train": 18, "validation": 1, "test": 2}
    assert {row["view"] for row in rows if row["split"] == "train"} == {0, 1, 2}


def test_flips_swap_the_sides_and_spare_the_classes_that_name_one(phantoms):
    _, _, rows, _, _ = phantoms
    nominal = {row["film"]: row for row in rows if row["view"] == 0}
    flipped = [row for row in rows if row["flipped"]]
    assert flipped and all(row["prompt_class"] in MIRROR_CLASSES for row in flipped)
    for row in rows:
        sides = ["patient_left", "patient_right"]
        for side, origin in zip(sides, sides[:: -1 if row["flipped"] else 1], strict=True):
            # Rounding of the landmarks to 1e-4 px moves an angle by less than this.
            assert row[side] == pytest.approx(nominal[row["film"]][origin], abs=0.01)


@pytest.mark.parametrize(
    ("text", "masking", "mirrored"),
    [
        ("", {}, True),
        ("", {"masked": False}, False),  # nobody looked
        ("L", {}, False),
        ("L", {"keep_markers": False}, True),
        ("12.03.2019", {}, True),
        ("near", {}, False),
    ],
)
def test_a_film_in_which_writing_stays_is_not_mirrored(tmp_path, text, masking, mirrored):
    film = draw_phantom(5, 3, 384, prompt_class=4)
    picture = Image.fromarray(film.image).convert("RGB")
    at = (40, 30)
    if text == "near":
        text, at = (
            "12.03.2019",
            (film.landmarks.image_left.head_x, film.landmarks.image_left.head_y),
        )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(30 if text == "L" else 16)
    draw.text(at, text, (220, 0, 0), font)
    picture.save(tmp_path / "a.png")
    file = FilmFile("a.png", "a", "train", tmp_path / "a.png", film.landmarks, 4, **masking)
    rows, _, _ = made(tmp_path / "data", [file], replace(SMALL, views=12))
    assert any(row["flipped"] for row in rows) == mirrored


def test_the_number_of_processes_changes_no_byte(tmp_path, monkeypatch):
    film_folder(tmp_path, 3)
    films = film_files(tmp_path, None, PROPORTIONS, 0)
    made(tmp_path / "one", films)
    monkeypatch.setattr("hpc_hipgen.parallel.LEAST", 2)
    made(tmp_path / "two", films[::-1], processes=2)
    paths = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(paths) > 10
    for path in paths:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes(), path


def test_a_film_that_lies_the_other_way_round_is_mirrored(tmp_path):
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PatientOrientation=["R", "F"])
    write_table(tmp_path, rows)
    films = film_files(tmp_path, None, {"test": 1}, 0)
    (usual, other), _, said = made(tmp_path / "data", films)
    assert other["patient_left"] == pytest.approx(usual["patient_right"], abs=0.01)
    assert other["patient_right"] == pytest.approx(usual["patient_left"], abs=0.01)
    assert f"left {other['patient_left']:.0f}" in other["caption"]
    assert "1 films have the patient's right at the image's right" in said[0]
    assert said[0].endswith(": 1.dcm (all in mirrored.csv)")
    assert (tmp_path / "data" / "mirrored.csv").read_text() == "film\n1.dcm\n"
    made(tmp_path / "usual", films[:1])
    assert not (tmp_path / "usual" / "mirrored.csv").exists()
    one, two = (
        np.asarray(Image.open(tmp_path / "data" / x["file"]), float) for x in (usual, other)
    )
    assert np.abs(one - two[:, ::-1]).max() <= 2


@pytest.mark.parametrize(("right", "action"), [("L", "kept"), ("R", "masked")])
def test_the_letter_of_a_side_is_masked_in_a_film_that_is_mirrored(tmp_path, right, action):
    phantom = draw_phantom(5, 3, 384, prompt_class=4)
    picture = Image.fromarray(phantom.image)
    ImageDraw.Draw(picture).text((40, 30), "L", 255, ImageFont.load_default(30))
    film = dicom(np.array(picture), PatientOrientation=[right, "F"])
    film.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    loaded = FilmFile("a.dcm", "a", "train", tmp_path / "a.dcm", phantom.landmarks, 4).load()
    assert [(found.what, found.action) for found in loaded.searched.findings] == [
        ("marker", action)
    ]
    assert loaded.mirrored == loaded.may_flip == (action == "masked")


def test_pixels_that_are_not_square_are_stretched_before_anything_is_measured(tmp_path):
    square, flat = LANDMARKS.norberg_angles(), LANDMARKS.stretch(0.5).norberg_angles()
    assert abs(square.image_left - flat.image_left) > 5
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PixelSpacing=[0.1, 0.2])
    for row in rows:
        angles = flat if row["image"] == "1.dcm" else square
        row["norberg_angle"] = round(getattr(angles, row["side"]), 1)
    write_table(tmp_path, rows)
    _, other = film_files(tmp_path, None, {"test": 1}, 0)
    loaded = other.load()
    assert loaded.image.shape == (150, 360) and loaded.landmarks == LANDMARKS.stretch(0.5)
    (_, row), _, _ = made(tmp_path / "data", [_, other])
    assert row["patient_left"] == pytest.approx(flat.image_right, abs=0.01)

    rows[2]["norberg_angle"] = rows[0]["norberg_angle"]  # that of the pixels as they lie
    write_table(tmp_path, rows)
    with pytest.raises(FilmErrors, match=r"row 4: norberg_angle of 1\.dcm image_left"):
        film_files(tmp_path, None, {"test": 1}, 0)


def test_the_resolution_budget_of_films_and_views(tmp_path):
    film_folder(tmp_path, 1)
    film = FilmFile("0.png", "0", "test", tmp_path / "0.png", LANDMARKS, 4)
    _, budget, _ = made(tmp_path / "data", [film])
    arm = np.hypot(5, 25)  # the shorter one
    assert budget.film_degrees[0] == pytest.approx(np.degrees(1 / arm))
    ratio = 0.6 * 64 / LANDMARKS.head_distance
    assert budget.view_degrees[0] == pytest.approx(np.degrees(1 / (arm * ratio)), rel=1e-3)
    assert "38 px between the heads" in budget.lines()[1]


@pytest.mark.parametrize("source", ["phantoms", "files"])
def test_films_with_rare_angles_become_more_views(tmp_path, source):
    films = phantom_films(3, {"train": 24, "validation": 2}, 64)
    if source == "files":
        whole = Image.fromarray(films[0].load().image)
        for film in films:
            whole.save(tmp_path / f"{film.name}.png")
        low = replace(LANDMARKS, image_left=Hip(100, 120, 20, 109, 95))
        films = [
            FilmFile(f.name, f.dog, f.split, tmp_path / f"{f.name}.png", at, 4)
            for n, f in enumerate(films)
            for at in [low if n == 5 else LANDMARKS]
        ]
    rows, _, _ = made(tmp_path / "data", films, replace(SMALL, views=4, balance=1))
    views = Counter(row["film"] for row in rows)
    worst = min(films[:24], key=lambda film: min(vars(film.nominal_angles()).values()))
    train = [views[film.name] for film in films[:24]]
    assert sum(train) == 24 * 4 and min(train) >= 2
    assert views[worst.name] == max(train) > 8
    assert all(views[film.name] == 1 for film in films[24:])
    # the views that a film has without balance are the same pictures
    plain, _, _ = made(tmp_path / "plain", films, replace(SMALL, views=4))
    names = {row["file"]: row for row in plain}
    same = [row for row in rows if row["file"] in names]
    assert len(same) == sum(min(count, 4) for count in train) + 2
    assert all(names[row["file"]] == row for row in same)
    for row in same:
        picture, other = (tmp_path / name / row["file"] for name in ("data", "plain"))
        assert picture.read_bytes() == other.read_bytes()


def test_views_are_jittered_and_warped_as_asked_each_in_its_own_way(tmp_path):
    film_folder(tmp_path, 1)
    film = FilmFile("0.png", "0", "train", tmp_path / "0.png", LANDMARKS, 1)

    def views(name, **changed):
        rows, _, _ = made(tmp_path / name, [film], replace(SMALL, **changed))
        return [Landmarks.from_flat(row).to_array() for row in rows], rows[1]["patient_left"]

    (nominal, first, second), left = views("usual")
    assert np.abs(first - nominal).max() > 0.1 and np.abs(first - second).max() > 0.1
    assert left == pytest.approx(LANDMARKS.norberg_angles().patient_left, abs=0.02)
    (_, other, _), _ = views("seed", seed=2)
    assert np.abs(first - other).max() > 0.1
    still, _ = views("still", jitter=0.0)
    assert max(np.abs(view - nominal).max() for view in still) < 1e-3
    _, warped = views("warp", jitter=0.0, warp=5.0)
    assert abs(warped - left) > 0.2
