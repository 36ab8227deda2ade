"""Sets of films: splits by dog, checks of real films."""

import json
from collections import Counter

import numpy as np
import pytest
from film_folder import LANDMARKS, PROPORTIONS, as_dicom, film_folder, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpc_hipgen.evaluation.samples import png
from hpc_hipgen.radiograph.film_set import film_files, phantom_films, split_dogs, unlisted_films
from hpc_hipgen.radiograph.films import FilmErrors
from hpc_hipgen.rulers.film_measuring import find_films


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


def test_where_films_are_learnt_from_it_is_said_that_no_dog_is_named(tmp_path, capsys):
    film_folder(tmp_path, 3, dog_id=["rex", "rex", "max"])
    note = f"note: {tmp_path}/landmarks.csv: no dog is named (column dog), so that every film "
    for proportions, said in ((PROPORTIONS, 1), ({"train": 1}, 1), ({"test": 1}, 0)):
        films = film_files(tmp_path, None, proportions, 0)
        found = capsys.readouterr().err
        assert found.count(note) == found.count("; not read: dog_id\n") == said
        assert len({film.dog for film in films}) == 3


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


@pytest.mark.parametrize("proportions", [PROPORTIONS, {"train": 1}, {"test": 1}])
def test_drawings_that_are_marked_are_no_films(tmp_path, proportions):
    """Whether they are to be learnt from, by a run or a lab's ruler, or measured."""
    rows = film_folder(tmp_path, 2)
    drawing = np.array(Image.open(tmp_path / "1.png"))
    (tmp_path / "1.png").write_bytes(png(drawing, synthetic=True))
    write_table(tmp_path, as_dicom(tmp_path, rows, "2.dcm", SyntheticData="YES"))
    with pytest.raises(FilmErrors) as caught:
        film_files(tmp_path, None, proportions, 0)
    said = "marked as synthetic: a drawing, no film of a patient; leave it out of the table"
    table = f"{tmp_path}/landmarks.csv"
    assert caught.value.lines == [f"{table} row 4: 1.png: {said}", f"{table} row 6: 2.dcm: {said}"]


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
    message = r"row 2: 0\.png: Norberg angle of the patient's right .*; leave the film out of the t"
    with pytest.raises(FilmErrors, match=message):
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


def test_a_film_that_is_mirrored_has_no_class_that_names_a_side(tmp_path):
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PatientOrientation=["R", "F"])
    write_table(tmp_path, [{**row, "prompt_class": 1} for row in rows])
    with pytest.raises(FilmErrors) as caught:
        film_files(tmp_path, None, {"test": 1}, 0)
    (line,) = caught.value.lines
    assert "row 4: 1.dcm is mirrored" in line and line.endswith("give it 4")


def test_captions_name_angles_in_square_pixels(tmp_path):
    rows = as_dicom(tmp_path, film_folder(tmp_path, 1), "1.dcm", PixelSpacing=[0.2, 0.1])[2:]
    rows[0].update(rim_x=86.0, rim_y=108.0)
    write_table(tmp_path, rows)
    (film,) = film_files(tmp_path, None, {"test": 1}, 0)
    assert film.nominal_angles().image_left < 125 < film.landmarks.norberg_angles().image_left


def test_even_angles_are_of_training_phantoms_alone_and_change_no_other():
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


def test_phantoms_of_different_splits_are_different_ones():
    films = phantom_films(0, {"train": 3, "validation": 3, "test": 3}, 64)
    assert len({film.index for film in films}) == 9


def test_the_seed_deals_the_dogs():
    dogs = [str(n) for n in range(30)]
    assert split_dogs(dogs, PROPORTIONS, 0) != split_dogs(dogs, PROPORTIONS, 1)


@pytest.mark.parametrize("splits", [("train", "test"), ("test", "train")])
def test_a_dog_in_two_splits_is_refused_whichever_comes_first(tmp_path, splits):
    film_folder(tmp_path, 2, dog=["rex", "rex"], split=splits)
    with pytest.raises(FilmErrors, match=f"dog rex is in split {splits[1]}, but"):
        film_files(tmp_path, None, PROPORTIONS, 0)
