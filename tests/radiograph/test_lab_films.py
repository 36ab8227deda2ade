"""A lab's films: folds by dog, and scenes whose points stay on what they mark."""

from collections import Counter

import numpy as np
import pytest
from dicom_files import dicom
from films_with_markers import GREY, dot_ruler, marked_film
from PIL import Image

from hpc_hipgen.radiograph.film_set import FilmFile
from hpc_hipgen.radiograph.lab_films import (
    VIEWS,
    dog_folds,
    film_scenes,
    prepared_films,
    write_lab_films,
)
from hpc_hipgen.radiograph.scene_store import CLOSE_UP_SIZE, FILM_SIZE
from hpc_hipgen.rulers.cross_validation import hips_of
from hpc_hipgen.rulers.lab_ruler import measure_films


def test_dogs_are_dealt_whole_and_evenly():
    dogs = [f"dog-{n // 3}" for n in range(30)] + ["many"] * 9
    folds = dog_folds(dogs, 4, seed=1)
    assert set(folds) == set(dogs) and set(folds.values()) == {0, 1, 2, 3}
    films = Counter(folds[dog] for dog in dogs)
    assert max(films.values()) - min(films.values()) <= 3
    assert folds == dog_folds(dogs[::-1], 4, seed=1) != dog_folds(dogs, 4, seed=2)


def test_fewer_dogs_than_folds_are_refused():
    with pytest.raises(ValueError, match="5 folds need at least 5 dogs, the films are of 2"):
        dog_folds(["a", "b", "a"], 5, seed=0)


def centre(image, near, bright):
    """Centre of the dot within a few pixels of a point."""
    x, y = np.round(near).astype(int)
    part = image[y - 6 : y + 7, x - 6 : x + 7].astype(float) - GREY
    mass = np.clip(part if bright else -part, 0, None)
    steps = np.arange(-6, 7)
    return np.array([x + mass.sum(0) @ steps / mass.sum(), y + mass.sum(1) @ steps / mass.sum()])


def test_points_of_scenes_lie_on_what_they_mark():
    film, landmarks = marked_film(shape=(640, 800), turn=6.0)
    pairs = film_scenes(film, landmarks, np.random.default_rng(0))
    assert len(pairs) == VIEWS
    for shrunk, close_up in pairs:
        assert shrunk.image.shape == (FILM_SIZE, FILM_SIZE) and shrunk.present.all()
        assert shrunk.points[0, 0] < shrunk.points[1, 0], "the image's left comes first"
        for head in shrunk.points:
            assert np.abs(centre(shrunk.image, head, True) - head).max() < 0.5
        assert np.abs(close_up.points[0] - (CLOSE_UP_SIZE - 1) / 2).max() < 1e-6
        for point, bright in zip(close_up.points, (True, False), strict=True):
            assert np.abs(centre(close_up.image, point, bright) - point).max() < 0.5
    left, right = landmarks.norberg_angles().image_left, landmarks.norberg_angles().image_right
    for (_, close_up), true in zip(pairs, (left, right, left, right), strict=True):
        arm = close_up.points[1] - close_up.points[0]  # the other head lies to the right
        assert np.degrees(np.arctan2(-arm[1], arm[0])) == pytest.approx(true, abs=1e-6)


def test_films_are_learnt_from_and_measured_in_square_pixels_and_the_usual_way_round(tmp_path):
    film, landmarks = marked_film(angles=(90.0, 108.0))
    flat = np.asarray(Image.fromarray(film).resize((film.shape[1], film.shape[0] // 2)))
    attributes = {"PixelSpacing": [0.4, 0.2], "PatientOrientation": ["R", "F"]}
    dicom(flat, **attributes).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    file = FilmFile("a.dcm", "a", "train", tmp_path / "a.dcm", landmarks.stretch(0.5), 4)
    (tmp_path / "lab").mkdir()
    said = write_lab_films(tmp_path / "lab", [file], {"a": 0}, seed=0)
    assert "were mirrored with their landmarks: a.dcm" in said[0]
    assert (tmp_path / "lab" / "mirrored.csv").read_text() == "film\na.dcm\n"
    films = prepared_films(tmp_path / "lab")
    found = measure_films(tmp_path, dot_ruler(), films)
    for hip in hips_of(films, found, found):
        assert hip["annotated"] == pytest.approx(90 if hip["side"] == "left" else 108, abs=1e-3)
        assert hip["after_angle"] == pytest.approx(hip["annotated"], abs=0.8)
