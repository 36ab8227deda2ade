"""Landmarks and the Norberg angle against closed forms and symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_hipgen.radiograph.geometry import (
    LANDMARK_COLUMNS,
    Angles,
    Hip,
    Landmarks,
    fci_grade,
    norberg_angle,
    swap_sides,
)

FEW = settings(max_examples=50, deadline=None)
coordinate = st.floats(-500, 500)
angle = st.floats(20, 160)


def hip_at(x, y, radius, direction, reach):
    """Hip whose rim lies `reach` away in `direction` degrees, counted clockwise from +x."""
    theta = np.radians(direction)
    return Hip(x, y, radius, x + reach * np.cos(theta), y + reach * np.sin(theta))


def level_film(left, right, radius=20.0, distance=160.0):
    """Film with level heads and the given Norberg angles."""
    return Landmarks(
        hip_at(50.0, 100.0, radius, -left, 1.2 * radius),
        hip_at(50.0 + distance, 100.0, radius, 180 + right, 1.2 * radius),
    )


@pytest.mark.parametrize(
    "rim, expected", [((0, -1), 90), ((1, 0), 0), ((-1, 0), 180), ((-1, -1), 135)]
)
def test_angle_of_simple_triangles(rim, expected):
    assert norberg_angle((0, 0), (5, 0), rim) == pytest.approx(expected, abs=1e-12)


def test_angle_is_vectorised_and_nan_without_an_arm():
    heads = np.zeros((4, 3, 2))
    rims = np.zeros((4, 3, 2))
    rims[..., 1] = -1.0
    rims[0, 0] = 0.0
    angles = norberg_angle(heads, np.array([3.0, 0.0]), rims)
    assert angles.shape == (4, 3)
    assert np.isnan(angles[0, 0]) and np.isnan(angles).sum() == 1
    assert np.allclose(angles.ravel()[1:], 90)


@FEW
@given(angle, angle)
def test_film_built_from_angles_measures_them(left, right):
    angles = level_film(left, right).norberg_angles()
    assert angles.image_left == pytest.approx(left, abs=1e-9)
    assert angles.image_right == pytest.approx(right, abs=1e-9)


def test_moving_one_head_changes_both_angles():
    film = level_film(100, 95)
    array = film.to_array()
    array[0, 1] += 10
    moved = Landmarks.from_array(array).norberg_angles()
    assert abs(moved.image_left - 100) > 1 and abs(moved.image_right - 95) > 1


@FEW
@given(
    angle, angle, st.floats(-180, 180), st.floats(0.1, 10), coordinate, coordinate, st.booleans()
)
def test_similarity_keeps_angles(left, right, turn, scale, dx, dy, mirror):
    cos, sin = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
    sign = -1.0 if mirror else 1.0
    matrix = np.array([[cos * sign, -sin, dx], [sin * sign, cos, dy]])
    film = level_film(left, right)
    moved = film.transform(matrix)
    angles = moved.norberg_angles()
    expected = (right, left) if mirror else (left, right)
    assert (angles.image_left, angles.image_right) == pytest.approx(expected, abs=1e-7)
    assert moved.head_distance == pytest.approx(film.head_distance * scale)
    assert moved.image_left.head_radius == pytest.approx(20 * scale)


def test_flip_swaps_sides_and_is_its_own_inverse():
    film = level_film(100, 95)
    flipped = film.flip(301)
    assert flipped.image_left.head_x == 300 - film.image_right.head_x
    assert flipped.image_left.rim_y == film.image_right.rim_y
    angles = flipped.norberg_angles()
    assert angles.patient_left == pytest.approx(film.norberg_angles().patient_right)
    assert flipped.image_left.head_x < flipped.image_right.head_x
    assert np.allclose(flipped.flip(301).to_array(), film.to_array())


@pytest.mark.parametrize(
    "matrix",
    [
        [[2, 0, 0], [0, 1, 0]],
        [[1, 0.1, 0], [0, 1, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[np.nan, 0, 0], [0, 1, 0]],
        [[1, 0], [0, 1]],
    ],
)
def test_other_than_similarities_are_refused(matrix):
    with pytest.raises(ValueError):
        level_film(100, 95).transform(np.array(matrix, dtype=float))


def test_patient_sides():
    angles = Angles(image_left=98.0, image_right=102.5)
    assert (angles.patient_left, angles.patient_right) == (102.5, 98.0)
    assert Angles.of_patient(left=102.5, right=98.0) == angles


@FEW
@given(st.lists(st.tuples(angle, angle), min_size=1, max_size=5))
def test_sides_swap_as_angles_do_and_back(pairs):
    films = [Angles(*pair) for pair in pairs]
    of_patients = [(film.patient_left, film.patient_right) for film in films]
    for by_image in (np.array(pairs), torch.tensor(pairs, dtype=torch.float64)):
        assert swap_sides(by_image).tolist() == list(map(list, of_patients))
        assert swap_sides(swap_sides(by_image)).tolist() == by_image.tolist()
        assert torch.as_tensor(swap_sides(by_image)).shape == by_image.shape, "no negative strides"
    assert [Angles.of_patient(*pair) for pair in of_patients] == films


@FEW
@given(st.floats(0, 180), st.floats(0, 180))
def test_round_half(left, right):
    rounded = Angles(left, right).round_half()
    assert abs(rounded.image_left - left) <= 0.25 and (rounded.image_left * 2).is_integer()
    assert abs(rounded.image_right - right) <= 0.25 and (rounded.image_right * 2).is_integer()


def test_array_and_flat_round_trips():
    film = level_film(100, 95)
    assert Landmarks.from_array(film.to_array()) == film
    flat = film.flat()
    assert tuple(flat) == LANDMARK_COLUMNS and len(flat) == 10
    assert flat["image_right_rim_x"] == film.image_right.rim_x
    text = {key: repr(value) for key, value in flat.items()} | {"id": "x"}
    assert Landmarks.from_flat(text) == film


def test_bad_rows_name_the_column():
    flat = dict(level_film(100, 95).flat())
    with pytest.raises(ValueError, match="image_left_rim_y"):
        Landmarks.from_flat(flat | {"image_left_rim_y": "wide"})
    del flat["image_right_head_radius"]
    with pytest.raises(ValueError, match="image_right_head_radius"):
        Landmarks.from_flat(flat)
    with pytest.raises(ValueError):
        Landmarks.from_array(np.zeros((2, 4)))


def test_fci_bands():
    means = {
        "A": (107.3, 106.1),
        "B": (103.7, 103.3),
        "C": (98.5, 100.1),
        "D": (94.5,),
        "E": (89.1,),
    }
    for grade, values in means.items():
        assert all(fci_grade(value) == grade for value in values)
    grades = [fci_grade(value) for value in np.arange(60, 125, 0.5)]
    assert grades == sorted(grades, reverse=True)
    with pytest.raises(ValueError):
        fci_grade(-1)
