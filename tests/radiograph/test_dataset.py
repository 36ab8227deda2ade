"""Data sets: splits by dog, checks of real films, the same bytes whatever the processes."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from dicom_files import dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from hpc_hipgen.radiograph.captions import MIRROR_CLASSES
from hpc_hipgen.radiograph.dataset import (
    FilmFile,
    ViewSettings,
    film_files,
    phantom_films,
    split_dogs,
    unlisted_films,
    write_dataset,
)
from hpc_hipgen.radiograph.films import FilmErrors
from hpc_hipgen.radiograph.geometry import Hip, Landmarks
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.rulers.film_measuring import find_films

PROPORTIONS = {"train": 219, "validation": 31, "test": 84}
LANDMARKS = Landmarks(Hip(100, 120, 20, 95, 95), Hip(260, 126, 20, 266, 99))
SMALL = ViewSettings(resolution=64, head_distance=0.6, views=3, seed=1)


def film_folder(folder, count=2, **columns):
    """A folder of noise films that share their landmarks; returns the rows of its table."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (300, 360), np.uint8)).save(folder / f"{n}.png")
        for side in ("image_left", "image_right"):
            rows.append({"image": f"{n}.png", "side": side, **vars(getattr(LANDMARKS, side))})
            rows[-1].update({name: values[n] for name, values in columns.items()})
    write_table(folder, rows)
    return rows


def as_dicom(folder, rows, name, **attributes):
    """The first film once more as DICOM, but for a corner; returns the rows of both."""
    image = np.array(Image.open(folder / "0.png"))
    image[0, 0] ^= 1  # else it would be the same film of another dog
    dicom(image, **attributes).save_as(folder / name, enforce_file_format=True)
    return [*rows, *({**row, "image": name} for row in rows if row["image"] == "0.png")]


def write_table(folder, rows):
    with (folder / "landmarks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 5))
def test_dogs_are_dealt_in_proportion(count, seed):
    dogs = [f"dog-{n}" for n in range(count)]
    dealt = split_dogs(dogs, PROPORTIONS, seed)
    assert dealt == split_dogs(dogs[::-1] * 2, PROPORTIONS, seed)
    counts = Counter(dealt.values())
    assert sum(counts.values()) == count
    if count >= 3:
        assert len(counts) == 3  # none is empty
    for split, share in PROPORTIONS.items():
        assert abs(counts[split] - count * share / 334) <= 1


def test_the_papers_split_is_exact():
    dealt = split_dogs([str(n) for n in range(334)], PROPORTIONS, 0)
    assert Counter(dealt.values()) == PROPORTIONS


def test_all_films_can_go_to_one_split():
    assert set(split_dogs(["a", "b", "c"], {"test": 1}, 0).values()) == {"test"}


def test_films_of_a_dog_stay_together(tmp_path):
    film_folder(tmp_path, 8, dog=[f"dog-{n // 2}" for n in range(8)])
    films = film_files(tmp_path, None, PROPORTIONS, 0)
    split_of = {}
    for film in films:
        assert split_of.setdefault(film.dog, film.split) == film.split
    assert len(films) == 8 and set(split_of.values()) == {"train", "validation", "test"}


def test_splits_of_the_table_are_obeyed(tmp_path):
    film_folder(tmp_path, 3, split=["test", "train", "test"])
    films = film_files(tmp_path, None, PROPORTIONS, 0)
    assert [film.split for film in films] == ["test", "train", "test"]


def test_all_that_is_wrong_is_listed_at_once(tmp_path):
    rows = film_folder(tmp_path, 5)
    rows[0]["rim_y"] = -0.6  # row 2
    rows[3].update(head_x=359.6, rim_x=365.0)  # row 5
    (tmp_path / "2.png").unlink()
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(data[: len(data) // 2])
    rows[8]["rim_x"] = "left"  # row 10
    rows[4]["norberg_angle"] = 60.0  # row 6, beside the missing file
    write_table(tmp_path, [{"norberg_angle": "", **row} for row in rows])
    with pytest.raises(FilmErrors) as caught:
        film_files(tmp_path, None, PROPORTIONS, 0)
    lines = [line.replace(f"{tmp_path}/", "") for line in caught.value.lines]
    angle = LANDMARKS.norberg_angles().image_left
    outside = "is outside the image of 360 x 300 pixels"
    assert lines == [
        "landmarks.csv row 10: rim_x 'left' is not a number",
        "landmarks.csv row 6: norberg_angle of 2.png image_left is 60"
        f" but the landmarks give {angle:.1f} degrees",
        f"landmarks.csv row 2: 0.png image_left rim (95, -0.6) {outside}",
        f"landmarks.csv row 5: 1.png image_right head (359.6, 126) {outside}",
        f"landmarks.csv row 5: 1.png image_right rim (365, 99) {outside}",
        "landmarks.csv row 6: 2.png: cannot be opened (No such file or directory)",
        "landmarks.csv row 8: 3.png: damaged or truncated (image file is truncated)",
    ]


def test_a_dog_for_some_films_only_is_refused(tmp_path):
    film_folder(tmp_path, 2, dog=["rex", ""])
    with pytest.raises(FilmErrors, match=r"row 4: 1\.png has no dog, other films have; give every"):
        film_files(tmp_path, None, PROPORTIONS, 0)


def test_one_picture_under_two_names_is_of_one_dog(tmp_path):
    rows = film_folder(tmp_path, 3)
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    message = r"row 6: 2\.png is the same picture as 0\.png, but not of the same dog"
    with pytest.raises(FilmErrors, match=message):
        film_files(tmp_path, None, PROPORTIONS, 0)
    write_table(tmp_path, [{**row, "dog": row["image"] == "1.png"} for row in rows])
    films = film_files(tmp_path, None, PROPORTIONS, 0)
    assert films[0].pixels == films[2].pixels != films[1].pixels
    for row in rows[4:]:
        row["rim_y"] += 1
    write_table(tmp_path, [{**row, "dog": row["image"] == "1.png"} for row in rows])
    with pytest.raises(FilmErrors, match=r"2\.png is the same picture as 0\.png, with other landm"):
        film_files(tmp_path, None, PROPORTIONS, 0)


def test_a_film_that_reads_as_black_is_refused(tmp_path):
    """As through a window of other pixels."""
    rows = film_folder(tmp_path, 1)
    window = {"WindowCenter": 32768, "WindowWidth": 256}
    write_table(tmp_path, as_dicom(tmp_path, rows, "dark.dcm", **window))
    message = r"1 problem .*\n.*row 4: dark\.dcm: hardly any difference between dark and bright$"
    with pytest.raises(FilmErrors, match=message):
        film_files(tmp_path, None, PROPORTIONS, 0)


def test_landmarks_of_a_film_of_another_size_are_refused(tmp_path):
    film_folder(tmp_path, 1)
    points = {}
    for side in ("image_left", "image_right"):
        hip = getattr(LANDMARKS, side)
        points[f"{side}_head"] = hip.head_x, hip.head_y
        points[f"{side}_head_edge"] = hip.head_x, hip.head_y + hip.head_radius
        points[f"{side}_rim"] = hip.rim_x, hip.rim_y
    keypoints = [value for point in points.values() for value in (*point, 2)]
    table = tmp_path / "coco.json"
    for width, height in ((360, 300), (180, 150)):
        size = {"width": width, "height": height}
        tree = {
            "images": [{"id": 1, "file_name": "0.png", **size}],
            "categories": [{"id": 1, "keypoints": list(points)}],
            "annotations": [{"image_id": 1, "category_id": 1, "keypoints": keypoints}],
        }
        table.write_text(json.dumps(tree))
        if width == 360:
            assert film_files(tmp_path, table, PROPORTIONS, 0)[0].landmarks == LANDMARKS
    message = r"0\.png: the landmarks are for 180 x 150 pixels, the film has 360 x 300$"
    with pytest.raises(FilmErrors, match=message):
        film_files(tmp_path, table, PROPORTIONS, 0)


def test_an_angle_that_no_caption_can_name_is_refused(tmp_path):
    rows = film_folder(tmp_path, 1)
    rows[0].update(rim_x=130.0, rim_y=110.0)
    write_table(tmp_path, rows)
    with pytest.raises(FilmErrors, match=r"row 2: 0\.png: Norberg angle of the patient's right"):
        film_files(tmp_path, None, PROPORTIONS, 0)


def test_films_that_the_table_does_not_mention_are_named(tmp_path):
    film_folder(tmp_path, 2)
    (tmp_path / "later.PNG").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._0.png").write_text("left by macOS")
    (tmp_path / "1.2.840").mkdir()
    (tmp_path / "1.2.840" / "1.2.840.7").write_bytes(bytes(128) + b"DICM")
    films = film_files(tmp_path, None, PROPORTIONS, 0)
    assert unlisted_films(tmp_path, films) == ["1.2.840/1.2.840.7", "later.PNG"]


def test_films_below_links_to_folders_are_found_once(tmp_path):
    for name in ("films", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.png").write_bytes(b"")
    (tmp_path / "films" / "back").symlink_to(tmp_path / "films")
    for link in ("link", "second"):
        (tmp_path / "films" / link).symlink_to(tmp_path / "elsewhere")
    assert unlisted_films(tmp_path / "films", []) == ["link/deep/a.png"]
    assert find_films([str(tmp_path / "films")], tmp_path / "out") == [
        tmp_path / "films" / "link" / "deep" / "a.png"
    ]


def test_test_phantoms_do_not_depend_on_the_number_of_training_phantoms():
    few, many = (
        {f.name: f for f in phantom_films(0, {"train": n, "test": 2}, 128)} for n in (3, 30)
    )
    assert all(many[name] == film for name, film in few.items())


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
    assert said[0].endswith(": 1.dcm")
    one, two = (
        np.asarray(Image.open(tmp_path / "data" / x["file"]), float) for x in (usual, other)
    )
    assert np.abs(one - two[:, ::-1]).max() <= 2


def test_a_film_that_is_mirrored_has_no_class_that_names_a_side(tmp_path):
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PatientOrientation=["R", "F"])
    write_table(tmp_path, [{**row, "prompt_class": 1} for row in rows])
    with pytest.raises(FilmErrors) as caught:
        film_files(tmp_path, None, {"test": 1}, 0)
    (line,) = caught.value.lines
    assert "row 4: 1.dcm is mirrored" in line and line.endswith("give it 4")


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


def test_captions_name_angles_in_square_pixels(tmp_path):
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PixelSpacing=[0.2, 0.1])[2:]
    rows[0].update(rim_x=86.0, rim_y=108.0)
    write_table(tmp_path, rows)
    (film,) = film_files(tmp_path, None, {"test": 1}, 0)
    assert film.nominal_angles().image_left < 125 < film.landmarks.norberg_angles().image_left


def test_the_resolution_budget_of_films_and_views(tmp_path):
    film_folder(tmp_path, 1)
    film = FilmFile("0.png", "0", "test", tmp_path / "0.png", LANDMARKS, 4)
    _, budget, _ = made(tmp_path / "data", [film])
    arm = np.hypot(5, 25)  # the shorter one
    assert budget.film_degrees[0] == pytest.approx(np.degrees(1 / arm))
    ratio = 0.6 * 64 / LANDMARKS.head_distance
    assert budget.view_degrees[0] == pytest.approx(np.degrees(1 / (arm * ratio)), rel=1e-3)
    assert "38 px between the heads" in budget.lines()[1]


def test_even_angles_are_of_training_phantoms_alone_and_change_no_other():
    from hpc_hipgen.radiograph.dataset import phantom_films

    counts = {"train": 200, "validation": 3, "test": 3}
    plain, mixed = (phantom_films(3, counts, 64, share) for share in (0.0, 0.5))
    even = [film for film in mixed if film.angles]
    assert 70 < len(even) < 130 and all(film.split == "train" for film in even)
    values = [v for film in even for v in (film.angles.image_left, film.angles.image_right)]
    assert min(values) >= 58 and max(values) <= 122
    assert sum(v < 80 for v in values) > 40, "the population has hardly any"
    assert [f for f in mixed if not f.angles] == [
        f for f in plain if f.name not in {e.name for e in even}
    ]


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


def test_phantoms_of_different_splits_are_different_ones():
    films = phantom_films(0, {"train": 3, "validation": 3, "test": 3}, 64)
    assert len({film.index for film in films}) == 9


def test_the_seed_deals_the_dogs():
    dogs = [str(n) for n in range(30)]
    assert split_dogs(dogs, PROPORTIONS, 0) != split_dogs(dogs, PROPORTIONS, 1)


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


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train")])
def test_a_dog_in_two_splits_is_refused_whichever_comes_first(tmp_path, splits):
    film_folder(tmp_path, 2, dog=["rex", "rex"], split=splits)
    with pytest.raises(FilmErrors, match=f"dog rex is in split {splits[1]}, but"):
        film_files(tmp_path, None, PROPORTIONS, 0)
